// The library's bodies under emulated blocks do what they do under the serial team, which has tests of its own.
#include <atomic>
#include <cmath>
#include <cstring>
#include <memory>
#include <typeinfo>
#include <vector>

#include "catch.hpp"
#include "cellar/cellar.hpp"
#include "cellar/operation/attend_span.hpp"
#include "eigensolver.hpp"
#include "emulator/emulator.hpp"
#include "random.hpp"

using namespace cellar;

namespace {

constexpr int d = 64;

/// Runs body(team) in blocks of several sizes and orders; `same` compares with the serial run.
template <class Body, class Same>
void for_teams(Body const& body, Same const& same) {
  for (int const threads : {32, 64, 128, 256})
    for (auto const& order : {emulator::forward, emulator::backward, emulator::shuffled(17), emulator::shuffled(18)}) {
      INFO("threads " << threads << ", " << emulator::name_of(order));
      emulator::launch({.threads = threads, .shared_bytes = 32768, .order = order}, body);
      same();
    }
}

/// Every member reads what others wrote, right after a body: a missing last barrier is a race, or reads the old.
template <class T>
void seen_by_others(emulator::team const& t, T const* x, i64 count) {
  for (i64 i = (t.rank() + 1) % t.size(); i < count; i += t.size()) static_cast<void>(*static_cast<T const volatile*>(x + i));
}

/// The same bytes on the heap as the serial run left, and room that sanitizers watch.
using bytes = std::vector<std::byte>;

std::vector<double> const& frequencies() {
  static std::vector<double> const f = [] {
    std::vector<double> x;
    for (int i = 0; i < d / 2; ++i) x.push_back(std::pow(1e4, -2.0 * i / d));
    return x;
  }();
  return f;
}
rotary const embedding{rotary_pairing::half_split, {frequencies().data(), d / 2}};

template <class Policy>
Policy bound(Policy p, std::byte const* state, i64 position) {
  if constexpr (rotary_aware<Policy>) p = p.with(embedding);
  if constexpr (trained<Policy>) p = p.bind(state);
  if constexpr (positional<Policy>) p = p.at(position);
  return p;
}

/// A state for a policy, trained by the serial team; and training by blocks gives the same, but for rounding.
template <class Policy>
bytes trained_state(Policy const& policy, std::vector<float> const& keys) {
  bytes state(16);
  if constexpr (trained<Policy>) {
    auto p = bound(policy, nullptr, 0);
    bytes scratch;
    if constexpr (trains_in_scratch<Policy>) {
      scratch.resize(std::size_t(p.train_scratch_bytes(d)));
      p = p.with_scratch(scratch.data());
    }
    state.resize(std::size_t(p.state_bytes(d)));
    serial_team serial;
    p.train(serial, rows_of<d>(keys), 3, state.data());
    bytes other(state.size());
    for_teams([&](auto& t) { p.train(t, rows_of<d>(keys), 3, other.data()); },
              [&] {
                for (std::size_t i = 0; i < state.size() / sizeof(float); ++i)
                  REQUIRE(reinterpret_cast<float*>(other.data())[i] == Approx(reinterpret_cast<float*>(state.data())[i]).margin(1e-6));
                if constexpr (requires { policy.map; }) REQUIRE(other == state);  // numbers of channels too
                std::fill(other.begin(), other.end(), std::byte{0xee});
              });
  }
  return state;
}

template <class Codec>
void check_codec() {
  random_numbers r(1);
  i64 const rows = 80;
  auto const x = r.normals(rows * d, 2);
  auto const state = trained_state(Codec{}, x);
  auto const coder = bound(Codec{}, state.data(), 100);
  row_bytes const size = coder.bytes(d);
  i64 const groups = rows / Codec::token_group;
  bytes codes(std::size_t(groups * size.codes)), scales(std::size_t(groups * size.scales)), codes2(codes.size()), scales2(scales.size());
  std::vector<float> y(x.size()), y2(x.size());
  serial_team serial;
  coder.encode(serial, rows_of<d>(x), row_parts<std::byte>{codes.data(), scales.data(), size.codes, size.scales});
  coder.decode(serial, row_parts<std::byte const>{codes.data(), scales.data(), size.codes, size.scales}, rows_of<d>(y));
  for_teams(
      [&](auto& t) {
        coder.encode(t, rows_of<d>(x), row_parts<std::byte>{codes2.data(), scales2.data(), size.codes, size.scales});
      },
      [&] {
        REQUIRE(codes2 == codes);
        REQUIRE(scales2 == scales);
        std::fill(codes2.begin(), codes2.end(), std::byte{0xee});
      });
  for_teams(
      [&](auto& t) {
        coder.decode(t, row_parts<std::byte const>{codes.data(), scales.data(), size.codes, size.scales}, rows_of<d>(y2));
      },
      [&] {
        REQUIRE(y2 == y);
        std::fill(y2.begin(), y2.end(), -1.f);
      });
}

template <class Summary>
void check_summary(int block_tokens) {
  random_numbers r(2);
  i64 const blocks = Summary::tile_blocks - 3, count = 3;
  auto const keys = r.normals(blocks * block_tokens * d, 2), queries = r.normals(count * d);
  auto const state = trained_state(Summary{}, keys);
  auto summary = bound(Summary{}, state.data(), 40);
  if constexpr (block_aware<Summary>) summary = summary.of_blocks(block_tokens);
  bytes tile(std::size_t(summary.tile_bytes(d))), prepared(std::size_t(summary.prepared_bytes(count, d)) + 16),
      scratch(std::size_t(summary.scratch_bytes(d)) + 16);
  bytes tile2(tile.size()), prepared2(prepared.size());
  std::vector<float> scores(std::size_t(count * Summary::tile_blocks)), scores2(scores.size());
  auto const build = [&](auto& t, bytes& to) { summary.build(t, rows_of<d>(keys), blocks, to.data(), 0); };
  auto const prepare = [&](auto& t, bytes& to) { summary.prepare(t, rows_of<d>(queries), prepared_queries<std::byte, d>{to.data(), count, scratch.data()}); };
  auto const score = [&](auto& t, std::vector<float>& to) {
    summary.score_tile(t, prepared_queries<std::byte const, d>{prepared.data(), count, scratch.data()}, tile.data(),
                       matrix_view<float>{to.data(), count, Summary::tile_blocks, Summary::tile_blocks});
  };
  serial_team serial;
  build(serial, tile);
  prepare(serial, prepared);
  score(serial, scores);
  for_teams([&](auto& t) { build(t, tile2); },
            [&] {
              REQUIRE(tile2 == tile);
              std::fill(tile2.begin(), tile2.end(), std::byte{0});
            });
  for_teams([&](auto& t) { prepare(t, prepared2); },
            [&] {
              REQUIRE(prepared2 == prepared);
              std::fill(prepared2.begin(), prepared2.end(), std::byte{0});
            });
  for_teams(
      [&](auto& t) {
        score(t, scores2);
        seen_by_others(t, scores2.data(), i64(scores2.size()));
        t.sync();
        score(t, scores2);  // again: the scratch is free
      },
      [&] {
        for (i64 h = 0; h < count; ++h)
          for (i64 b = 0; b < blocks; ++b)
            REQUIRE(scores2[std::size_t(h * Summary::tile_blocks + b)] == Approx(scores[std::size_t(h * Summary::tile_blocks + b)]).margin(1e-4));
        std::fill(scores2.begin(), scores2.end(), -1.f);
      });
}

}  // namespace

TEST_CASE("codecs encode and decode in blocks as they do in series") {
  check_codec<codec::identity<float>>();
  check_codec<codec::identity<f16>>();
  check_codec<codec::identity<bf16>>();
  check_codec<codec::higgs<4, 256>>();
  check_codec<codec::higgs<2, 256, 1>>();
  check_codec<codec::higgs<2, 16>>();
  check_codec<codec::fp8_e4m3<>>();
  check_codec<codec::fp8_e4m3<codec::unscaled>>();
  check_codec<codec::int8<>>();
  check_codec<codec::int4<32>>();
  check_codec<codec::int4<48, bf16>>();
  check_codec<codec::nvfp4>();
  check_codec<codec::signs<>>();
  check_codec<codec::centred<codec::higgs<2, 256, 1>, codec::rotated_mean>>();
  check_codec<codec::centred<codec::higgs<2, 256>, codec::block_mean<16>>>();
  check_codec<codec::before_rotary<codec::higgs<2, 256>>>();
}

TEST_CASE("summaries build, prepare and score in blocks as they do in series") {
  check_summary<summary::mean<>>(8);
  check_summary<summary::min_max<>>(16);
  check_summary<summary::box_digest<>>(16);
  check_summary<summary::quantized_key<codec::identity<f16>>>(1);
  check_summary<summary::quantized_key<codec::higgs<4, 256>>>(1);
  check_summary<summary::quantized_key<codec::higgs<2, 16, 1>>>(8);
  check_summary<summary::quantized_key<codec::fp8_e4m3<>>>(1);
  check_summary<summary::quantized_key<codec::int8<>>>(4);
  check_summary<summary::quantized_key<codec::int4<>>>(1);
  check_summary<summary::quantized_key<codec::nvfp4>>(1);
  check_summary<summary::quantized_key<codec::centred<codec::higgs<4, 256, 1>, codec::rotated_mean>>>(1);
  check_summary<summary::quantized_key<codec::centred<codec::higgs<4, 256, 1>, codec::rotated_mean>>>(4);
  check_summary<summary::quantized_key<codec::centred<codec::higgs<4, 256>, codec::block_mean<64>>>>(1);
  check_summary<summary::residual<codec::higgs<2, 256>, codec::higgs<4, 256>, 64>>(1);
  check_summary<summary::residual<codec::identity<bf16>, codec::int4<>, 8>>(4);
  check_summary<summary::quantized_key<codec::signs<>>>(1);
  check_summary<summary::by_largest_channels<16, summary::mean<>>>(1);
  check_summary<summary::by_largest_channels<16, summary::quantized_key<codec::int8<>>>>(4);
  check_summary<summary::mapped<summary::label_channels<codec::fixed_rank<6>>, summary::quantized_key<codec::int4<>>>>(1);
  check_summary<summary::mapped<summary::label_channels<codec::fixed_rank<6>>, summary::mean<>>>(8);
  check_summary<summary::mapped<summary::around_mean, summary::quantized_key<codec::signs<>>>>(1);
  check_summary<summary::mapped<summary::principal_axes<codec::fixed_rank<16>, jacobi_eigensolver>, summary::mean<>>>(1);
}

namespace {

template <class Selector>
void check_selector(Selector const& selector, std::vector<float> const& scores) {
  i64 const n = i64(scores.size());
  row_view<float const> const view{scores.data(), n};
  std::vector<logical_block> ids(std::size_t(selector.max_selected(n)), logical_block{-9}), ids2 = ids;
  bytes scratch(4096);
  serial_team serial(scratch.data(), 4096);
  i64 const count = selector(serial, view, row_view<logical_block>{ids.data(), i64(ids.size())});
  std::vector<i64> counts(256);
  for_teams(
      [&](auto& t) {
        counts[t.rank()] = selector(t, view, row_view<logical_block>{ids2.data(), i64(ids2.size())});
        seen_by_others(t, ids2.data(), i64(ids2.size()));
      },
      [&] {
        REQUIRE(ids2 == ids);
        for (std::size_t i = 0; i < 32; ++i) REQUIRE(counts[i] == count);
        std::fill(counts.begin(), counts.end(), -9);
        std::fill(ids2.begin(), ids2.end(), logical_block{-9});
      });
}

}  // namespace

TEST_CASE("threshold, top_p and at_least select in blocks exactly what they select in series") {
  random_numbers r(7);
  for (i64 const n : {1, 31, 33, 500, 3000})
    for (i64 const k : {i64{0}, i64{1}, (n + 1) / 8, n}) {
      auto scores = r.normals(n, 3);
      if (n > 100)
        for (i64 i = 0; i < n; i += 3) scores[std::size_t(i)] = i % 2 ? 2.5f : i % 5 ? -infinity : std::nanf("");
      check_selector(select::threshold<>{}.with_budget(k), scores);
      check_selector(select::top_p<>{}.with_budget(k), scores);
      check_selector(select::at_least<std::ratio<2>>{}.with_budget(k), scores);
      auto shares = scores;
      for (float& x : shares) x = 1.2f * x - 9;
      check_selector(select::until_missed<>{}.with_budget(k), shares);
      check_selector(select::until_missed<std::ratio<1, 3>, std::ratio<0>>{}.with_budget(k), shares);
      check_selector(select::top_p<std::ratio<1, 3>>{}.with_budget(k), std::vector<float>(std::size_t(n), 1.0f));
    }
  check_selector(select::threshold<>{}.with_budget(9), std::vector<float>(40, std::nanf("")));
  check_selector(select::top_p<>{}.with_budget(9), std::vector<float>(40, std::nanf("")));
  check_selector(select::at_least<std::ratio<2>>{}.with_budget(9), std::vector<float>(40, std::nanf("")));
}

TEST_CASE("top_k in blocks: scores that no cell tells apart, more of them than a cell has room for, infinities, NaN, and numbers at the ends of f32") {
  random_numbers r(9);
  auto const check = [](std::vector<float> const& scores) {
    for (i64 const k : {i64{1}, i64(scores.size()) / 3, i64(scores.size()) - 1, i64(scores.size())}) check_selector(select::top_k{}.with_budget(k), scores);
  };
  std::vector<float> crowd = r.normals(5000, 1e-6f);  // all but two in one cell
  crowd[77] = 1000;
  crowd[4001] = -1000;
  check(crowd);
  check(std::vector<float>(700, -0.0f));
  check(std::vector<float>(300, std::nanf("")));
  check(std::vector<float>(300, infinity));
  std::vector<float> ends = r.normals(1000);
  for (std::size_t i = 0; i < ends.size(); i += 7) ends[i] = i % 2 ? infinity : -infinity;
  for (std::size_t i = 3; i < ends.size(); i += 11) ends[i] = std::nanf("");
  check(ends);
  ends[500] = largest<float>;
  ends[501] = -largest<float>;  // their difference is no number
  check(ends);
  check({1e-45f, 0.0f, 3e-45f, -1e-45f, 2e-38f});
}

TEST_CASE("top_k and all select in blocks exactly what they select in series") {
  random_numbers r(3);
  for (i64 const n : {1, 31, 32, 33, 500, 5000})
    for (i64 const k : {i64{0}, i64{1}, (n + 1) / 2, n, n + 5}) {
      auto scores = r.normals(n);
      if (n > 100)
        for (i64 i = 0; i < n; i += 3) scores[std::size_t(i)] = i % 2 ? 0.5f : i % 5 ? -infinity : std::nanf("");
      row_view<float const> const view{scores.data(), n};
      auto const selector = select::top_k{}.with_budget(k);
      std::vector<logical_block> ids(std::size_t(selector.max_selected(n))), ids2(ids.size());
      bytes scratch(4096);
      serial_team serial(scratch.data(), 4096);
      i64 const count = selector(serial, view, row_view<logical_block>{ids.data(), i64(ids.size())});
      std::vector<i64> counts(256);
      for_teams(
          [&](auto& t) {
            counts[t.rank()] = selector(t, view, row_view<logical_block>{ids2.data(), i64(ids2.size())});
          },
          [&] {
            REQUIRE(ids2 == ids);
            for (std::size_t i = 0; i < 32; ++i) REQUIRE(counts[i] == count);
            std::fill(counts.begin(), counts.end(), -9);
            std::fill(ids2.begin(), ids2.end(), logical_block{-9});
          });
      std::vector<logical_block> everything(static_cast<std::size_t>(n));
      for_teams(
          [&](auto& t) {
            select::all{}(t, view, row_view<logical_block>{everything.data(), n});
          },
          [&] {
            for (i64 i = 0; i < n; ++i) REQUIRE(number(everything[std::size_t(i)]) == i);
            std::fill(everything.begin(), everything.end(), logical_block{-9});
          });
    }
}

TEST_CASE("reductions of a group agree in blocks and in series") {
  random_numbers r(4);
  for (i64 const n : {1, 33, 700})
    for (i64 const group : {1, 3, 7}) {
      auto rows = r.normals(group * n, 8);
      if (n == 700)
        for (i64 i = 0; i < n; i += 50) rows[std::size_t(i)] = i % 100 ? -infinity : std::nanf("");  // of the first row: summaries that overflowed
      matrix_view<float const> const view{rows.data(), group, n, n};
      auto const check = [&](auto const& reduction) {
        std::vector<float> out(static_cast<std::size_t>(n)), out2(out.size());
        serial_team serial;
        reduction(serial, view, row_view<float>{out.data(), n});
        for_teams(
            [&](auto& t) {
              reduction(t, view, row_view<float>{out2.data(), n});
            },
            [&] {
              for (std::size_t i = 0; i < out.size(); ++i)
                REQUIRE(((std::isnan(out[i]) && std::isnan(out2[i])) || out[i] == out2[i] || out2[i] == Approx(out[i]).margin(1e-5)));
              std::fill(out2.begin(), out2.end(), -1.f);
            });
      };
      check(select::max_of_softmaxes{});
      check(select::mean_of_softmaxes{});
      check(select::sum_of_logits{});
      check(select::max_of_logits{});
      check(select::mean_query{});
      auto const near = r.normals(group, 8);
      check([&](auto& t, matrix_view<float const> some, row_view<float> out) { select::max_of_attention{}(t, some, out, near_attention{near.data(), 4}); });
    }
}

namespace {

template <class Scheme>
inline constexpr i64 tokens_of = 200;
template <class Scheme>
  requires requires { Scheme::test_tokens; }
inline constexpr i64 tokens_of<Scheme> = Scheme::test_tokens;

/// One sequence's memory of a scheme in one layer, with shuffled pages.
template <class Scheme>
struct one_sequence {
  static constexpr i64 tokens = tokens_of<Scheme>, sinks = 2, window = 20;
  memory_map<Scheme> map{{.layers = 1, .query_heads = 6, .kv_heads = 2, .head_dim = d, .softmax_scale = 0, .rotary = embedding},
                         sinks,
                         tokens,
                         Scheme::outliers::keeps_outliers ? 4 : 0};
  i64 sealed = (tokens - sinks - window) / Scheme::block_tokens;
  std::vector<page_id> pages;
  typename Scheme::layout layout;
  bytes far, summaries, near, state, outliers;

  one_sequence() {
    i64 const count = ceil_div(sealed, memory_map<Scheme>::page_blocks);
    for (i64 i = 0; i < count; ++i) pages.push_back(page_id((i * 5 + 2) % count == i ? i : count - 1 - i));
    layout = {map.geometry(), count * memory_map<Scheme>::page_blocks};
    far.resize(std::size_t(layout.bytes()));
    summaries.resize(std::size_t(count * map.summary_page()));
    near.resize(std::size_t(map.near_sequence()));
    state.resize(std::size_t(map.state_sequence()) + 16);
    outliers.resize(std::size_t(map.outlier_sequence()), std::byte{0xff});  // ids of -1
  }
  sequence_view<Scheme> view() {
    return {map, {layout, far.data(), summaries.data(), near.data(), state.data(), outliers.data()}, 0, {pages.data(), i64(pages.size())}};
  }
};

/// The form for a device: any number of spans, each of several chunks, merged, gives what `attend` gave.
template <class Scheme>
void check_spans(one_sequence<Scheme>& from, int head, sequence_step const& step, row_view<logical_block const> chosen, bool every,
                 matrix_view<float const, d> queries, operation::attend_rest<Scheme> rest, std::vector<float> const& expected,
                 operation::row_samples const& samples) {
  using sizes = operation::span_sizes<Scheme, 8>;
  using partials = operation::span_partials<Scheme>;
  auto const view = from.view();
  i64 const rows = queries.rows, blocks = operation::attended_blocks(view, step, chosen, every);
  REQUIRE(rows <= 8);
  struct cut {
    int spans;
    i64 late;
  };
  std::vector<cut> cuts{{1, 0}, {3, 0}, {operation::most_spans, 0}};
  if (blocks > 0)
    for (i64 const late : {i64{1}, blocks / 2, blocks}) cuts.insert(cuts.end(), {{2, late}, {3, late}, {operation::most_spans, late}});
  for (auto const [spans, late] : cuts) {
    bytes memory(std::size_t(partials::bytes(rows, spans)), std::byte{0xff});
    auto const to = partials::at(memory.data(), rows, spans);
    std::vector<float> out(expected.size(), -1);
    std::atomic<i64> strangers = 0;  // members are threads to a sanitizer
    auto const attend = [&, late = late](bool is_late) {
      auto const body = [&](auto& t) {
        operation::attend_span<8>(
            t, view, head, step, chosen, every, {int(t.block()), late, is_late}, [&](int r, int c) { return queries(r, c); }, 0, int(rows),
            rows / step.new_tokens, to,
            [&](i64 i, logical_block block) -> block_parts<std::byte const> {
              strangers += (i >= blocks - late) != is_late;
              return view.far_block(block, head);
            },
            samples);
      };
      emulator::launch({.threads = 64, .blocks = spans, .shared_bytes = sizes::shared_bytes, .order = emulator::shuffled(std::uint64_t(spans))}, body);
    };
    attend(false);
    if (late > 0) attend(true);
    CHECK(strangers == 0);
    int const filled = operation::key_list<Scheme, sizes::chunk>::of(view, head, step, blocks, late).filled_spans(spans);
    std::vector<float> missed(static_cast<std::size_t>(rows), -1.f);
    auto const by_spans = [&] {
      auto r = rest;
      if (r.missed) r.missed = missed.data();
      return r;
    }();
    emulator::launch({.threads = 64, .shared_bytes = operation::finish_bytes<Scheme, 8>}, [&](auto& t) {
      operation::finish_spans<8>(t, view, head, to, filled, 0, int(rows), by_spans, [&](i64 row, int c, float x) { out[std::size_t(row * d + c)] = x; });
    });
    INFO(typeid(Scheme).name() << ": " << spans << " spans, " << filled << " of them filled, " << late << " blocks late, every " << every << ", head " << head);
    for (std::size_t i = 0; i < out.size(); ++i) REQUIRE(out[i] == Approx(expected[i]).margin(2e-5));
    if (Scheme::estimates_missed && rest.missed)
      for (i64 r = 0; r < rows; ++r) REQUIRE(missed[std::size_t(r)] == Approx(rest.missed[r]).margin(2e-6));
  }
}

/// Mean values of classes are the same to the last bit in any team, weights and sums up to rounding.
template <class Scheme, class Value>
void check_remainder(one_sequence<Scheme>& a, one_sequence<Scheme>& b, int head, sequence_step const& step, matrix_view<float const> logits,
                     Value const& value) {
  using space_type = operation::class_workspace<Scheme>;
  serial_team serial;
  bytes space(std::size_t(space_type::bytes())), space2(space.size(), std::byte{0xff});
  if constexpr (space_type::is_needed) {
    std::vector<std::uint32_t> words(std::size_t(space_type::words_to_learn(a.sealed)));
    int room[4];
    serial_team with_room(reinterpret_cast<std::byte*>(room), sizeof room);
    operation::learn_class_values(with_room, a.view(), head, a.sealed, value, words.data());
    auto const values = [&](one_sequence<Scheme>& of) {
      float const* const first = of.view().mean_value(head);
      return std::vector<float>(first, first + i64{space_type::classes} * d);
    };
    auto const expected = values(a);
    i64 known = 0;
    for (float const x : expected) known += is_finite(x);
    INFO(typeid(Scheme).name());
    REQUIRE(known > 2 * d);
    REQUIRE(known < i64(expected.size()));
    for_teams(
        [&](auto& t) {
          operation::learn_class_values(t, b.view(), head, b.sealed, value, words.data());
          seen_by_others(t, b.view().mean_value(head), i64{space_type::classes} * d);
        },
        [&] {
          REQUIRE(std::memcmp(values(b).data(), expected.data(), expected.size() * sizeof(float)) == 0);
          std::fill_n(b.view().mean_value(head), i64{space_type::classes} * d, -1.0f);
          std::fill(words.begin(), words.end(), ~0u);
        });
    std::copy(expected.begin(), expected.end(), b.view().mean_value(head));
  }
  std::vector<logical_block> ids;
  for (i64 i = 2; i < a.sealed; i += 1 + i % 2) ids.push_back(logical_block(i));
  row_view<logical_block const> const chosen{ids.data(), i64(ids.size())};
  std::vector<attention::softmax_state> states(6), states2(6);
  std::vector<float> sums(6 * d), sums2(6 * d, -1);
  std::vector<float> clean(logits.data, logits.data + logits.rows * logits.stride);
  if constexpr (!space_type::is_needed) {  // logits that are no numbers have no part; the last row has no others
    clean[0] = infinity;
    clean[std::size_t(logits.stride)] = undefined;
    std::fill_n(clean.begin() + 5 * logits.stride, logits.stride, -infinity);
  }
  auto copy = clean, copy2 = clean;  // they are written over
  auto const view_of = [&](std::vector<float>& x) { return matrix_view<float>{x.data(), logits.rows, logits.stride, logits.columns()}; };
  operation::estimate_remainder(serial, a.view(), head, step, view_of(copy), chosen, {states.data(), sums.data()}, space.data());
  for_teams(
      [&](auto& t) {
        operation::estimate_remainder(t, b.view(), head, step, view_of(copy2), chosen, {states2.data(), sums2.data()}, space2.data());
        seen_by_others(t, states2.data(), 6);
        if constexpr (space_type::is_needed) seen_by_others(t, sums2.data(), 6 * d);
      },
      [&] {
        for (std::size_t r = 0; r < 6; ++r) {
          REQUIRE(states2[r].m == states[r].m);
          REQUIRE(states2[r].l == Approx(states[r].l).epsilon(1e-5));
          REQUIRE((states[r].l > 0) == (r < 5 || space_type::is_needed));
        }
        if constexpr (space_type::is_needed)
          for (std::size_t i = 0; i < sums.size(); ++i) REQUIRE(sums2[i] == sums[i]);
        copy2 = clean;
        states2.assign(6, {});
        std::fill(sums2.begin(), sums2.end(), -1.0f);
        std::fill(space2.begin(), space2.end(), std::byte{0xff});
      });
}

template <class Scheme>
void check_operations() {
  random_numbers r(5);
  constexpr i64 tokens = one_sequence<Scheme>::tokens, sinks = one_sequence<Scheme>::sinks;
  constexpr i64 width = 2 * d;  // both heads' channels; the second head is looked at
  auto const all_keys = r.normals(tokens * width, 2), all_values = r.normals(tokens * width), queries = r.normals(2 * 3 * d);  // two tokens of a group of three
  one_sequence<Scheme> a, b;
  int const head = 1, both = 2;
  auto const of_head = [&](std::vector<float> const& x, i64 first, i64 n) { return matrix_view<float const, d>{x.data() + first * width + d, n, width}; };
  auto const of_both = [&](std::vector<float> const& x, i64 first, i64 n) { return matrix_view<float const>{x.data() + first * width, n, width, width}; };
  bytes train_scratch(std::size_t(a.map.train_scratch()) + 16);
  auto const learn = [&](auto& t, one_sequence<Scheme>& to) {
    operation::train_keys(t, to.view(), head, of_head(all_keys, 0, tokens), train_scratch.data());
    operation::train_values(t, to.view(), head, of_head(all_values, 0, tokens), train_scratch.data());
    if constexpr (memory_map<Scheme>::has_shared) {
      operation::train_keys(t, to.view(), both, of_both(all_keys, 0, tokens), train_scratch.data());
      operation::train_values(t, to.view(), both, of_both(all_values, 0, tokens), train_scratch.data());
    }
  };
  auto const seal = [&](auto& t, one_sequence<Scheme>& to) {
    i64 const n = to.sealed * Scheme::block_tokens;
    operation::seal(t, to.view(), head, 0, to.sealed, operation::sealed_rows<Scheme, d>{of_head(all_keys, sinks, n), of_head(all_values, sinks, n)});
    if constexpr (memory_map<Scheme>::has_shared)
      operation::seal(t, to.view(), both, 0, to.sealed, operation::sealed_rows<Scheme, dynamic>{of_both(all_keys, sinks, n), of_both(all_values, sinks, n)});
  };
  auto const key = [&](i64 p, int c) { return all_keys[std::size_t(p * width + d + c)]; };
  auto const value = [&](i64 p, int c) { return all_values[std::size_t(p * width + d + c)]; };
  serial_team serial;
  learn(serial, a);
  seal(serial, a);
  for (auto* const s : {&a, &b})
    for (i64 p = 0; p < tokens; ++p)
      if (p < sinks || p >= s->view().position(s->sealed))
        for (int c = 0; c < d; ++c) {
          s->view().near_row(head, 0, p)[c] = from_float<typename Scheme::near_scalar>(key(p, c));
          s->view().near_row(head, 1, p)[c] = from_float<typename Scheme::near_scalar>(value(p, c));
        }
  if constexpr (Scheme::outliers::keeps_outliers)
    for (auto* const s : {&a, &b})
      for (int o = 0; o < 3; ++o) {  // one less than there is room for
        i64 const block = 1 + 5 * o;
        reinterpret_cast<logical_block*>(s->view().outlier_record(head))[o] = logical_block(block);
        for (i64 i = 0; i < Scheme::block_tokens; ++i)
          for (int c = 0; c < d; ++c) {
            s->view().outlier_row(head, 0, o, i)[c] = from_float<typename Scheme::near_scalar>(key(s->view().position(block) + i, c));
            s->view().outlier_row(head, 1, o, i)[c] = from_float<typename Scheme::near_scalar>(value(s->view().position(block) + i, c));
          }
      }
  if constexpr (!trains_in_scratch<typename Scheme::key_codec>)
    for_teams(  // a library's eigensolver runs on the host
        [&](auto& t) {
          learn(t, b);
          seen_by_others(t, b.state.data(), i64(b.state.size()));
        },
        [&] {
          for (std::size_t i = 0; i < a.state.size() / sizeof(float); ++i)
            REQUIRE(reinterpret_cast<float*>(b.state.data())[i] == Approx(reinterpret_cast<float*>(a.state.data())[i]).margin(1e-6));
          std::fill(b.state.begin(), b.state.end(), std::byte{0});
        });
  b.state = a.state;  // equal to the last bit: then the codes are too
  for_teams(
      [&](auto& t) {
        seal(t, b);
        seen_by_others(t, b.far.data(), i64(b.far.size()));
        seen_by_others(t, b.summaries.data(), i64(b.summaries.size()));
      },
      [&] {
        REQUIRE(b.far == a.far);
        REQUIRE(b.summaries == a.summaries);
        std::fill(b.far.begin(), b.far.end(), std::byte{0});
        std::fill(b.summaries.begin(), b.summaries.end(), std::byte{0});
      });
  b.far = a.far;
  b.summaries = a.summaries;

  sequence_step const step{
      .slot = 0, .pages = {a.pages.data(), i64(a.pages.size())}, .sealed_before = a.sealed, .sealed = a.sealed, .length = tokens, .new_tokens = 2};
  matrix_view<float const, d> const group{queries.data(), 6};
  operation::score_workspace<Scheme> const score_sizes{6, a.sealed, 2};
  operation::attend_workspace<Scheme> const attend_sizes{6};
  auto const aligned = [](i64 n) {
    return std::unique_ptr<std::byte[], void (*)(std::byte*)>(static_cast<std::byte*>(std::aligned_alloc(64, std::size_t(round_up(n, 64)))),
                                                              [](std::byte* p) { std::free(p); });
  };

  if constexpr (Scheme::select::reads_scores) {
    auto const space = aligned(score_sizes.bytes()), space2 = aligned(score_sizes.bytes());
    auto const scores = operation::score(serial, a.view(), head, group, a.sealed, score_sizes, space.get());
    std::vector<row_view<float const>> seen(256);
    for_teams([&](auto& t) { seen[t.rank()] = operation::score(t, b.view(), head, group, b.sealed, score_sizes, space2.get()); },
              [&] {
                REQUIRE(seen[0].count == scores.count);
                for (i64 i = 0; i < scores.count; ++i)
                  REQUIRE(((std::isnan(seen[31][i]) && std::isnan(scores[i])) || seen[31][i] == Approx(scores[i]).margin(1e-4)));
                std::fill_n(space2.get(), score_sizes.bytes(), std::byte{0xff});  // NaN, for the next team
              });
    if constexpr (operation::weighs_rest<Scheme>) check_remainder(a, b, head, step, {score_sizes.logits(space.get()), 6, score_sizes.padded_blocks()}, value);
  }

  std::vector<logical_block> ids;
  for (i64 i = 0; i < a.sealed; i += 1 + i % 3) ids.push_back(logical_block(i));
  std::vector<std::uint32_t> marks;
  if constexpr (operation::is_sampled<Scheme>) {
    auto const space = aligned(score_sizes.bytes());
    operation::score(serial, a.view(), head, group, a.sealed, score_sizes, space.get());
    matrix_view<float const> const scores{score_sizes.logits(space.get()), 6, score_sizes.padded_blocks(), a.sealed};
    row_view<logical_block const> const chosen{ids.data(), i64(ids.size())};
    i64 const places = chosen.count + 5;  // more than are chosen
    marks.resize(std::size_t(operation::row_samples::words(6, places)));
    operation::mark_samples(serial, a.view(), scores, chosen, places, marks.data());
    REQUIRE(std::any_of(marks.begin(), marks.end(), [](auto bits) { return bits != 0 && bits != 63; }));
    std::vector<std::uint32_t> others(marks.size(), ~0u);
    for_teams(
        [&](auto& t) {
          operation::mark_samples(t, b.view(), scores, chosen, places, others.data());
          seen_by_others(t, others.data(), i64(others.size()));
        },
        [&] {
          REQUIRE(others == marks);
          std::fill(others.begin(), others.end(), ~0u);
        });
  }
  if constexpr (operation::reads_near<Scheme>) {
    auto const space = aligned(operation::near_sums_bytes(6)), space2 = aligned(operation::near_sums_bytes(6));
    float const* const sums = operation::near_log_sums(serial, a.view(), head, step, group, 3, space.get());
    for (int r = 0; r < 6; ++r) REQUIRE(std::isfinite(sums[r]));
    float const* sums2 = nullptr;
    for_teams(
        [&](auto& t) {
          float const* const mine = operation::near_log_sums(t, b.view(), head, step, group, 3, space2.get());
          if (t.rank() == 0) sums2 = mine;
        },
        [&] {
          for (int r = 0; r < 6; ++r) REQUIRE(sums2[r] == Approx(sums[r]).margin(1e-5));
        });
  }
  for (bool const every : {false, true}) {
    row_view<logical_block const> const chosen{ids.data(), i64(ids.size())};
    operation::row_samples const samples{every || marks.empty() ? nullptr : marks.data(), chosen.count + 5};
    auto const space = aligned(attend_sizes.bytes()), space2 = aligned(attend_sizes.bytes());
    std::vector<float> out(queries.size()), out2(queries.size());
    std::vector<attention::softmax_state> remainder;
    std::vector<float> sums;
    for (int i = 0; i < 6; ++i) {
      remainder.push_back({.m = float(i) - 2, .l = i == 3 ? 0.0f : 1.5f});
      for (int c = 0; c < d; ++c) sums.push_back(i == 3 ? undefined : value(7 + i, c));  // where there is no weight nothing is read
    }
    std::vector<float> missed(6, -1.f), missed2 = missed;
    operation::attend_rest<Scheme> rest;
    if (operation::weighs_rest<Scheme> && !every)
      rest = {{remainder.data(), remainder_by_class<typename Scheme::remainder> ? sums.data() : nullptr}, missed.data()};
    auto rest2 = rest;
    rest2.missed = rest.missed ? missed2.data() : nullptr;
    if constexpr (Scheme::remainder::estimates && !remainder_by_class<typename Scheme::remainder>)
      for (auto* const s : {&a, &b})
        for (int c = 0; c < d; ++c) s->view().mean_value(head)[c] = value(7, c);
    operation::attend(
        serial, a.view(), head, step, chosen, every, group, rows_of<d>(out), attend_sizes, space.get(),
        [&](i64, logical_block block) { return a.view().far_block(block, head); }, rest, [](bool) {}, samples);
    for_teams(
        [&](auto& t) {
          operation::attend(
              t, b.view(), head, step, chosen, every, group, rows_of<d>(out2), attend_sizes, space2.get(),
              [&](i64, logical_block block) { return b.view().far_block(block, head); }, rest2, [](bool) {}, samples);
          seen_by_others(t, out2.data(), i64(out2.size()));
        },
        [&] {
          for (std::size_t i = 0; i < out.size(); ++i) REQUIRE(out2[i] == Approx(out[i]).margin(1e-5));
          for (std::size_t i = 0; i < missed.size(); ++i) REQUIRE(missed2[i] == Approx(missed[i]).margin(1e-6));
          if (Scheme::estimates_missed && !every) REQUIRE((missed[0] > 0 && missed[0] < 1));
          std::fill(out2.begin(), out2.end(), -1.f);
          std::fill_n(space2.get(), attend_sizes.bytes(), std::byte{0xff});
        });
    check_spans(b, head, step, chosen, every, group, rest, out, samples);
  }
}

}  // namespace

namespace {

struct block_centred : scheme::yakv<d> {
  static constexpr int block_tokens = 16;
  using key_codec = cellar::codec::centred<cellar::codec::higgs<2, 256, 1>, cellar::codec::block_mean<16>>;
  using summary = cellar::summary::quantized_key<cellar::codec::centred<cellar::codec::higgs<4, 256, 1>, cellar::codec::block_mean<64>>>;
  using reduce = cellar::select::mean_query;
};
struct by_sum : scheme::quest<d> {
  using reduce = cellar::select::sum_of_logits;
};

struct scaled_rows : scheme::quest<d> {  // plain rows of other types than near ones, with scales
  using key_codec = cellar::codec::int8<>;
  using value_codec = cellar::codec::fp8_e4m3<float>;
};
struct narrow_heads : scheme_defaults<d> {
  using key_codec = cellar::codec::fp8_e4m3<>;
  using value_codec = cellar::codec::int4<>;
  using summary = cellar::summary::box_digest<>;
  using select = cellar::select::threshold<>;
  using attention = cellar::attention::soft_cap<std::ratio<2>>;
};
struct by_residual : scheme::yakv<d> {
  using key_codec = cellar::codec::nvfp4;
  using value_codec = cellar::codec::int8<>;
  using summary = cellar::summary::residual<cellar::codec::int8<>, cellar::codec::higgs<4, 256>, 32>;
  using select = cellar::select::top_p<>;
  using attention = cellar::attention::sliding_window<70>;
};

}  // namespace

namespace {

struct of_both_heads : scheme::yakv_published<d> {
  using key_codec = cellar::codec::before_rotary<cellar::codec::higgs<2, 256, 0, bf16, scope::all_heads>>;
};
struct in_two_parts : scheme::quest<d> {  // of attention, where every block is attended to
  static constexpr i64 test_tokens = 1300;
};
struct sampled : scheme::magic_pig<d, f16, 3, 40> {
  using key_codec = cellar::codec::higgs<2, 256>;
  using attention = cellar::attention::soft_cap<std::ratio<3>>;
};
struct with_remainder : scheme::shadow_kv<d, jacobi_eigensolver, f16, cellar::codec::fixed_rank<20>> {
  using remainder = cellar::attention::mean_value;
};
struct watched_remainder : with_remainder {
  static constexpr bool estimates_missed = true;
};
struct clusters : scheme::cluster_kv<d, f16, 37> {  // of blocks, with outliers among them
  static constexpr int block_tokens = 4;
  using summary = cellar::summary::quantized_key<cellar::codec::cluster_codes<37, 9, 60, true>>;
  using outliers = cellar::select::least_cosine;
  using remainder = cellar::attention::mean_value_by_class;
};

}  // namespace

TEST_CASE("train, seal, score and attend agree in blocks and in series, for every scheme") {
  check_operations<scheme::dense<d>>();
  check_operations<scheme::sink_window<d>>();
  check_operations<scheme::quest<d>>();
  check_operations<scheme::mean_landmark<d, f16>>();
  check_operations<scheme::yakv<d>>();
  check_operations<scheme::yakv_centred<d, f16>>();
  check_operations<block_centred>();
  check_operations<by_sum>();
  check_operations<narrow_heads>();
  check_operations<by_residual>();
  check_operations<scheme::arkvale<d>>();
  check_operations<scheme::yakv_before_rotary<d>>();
  check_operations<of_both_heads>();
  check_operations<with_remainder>();
  check_operations<in_two_parts>();
  check_operations<scaled_rows>();
  check_operations<scheme::double_sparsity<d>>();
  check_operations<scheme::loki<d, jacobi_eigensolver>>();
  check_operations<scheme::rabitq_cache<d>>();
  check_operations<scheme::sparq<d>>();
  check_operations<scheme::magic_pig<d, float, 4, 40>>();
  check_operations<sampled>();
  check_operations<clusters>();
  check_operations<scheme::retro_infer<d, f16, 43, 4, 50>>();
  check_operations<scheme::yakv_guarded<d>>();
  check_operations<watched_remainder>();
}
