// A snapshot of any bytes is restored, or refused with a sentence and nothing lost: the cache then has all its pages and goes on as ever. What is restored
// is saved again byte for byte, steps, rolls back and forks.
//
//   input   scheme, how, then for raw bytes the file itself, else edits of a snapshot that was saved: 12 bytes each
//   edit    where (2 bytes), what (1 of kinds, 1 unused), value (8)
//
// Checksums are mended after the edits where `how` says so: no fuzzer finds one. What a refusal leaves behind, a later look sees.
#include <cstdint>
#include <cstring>
#include <typeinfo>

#include "cellar/cellar.hpp"
#include "fuzz/memory_file.hpp"

using namespace cellar;

namespace {

enum how : unsigned { is_raw = 1, mends_header = 2, mends_layers = 4, fits_size = 8, looks_closely = 16 };

struct sealing : scheme::yakv_centred<8, float> {  // one-token blocks that learn, far blocks written while decoding
  static constexpr bool keeps_generated = false;
};
struct over_all_heads : scheme::yakv<8, f16> {
  using key_codec = cellar::codec::higgs<2, 256, 0, bf16, scope::all_heads>;
  using summary = cellar::summary::quantized_key<cellar::codec::higgs<4, 256, 0, bf16, scope::all_heads>>;
};
struct memory_tier : tier::basic_file<memory_file> {
  struct options {};
  static inline int tiers = 0;
  memory_tier(int layers, block_geometry const& g, i64 blocks, options const&) : basic_file(layers, g, blocks, {.path = "tier " + std::to_string(tiers++)}) {}
};
struct filed : scheme::mean_landmark<8, f16> {
  static constexpr bool keeps_generated = false;
  using tier = memory_tier;
};

/// What a refusal is; anything else that is thrown is a defect.
template <class F>
bool is_done(F const& f) {
  try {
    f();
    return true;
  } catch (precondition_error const&) {
  } catch (io_error const&) {
  }
  return false;
}

template <class Scheme>
class subject {
 public:
  static constexpr int d = Scheme::head_dim;

  subject()
      : cache_(on_, shape(), {.sequences = 2, .tokens = 80, .generated_tokens = 20, .far_tokens = 2 * memory_map<Scheme>::page_tokens},
               {.tokens = 16, .sinks = 2, .window = 4}) {
    auto const rows = [&](double phase) {
      std::vector<float> x(std::size_t(40 * 2 * d));
      for (std::size_t i = 0; i < x.size(); ++i) x[i] = float(std::sin(double(i) * 0.7 + phase));
      return x;
    };
    auto keys = rows(0), values = rows(1);
    auto const id = cache_.begin_prompt(prompt_staging<float>{keys.data(), values.data(), 40, 40});
    cache_.finish_prompt(on_, id);
    step(id);
    if (!Scheme::keeps_generated) cache_.truncate(on_, id, 23);  // codes that are kept
    cache_.template save<memory_file>(on_, id, good_path_);
    good_ = memory_file::disk[good_path_];
    expected_ = step(id);
    cache_.free(id);
    check_goes_on();
  }

  void run(unsigned how, std::uint8_t const* data, std::size_t size) {
    auto& file = memory_file::disk["fuzzed"];
    if (how & is_raw)
      file.assign(reinterpret_cast<std::byte const*>(data), reinterpret_cast<std::byte const*>(data) + size);
    else
      edit(file = good_, data, size);
    mend(file, how);
    sequence_id id{};
    if (is_done([&] { id = cache_.template restore<memory_file>(on_, "fuzzed"); })) {
      cache_.template save<memory_file>(on_, id, "again");
      require(memory_file::disk["again"] == file, "what is restored is saved again byte for byte");
      if (is_done([&] { plan(id); })) finish();
      if (how & looks_closely) {
        cache_.usage(id);
        sequence_id other{};
        require(is_done([&] { other = cache_.fork(on_, id); }), "a fork finds a sequence that is free");
        cache_.truncate(on_, other, (1 + cache_.length(id)) / 2);
        if (is_done([&] { plan(other); })) finish();
        cache_.free(other);
      }
      cache_.free(id);
    }
    if (how & looks_closely) check_goes_on();
  }

 private:
  static constexpr int layers = 1;

  static model_shape shape() {
    static double const frequencies[d / 2] = {1, 0.1, 0.01, 0.001};
    return {.layers = layers, .query_heads = 4, .kv_heads = 2, .head_dim = d, .rotary = {rotary_pairing::half_split, {frequencies, d / 2}}};
  }
  void plan(sequence_id id) {
    batch_entry const one{id, 1};
    cache_.plan(on_, {&one, 1});
  }
  /// A planned step is appended and attended: nothing that a plan accepts is refused later.
  std::vector<float> finish() {
    std::vector<float> k(2 * d, 0.5f), q(4 * d, -0.25f), out(q.size()), all;
    for (int layer = 0; layer < layers; ++layer) {
      cache_.append(on_, layer, packed_heads<float const>(k.data(), 1, 2, d), packed_heads<float const>(k.data(), 1, 2, d));
      cache_.attend(on_, layer, packed_heads<float const>(q.data(), 1, 4, d), packed_heads(out.data(), 1, 4, d));
      all.insert(all.end(), out.begin(), out.end());
    }
    return all;
  }
  std::vector<float> step(sequence_id id) {
    plan(id);
    return finish();
  }
  /// Two sequences take all pages that there are, and one steps as the one that was saved.
  void check_goes_on() {
    sequence_id const ids[]{cache_.template restore<memory_file>(on_, good_path_), cache_.template restore<memory_file>(on_, good_path_)};
    require(step(ids[1]) == expected_, "a step gives what it gave");
    for (auto const id : ids) cache_.free(id);
  }

  static i64 number(std::vector<std::byte> const& file, std::size_t at) {
    i64 x = 0;
    if (at + 8 <= file.size()) std::memcpy(&x, file.data() + at, 8);
    return x;
  }
  static void put(std::vector<std::byte>& file, std::size_t at, void const* x, std::size_t n) {
    if (at + n <= file.size()) std::memcpy(file.data() + at, x, n);
  }
  static void edit(std::vector<std::byte>& file, std::uint8_t const* data, std::size_t size) {
    for (; size >= 12 && !file.empty(); data += 12, size -= 12) {
      std::size_t const where = std::size_t(data[0] + 256 * data[1]), at = where % file.size();
      i64 value;
      std::memcpy(&value, data + 4, 8);
      switch (data[2] % 6) {
        case 0:
          file[at] ^= std::byte(data[4]);
          break;
        case 1:
          put(file, where % 26 * 8, &value, 8);
          break;  // a field of the header
        case 2:
          put(file, at, &value, 8);
          break;
        case 3:
          file.resize(at);
          break;
        case 4:
          file.resize(std::min<std::size_t>(file.size() + where, 1 << 18));
          break;
        case 5: {  // a field, a little more or less
          i64 const x = i64(std::uint64_t(number(file, where % 26 * 8)) + std::uint64_t(data[4]) - std::uint64_t(data[5]));
          put(file, where % 26 * 8, &x, 8);
        }
      }
    }
  }
  void mend(std::vector<std::byte>& file, unsigned how) {
    std::size_t const facts = snapshot_facts, fixed = 8 * (3 + facts + 5 + 1), header = std::size_t(std::clamp<i64>(number(good_, 16), 0, 4096));
    require(header > fixed && i64(header) == i64(fixed) + number(good_, fixed - 8) + 4, "this program knows the header");
    if (file.size() < header) return;
    auto const at = [&](std::size_t field) { return number(file, 8 * (3 + facts + field)); };
    snapshot_record const record{at(0), at(1), at(2), at(3), at(4)};
    auto const sum_at = [&](std::size_t begin, std::size_t end) {
      std::uint32_t const sum = checksum({file.data() + begin, i64(end - begin)});
      put(file, end, &sum, 4);
    };
    if (how & mends_header) sum_at(0, header - 4);
    bool const is_small = record.length >= 0 && record.length < 4096 && record.sealed >= 0 && record.sealed < 4096;
    if (!is_small || !(how & (fits_size | mends_layers))) return;
    auto const each = std::size_t(operation::detail::snapshot_layer_bytes<Scheme>(cache_.map(), record));
    if (each > 1 << 16) return;
    if (how & fits_size) file.resize(header + layers * each);
    for (std::size_t layer = 0; layer < std::size_t{layers} && (how & mends_layers); ++layer)
      if (header + (layer + 1) * each <= file.size()) sum_at(header + layer * each, header + (layer + 1) * each - 4);
  }

  std::string good_path_ = std::string("good ") + typeid(Scheme).name();  // a file of every scheme's
  host::executor on_;
  cache<Scheme> cache_;
  std::vector<std::byte> good_;
  std::vector<float> expected_;
};

template <class Scheme>
void run(unsigned how, std::uint8_t const* data, std::size_t size) {
  static subject<Scheme> one;
  one.run(how, data, size);
}

}  // namespace

extern "C" int LLVMFuzzerTestOneInput(std::uint8_t const* data, std::size_t size) {
  if (size < 2) return 0;
  void (*const schemes[])(unsigned, std::uint8_t const*, std::size_t) = {run<scheme::quest<8, float>>, run<scheme::yakv_centred<8, bf16>>, run<sealing>,
                                                                         run<over_all_heads>, run<filed>};
  schemes[data[0] % std::size(schemes)](data[1], data + 2, size - 2);
  return 0;
}
