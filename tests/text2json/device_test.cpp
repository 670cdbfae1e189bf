// The schemes of text2json on a device, by emulated blocks, against those on the host.
#include "catch.hpp"
#include "emulator/executor.hpp"
#include "engine/reference_model.hpp"
#include "text2json/scheme_of.hpp"

using namespace text2json;

namespace {

using some = compiled_for<"dense,yakv_centred,mean_landmark_outliers,sink_window", 16>;

}  // namespace

TEST_CASE("a scheme on a device gives what it gives on the host, and says the same of it") {
  reference_model m;
  m.kv_heads = 2;
  m.draw(2);
  std::string const bytes = m.file().bytes();
  engine::gguf_file const file(std::as_bytes(std::span(bytes)), "model");
  engine::model const model(file, 1);
  auto const& c = model.config();
  random_numbers r(8);
  engine::staged_prompt prompt;
  std::vector<int> text;
  for (int i = 0; i < 60; ++i) text.push_back(int(r.below(m.vocabulary)));
  model.prefill(text, prompt);
  for (std::string const name : {"dense", "yakv_centred", "mean_landmark_outliers", "sink_window"}) {
    INFO(name);
    allowance const allowed{24, 8};
    cellar::host::executor const host(model.threads());
    auto const here = make_scheme_on<some>(host, name, model, prompt, 2, 4, allowed);
    auto const there = make_scheme_on<some>(emulator::device<>(), name, model, prompt, 2, 4, allowed);
    for (std::vector<int> const& rows : {std::vector<int>{0, 1}, {1}, {0, 1}}) {
      here->plan(rows);
      there->plan(rows);
      auto const n = std::int64_t(rows.size());
      for (int layer = 0; layer < c.layers; ++layer) {
        auto const q = r.normals(n * c.heads * c.head_dim), k = r.normals(n * c.kv_width()), v = r.normals(n * c.kv_width());
        std::vector<float> expected(q.size()), got(q.size());
        here->attend(layer, q.data(), k.data(), v.data(), expected.data());
        there->attend(layer, q.data(), k.data(), v.data(), got.data());
        for (std::size_t i = 0; i < got.size(); ++i) REQUIRE(got[i] == Approx(expected[i]).margin(1e-4));
        for (int head = 0; head < c.kv_heads; ++head) CHECK(there->attended(head) == here->attended(head));
      }
    }
    document_result a, b;
    here->account(a);
    there->account(b);
    CHECK(b.length == a.length);
    CHECK(b.steps == a.steps);
    CHECK(b.work.attends == a.work.attends);
    CHECK(b.work.fetched_blocks == a.work.fetched_blocks);
    CHECK((b.work.moved_bytes > 0) == (name != "sink_window"));
    if (name == "dense" || name == "sink_window")
      CHECK(b.work.moved_bytes == a.work.moved_bytes);
    else
      CHECK(b.work.pool_hits + b.work.pool_misses == b.work.fetched_blocks);
  }
  CHECK_THROWS_WITH(make_scheme_on<some>(emulator::device<>(), "quest", model, prompt, 1, 4, {24, 8}), contains("compiled"));
  CHECK_THROWS_WITH(make_scheme_on<some>(emulator::device<>(), "nonsense", model, prompt, 1, 4, {24, 8}), contains("no scheme nonsense"));
}
