// What a device's operations do, held against their definitions in double and against memory that holds anything: selection and attention on an engine's own
// memory, tails of every length, prompts in chunks; and the forms of yakv and shadow_kv in the widths that other tests leave out.
#include <array>
#include <cstring>
#include <functional>
#include <numeric>
#include <optional>

#include "codec/higgs_oracle.hpp"
#include "cuda/against_host.hpp"
#include "cuda/used_memory.hpp"
#include "eigensolver.hpp"
#include "emulator/executor.hpp"

using namespace cellar;

namespace {

// Definitions, in double.

using numbers = std::vector<double>;

double product(float const* q, numbers const& x) {
  double s = 0;
  for (std::size_t c = 0; c < x.size(); ++c) s += double(q[c]) * x[c];
  return s;
}
double norm(float const* x, int d) {
  double s = 0;
  for (int c = 0; c < d; ++c) s += double(x[c]) * double(x[c]);
  return std::sqrt(s);
}

/// A row as HIGGS stores it: a norm in bf16, and the nearest point of a grid for each few channels. None where rounding decides between two of them.
template <int Dimension>
std::optional<numbers> by_higgs(float const* x, int d) {
  int exponent = 0;
  double const digits = std::frexp(norm(x, d), &exponent) * 256, whole = std::nearbyint(digits);  // bf16 has eight
  if (std::abs(digits - whole) > 0.499) return {};
  double const scale = std::ldexp(whole, exponent - 8);
  numbers y(x, x + d);
  for (double& c : y) c *= std::sqrt(double(d)) / scale;
  y = rotated(y);
  for (int first = 0; first < d; first += Dimension) {
    auto const* const points = codec::higgs_grid<Dimension, 256>::points;
    double best = 1e30, second = 1e30;
    int nearest = 0;
    for (int p = 0; p < 256; ++p) {
      double distance = 0;
      for (int c = 0; c < Dimension; ++c) distance += std::pow(y[std::size_t(first + c)] - double(points[p * Dimension + c]), 2);
      if (distance < best) {
        second = best;
        best = distance;
        nearest = p;
      } else {
        second = std::min(second, distance);
      }
    }
    if (second - best < 1e-4) return {};
    for (int c = 0; c < Dimension; ++c) y[std::size_t(first + c)] = double(points[nearest * Dimension + c]) * scale / std::sqrt(double(d));
  }
  return rotated(y);
}

/// How a scheme sees what is far: rows that it may be given, what is left of a row, and a query's logit of a block of exact keys.
template <class Scheme>
struct definition {
  static bool is_plain(float const*, bool) { return true; }
  static numbers far(float const* x) { return {x, x + Scheme::head_dim}; }
};
template <int D>
struct as_mean : definition<scheme::mean_landmark<D, float>> {
  static constexpr double tolerance = 1e-6;  // of a logit, by the lengths of query and key
  static double logit(float const* q, std::vector<float const*> const& keys) {
    numbers mean(D, 0.0);
    for (auto const* k : keys)
      for (int c = 0; c < D; ++c) mean[std::size_t(c)] += double(k[c]) / double(keys.size());
    return product(q, mean);
  }
};
template <int D>
struct as_box : definition<scheme::quest<D, float>> {
  static constexpr double tolerance = 1e-6;
  static double logit(float const* q, std::vector<float const*> const& keys) {
    double s = 0;
    for (int c = 0; c < D; ++c) {
      auto const [low, high] = std::minmax_element(keys.begin(), keys.end(), [c](float const* a, float const* b) { return a[c] < b[c]; });
      s += std::max(double(q[c]) * double((*low)[c]), double(q[c]) * double((*high)[c]));
    }
    return s;
  }
};
template <int D>
struct as_codes {
  static constexpr double tolerance = 0x1p-11;  // points are looked up in f16
  static bool is_plain(float const* x, bool is_key) { return by_higgs<2>(x, D) && (!is_key || by_higgs<4>(x, D)); }
  static numbers far(float const* x) { return *by_higgs<2>(x, D); }
  static double logit(float const* q, std::vector<float const*> const& keys) { return product(q, *by_higgs<4>(keys[0], D)); }
};

/// Where the outputs and ids of a life are kept, to be compared bit for bit.
struct lived {
  std::vector<logical_block> ids;
  std::vector<float> outputs;
};
bool are_same(lived const& a, lived const& b) {
  return a.ids == b.ids && a.outputs.size() == b.outputs.size() && std::memcmp(a.outputs.data(), b.outputs.data(), a.outputs.size() * sizeof(float)) == 0;
}

struct life {
  int group = 3;
  i64 prompts[2] = {150, 97}, sealed[2] = {};        // tokens, and their far blocks
  std::vector<std::array<i64, 2>> steps = {{1, 2}};  // new tokens of each sequence
  i64 selected = 5;
  unsigned char left = nan_bytes;  // what memory was filled with before
  bool checks = true;              // against the definition
};

/// Two sequences in memory of the engine's, prompts and steps, in a batch that has room for a third; every step is checked.
template <class Scheme, class Definition>
class engine {
 public:
  static constexpr int d = Scheme::head_dim, heads = 2, most_new = 2, room = 3;
  static constexpr i64 sinks = 3, block = Scheme::block_tokens;
  using map_type = memory_map<Scheme>;

  explicit engine(life const& l)
      : life_(l),
        query_heads_(heads * l.group),
        longest_(std::max(l.prompts[0], l.prompts[1]) + most_new * i64(l.steps.size())),
        map_{shape(), sinks, operation::tail_rows<Scheme>(capacities(), budget_of())},
        each_(ceil_div(longest_, map_type::page_tokens)),
        layout_{map_.geometry(), (2 * each_ + 1) * map_type::page_blocks},
        sizes_(operation::workspace_for<Scheme>(shape(), capacities(), budget_of())),
        far_(layout_.bytes(), l.left),
        summaries_((2 * each_ + 1) * map_.summary_page(), l.left),
        near_(2 * map_.near_sequence(), l.left),
        state_(2 * map_.state_sequence() + 16, l.left),
        workspace_(cuda::step_workspace_bytes<Scheme>(on_, shape(), capacities(), budget_of()), l.left),
        ids_(std::size_t(room * heads * sizes_.selected), logical_block{-7}) {
    for (int s = 0; s < 2; ++s) {
      for (i64 i = 0; i < longest_ * heads; ++i) {
        draw(keys_[s], true);
        draw(values_[s], false);
      }
      for (i64 p = 0; p < each_; ++p) tables_[s].push_back(page_id(2 * (each_ - p) - s));  // in turns and from the end; the first page is nobody's
      length_[s] = l.prompts[s];
      sealed_[s] = l.sealed[s];
    }
  }

  lived run() {
    lived all;
    for (int s = 0; s < 2; ++s) prompt(s);
    for (auto const& n : life_.steps) step(n, all);
    return all;
  }

 private:
  model_shape shape() const { return {.layers = 1, .query_heads = query_heads_, .kv_heads = heads, .head_dim = d}; }
  limits capacities() const {
    return {.sequences = 2, .tokens = longest_, .generated_tokens = most_new * i64(life_.steps.size()), .step_tokens = most_new, .step_sequences = room};
  }
  budget budget_of() const { return {.tokens = block * life_.selected, .sinks = sinks, .window = 2 * block + 9}; }
  layer_memory<Scheme> memory() { return {layout_, far_.data(), summaries_.data(), near_.data(), state_.data()}; }
  float const* row(std::vector<float> const& x, i64 token, int head) const { return x.data() + (token * heads + head) * d; }

  void draw(std::vector<float>& to, bool is_key) {
    std::vector<float> x;
    do x = random_.normals(d);
    while (!Definition::is_plain(x.data(), is_key));
    to.insert(to.end(), x.begin(), x.end());
  }
  /// The pages that are needed and no other: behind them are ids that name no page.
  row_view<page_id const> pages(int s, i64 sealed) {
    used_[s] = tables_[s];
    for (i64 p = ceil_div(sealed, map_type::page_blocks); p < each_; ++p) used_[s][std::size_t(p)] = page_id{-1};
    return {used_[s].data(), each_};
  }

  void prompt(int s) {
    i64 const n = length_[s], stride = 2 * heads * d + 5;  // as a fused projection leaves them: keys, then values, of a token; and rows that are not filled
    std::vector<float> rows(std::size_t((n + 9) * stride), undefined);
    for (i64 t = 0; t < n; ++t)
      for (int side = 0; side < 2; ++side) std::copy_n(row(side == 0 ? keys_[s] : values_[s], t, 0), heads * d, rows.data() + t * stride + side * heads * d);
    prompt_layer<Scheme> const layer{memory(), heads_view<float>{rows.data(), n, heads, d, stride, d},
                                     heads_view<float>{rows.data() + heads * d, n, heads, d, stride, d}};
    sequence_step const to{.slot = 1 - s, .pages = pages(s, sealed_[s]), .sealed = sealed_[s], .length = n};
    std::vector<float> scratch(std::size_t(cuda::prompt_floats<Scheme>(on_, shape(), n, scalar_type::f32)), undefined);
    cuda::seal_prompt<Scheme>(on_, map_, {&layer, 1}, to, {scratch.data(), i64(scratch.size())});
  }

  void step(std::array<i64, 2> const& n, lived& all) {
    std::vector<sequence_step> steps(room);  // the last is empty
    i64 rows = 0;
    for (int s = 0; s < 2; ++s) {
      i64 const before = sealed_[s];
      length_[s] += n[std::size_t(s)];
      if (!Scheme::keeps_generated) sealed_[s] = std::max(before, (length_[s] - sinks - n[std::size_t(s)]) / block);  // as soon as may be
      steps[std::size_t(s)] = {.slot = 1 - s,
                               .pages = pages(s, sealed_[s]),
                               .sealed_before = before,
                               .sealed = sealed_[s],
                               .length = length_[s],
                               .new_tokens = n[std::size_t(s)],
                               .first_row = rows,
                               .selected_blocks = life_.selected,
                               .number = ++steps_};
      rows += n[std::size_t(s)];
    }
    // Rows apart by more than their width, and views of the largest batch.
    i64 const most = room * most_new, kv_head = d + 3, kv_token = heads * kv_head + 1, q_head = d + 1, q_token = query_heads_ * q_head + 7;
    std::vector<float> k(std::size_t(most * kv_token), undefined), v = k, q(std::size_t(most * q_token), undefined), out(q.size(), -77.0f);
    for (int s = 0; s < 2; ++s)
      for (i64 t = 0; t < n[std::size_t(s)]; ++t) {
        i64 const to = steps[std::size_t(s)].first_row + t, token = length_[s] - n[std::size_t(s)] + t;
        for (int h = 0; h < heads; ++h) {
          std::copy_n(row(keys_[s], token, h), d, k.data() + to * kv_token + h * kv_head);
          std::copy_n(row(values_[s], token, h), d, v.data() + to * kv_token + h * kv_head);
        }
        for (int h = 0; h < query_heads_; ++h)
          for (int c = 0; c < d; ++c) q[std::size_t(to * q_token + h * q_head + c)] = 2 * random_.normal();
      }
    row_view<sequence_step const> const view{steps.data(), room};
    heads_view<float const> const queries{q.data(), most, query_heads_, d, q_token, q_head};
    std::vector<i64> counts(std::size_t(room * heads), -7);
    cuda::append_tokens<Scheme, float>(
        on_, map_, memory(), view,
        {heads_view<float const>{k.data(), most, heads, d, kv_token, kv_head}, heads_view<float const>{v.data(), most, heads, d, kv_token, kv_head}},
        workspace_.data());
    cuda::select_blocks<Scheme, float>(on_, map_, memory(), view, queries, sizes_, workspace_.data(), ids_.data(), counts.data());
    cuda::attend_blocks<Scheme, float>(on_, map_, memory(), view, queries, heads_view<float>{out.data(), most, query_heads_, d, q_token, q_head}, sizes_,
                                       workspace_.data(), ids_.data(), counts.data(), false);
    i64 written = 0;
    for (float const x : out) written += x != -77.0f;
    REQUIRE(written == rows * query_heads_ * d);
    for (int s = 0; s < 2; ++s)
      for (int head = 0; head < heads; ++head) {
        auto const* const ids = ids_.data() + (s * heads + head) * sizes_.selected;
        i64 const count = counts[std::size_t(s * heads + head)];
        REQUIRE(count == std::min(life_.selected, sealed_[s]));
        std::vector<logical_block> const chosen(ids, ids + count);
        for (i64 i = 0; i < sizes_.selected; ++i) REQUIRE((i < count ? number(ids[i]) > (i > 0 ? number(ids[i - 1]) : -1) : number(ids[i]) == -1));
        if (count > 0) REQUIRE(number(chosen.back()) < sealed_[s]);
        all.ids.insert(all.ids.end(), chosen.begin(), chosen.end());
        if (life_.checks) check(s, head, steps[std::size_t(s)], queries, out.data(), chosen);
      }
    for (i64 t = 0; t < rows; ++t)
      for (int h = 0; h < query_heads_; ++h) {
        auto const* const from = out.data() + t * q_token + h * q_head;
        all.outputs.insert(all.outputs.end(), from, from + d);
      }
  }

  void check(int s, int head, sequence_step const& of, heads_view<float const> const& queries, float const* out, std::vector<logical_block> const& chosen) {
    INFO("sequence " << s << ", head " << head << ", length " << of.length << ", sealed " << of.sealed);
    double const scale = 1 / std::sqrt(double(d));
    auto const query = [&](i64 r) { return queries.row(of.first_row + r / life_.group, head * life_.group + int(r % life_.group)); };
    i64 const rows = of.new_tokens * life_.group;
    // Selection: the largest over rows of a softmax over blocks, by its logarithm.
    numbers score(std::size_t(of.sealed), -1e300);
    double slack = 0;
    for (i64 r = 0; r < rows; ++r) {
      numbers logits;
      double longest = 0, sum = 0;
      for (i64 b = 0; b < of.sealed; ++b) {
        std::vector<float const*> keys;
        for (i64 t = 0; t < block; ++t) keys.push_back(row(keys_[s], sinks + b * block + t, head));
        logits.push_back(scale * Definition::logit(query(r), keys));
        longest = std::max(longest, norm(keys[0], d));
      }
      slack = std::max(slack, Definition::tolerance * scale * norm(query(r), d) * longest);
      for (double const x : logits) sum += std::exp(x);
      for (std::size_t b = 0; b < logits.size(); ++b) score[b] = std::max(score[b], logits[b] - std::log(sum));
    }
    if (!chosen.empty()) {
      auto ranked = score;
      std::sort(ranked.begin(), ranked.end(), std::greater<>());
      double const last = ranked[chosen.size() - 1];
      for (i64 b = 0; b < of.sealed; ++b) {
        bool const is_chosen = std::binary_search(chosen.begin(), chosen.end(), logical_block(b));
        double const off = is_chosen ? last - score[std::size_t(b)] : score[std::size_t(b)] - last;
        REQUIRE(off <= 4 * slack);  // of two scores, and the sums in both
      }
    }
    // Attention to sinks, what was chosen, and the tail.
    std::vector<i64> seen;
    for (i64 p = 0; p < std::min(sinks, of.length); ++p) seen.push_back(p);
    for (logical_block const b : chosen)
      for (i64 t = 0; t < block; ++t) seen.push_back(sinks + number(b) * block + t);
    i64 const tail = sinks + of.sealed * block;
    for (i64 p = tail; p < of.length; ++p) seen.push_back(p);
    std::vector<numbers> keys, values;
    for (i64 const p : seen)
      for (int side = 0; side < 2; ++side) {
        auto const* const x = row(side == 0 ? keys_[s] : values_[s], p, head);
        (side == 0 ? keys : values).push_back(p >= sinks && p < tail ? Definition::far(x) : numbers(x, x + d));
      }
    for (i64 r = 0; r < rows; ++r) {
      i64 const position = of.length - of.new_tokens + r / life_.group;
      numbers expected(d, 0.0);
      double sum = 0, square = 0, error = 0;
      for (std::size_t i = 0; i < seen.size(); ++i) {
        if (seen[i] > position) continue;
        double const w = std::exp(scale * product(query(r), keys[i]));
        sum += w;
        for (std::size_t c = 0; c < expected.size(); ++c) expected[c] += w * values[i][c];
      }
      auto const* const got = out + (query(r) - queries.data);  // strides are the queries'
      for (std::size_t c = 0; c < expected.size(); ++c) {
        square += std::pow(expected[c] / sum, 2);
        error += std::pow(expected[c] / sum - double(got[c]), 2);
      }
      REQUIRE(std::sqrt(error) <= 2e-5 * std::sqrt(square));
    }
  }

  life life_;
  int query_heads_;
  i64 longest_;
  emulator::device<> on_;
  map_type map_;
  i64 each_;
  typename Scheme::layout layout_;
  operation::decode_workspace<Scheme> sizes_;
  used_memory far_, summaries_, near_, state_, workspace_;
  std::vector<logical_block> ids_;
  random_numbers random_{41};
  std::vector<float> keys_[2], values_[2];  // [token][KV head][channel]
  std::vector<page_id> tables_[2], used_[2];
  i64 length_[2], sealed_[2], steps_ = 0;
};

template <class Scheme, class Definition>
void check_definition(int group) {
  INFO("groups of " << group << ", blocks of " << Scheme::block_tokens);
  i64 const block = Scheme::block_tokens;
  life l{.group = group, .prompts = {150, 97}, .steps = {{1, 2}, {2, 1}}};
  for (int s = 0; s < 2; ++s) l.sealed[s] = (l.prompts[s] - engine<Scheme, Definition>::sinks - 9) / block;
  engine<Scheme, Definition>(l).run();
}

/// Prompts of whole blocks, the sinks and all but one of a tail; the step adds its last token.
template <class Scheme, class Definition>
void check_tail(i64 tail) {
  INFO("a tail of " << tail << " beyond blocks of " << Scheme::block_tokens);
  i64 const block = Scheme::block_tokens, sinks = engine<Scheme, Definition>::sinks;
  life l{.group = 2, .prompts = {sinks + 6 * block + tail - 1, sinks + tail - 1}, .sealed = {6, 0}, .steps = {{1, 1}, {2, 2}}, .selected = 4};
  auto const expected = engine<Scheme, Definition>(l).run();
  l.checks = false;
  for (unsigned char const left : {0x00, 0x5a}) {  // zero, and 1.5e16 in f32
    l.left = left;
    bool const is_same = are_same(engine<Scheme, Definition>(l).run(), expected);
    CHECK(is_same);
    if (is_sanitized) break;
  }
}

}  // namespace

TEST_CASE("selection and attention of a device on an engine's memory are what their definitions say in double") {
  for (int const group : {1, 3, 7}) {
    check_definition<scheme::mean_landmark<64, float>, as_mean<64>>(group);
    check_definition<scheme::quest<64, float>, as_box<64>>(group);
    check_definition<scheme::yakv<64, float>, as_codes<64>>(group);
    if (is_sanitized) break;
  }
}

TEST_CASE("with a tail of any length past whole blocks, what memory held before does not change a bit on a device") {  // H15, H16
  i64 const step = is_sanitized ? 4 : 1;
  for (i64 tail = 1; tail <= 9; tail += step) check_tail<scheme::mean_landmark<64, float>, as_mean<64>>(tail);
  for (i64 tail = 1; tail <= 17; tail += 2 * step) check_tail<scheme::quest<64, float>, as_box<64>>(tail);
  for (i64 tail = 2; tail <= 16 && !is_sanitized; tail += 2) check_tail<scheme::quest<64, float>, as_box<64>>(tail);
  for (i64 tail = 1; tail <= 2; ++tail) check_tail<scheme::yakv<64, float>, as_codes<64>>(tail);
}

namespace {

// Prompts in chunks.

/// How the rows of a chunk lie: packed; as a fused projection leaves them, heads apart by more than their width; a head's tokens one behind the other.
enum class rows_lie { packed, fused, head_major };

struct chunked {
  std::vector<i64> chunks[2];  // of each sequence; none: the staging memory comes filled
  rows_lie keys = rows_lie::packed, values = rows_lie::packed;
  bool is_backward = false;  // the last layer is filled first
};

/// Two prompts of 140 and 75 tokens in two layers, chunk after chunk by turns, and three steps after them.
template <class Scheme, class T>
lived live_in_chunks(chunked const& how) {
  constexpr int d = Scheme::head_dim, heads = 2, group = 3, query_heads = heads * group, layers = 2;
  constexpr i64 tokens[] = {140, 75}, spare = 5;
  using buffer = typename emulator::device<>::template buffer<T>;
  emulator::device<> const on;
  cache<Scheme, emulator::device<>> c(on, {.layers = layers, .query_heads = query_heads, .kv_heads = heads, .head_dim = d}, {.sequences = 2, .tokens = 160},
                                      {.tokens = 40, .sinks = 3, .window = 9});
  random_numbers r(29);
  std::vector<T> rows[2][layers][2], expected[2][2];  // [sequence][layer][key or value], and the staging memory of each
  buffer staging[2][2];
  sequence_id ids[2];
  for (int s = 0; s < 2; ++s) {
    i64 const each = (tokens[s] + spare) * heads * d;
    for (int side = 0; side < 2; ++side) {
      expected[s][side].assign(std::size_t(layers * each), from_float<T>(undefined));  // rows that are never filled
      auto before = expected[s][side];
      for (int layer = 0; layer < layers; ++layer) {
        rows[s][layer][side] = against_host::rounded<T>(r.normals(tokens[s] * heads * d));
        std::copy(rows[s][layer][side].begin(), rows[s][layer][side].end(), expected[s][side].begin() + layer * each);
      }
      if (how.chunks[s].empty()) before = expected[s][side];
      staging[s][side] = on.upload(std::move(before));
    }
    ids[s] = c.begin_prompt(prompt_staging<T>{staging[s][0].data(), staging[s][1].data(), tokens[s] + spare, how.chunks[s].empty() ? tokens[s] : 0});
  }

  auto const append = [&](int s, int layer, i64 first, i64 n) {
    buffer memory[2];
    heads_view<T> views[2];
    for (int side = 0; side < 2; ++side) {
      rows_lie const lie = side == 0 ? how.keys : how.values;
      i64 const head_stride = lie == rows_lie::head_major ? n * d + 2 : lie == rows_lie::fused ? d + 3 : d;
      i64 const token_stride = lie == rows_lie::head_major ? d : lie == rows_lie::fused ? 2 * heads * head_stride + 5 : heads * d;
      std::vector<T> x(std::size_t(n * token_stride + heads * head_stride), from_float<T>(undefined));
      for (i64 t = 0; t < n; ++t)
        for (int h = 0; h < heads; ++h)
          std::copy_n(rows[s][layer][side].data() + ((first + t) * heads + h) * d, d, x.data() + t * token_stride + h * head_stride);
      memory[side] = on.upload(std::move(x));
      views[side] = {memory[side].data(), n, heads, d, token_stride, head_stride};
    }
    c.append_chunk(on, ids[s], layer, views[0], views[1]);
  };
  for (int i = 0; i < layers; ++i) {
    int const layer = how.is_backward ? layers - 1 - i : i;
    i64 first[2] = {};
    for (std::size_t chunk = 0; chunk < std::max(how.chunks[0].size(), how.chunks[1].size()); ++chunk)
      for (int s = 0; s < 2; ++s)
        if (chunk < how.chunks[s].size()) {
          append(s, layer, first[s], how.chunks[s][chunk]);
          first[s] += how.chunks[s][chunk];
        }
  }
  for (int s = 0; s < 2; ++s) {
    for (int side = 0; side < 2; ++side) {
      bool const is_staged = std::memcmp(staging[s][side].data(), expected[s][side].data(), expected[s][side].size() * sizeof(T)) == 0;
      CHECK(is_staged);  // the rows in their places, and nothing beside them
    }
    c.finish_prompt(on, ids[s]);
  }

  lived all;
  batch_entry const batch[] = {{ids[1], 1}, {ids[0], 1}};
  for (int step = 0; step < 3; ++step) {
    c.plan(on, {batch, 2});
    for (int layer = 0; layer < layers; ++layer) {
      auto key = on.upload(r.normals(2 * heads * d)), value = on.upload(r.normals(2 * heads * d)), q = on.upload(r.normals(2 * query_heads * d, 2));
      std::vector<float> out(std::size_t(2 * query_heads * d), undefined);
      auto to = on.upload(std::vector<float>(out));
      c.append(on, layer, packed_heads(key.data(), 2, heads, d), packed_heads(value.data(), 2, heads, d));
      c.template attend<float>(on, layer, packed_heads(q.data(), 2, query_heads, d), packed_heads(to.data(), 2, query_heads, d));
      on.download(out.data(), to.data(), i64(out.size() * sizeof(float)));
      all.outputs.insert(all.outputs.end(), out.begin(), out.end());
      for (int i = 0; i < 2 * heads; ++i) {
        auto const chosen = c.selected(on, i / heads, i % heads);
        REQUIRE(chosen);
        all.ids.insert(all.ids.end(), chosen->begin(), chosen->end());
      }
    }
  }
  return all;
}

template <class Scheme, class T>
void check_chunks() {
  auto const whole = live_in_chunks<Scheme, T>({});
  for (float const x : whole.outputs) REQUIRE(is_finite(x));
  REQUIRE(whole.ids.size() > 3 * 2 * 2 * 2);
  for (chunked const& how :
       {chunked{{{140}, {75}}, rows_lie::packed, rows_lie::head_major}, chunked{{{1, 63, 64, 12}, {74, 1}}, rows_lie::fused, rows_lie::fused, true},
        chunked{{{139, 1}, {1, 1, 14, 17, 42}}, rows_lie::head_major, rows_lie::fused}}) {
    bool const is_same = are_same(live_in_chunks<Scheme, T>(how), whole);
    CHECK(is_same);
  }
}

}  // namespace

TEST_CASE("chunks of a prompt go to their rows of the staging memory and nowhere else, and it lives on as one that was staged whole") {
  check_chunks<scheme::mean_landmark<64, float>, float>();
  check_chunks<scheme::quest<64, f16>, f16>();
  check_chunks<scheme::yakv<64>, bf16>();
}
TEST_CASE("a chunk that a staging memory on a device has no room for, or not the shape of, is refused and changes nothing") {
  constexpr int d = 64, heads = 2;
  emulator::device<> const on;
  cache<scheme::quest<d, float>, emulator::device<>> c(on, {.layers = 1, .query_heads = 2, .kv_heads = heads, .head_dim = d}, {.sequences = 1, .tokens = 60},
                                                       {.tokens = 32, .window = 8});
  auto k = on.upload(std::vector<float>(std::size_t(40 * heads * d), 3.0f)), v = on.upload(std::vector<float>(std::size_t(40 * heads * d), 4.0f));
  auto rows = on.upload(std::vector<float>(std::size_t(40 * heads * d), 5.0f));
  auto const id = c.begin_prompt(prompt_staging<float>{k.data(), v.data(), 40, 30});
  auto const view = [&](i64 tokens, int n, int width) { return packed_heads(rows.data(), tokens, n, width); };
  CHECK_THROWS_AS(c.append_chunk(on, id, 0, view(11, heads, d), view(11, heads, d)), capacity_error);
  CHECK_THROWS_AS(c.append_chunk(on, id, 1, view(1, heads, d), view(1, heads, d)), precondition_error);
  CHECK_THROWS_AS(c.append_chunk(on, id, 0, view(2, heads, d), view(1, heads, d)), precondition_error);
  CHECK_THROWS_AS(c.append_chunk(on, id, 0, view(0, heads, d), view(0, heads, d)), precondition_error);
  CHECK_THROWS_AS(c.append_chunk(on, id, 0, view(2, 1, d), view(2, 1, d)), precondition_error);
  CHECK_THROWS_AS(c.append_chunk(on, id, 0, view(2, heads, d / 2), view(2, heads, d / 2)), precondition_error);
  auto half = on.upload(std::vector<f16>(std::size_t(heads * d)));
  CHECK_THROWS_AS(c.append_chunk(on, id, 0, packed_heads(half.data(), 1, heads, d), packed_heads(half.data(), 1, heads, d)), precondition_error);
  CHECK(std::count(k.data(), k.data() + k.size(), 3.0f) == 40 * heads * d);
  CHECK(std::count(v.data(), v.data() + v.size(), 4.0f) == 40 * heads * d);
  c.append_chunk(on, id, 0, view(10, heads, d), view(10, heads, d));  // there is room for these
  CHECK(std::count(k.data() + 30 * heads * d, k.data() + k.size(), 5.0f) == 10 * heads * d);
  CHECK(std::count(v.data() + 30 * heads * d, v.data() + v.size(), 5.0f) == 10 * heads * d);
  CHECK(std::count(k.data(), k.data() + k.size(), 3.0f) == 30 * heads * d);
  CHECK(std::count(v.data(), v.data() + v.size(), 4.0f) == 30 * heads * d);
}

namespace {

/// A form in a width that no other test has: the device against the host, in as little as has everything.
template <class Scheme, class T, class Device>
void check_width(Device const& on, std::uint64_t seed, int kv_heads = 2) {
  against_host::check<Scheme, T>(on, seed, {.layers = 1, .group = 2, .kv_heads = kv_heads, .prompts = {140, 60}, .steps = 1, .is_short = true});
}

/// Templates, so that what is left out is not compiled either: under sanitizers one width has all that is code of its own.
template <class Device>
void heads_of_80(Device const& on) {
  check_width<scheme::yakv_before_rotary<80>, bf16>(on, 1);
  check_width<scheme::yakv_residual<80, f16>, f16>(on, 2);
  check_width<scheme::yakv_published<80, float>, float>(on, 3);
  check_width<scheme::shadow_kv<80, jacobi_eigensolver, bf16, codec::fixed_rank<24>>, bf16>(on, 4);
}
template <class Device>
void heads_of_96(Device const& on) {
  if constexpr (!is_sanitized) {
    check_width<scheme::yakv_centred<96>, bf16>(on, 5);
    check_width<scheme::yakv_before_rotary<96, float>, float>(on, 6);
    check_width<scheme::yakv_residual<96>, bf16>(on, 7);
    check_width<scheme::yakv_published<96>, bf16>(on, 8);
    check_width<scheme::shadow_kv<96, jacobi_eigensolver, float, codec::fixed_rank<24>>, float>(on, 9);
  }
}
template <class Device>
void heads_of_128(Device const& on) {
  if constexpr (!is_sanitized) check_width<scheme::yakv_published<128>, bf16>(on, 10);
}
template <class Device>
void heads_of_256(Device const& on) {
  if constexpr (!is_sanitized) {
    check_width<scheme::yakv_centred<256, f16>, f16>(on, 11);
    check_width<scheme::yakv_before_rotary<256>, bf16>(on, 12);
    check_width<scheme::yakv_residual<256>, bf16>(on, 13);
    check_width<scheme::shadow_kv<256, jacobi_eigensolver, bf16, codec::fixed_rank<40>>, bf16>(on, 14, 1);
  }
}

}  // namespace

TEST_CASE("forms of yakv and shadow_kv do on a device what they do on the host with heads of 80 channels") { heads_of_80(emulator::device<>()); }
TEST_CASE("forms of yakv and shadow_kv do on a device what they do on the host with heads of 96 channels") { heads_of_96(emulator::device<>()); }
TEST_CASE("forms of yakv and shadow_kv do on a device what they do on the host with heads of 128 channels") { heads_of_128(emulator::device<>()); }
TEST_CASE("forms of yakv and shadow_kv do on a device what they do on the host with heads of 256 channels") { heads_of_256(emulator::device<>()); }
