// Snapshots and file tiers that fuzzing found.
#include "fuzz/memory_file.hpp"
#include "fuzz/replay.hpp"

extern "C" int fuzz_snapshot(std::uint8_t const* data, std::size_t size);
extern "C" int fuzz_file_tier(std::uint8_t const* data, std::size_t size);

namespace {

std::string little(std::uint64_t x, int bytes) {
  std::string s;
  for (int i = 0; i < bytes; ++i) s += char(x >> 8 * i & 255);
  return s;
}
/// How the checksums are mended, and edits: of tests/fuzz/snapshot.cpp.
enum : unsigned { raw = 1, mends_header = 2, mends_all = 6, fits_size = 8, looks_closely = 16 };
enum : unsigned { flip, field, number, cut, extend, shift };
std::string edit(unsigned where, unsigned what, std::uint64_t value) { return little(where, 2) + little(what, 2) + little(value, 8); }
enum : unsigned { prompt_tokens = 3 + snapshot_facts, length, sealed, kept_tokens, selected_blocks, name_bytes };

fuzz::inputs snapshot_seeds() {
  fuzz::inputs seeds;
  char const* const schemes[]{"quest", "yakv_centred", "sealing", "over_all_heads", "filed"};
  for (unsigned i = 0; i < 5; ++i) {
    std::string const mended = little(i, 1) + little(mends_all | fits_size | looks_closely, 1), scheme = schemes[i];
    seeds[scheme + "_as_it_is"] = little(i, 1) + little(looks_closely, 1);
    seeds[scheme + "_damaged"] = little(i, 1) + little(looks_closely, 1) + edit(700, flip, 3);
    seeds[scheme + "_of_a_lie"] = little(i, 1) + little(mends_all | looks_closely, 1) + edit(400, number, 0x7fc00000ff800000u);
    seeds[scheme + "_shorter"] = mended + edit(length, field, 7) + edit(prompt_tokens, field, 7) + edit(sealed, field, 0) + edit(kept_tokens, field, 0);
    seeds[scheme + "_longer"] = mended + edit(length, field, 70) + edit(sealed, shift, 1);
    seeds[scheme + "_selects_all"] = mended + edit(selected_blocks, field, ~std::uint64_t{0} >> 1);
    seeds[scheme + "_cut"] = little(i, 1) + little(looks_closely, 1) + edit(300, cut, 0);
  }
  seeds["huge_name"] =
      little(0, 1) + little(mends_header | looks_closely, 1) + edit(name_bytes, field, std::uint64_t{1} << 62) + edit(2, field, std::uint64_t{1} << 62);
  seeds["raw"] = little(0, 1) + little(raw | looks_closely, 1) + "CLLSNAP1" + std::string(300, '\1');
  return seeds;
}

fuzz::inputs file_tier_seeds() {
  auto const op = [](unsigned what, unsigned run, unsigned argument) { return little(what, 1) + little(run, 2) + little(argument, 1); };
  std::string const small = little(0x00, 1) + little(1, 1) + little(2, 1) + little(0x5c, 1),
                    shared = little(0xc1, 1) + little(2, 1) + little(1, 1) + little(0x37, 1);
  fuzz::inputs seeds;
  for (auto const& [name, head] : fuzz::inputs{{"small", small}, {"shared", shared}}) {
    seeds[name + "_stored"] = head + op(0, 1, 5) + op(2, 1, 0) + op(0, 1, 9) + op(2, 1, 0) + op(2, 0, 0);
    seeds[name + "_damaged"] = head + op(0, 1, 5) + op(5, 1, 3) + op(2, 1, 0) + op(0, 1, 6) + op(2, 1, 0);
    seeds[name + "_faults"] =
        head + op(0, 3, 5) + op(1 + 8, 3, 6) + op(2, 3, 0) + op(1 + 16, 3, 7) + op(2, 3, 0) + op(1 + 24, 3, 8) + op(2, 3, 0) + op(4, 3, 0);
    seeds[name + "_misplaced"] = head + op(0, 0, 5) + op(0, 1, 6) + op(6, 0, 1) + op(2, 0, 0) + op(2, 1, 0);
    seeds[name + "_short"] = head + op(0, 1, 5) + op(7, 1, 2) + op(2, 1, 0) + op(7, 0, 1) + op(2, 1, 0) + op(0, 1, 5) + op(2, 1, 0);
  }
  return seeds;
}

}  // namespace

TEST_CASE("the seeds of fuzzed snapshots and file tiers are what the tests make") {
  fuzz::check_seeds("snapshot", snapshot_seeds());
  fuzz::check_seeds("file_tier", file_tier_seeds());
}

TEST_CASE("snapshots that fuzzing found are restored or refused, and nothing is lost") { fuzz::replay("snapshot", fuzz_snapshot); }

TEST_CASE("orders of stores, fetches and damage that fuzzing found give what was stored, or an error") { fuzz::replay("file_tier", fuzz_file_tier); }
