// The engine on a device: its own kernels under emulated blocks, and the products that it asks of a BLAS by the host's.
#include "engine/device_backend.hpp"

#include <cblas.h>

#include <cmath>

#include "catch.hpp"
#include "emulator/executor.hpp"
#include "engine/model.hpp"
#include "engine/reference_model.hpp"

namespace {

struct host_blas {
  void multiply(bool is_a_transposed, bool is_b_transposed, std::int64_t m, std::int64_t n, std::int64_t k, float alpha, float const* a, std::int64_t lda,
                float const* b, std::int64_t ldb, float* c, std::int64_t ldc) const {
    cblas_sgemm(CblasColMajor, is_a_transposed ? CblasTrans : CblasNoTrans, is_b_transposed ? CblasTrans : CblasNoTrans, int(m), int(n), int(k), alpha, a,
                int(lda), b, int(ldb), 0, c, int(ldc));
  }
};

std::unique_ptr<engine::backend> emulated_backend() {
  return std::make_unique<engine::device_backend<emulator::device<>, host_blas>>(emulator::device<>(), host_blas());
}

}  // namespace

TEST_CASE("every kind of model gives on a device what it gives on the host, in one prompt after another") {
  random_numbers r(3);
  for (auto const& [name, reference] : reference_models()) {
    INFO(name);
    std::string const bytes = reference.file().bytes();
    engine::gguf_file const file(std::as_bytes(std::span(bytes)), name);
    engine::model const on_host(file, 1), on_device(file, 1, emulated_backend());
    for (int const tokens : {5, 40, 23}) {
      std::vector<int> text;
      for (int i = 0; i < tokens; ++i) text.push_back(int(r.below(reference.vocabulary)));
      engine::staged_prompt here, there;
      auto const expected = on_host.prefill(text, here), got = on_device.prefill(text, there);
      REQUIRE(got.size() == expected.size());
      for (std::size_t i = 0; i < got.size(); ++i) REQUIRE(got[i] == Approx(expected[i]).margin(1e-4));
      for (std::size_t i = 0; i < here.keys.size(); ++i) REQUIRE(there.keys[i] == Approx(here.keys[i]).margin(1e-4));
    }
  }
}

TEST_CASE("a prompt's attention on a device goes on from chunk to chunk, also where a layer skipped some, and forgets the prompt before") {
  cellar::host::thread_pool threads(1);
  random_numbers r(4);
  int constexpr heads = 6, kv_heads = 2, d = 8;
  for (std::int64_t const window : {0, 1, 7, 30}) {
    auto const device = emulated_backend();
    for (int const prompt : {0, 1}) {
      std::int64_t constexpr tokens = 50;
      auto const k = r.normals(tokens * kv_heads * d), v = r.normals(tokens * kv_heads * d);
      device->begin_prompt();
      for (auto const& [first, rows] : {std::pair{0, 9}, {9, 20}, {29, 21}})
        for (int layer = first == 9 ? 1 : 0; layer < 2; ++layer) {
          INFO("window " << window << ", prompt " << prompt << ", first " << first << ", layer " << layer);
          auto const q = r.normals(std::int64_t(rows) * heads * d);
          std::vector<float> expected(q.size()), got(q.size());
          engine::causal_attention({heads, kv_heads, d}, q.data(), rows, first, k.data(), v.data(), expected.data(), threads, window);
          device->prompt_attention(layer, {heads, kv_heads, d}, q.data(), rows, first, k.data(), v.data(), got.data(), window);
          for (std::size_t i = 0; i < got.size(); ++i) REQUIRE(got[i] == Approx(expected[i]).margin(1e-5));
        }
    }
  }
}
