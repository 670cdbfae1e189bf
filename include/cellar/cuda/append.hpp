#pragma once
#include <algorithm>
#include <type_traits>

#include "cellar/cuda/device.hpp"
#include "cellar/operation/append.hpp"
#include "cellar/operation/evict.hpp"
#include "cellar/operation/workspace.hpp"
#include "cellar/select/top_k.hpp"

/// Appending, and sealing of prompts, on a device. Steps lie in device memory, those without new tokens are empty; a call enqueues and returns.
namespace cellar::inline CELLAR_ABI::cuda {

namespace detail {

/// Element (row, channel) of a view whose scalar is a fact of run time.
CELLAR_HD inline float element(any_heads_view const& x, i64 row, int head, int channel) {
  if (x.type == scalar_type::f16) return to_float(x.as<f16>().row(row, head)[channel]);
  if (x.type == scalar_type::bf16) return to_float(x.as<bf16>().row(row, head)[channel]);
  return x.as<float>().row(row, head)[channel];
}

/// Rows [first, first + rows) of a head, or of all heads where head is their number, in f32, packed.
template <team Team>
CELLAR_HD void read_rows(Team& t, any_heads_view const& x, int head, i64 first, i64 rows, float* to) {
  int const heads = head < x.heads ? 1 : x.heads, first_head = head < x.heads ? head : 0;
  i64 const columns = i64{heads} * x.head_dim;
  for (i64 i = t.rank(); i < rows * columns; i += t.size())
    to[i] = element(x, first + i / columns, first_head + int(i % columns / x.head_dim), int(i % x.head_dim));
}

/// Blocks of 256 threads for so many elements.
template <device On>
i64 blocks_for(On const& on, i64 elements) {
  return std::min<i64>(ceil_div(elements, 256), 8 * i64{on.multiprocessors()});
}

template <class T>
struct copy_rows_kernel {
  heads_view<T const> from;
  heads_view<T> to;
  i64 first, blocks;

  template <team Team>
  CELLAR_HD void operator()(Team& t, grid_place at) const {
    i64 const columns = i64{from.heads} * from.head_dim;
    for (i64 i = i64{at.x} * t.size() + t.rank(); i < from.tokens * columns; i += blocks * t.size()) {
      int const head = int(i % columns / from.head_dim), c = int(i % from.head_dim);
      to.row(first + i / columns, head)[c] = from.row(i / columns, head)[c];
    }
  }
};

template <class T>
struct check_kernel {
  heads_view<T const> x;
  float most;
  unsigned* bad;
  i64 blocks;

  template <team Team>
  CELLAR_HD void operator()(Team& t, grid_place at) const {
    i64 const columns = i64{x.heads} * x.head_dim;
    bool all = true;
    for (i64 i = i64{at.x} * t.size() + t.rank(); i < x.tokens * columns; i += blocks * t.size()) {
      float const y = to_float(x.row(i / columns, int(i % columns / x.head_dim))[i % x.head_dim]);
      all &= (y < 0 ? -y : y) <= most;
    }
    if (!all) t.atomic_add(bad, 1u);
  }
};

template <offloading_scheme S, class T>
struct append_kernel {
  memory_map<S> map;
  layer_memory<S> memory;
  sequence_step const* steps;
  token_rows<T> rows;

  template <team Team>
  CELLAR_HD void operator()(Team& t, grid_place at) const {
    sequence_step const& step = steps[at.y];
    int const head = int(at.x);
    operation::write_near(t, sequence_view<S>{map, memory, step.slot, step.pages}, head, step.length - step.new_tokens, step.new_tokens,
                          [&](int side, i64 row, int c) { return to_float(rows.rows(side).row(step.first_row + row, head)[c]); });
  }
};

template <offloading_scheme S>
struct seal_step_kernel {
  memory_map<S> map;
  layer_memory<S> memory;
  sequence_step const* steps;
  float* scratch;
  i64 each;

  template <team Team>
  CELLAR_HD void operator()(Team& t, grid_place at) const {
    sequence_step const& step = steps[at.y];
    operation::seal_step(t, sequence_view<S>{map, memory, step.slot, step.pages}, int(at.x), step, scratch + (i64{at.y} * map.groups() + at.x) * each);
  }
};

/// Eviction of a step's blocks, one KV head and sequence a block of threads.
template <offloading_scheme S>
struct evict_kernel {
  memory_map<S> map;
  layer_memory<S> memory;
  sequence_step const* steps;

  template <team Team>
  CELLAR_HD void operator()(Team& t, grid_place at) const {
    sequence_step const& step = steps[at.y];
    operation::evict(t, sequence_view<S>{map, memory, step.slot, step.pages}, int(at.x), step);
  }
};

/// Some of a prompt's queries, as operation::observe_states takes them.
template <offloading_scheme S, team Team>
CELLAR_HD operation::observing_queries<S::head_dim> observing_rows(Team& t, memory_map<S> const& map, prompt_layer<S> const& layer, int head, i64 length,
                                                                   i64 first, float* to) {
  constexpr int D = S::head_dim;
  int const group = map.shape.group();
  i64 const left = layer.queries.tokens * group - first, rows = left < operation::observed_rows ? left : operation::observed_rows;
  t.sync();
  for (i64 i = t.rank(); i < rows * D; i += t.size()) {
    i64 const r = first + i / D;
    to[i] = element(layer.queries, r / group, head * group + int(r % group), int(i % D)) * map.shape.scale();
  }
  t.sync();
  return {{to, rows}, first, group, length - layer.queries.tokens, operation::observed_reach<S>()};
}

/// Of the keys that some queries reach: the first, and how many.
struct reached_keys {
  i64 begin, count;
  template <int D>
  CELLAR_HD static reached_keys of(operation::observing_queries<D> const& q) {
    i64 const begin = q.position(0) - (q.reach - 1) > 0 ? q.position(0) - (q.reach - 1) : 0;
    return {begin, q.position(q.rows.rows - 1) + 1 - begin};
  }
};

/// Shared memory of the two kernels that observe a prompt.
template <offloading_scheme S>
inline constexpr i64 observe_bytes = operation::observed_rows* S::head_dim * 4 + round_up(operation::observation::bytes, 16) + 32;

/// Softmax states of observed_rows of a prompt's query rows over its keys.
template <offloading_scheme S>
struct observe_states_kernel {
  memory_map<S> map;
  prompt_layer<S> layer;
  i64 length;
  attention::softmax_state* states;  // [kv_head][row], rows rounded up to observed_rows

  template <team Team>
  CELLAR_HD void operator()(Team& t, grid_place at) const {
    int const head = int(at.y);
    auto* const rows = shared_array<float>(t, operation::observed_rows * S::head_dim);
    auto const s = operation::observation::at(shared_array<std::byte>(t, operation::observation::bytes));
    auto const queries = observing_rows<S>(t, map, layer, head, length, i64{at.x} * operation::observed_rows, rows);
    auto const keys = reached_keys::of(queries);
    auto const observe = [&]<class T>(heads_view<T const> const& k) {
      operation::observe_states<T, typename S::attention>(
          t, keys.count,
          [&](i64 i) {
            return operation::observed_key{reinterpret_cast<std::byte const*>(k.row(keys.begin + i, head)), keys.begin + i};
          },
          queries, s);
    };
    if (layer.keys.type == scalar_type::f16) observe(layer.keys.template as<f16>());
    if (layer.keys.type == scalar_type::bf16) observe(layer.keys.template as<bf16>());
    if (layer.keys.type == scalar_type::f32) observe(layer.keys.template as<float>());
    i64 const all = round_up(layer.queries.tokens * map.shape.group(), operation::observed_rows);
    for (i64 r = t.rank(); r < queries.rows.rows; r += t.size()) states[head * all + queries.first + r] = s.states[r];
  }
};

/// The attention that all of these queries pay to observed_keys of a prompt's keys.
template <offloading_scheme S>
struct add_attention_kernel {
  memory_map<S> map;
  prompt_layer<S> layer;
  i64 length;
  attention::softmax_state const* states;
  float* attention;  // [kv_head][length]

  template <team Team>
  CELLAR_HD void operator()(Team& t, grid_place at) const {
    int const head = int(at.y);
    auto* const rows = shared_array<float>(t, operation::observed_rows * S::head_dim);
    auto const s = operation::observation::at(shared_array<std::byte>(t, operation::observation::bytes));
    i64 const first = i64{at.x} * operation::observed_keys, last = first + operation::observed_keys < length ? first + operation::observed_keys : length;
    i64 const count = layer.queries.tokens * map.shape.group(), all = round_up(count, operation::observed_rows);
    float* const to = attention + head * length;
    for (i64 p = first + t.rank(); p < last; p += t.size()) to[p] = 0;
    for (i64 r = 0; r < count; r += operation::observed_rows) {
      auto const queries = observing_rows<S>(t, map, layer, head, length, r, rows);
      auto const keys = reached_keys::of(queries);
      i64 const begin = first > keys.begin ? first : keys.begin, end = last < keys.begin + keys.count ? last : keys.begin + keys.count;
      if (begin >= end) continue;  // the same on every member
      for (i64 i = t.rank(); i < queries.rows.rows; i += t.size()) s.states[i] = states[head * all + r + i];
      auto const add = [&]<class T>(heads_view<T const> const& k) {
        operation::add_attention<T, typename S::attention>(
            t, begin, end,
            [&](i64 p) {
              return operation::observed_key{reinterpret_cast<std::byte const*>(k.row(p, head)), p};
            },
            queries, s, [&](i64 p, float x) { to[p] += x; });
      };
      if (layer.keys.type == scalar_type::f16) add(layer.keys.template as<f16>());
      if (layer.keys.type == scalar_type::bf16) add(layer.keys.template as<bf16>());
      if (layer.keys.type == scalar_type::f32) add(layer.keys.template as<float>());
    }
  }
};

/// Pages of a prompt, one page and head after another in each of `at_once` blocks.
template <offloading_scheme S>
struct seal_pages_kernel {
  static constexpr int resident_blocks(int) { return 2; }

  memory_map<S> map;
  prompt_layer<S> layer;
  sequence_step step;
  float* scratch;
  i64 each, at_once;
  float const* attention;  // [kv_head][length], or null

  template <team Team>
  CELLAR_HD void operator()(Team& t, grid_place at) const {
    using sizes = memory_map<S>;
    sequence_view<S> const to{map, layer.memory, step.slot, step.pages};
    int const heads = map.shape.kv_heads, groups = map.groups();
    i64 const pages = ceil_div(step.sealed, sizes::page_blocks);
    for (i64 item = at.x; item < pages * groups; item += at_once) {
      int const head = int(item % groups);
      i64 const b = item / groups * sizes::page_blocks, blocks = step.sealed - b < sizes::page_blocks ? step.sealed - b : i64{sizes::page_blocks};
      i64 const tokens = blocks * S::block_tokens;
      float *const rows = scratch + at.x * each, *side_rows = rows;
      auto* const stage = reinterpret_cast<std::byte*>(rows + map.page_floats());
      for (int side = 0; side < sizes::sides; ++side) {
        if (!sizes::has_side(side)) continue;
        read_rows(t, layer.rows(side), head, to.position(b), tokens, side_rows);
        side_rows += i64{sizes::page_tokens} * (head < heads ? 1 : heads) * sizes::side_dim(side);
      }
      t.sync();
      if (head < heads) {
        auto of_head = operation::sealed_rows<S, S::head_dim>::at(rows, tokens, sizes::page_tokens, 1);
        if (attention) of_head.attention = attention + head * step.length + to.position(b);
        operation::seal_shared(t, to, head, b, blocks, of_head, 0, stage);
      } else if constexpr (sizes::has_shared)
        operation::seal_shared(t, to, head, b, blocks, operation::sealed_rows<S, dynamic>::at(rows, tokens, sizes::page_tokens, heads), 0, stage);
    }
  }
};

/// Sinks and tail of a prompt.
template <offloading_scheme S>
struct near_of_prompt_kernel {
  memory_map<S> map;
  prompt_layer<S> layer;
  sequence_step step;

  template <team Team>
  CELLAR_HD void operator()(Team& t, grid_place at) const {
    int const head = int(at.x);
    sequence_view<S> const to{map, layer.memory, step.slot, step.pages};
    auto const copy = [&](i64 first, i64 end) {
      operation::write_near(t, to, head, first, end - first, [&](int side, i64 row, int c) { return element(layer.rows(side), first + row, head, c); });
    };
    if (step.sealed == 0) return copy(0, step.length);
    copy(0, map.sinks);
    copy(to.position(step.sealed), step.length);
  }
};

template <offloading_scheme S, int Columns>
struct train_kernel {
  memory_map<S> map;
  prompt_layer<S> layer;
  sequence_step step;
  int head;
  float* rows;

  template <team Team>
  CELLAR_HD void operator()(Team& t, grid_place) const {
    sequence_view<S> const to{map, layer.memory, step.slot, step.pages};
    i64 const heads = Columns == dynamic ? map.shape.kv_heads : 1, columns = heads * S::head_dim, value_columns = heads * S::value_dim;
    read_rows(t, layer.keys, head, 0, step.length, rows);
    t.sync();
    operation::train_keys(t, to, head, matrix_view<float const, Columns>{rows, step.length, columns, columns}, nullptr);
    if constexpr (trained<typename S::value_codec>) {
      read_rows(t, layer.values, head, 0, step.length, rows);
      t.sync();
      operation::train_values(t, to, head, matrix_view < float const,
                              Columns == dynamic ? dynamic : S::value_dim > {rows, step.length, value_columns, value_columns}, nullptr);
    }
  }
};

/// The mean of the prompt's far values.
template <offloading_scheme S>
struct mean_value_kernel {
  memory_map<S> map;
  prompt_layer<S> layer;
  sequence_step step;

  template <team Team>
  CELLAR_HD void operator()(Team& t, grid_place at) const {
    sequence_view<S> const to{map, layer.memory, step.slot, step.pages};
    i64 const begin = map.sinks, end = to.position(step.sealed);
    any_heads_view const& values = layer.rows(memory_map<S>::value_side);
    for (int c = int(t.rank()); c < S::value_dim; c += int(t.size())) {
      double sum = 0;
      for (i64 p = begin; p < end; ++p) sum += double(element(values, p, int(at.x), c));
      to.mean_value(int(at.x))[c] = step.sealed > 0 ? float(sum / double(end - begin)) : undefined;
    }
  }
};

/// The mean values of a remainder by class.
template <offloading_scheme S>
struct class_values_kernel {
  static constexpr int threads = 256;
  static constexpr i64 shared_bytes = threads * sizeof(int);

  memory_map<S> map;
  prompt_layer<S> layer;
  sequence_step step;
  std::uint32_t* scratch;
  i64 each;

  template <team Team>
  CELLAR_HD void operator()(Team& t, grid_place at) const {
    int const head = int(at.x);
    operation::learn_class_values(
        t, sequence_view<S>{map, layer.memory, step.slot, step.pages}, head, step.sealed,
        [&](i64 p, int c) { return element(layer.rows(memory_map<S>::value_side), p, head, c); }, scratch + head * each);
  }
};

/// How badly each block's summary describes it, negated; or how much it was attended to.
template <offloading_scheme S>
struct badness_kernel {
  static constexpr int resident_blocks(int) { return attention_outlier_rule<typename S::outliers> ? 1 : 8; }  // all registers that a thread can have

  memory_map<S> map;
  prompt_layer<S> layer;
  sequence_step step;
  float* badness;
  i64 blocks;
  float const* attention;  // [kv_head][length], or null

  template <team Team>
  CELLAR_HD void operator()(Team& t, grid_place at) const {
    int const head = int(at.y);
    if constexpr (attention_outlier_rule<typename S::outliers>) {
      typename S::outliers{}.rank(t, row_view<float const>{attention + head * step.length + map.sinks, step.sealed * S::block_tokens}, S::block_tokens,
                                  row_view<float>{badness + head * step.sealed, step.sealed});
    } else {
      float* const keys = shared_array<float>(t, i64{S::block_tokens} * S::head_dim);
      for (i64 b = at.x; b < step.sealed; b += blocks) {
        t.sync();
        read_rows(t, layer.keys, head, map.sinks + b * S::block_tokens, S::block_tokens, keys);
        t.sync();
        float const x = typename S::outliers{}(t, matrix_view<float const, S::head_dim>{keys, S::block_tokens});
        if (t.rank() == 0) badness[head * step.sealed + b] = -x;
      }
    }
  }
};
template <offloading_scheme S>
struct keep_outliers_kernel {
  memory_map<S> map;
  prompt_layer<S> layer;
  sequence_step step;
  float const* badness;
  float const* attention;  // [kv_head][length], or null

  template <team Team>
  CELLAR_HD void operator()(Team& t, grid_place at) const {
    using sizes = memory_map<S>;
    sequence_view<S> const to{map, layer.memory, step.slot, step.pages};
    int const head = int(at.x);
    auto* const ids = reinterpret_cast<logical_block*>(to.outlier_record(head));
    i64 const room = map.outliers - map.spare_outliers, n = room < step.sealed ? room : step.sealed;
    for (i64 i = n + t.rank(); i < map.outliers; i += t.size()) ids[i] = logical_block{-1};
    if (n > 0) select::top_k{n}(t, row_view<float const>{badness + head * step.sealed, step.sealed}, row_view<logical_block>{ids, n});
    for (int side = 0; side < sizes::sides; ++side)
      for (i64 o = 0; o < n; ++o)  // one loop over all of them makes the compiler of CUDA 13.0 crash
        for (int i = t.rank(); i < S::block_tokens * sizes::side_dim(side); i += t.size()) {
          int const within = i / sizes::side_dim(side), c = i % sizes::side_dim(side);
          to.outlier_row(head, side, o, within)[c] =
              from_float<typename S::near_scalar>(element(layer.rows(side), to.position(number(ids[o])) + within, head, c));
        }
    if constexpr (evicts_by<typename S::outliers>) {
      t.sync();
      operation::begin_eviction(t, to, head, step, attention + head * step.length);
    }
  }
};

/// Rows of all heads in f32, packed.
struct widen_kernel {
  any_heads_view x;
  i64 tokens;
  float* to;
  i64 blocks;

  template <team Team>
  CELLAR_HD void operator()(Team& t, grid_place at) const {
    i64 const columns = i64{x.heads} * x.head_dim;
    for (i64 i = i64{at.x} * t.size() + t.rank(); i < tokens * columns; i += blocks * t.size())
      to[i] = element(x, i / columns, int(i % columns / x.head_dim), int(i % x.head_dim));
  }
};

template <offloading_scheme S>
inline constexpr bool learns = trained<typename S::summary> || trained<typename S::key_codec> || trained<typename S::value_codec>;
/// Some policy learns by a library of the host.
template <offloading_scheme S>
inline constexpr bool learns_on_host =
    trains_in_scratch<typename S::summary> || trains_in_scratch<typename S::key_codec> || trains_in_scratch<typename S::value_codec>;

/// Rows that are learnt from at a time, in f32.
template <offloading_scheme S>
i64 learner_floats(model_shape const& shape, i64 tokens) {
  if (!learns<S>) return 0;
  i64 rows = tokens * (learns_on_host<S> || memory_map<S>::has_shared ? shape.kv_heads : 1);
  if constexpr (query_trained<typename S::summary>) rows = std::max<i64>(rows, shape.query_heads);  // a token's queries
  return rows * std::max(S::head_dim, S::value_dim);
}

/// Words that the mean values of a KV head's classes are made in.
template <offloading_scheme S>
i64 class_words(i64 tokens) {
  return round_up(operation::class_workspace<S>::words_to_learn(tokens / S::block_tokens), 4);
}

/// Has the policies of a layer learn on the host: keys and values come down, states go up.
template <offloading_scheme S, device On>
void train_on_host(On const& on, memory_map<S> const& device_map, prompt_layer<S> const& layer, sequence_step const& step, float* rows) {
  memory_map<S> map = device_map;
  rotary& r = map.shape.rotary;
  std::vector<double> frequencies(std::size_t(r.inverse_frequencies.count));
  on.download(frequencies.data(), r.inverse_frequencies.data, i64(frequencies.size() * sizeof(double)));
  r.inverse_frequencies.data = frequencies.data();
  r.turns = {};
  i64 const state_bytes = map.state_sequence();
  int const heads = map.shape.kv_heads;
  std::vector<std::byte> state(std::size_t(state_bytes) + 16), scratch(std::size_t(map.train_scratch()) + 16);
  auto const aligned = [](std::vector<std::byte>& x) { return reinterpret_cast<std::byte*>(round_up(reinterpret_cast<i64>(x.data()), 16)); };
  layer_memory<S> memory = layer.memory;
  memory.state = aligned(state);
  sequence_view<S> const to{map, memory, 0, {}};
  serial_team t;
  std::vector<float> queries;
  if constexpr (query_trained<typename S::summary>) {
    any_heads_view const& q = layer.queries;
    queries.resize(std::size_t(q.tokens * q.heads * S::head_dim));
    i64 const at_once = std::max<i64>(1, step.length * heads / q.heads);  // tokens whose rows fit (learner_floats)
    std::size_t const width = std::size_t(q.heads) * S::head_dim;
    for (i64 first = 0; first < q.tokens; first += at_once) {
      i64 const n = std::min(at_once, q.tokens - first), blocks = blocks_for(on, n * i64(width));
      any_heads_view some = q;
      some.data = static_cast<std::byte const*>(q.data) + first * q.token_stride * (q.type == scalar_type::f32 ? 4 : 2);
      on.template launch<256>({blocks}, 0, widen_kernel{some, n, rows, blocks});
      on.download(queries.data() + std::size_t(first) * width, rows, n * i64(width * sizeof(float)));
    }
  }
  // A KV head's group, [token * group + head of the group][channel].
  auto const queries_of = [&](int head) {
    i64 const group = map.shape.group(), tokens = layer.queries.tokens;
    constexpr int D = S::head_dim;
    std::vector<float> mine(std::size_t(tokens * group * D));
    for (i64 i = 0; i < tokens * group; ++i)
      std::copy_n(queries.data() + (i / group * layer.queries.heads + head * group + i % group) * D, D, mine.data() + i * D);
    return mine;
  };
  auto const teach = [&]<int D>(std::integral_constant<int, D>, any_heads_view const& x, auto const& train) {
    std::vector<float> all(std::size_t(step.length * heads * D)), mine(std::size_t(step.length * D));
    on.template launch<256>({blocks_for(on, i64(all.size()))}, 0, widen_kernel{x, step.length, rows, blocks_for(on, i64(all.size()))});
    on.download(all.data(), rows, i64(all.size() * sizeof(float)));
    for (int head = 0; head < heads; ++head) {
      for (i64 i = 0; i < step.length; ++i) std::copy_n(all.data() + (i * heads + head) * D, D, mine.data() + i * D);
      train(head, matrix_view<float const, D>{mine.data(), step.length});
    }
    if constexpr (memory_map<S>::has_shared) train(heads, matrix_view<float const>{all.data(), step.length, i64{heads} * D, i64{heads} * D});
  };
  teach(std::integral_constant<int, S::head_dim>{}, layer.keys, [&]<int Columns>(int head, matrix_view<float const, Columns> const& keys) {
    if constexpr (query_trained<typename S::summary> && Columns != dynamic) {
      auto const asked = queries_of(head);
      operation::train_keys(t, to, head, keys, aligned(scratch), matrix_view<float const, S::head_dim>{asked.data(), i64(asked.size()) / S::head_dim});
    } else {
      operation::train_keys(t, to, head, keys, aligned(scratch));
    }
  });
  if constexpr (trained<typename S::value_codec>)
    teach(std::integral_constant<int, S::value_dim>{}, layer.values,
          [&](int head, auto const& values) { operation::train_values(t, to, head, values, aligned(scratch)); });
  on.upload(layer.memory.state + step.slot * state_bytes, memory.state, state_bytes);
}

}  // namespace detail

/// Bytes of f32 rows that prompts are sealed from, at a time.
inline constexpr i64 prompt_bytes = i64{64} << 20;

namespace detail {

/// Where a prompt's attention is observed: the attention to each token of each KV head, and the softmax states of the queries, in floats.
template <offloading_scheme S>
i64 observed_floats(model_shape const& shape, i64 tokens, i64 observed) {
  if constexpr (operation::observes_attention<S>)
    return round_up(shape.kv_heads * tokens, 4) + 2 * shape.kv_heads * round_up(observed * shape.group(), operation::observed_rows);
  return 0;
}

}  // namespace detail

/// Floats of seal_prompt's scratch, for queries of `observed` tokens.
template <offloading_scheme S, device On>
i64 prompt_floats(On const&, model_shape const& shape, i64 tokens, scalar_type, i64 observed = 0) {
  using map = memory_map<S>;
  i64 const page = operation::seal_floats<S>(shape);
  i64 const pages = std::max<i64>(1, std::min(ceil_div(tokens, map::page_tokens) * map{shape}.groups(), prompt_bytes / 4 / page));
  i64 const outliers = round_up(S::outliers::keeps_outliers ? shape.kv_heads * ceil_div(tokens, S::block_tokens) : 0, 4);
  return pages * page + outliers + shape.kv_heads * detail::class_words<S>(tokens) + detail::learner_floats<S>(shape, tokens) +
         detail::observed_floats<S>(shape, tokens, observed);
}

/// Whether every element is a number of at most that magnitude; false for NaN. Waits.
template <storage_scalar T, device On>
bool are_storable(On const& on, heads_view<T const> x, float most) {
  auto bad = on.template allocate<unsigned>(1);
  unsigned result = 0;
  i64 const blocks = detail::blocks_for(on, x.tokens * x.heads * x.head_dim);
  on.template launch<256>({blocks}, 0, detail::check_kernel<T>{x, most, bad.data(), blocks});
  on.download(&result, bad.data(), sizeof result);
  return result == 0;
}

/// Copies rows to the rows from `first` on.
template <storage_scalar T, device On>
void copy_rows(On const& on, heads_view<T const> from, heads_view<T> to, i64 first) {
  i64 const blocks = detail::blocks_for(on, from.tokens * from.heads * from.head_dim);
  on.template launch<256>({blocks}, 0, detail::copy_rows_kernel<T>{from, to, first, blocks});
}

/// Writes the step's keys and values near, and seals the blocks that leave the window.
///
/// Shapes    rows of the step's tokens; a sequence's start at its first_row
/// Requires  page ids within the memory; workspace of step_workspace_bytes. What host::append_tokens refuses is not looked at
template <offloading_scheme S, storage_scalar T, device On>
void append_tokens(On const& on, memory_map<S> const& map, layer_memory<S> const& memory, row_view<sequence_step const> steps, token_rows<T> const& rows,
                   std::byte* workspace) {
  on.template launch<128>({map.shape.kv_heads, steps.count}, 0, detail::append_kernel<S, T>{map, memory, steps.data, rows});
  if constexpr (evicts_by<typename S::outliers>)
    on.template launch<128>({map.shape.kv_heads, steps.count}, 0, detail::evict_kernel<S>{map, memory, steps.data});
  if constexpr (!S::keeps_generated)
    if (!map.discards_far)
      on.template launch<128>({map.groups(), steps.count}, 0,
                              detail::seal_step_kernel<S>{map, memory, steps.data, reinterpret_cast<float*>(workspace), operation::seal_floats<S>(map.shape)});
}

/// Seals a prompt in all its layers: trains what learns, seals `sealed` blocks, and copies sinks and tail near.
///
/// Shapes    scratch of prompt_floats; keys and values of the layers in device memory
/// Requires  step: slot, pages, sealed and length; finite rows
/// Effects   writes near memory, state, tiles and far planes of that sequence. Waits; where a policy learns by a library of the host, keys and values of
///           each layer are copied there
template <offloading_scheme S, device On>
void seal_prompt(On const& on, memory_map<S> const& map, row_view<prompt_layer<S> const> layers, sequence_step const& step, row_view<float> scratch) {
  using sizes = memory_map<S>;
  constexpr int D = S::head_dim;
  int const heads = map.shape.kv_heads, groups = map.groups();
  i64 const page = operation::seal_floats<S>(map.shape);
  float* const badness = scratch.data;
  float* const classes = badness + round_up(S::outliers::keeps_outliers ? heads * ceil_div(step.length, S::block_tokens) : 0, 4);
  i64 const class_words = detail::class_words<S>(step.length);
  float* const rows = classes + heads * class_words;
  float* const observed = rows + detail::learner_floats<S>(map.shape, step.length);
  float* const pages = observed + detail::observed_floats<S>(map.shape, step.length, layers[0].queries.tokens);
  float* const attention = operation::observes_attention<S> ? observed : nullptr;
  i64 const at_once = std::min(ceil_div(step.sealed, sizes::page_blocks) * groups, (scratch.count - (pages - scratch.data)) / page);
  for (prompt_layer<S> const& layer : layers) {
    if constexpr (detail::learns_on_host<S>)
      detail::train_on_host(on, map, layer, step, rows);
    else if constexpr (detail::learns<S>)
      for (int head = 0; head < groups; ++head) {
        if (head < heads)
          on.template launch<128>({}, 0, detail::train_kernel<S, D>{map, layer, step, head, rows});
        else if constexpr (sizes::has_shared)
          on.template launch<128>({}, 0, detail::train_kernel<S, dynamic>{map, layer, step, head, rows});
      }
    if constexpr (operation::observes_attention<S>) {
      auto* const states = reinterpret_cast<attention::softmax_state*>(observed + round_up(heads * step.length, 4));
      i64 const batches = ceil_div(layer.queries.tokens * map.shape.group(), operation::observed_rows);
      on.template launch<128>({batches, heads}, detail::observe_bytes<S>, detail::observe_states_kernel<S>{map, layer, step.length, states});
      on.template launch<128>({ceil_div(step.length, operation::observed_keys), heads}, detail::observe_bytes<S>,
                              detail::add_attention_kernel<S>{map, layer, step.length, states, attention});
    }
    if (step.sealed > 0 && !map.discards_far)
      on.template launch<128>({at_once}, 0, detail::seal_pages_kernel<S>{map, layer, step, pages, page, at_once, attention});
    if constexpr (remainder_by_class<typename S::remainder>) {
      using kernel = detail::class_values_kernel<S>;
      on.template launch<kernel::threads>({heads}, kernel::shared_bytes, kernel{map, layer, step, reinterpret_cast<std::uint32_t*>(classes), class_words});
    } else if constexpr (S::remainder::estimates) {
      on.template launch<128>({heads}, 0, detail::mean_value_kernel<S>{map, layer, step});
    }
    if constexpr (S::outliers::keeps_outliers) {
      i64 const blocks = std::min<i64>(step.sealed, 4096);
      if constexpr (attention_outlier_rule<typename S::outliers>)
        on.template launch<256>({1, heads}, 0, detail::badness_kernel<S>{map, layer, step, badness, 1, attention});
      else
        on.template launch<32>({blocks, heads}, i64{S::block_tokens} * D * 4, detail::badness_kernel<S>{map, layer, step, badness, blocks, attention});
      on.template launch<256>({heads}, round_up(select::top_k::shared_bytes, 16) + 64, detail::keep_outliers_kernel<S>{map, layer, step, badness, attention});
    }
    on.template launch<128>({heads}, 0, detail::near_of_prompt_kernel<S>{map, layer, step});
  }
  on.wait();  // the scratch is the caller's again
}

}  // namespace cellar::cuda
