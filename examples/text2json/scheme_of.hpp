#pragma once
#include <algorithm>
#include <chrono>
#include <stdexcept>
#include <string_view>
#include <tuple>
#include <type_traits>
#include <utility>

#include "cellar/cellar.hpp"
#include "cellar/interop/lapack.hpp"
#include "text2json/schemes.hpp"

/// The schemes at work on an executor. A source that calls make_scheme_on compiles them for it.

namespace text2json {

/// f16 near and exact, not bf16: the keys of Qwen2 carry a bias of over a hundred, which bf16 would round by a half.
using scalar = cellar::f16;

/// A method as published, but for what the comparison fixes for all: generated tokens stay near.
template <class Scheme>
struct compared : Scheme {
  static constexpr bool keeps_generated = true;
};

/// The same, with each step's blocks chosen by the query of the step before.
template <class Scheme>
struct chosen_a_step_ahead : compared<Scheme> {
  static constexpr bool selects_ahead = true;
};
template <class Scheme>
inline constexpr bool selects_ahead = requires {
  Scheme::selects_ahead;
};

/// The best that any choice of tokens can do: exact scores, exact keys and values.
template <int HeadDim, class Scalar>
struct oracle : cellar::scheme::yakv<HeadDim, Scalar> {
  using key_codec = cellar::codec::identity<Scalar>;
  using value_codec = cellar::codec::identity<Scalar>;
  using summary = cellar::summary::quantized_key<cellar::codec::identity<Scalar>>;
};

/// What each cause that the paper names costs alone: keys of low rank (a rank scaled to the model's width), chosen by exact scores.
template <int HeadDim, class Scalar>
struct low_rank_keys : oracle<HeadDim, Scalar> {
  using key_codec = cellar::codec::low_rank<cellar::codec::rank_share<160, 1024>, cellar::interop::lapack_eigensolver, Scalar>;
};

/// yakv_centred's choice with exact keys and values: what the 2-bit ranking costs without the 4-bit rows.
template <int HeadDim, class Scalar>
struct exact_rows : cellar::scheme::yakv_centred<HeadDim, Scalar> {
  using key_codec = cellar::codec::identity<Scalar>;
  using value_codec = cellar::codec::identity<Scalar>;
};

/// What yakv_balanced has beside its landmarks: yakv_centred with four sinks (budget_of), and with the mean value in place of what was not chosen.
template <int HeadDim, class Scalar>
struct yakv_centred_mean : cellar::scheme::yakv_centred<HeadDim, Scalar> {
  using remainder = cellar::attention::mean_value;
};
/// And its landmarks alone.
template <int HeadDim, class Scalar, class Eigensolver>
struct balanced_landmarks : cellar::scheme::yakv_balanced<HeadDim, Eigensolver, Scalar> {
  using remainder = cellar::attention::no_remainder;
};

/// shadow_kv's choice with exact keys: the chunks that their landmark describes worst stay near.
template <int HeadDim, class Scalar>
struct mean_landmark_outliers : cellar::scheme::mean_landmark<HeadDim, Scalar> {
  using outliers = cellar::select::least_cosine;
};

/// A scheme that says what it missed.
template <class Scheme>
struct watched : Scheme {
  static constexpr bool estimates_missed = true;
};

/// yakv_centred with landmarks centred on the mean of each 64 keys as attended, not on the mean key before rotary embedding.
template <int HeadDim, class Scalar>
struct yakv_block_centred : cellar::scheme::yakv_centred<HeadDim, Scalar> {
  using summary = cellar::summary::quantized_key<cellar::codec::centred<cellar::codec::higgs<4, 256, 1>, cellar::codec::block_mean<64>>>;
};

template <class Scheme, class Executor>
class scheme_of final : public scheme_on_prompt {
 public:
  scheme_of(Executor const& on, engine::model const& model, engine::staged_prompt& prompt, int sequences, std::int64_t generated_tokens,
            cellar::budget const& budget)
      : shape_(shape_of(model)), on_(on), cache_(on_, shape_, limits_of(prompt, sequences, generated_tokens), budget) {
    auto const begin = [&](float* keys, float* values, float const* queries) {
      for (int i = 0; i < sequences; ++i) {
        auto const id = cache_.begin_prompt(cellar::prompt_staging<float>{keys, values, prompt.capacity, prompt.tokens});
        if constexpr (cellar::observes_queries<Scheme>)
          cache_.finish_prompt(on_, id, cellar::prompt_queries<float>{queries, std::min(prompt.observed, prompt.tokens)});
        else
          cache_.finish_prompt(on_, id);
        ids_.push_back(id);
      }
    };
    if constexpr (selects_ahead<Scheme>) before_.resize(std::size_t(shape_.layers));
    if constexpr (Executor::is_host) {
      begin(prompt.keys.data(), prompt.values.data(), prompt.queries.data());
      cache_.observe(&work_);
    } else {
      auto keys = on_.template allocate<float>(std::int64_t(prompt.keys.size())), values = on_.template allocate<float>(std::int64_t(prompt.values.size()));
      on_.upload(keys.data(), prompt.keys.data(), bytes_of(prompt.keys.size()));
      on_.upload(values.data(), prompt.values.data(), bytes_of(prompt.values.size()));
      auto queries = on_.template allocate<float>(std::int64_t(cellar::observes_queries<Scheme> ? prompt.queries.size() : 0));
      if constexpr (cellar::observes_queries<Scheme>) on_.upload(queries.data(), prompt.queries.data(), bytes_of(prompt.queries.size()));
      begin(keys.data(), values.data(), queries.data());
      on_.wait();  // before they go
      std::int64_t const row = Scheme::head_dim * sequences;
      q_ = on_.template allocate<float>(shape_.query_heads * row);
      out_ = on_.template allocate<float>(shape_.query_heads * row);
      k_ = on_.template allocate<float>(shape_.kv_heads * row);
      v_ = on_.template allocate<float>(shape_.kv_heads * row);
    }
  }

  void plan(std::span<int const> sequences) override {
    batch_.clear();
    for (int const s : sequences) batch_.push_back({ids_[std::size_t(s)], 1});
    timed([&] { cache_.plan(on_, {batch_.data(), std::int64_t(batch_.size())}); });
    steps_ += std::int64_t(batch_.size());
  }

  void attend(int layer, float const* q, float const* k, float const* v, float* out) override {
    layer_ = layer;
    auto const n = std::int64_t(batch_.size());
    int const d = Scheme::head_dim;
    if constexpr (selects_ahead<Scheme>) {
      auto& before = before_[std::size_t(layer)];
      if (std::int64_t(before.size()) == n * shape_.query_heads * d) {  // of the same sequences
        float const* asked = before.data();
        if constexpr (!Executor::is_host) {
          on_.upload(q_.data(), asked, bytes_of(before.size()));
          asked = q_.data();
        }
        timed([&] { cache_.select(on_, layer, cellar::packed_heads(asked, n, shape_.query_heads, d)); });
      }
      before.assign(q, q + n * shape_.query_heads * d);
    }
    auto const attend = [&](float const* queries, float const* keys, float const* values, float* outputs) {
      cache_.append(on_, layer, cellar::packed_heads(keys, n, shape_.kv_heads, d), cellar::packed_heads(values, n, shape_.kv_heads, d));
      cache_.attend(on_, layer, cellar::packed_heads(queries, n, shape_.query_heads, d), cellar::packed_heads(outputs, n, shape_.query_heads, d));
    };
    if constexpr (Executor::is_host) {
      timed([&] { attend(q, k, v, out); });
    } else {
      on_.upload(q_.data(), q, bytes_of(std::size_t(n * shape_.query_heads * d)));
      on_.upload(k_.data(), k, bytes_of(std::size_t(n * shape_.kv_heads * d)));
      on_.upload(v_.data(), v, bytes_of(std::size_t(n * shape_.kv_heads * d)));
      timed([&] {
        attend(q_.data(), k_.data(), v_.data(), out_.data());
        on_.wait();
      });
      on_.download(out, out_.data(), bytes_of(std::size_t(n * shape_.query_heads * d)));
      ++work_.attends;
      if constexpr (!cellar::operation::selects_nothing<Scheme>)
        for (auto const& b : batch_)
          for (int head = 0; head < shape_.kv_heads; ++head) {
            auto const chosen = cache_.selected(on_, &b - batch_.data(), head);
            work_.fetched_blocks += chosen ? std::int64_t(chosen->size()) : cache_.sealed_blocks(b.sequence);
          }
    }
  }

  std::vector<bool> attended(int kv_head) const override {
    auto const id = batch_.front().sequence;
    std::vector<bool> is(std::size_t(cache_.length(id)), true);
    auto const chosen = [&] {
      if constexpr (Executor::is_host)
        return cache_.selected(0, kv_head);
      else
        return cache_.selected(on_, 0, kv_head);
    }();
    if (!chosen) return is;
    std::int64_t const block = Scheme::block_tokens, first = cache_.sinks();
    for (std::int64_t p = first; p < first + cache_.sealed_blocks(id) * block; ++p) is[std::size_t(p)] = false;
    auto const mark = [&](auto const& blocks) {
      for (auto const b : blocks)
        for (std::int64_t i = 0; i < block; ++i) is[std::size_t(first + number(b) * block + i)] = true;
    };
    mark(*chosen);
    if constexpr (Executor::is_host)
      mark(cache_.outliers(layer_, id, kv_head));
    else
      mark(cache_.outliers(on_, layer_, id, kv_head));
    return is;
  }

  std::vector<float> missed([[maybe_unused]] int kv_head) const override {
    if constexpr (!Scheme::estimates_missed) {
      return {};
    } else if constexpr (Executor::is_host) {
      auto const all = cache_.missed(0, kv_head);
      return all ? std::vector<float>(all->begin(), all->end()) : std::vector<float>();
    } else {
      return cache_.missed(on_, 0, kv_head).value_or(std::vector<float>());
    }
  }

  void account(document_result& to) const override {
    auto const usage = cache_.usage(ids_.front());
    to.bytes = {double(usage.summary), double(usage.always_near), double(usage.generated), double(usage.pool), double(usage.far)};
    to.length = cache_.length(ids_.front());
    to.steps = steps_;
    to.seconds = seconds_;
    to.work = work_;
    if constexpr (!Executor::is_host) {
      auto const [hits, misses] = cache_.pool_hits_and_misses(on_);
      to.work.pool_hits = hits;
      to.work.pool_misses = misses;
      auto const& planes = cache_.map().geometry();
      to.work.moved_bytes = hits + misses > 0 ? misses * planes.slice_bytes() : work_.fetched_blocks * (planes.block_bytes() / shape_.kv_heads);
    }
  }

 private:
  static cellar::model_shape shape_of(engine::model const& model) {
    auto const& c = model.config();
    auto const& frequencies = model.angles(0).inverse_frequencies;
    auto const pairing = c.pairing == engine::rotary_pairing::adjacent ? cellar::rotary_pairing::adjacent : cellar::rotary_pairing::half_split;
    return {.layers = c.layers,
            .query_heads = c.heads,
            .kv_heads = c.kv_heads,
            .head_dim = c.head_dim,
            .rotary = {pairing, {frequencies.data(), std::int64_t(frequencies.size())}}};
  }
  static cellar::limits limits_of(engine::staged_prompt const& prompt, int sequences, std::int64_t generated_tokens) {
    return {.sequences = sequences, .tokens = prompt.tokens + generated_tokens, .generated_tokens = generated_tokens};
  }
  static std::int64_t bytes_of(std::size_t floats) { return std::int64_t(floats * sizeof(float)); }
  template <class F>
  void timed(F const& f) {
    auto const start = std::chrono::steady_clock::now();
    f();
    seconds_ += std::chrono::duration<double>(std::chrono::steady_clock::now() - start).count();
  }

  cellar::model_shape shape_;
  Executor on_;
  cellar::cache<Scheme, Executor> cache_;
  typename Executor::template buffer<float> q_, k_, v_, out_;  // of a step, on a device
  int layer_ = 0;                                              // that was attended last
  std::vector<std::vector<float>> before_;                     // queries of the step before, by layer, where they choose
  std::vector<cellar::sequence_id> ids_;
  std::vector<cellar::batch_entry> batch_;
  cellar::statistics work_;
  std::int64_t steps_ = 0;
  double seconds_ = 0;
};

/// A name in a type.
template <std::size_t N>
struct literal {
  char text[N];
  constexpr literal(char const (&from)[N]) { std::copy_n(from, N, text); }
};
template <literal Name, class Scheme>
struct named {
  static constexpr std::string_view name = Name.text;
  using type = Scheme;
};

using lapack = cellar::interop::lapack_eigensolver;
using scaled_rank = cellar::codec::rank_share<160, 1024>;

/// Every scheme for heads of that width, dense first.
template <int HeadDim>
using all_schemes = std::tuple<
    named<"dense", compared<cellar::scheme::dense<HeadDim, scalar>>>, named<"oracle", oracle<HeadDim, scalar>>,
    named<"yakv_centred", cellar::scheme::yakv_centred<HeadDim, scalar>>, named<"yakv", cellar::scheme::yakv<HeadDim, scalar>>,
    named<"yakv_before_rotary", cellar::scheme::yakv_before_rotary<HeadDim, scalar>>, named<"yakv_block_centred", yakv_block_centred<HeadDim, scalar>>,
    named<"yakv_residual", cellar::scheme::yakv_residual<HeadDim, scalar>>, named<"yakv_published", cellar::scheme::yakv_published<HeadDim, scalar>>,
    named<"exact_rows", exact_rows<HeadDim, scalar>>, named<"low_rank_keys", low_rank_keys<HeadDim, scalar>>,
    named<"mean_landmark", cellar::scheme::mean_landmark<HeadDim, scalar>>, named<"mean_landmark_outliers", mean_landmark_outliers<HeadDim, scalar>>,
    named<"shadow_kv", cellar::scheme::shadow_kv<HeadDim, lapack, scalar>>,
    named<"shadow_kv_scaled", cellar::scheme::shadow_kv<HeadDim, lapack, scalar, scaled_rank>>,
    named<"arkvale", compared<cellar::scheme::arkvale<HeadDim, scalar>>>, named<"quest", compared<cellar::scheme::quest<HeadDim, scalar>>>,
    named<"sink_window", compared<cellar::scheme::sink_window<HeadDim, scalar>>>, named<"omni_kv", compared<cellar::scheme::omni_kv<HeadDim, scalar>>>,
    named<"tidal_decode", compared<cellar::scheme::tidal_decode<HeadDim, scalar>>>, named<"h_share", compared<cellar::scheme::h_share<HeadDim, scalar>>>,
    named<"twilight", compared<cellar::scheme::twilight<HeadDim, scalar>>>, named<"sparq", compared<cellar::scheme::sparq<HeadDim, scalar>>>,
    named<"double_sparsity", compared<cellar::scheme::double_sparsity<HeadDim, scalar>>>,
    named<"loki", compared<cellar::scheme::loki<HeadDim, lapack, scalar>>>, named<"rabitq_cache", compared<cellar::scheme::rabitq_cache<HeadDim, scalar>>>,
    named<"pq_cache", compared<cellar::scheme::pq_cache<HeadDim, scalar>>>, named<"lrqk", compared<cellar::scheme::lrqk<HeadDim, scalar, HeadDim / 4>>>,
    named<"moba_scaled", compared<cellar::scheme::moba<HeadDim, scalar, 32>>>, named<"inf_llm_scaled", cellar::scheme::inf_llm<HeadDim, scalar, 32>>,
    named<"free_kv", chosen_a_step_ahead<cellar::scheme::free_kv<HeadDim, scalar>>>, named<"snap_kv", cellar::scheme::snap_kv<HeadDim, scalar>>,
    named<"h2o", cellar::scheme::h2o<HeadDim, scalar>>, named<"magic_pig", compared<cellar::scheme::magic_pig<HeadDim, scalar>>>,
    named<"cluster_kv", cellar::scheme::cluster_kv<HeadDim, scalar>>,
    named<"retro_infer", cellar::scheme::retro_infer<HeadDim, scalar, 1024>>,  // clusters for prompts of 16k tokens
    named<"paris_kv", compared<cellar::scheme::paris_kv<HeadDim, scalar>>>, named<"yakv_balanced", cellar::scheme::yakv_balanced<HeadDim, lapack, scalar>>,
    named<"balanced_landmarks", balanced_landmarks<HeadDim, scalar, lapack>>, named<"yakv_centred_sinks", cellar::scheme::yakv_centred<HeadDim, scalar>>,
    named<"yakv_centred_mean", yakv_centred_mean<HeadDim, scalar>>, named<"yakv_guarded", cellar::scheme::yakv_guarded<HeadDim, scalar>>,
    named<"yakv_centred_twice", cellar::scheme::yakv_centred<HeadDim, scalar>>, named<"yakv_centred_four_times", cellar::scheme::yakv_centred<HeadDim, scalar>>,
    named<"yakv_centred_watched", watched<cellar::scheme::yakv_centred<HeadDim, scalar>>>,
    named<"mean_landmark_watched", watched<cellar::scheme::mean_landmark<HeadDim, scalar>>>,
    named<"quest_watched", watched<compared<cellar::scheme::quest<HeadDim, scalar>>>>>;

/// What a program is compiled for: names of schemes with commas (all if empty), and widths of heads. Each pair is code of its own.
template <literal Names, int... HeadDim>
struct compiled_for {
  static constexpr bool has(std::string_view name) {  // by places: g++ 12 under sanitizers finds nothing constant in std::string_view::find here
    if (Names.text[0] == 0) return true;
    bool is_same = true;
    for (std::size_t i = 0, at = 0;; ++i) {
      char const c = Names.text[i];
      if (c == ',' || c == 0) {
        if (is_same && at == name.size()) return true;
        if (c == 0) return false;
        is_same = true;
        at = 0;
      } else {
        is_same = is_same && at < name.size() && name[at] == c;
        ++at;
      }
    }
  }
  /// Calls f with the width as a constant, if it is one of them. Whether it is.
  template <class F>
  static bool with_width(int width, F const& f) {
    return ((width == HeadDim && (f(std::integral_constant<int, HeadDim>{}), true)) || ...);
  }
};

/// Calls f(type) with the scheme of that name for heads of that width: from run time to compile time, once. Whether there is one.
template <class Compiled, int HeadDim, class F>
bool visit(std::string const& name, F const& f) {
  auto const is = [&]<class Named>(std::type_identity<Named>) {
    if constexpr (Compiled::has(Named::name)) {
      if (name != Named::name) return false;
      f(std::type_identity<typename Named::type>{});
      return true;
    } else {
      return false;
    }
  };
  return [&]<class... Named>(std::type_identity<std::tuple<Named...>>) {
    return (is(std::type_identity<Named>{}) || ...);
  }(std::type_identity<all_schemes<HeadDim>>{});
}

/// Whether a scheme is to be given a prompt's queries.
template <class Compiled>
bool needs_queries(std::string const& name) {
  bool needs = false;
  visit<Compiled, 64>(name, [&]<class Scheme>(std::type_identity<Scheme>) { needs = cellar::observes_queries<Scheme>; });
  return needs;
}

/// The budget that a scheme has of an allowance.
inline cellar::budget budget_of(std::string_view name, allowance const& allowed) {
  cellar::budget budget{.tokens = allowed.tokens, .window = allowed.window};
  if (name == "shadow_kv") budget.outliers = 48;  // as published, for 2048 tokens
  if (name == "shadow_kv_scaled" || name == "mean_landmark_outliers") budget.outliers = (24 * allowed.tokens + 1023) / 1024;
  if (name == "sink_window") {  // nothing is chosen: the tokens are sinks and a longer window
    budget.sinks = std::min<std::int64_t>(4, allowed.tokens);
    budget.window = allowed.window + allowed.tokens - budget.sinks;
  }
  if (name == "yakv_balanced" || name == "yakv_centred_sinks" || name == "yakv_centred_mean") budget.sinks = std::min<std::int64_t>(4, allowed.tokens);
  if (name == "yakv_centred_twice") budget.tokens = 2 * allowed.tokens;
  if (name == "yakv_centred_four_times" || name == "yakv_guarded") budget.tokens = 4 * allowed.tokens;  // the latter takes a quarter where that is enough
  if (name == "snap_kv") budget.outliers = allowed.tokens;
  if (name == "h2o") {  // halves, as published
    budget.outliers = (allowed.tokens + allowed.window) / 2;
    budget.window = allowed.tokens + allowed.window - budget.outliers;
  }
  return budget;
}

/// make_scheme, by make(the width as a constant, the budget): null where there is no such scheme.
template <class Compiled, class Make>
std::unique_ptr<scheme_on_prompt> make_scheme_by(std::string const& name, engine::model const& model, allowance const& allowed, Make const& make) {
  if (model.config().global_layers() < model.config().layers)
    throw std::invalid_argument("This program runs models whose layers all see all tokens; some of this one's have a sliding window. Choose another model.");
  int const head_dim = model.config().head_dim;
  std::unique_ptr<scheme_on_prompt> made;
  bool const is_width_compiled =
      Compiled::with_width(head_dim, [&]<int HeadDim>(std::integral_constant<int, HeadDim> width) { made = make(width, budget_of(name, allowed)); });
  if (!is_width_compiled)
    throw std::invalid_argument("This program is not compiled for heads of " + std::to_string(head_dim) +
                                " channels, as the model has. Configure with -DCELLAR_TEXT2JSON_HEAD_DIMS=" + std::to_string(head_dim) + ".");
  if (!made)
    throw std::invalid_argument(
        "There is no scheme " + name +
        (std::ranges::count(scheme_names(), name) > 0 ? " compiled for this device; it was left out when the program was configured." : "."));
  return made;
}

/// make_scheme on an executor.
template <class Compiled, class Executor>
std::unique_ptr<scheme_on_prompt> make_scheme_on(Executor const& on, std::string const& name, engine::model const& model, engine::staged_prompt& prompt,
                                                 int sequences, std::int64_t generated_tokens, allowance const& allowed) {
  return make_scheme_by<Compiled>(name, model, allowed, [&]<int HeadDim>(std::integral_constant<int, HeadDim>, cellar::budget const& budget) {
    std::unique_ptr<scheme_on_prompt> made;
    visit<Compiled, HeadDim>(name, [&]<class Scheme>(std::type_identity<Scheme>) {
      made = std::make_unique<scheme_of<Scheme, Executor>>(on, model, prompt, sequences, generated_tokens, budget);
    });
    return made;
  });
}

/// Of the host's schemes, those whose place in all_schemes is Part modulo scheme_parts: null for others. Each is compiled in a source of its own
/// (schemes_part.cpp), since all in one take long.
inline constexpr int scheme_parts = 4;
template <int HeadDim, int Part>
std::unique_ptr<scheme_on_prompt> make_scheme_of_part(std::string const& name, engine::model const& model, engine::staged_prompt& prompt, int sequences,
                                                      std::int64_t generated_tokens, cellar::budget const& budget);

}  // namespace text2json
