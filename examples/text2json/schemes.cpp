#include "text2json/schemes.hpp"

#include <chrono>
#include <stdexcept>

#include "cellar/cellar.hpp"
#include "cellar/interop/lapack.hpp"

namespace text2json {

namespace {

/// f16 near and exact, not bf16: the keys of Qwen2 carry a bias of over a hundred, which bf16 would round by a half.
using scalar = cellar::f16;

/// A method as published, but for what the comparison fixes for all: generated tokens stay near.
template <class Scheme>
struct compared : Scheme {
  static constexpr bool keeps_generated = true;
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

/// shadow_kv's choice with exact keys: the chunks that their landmark describes worst stay near.
template <int HeadDim, class Scalar>
struct mean_landmark_outliers : cellar::scheme::mean_landmark<HeadDim, Scalar> {
  using outliers = cellar::select::least_cosine;
};

/// yakv_centred with landmarks centred on the mean of each 64 keys as attended, not on the mean key before rotary embedding.
template <int HeadDim, class Scalar>
struct yakv_block_centred : cellar::scheme::yakv_centred<HeadDim, Scalar> {
  using summary = cellar::summary::quantized_key<cellar::codec::centred<cellar::codec::higgs<4, 256, 1>, cellar::codec::block_mean<64>>>;
};

template <class Scheme>
class scheme_of final : public scheme_on_prompt {
 public:
  scheme_of(engine::model const& model, engine::staged_prompt& prompt, int sequences, std::int64_t generated_tokens, cellar::budget const& budget)
      : shape_(shape_of(model)), on_(model.threads()), cache_(on_, shape_, limits_of(prompt, sequences, generated_tokens), budget) {
    for (int i = 0; i < sequences; ++i) {
      auto const id = cache_.begin_prompt(cellar::prompt_staging<float>{prompt.keys.data(), prompt.values.data(), prompt.capacity, prompt.tokens});
      cache_.finish_prompt(on_, id);
      ids_.push_back(id);
    }
    cache_.observe(&work_);
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
    timed([&] {
      cache_.append(on_, layer, cellar::packed_heads(k, n, shape_.kv_heads, d), cellar::packed_heads(v, n, shape_.kv_heads, d));
      cache_.attend(on_, layer, cellar::packed_heads(q, n, shape_.query_heads, d), cellar::packed_heads(out, n, shape_.query_heads, d));
    });
  }

  std::vector<bool> attended(int kv_head) const override {
    auto const id = batch_.front().sequence;
    std::vector<bool> is(std::size_t(cache_.length(id)), true);
    auto const chosen = cache_.selected(0, kv_head);
    if (!chosen) return is;
    std::int64_t const block = Scheme::block_tokens, first = cache_.sinks();
    for (std::int64_t p = first; p < first + cache_.sealed_blocks(id) * block; ++p) is[std::size_t(p)] = false;
    auto const mark = [&](auto const& blocks) {
      for (auto const b : blocks)
        for (std::int64_t i = 0; i < block; ++i) is[std::size_t(first + number(b) * block + i)] = true;
    };
    mark(*chosen);
    mark(cache_.outliers(layer_, id, kv_head));
    return is;
  }

  void account(document_result& to) const override {
    auto const usage = cache_.usage(ids_.front());
    to.bytes = {double(usage.summary), double(usage.always_near), double(usage.generated), double(usage.pool), double(usage.far)};
    to.length = cache_.length(ids_.front());
    to.steps = steps_;
    to.seconds = seconds_;
    to.work = work_;
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
  template <class F>
  void timed(F const& f) {
    auto const start = std::chrono::steady_clock::now();
    f();
    seconds_ += std::chrono::duration<double>(std::chrono::steady_clock::now() - start).count();
  }

  cellar::model_shape shape_;
  cellar::host::executor on_;
  cellar::cache<Scheme> cache_;
  int layer_ = 0;  // that was attended last
  std::vector<cellar::sequence_id> ids_;
  std::vector<cellar::batch_entry> batch_;
  cellar::statistics work_;
  std::int64_t steps_ = 0;
  double seconds_ = 0;
};

/// Calls f(type) with the scheme of that name for heads of that width: from run time to compile time, once.
template <int HeadDim, class F>
bool visit(std::string const& name, F const& f) {
  namespace scheme = cellar::scheme;
  auto const is = [&]<class Scheme>(char const* its_name, std::type_identity<Scheme> type) {
    if (name != its_name) return false;
    f(type);
    return true;
  };
  using lapack = cellar::interop::lapack_eigensolver;
  using scaled_rank = cellar::codec::rank_share<160, 1024>;
  return is("dense", std::type_identity<compared<scheme::dense<HeadDim, scalar>>>{}) || is("oracle", std::type_identity<oracle<HeadDim, scalar>>{}) ||
         is("yakv_centred", std::type_identity<scheme::yakv_centred<HeadDim, scalar>>{}) || is("yakv", std::type_identity<scheme::yakv<HeadDim, scalar>>{}) ||
         is("yakv_before_rotary", std::type_identity<scheme::yakv_before_rotary<HeadDim, scalar>>{}) ||
         is("yakv_block_centred", std::type_identity<yakv_block_centred<HeadDim, scalar>>{}) ||
         is("yakv_residual", std::type_identity<scheme::yakv_residual<HeadDim, scalar>>{}) ||
         is("yakv_published", std::type_identity<scheme::yakv_published<HeadDim, scalar>>{}) ||
         is("exact_rows", std::type_identity<exact_rows<HeadDim, scalar>>{}) || is("low_rank_keys", std::type_identity<low_rank_keys<HeadDim, scalar>>{}) ||
         is("mean_landmark", std::type_identity<scheme::mean_landmark<HeadDim, scalar>>{}) ||
         is("mean_landmark_outliers", std::type_identity<mean_landmark_outliers<HeadDim, scalar>>{}) ||
         is("shadow_kv", std::type_identity<scheme::shadow_kv<HeadDim, lapack, scalar>>{}) ||
         is("shadow_kv_scaled", std::type_identity<scheme::shadow_kv<HeadDim, lapack, scalar, scaled_rank>>{}) ||
         is("arkvale", std::type_identity<compared<scheme::arkvale<HeadDim, scalar>>>{}) ||
         is("quest", std::type_identity<compared<scheme::quest<HeadDim, scalar>>>{}) ||
         is("sink_window", std::type_identity<compared<scheme::sink_window<HeadDim, scalar>>>{});
}

}  // namespace

std::vector<std::string> const& scheme_names() {
  static std::vector<std::string> const names{
      "dense",         "oracle",           "yakv_centred", "yakv",          "yakv_before_rotary", "yakv_block_centred",
      "yakv_residual", "yakv_published",   "exact_rows",   "low_rank_keys", "mean_landmark",      "mean_landmark_outliers",
      "shadow_kv",     "shadow_kv_scaled", "arkvale",      "quest",         "sink_window"};
  return names;
}

std::unique_ptr<scheme_on_prompt> make_scheme(std::string const& name, engine::model const& model, engine::staged_prompt& prompt, int sequences,
                                              std::int64_t generated_tokens, allowance const& allowed) {
  cellar::budget budget{.tokens = allowed.tokens, .window = allowed.window};
  if (name == "shadow_kv") budget.outliers = 48;  // as published, for 2048 tokens
  if (name == "shadow_kv_scaled" || name == "mean_landmark_outliers") budget.outliers = (24 * allowed.tokens + 1023) / 1024;
  if (name == "sink_window") {  // nothing is chosen: the tokens are sinks and a longer window
    budget.sinks = std::min<std::int64_t>(4, allowed.tokens);
    budget.window = allowed.window + allowed.tokens - budget.sinks;
  }
  std::unique_ptr<scheme_on_prompt> made;
  auto const make = [&]<class Scheme>(std::type_identity<Scheme>) {
    made = std::make_unique<scheme_of<Scheme>>(model, prompt, sequences, generated_tokens, budget);
  };
  if (model.config().global_layers() < model.config().layers)
    throw std::invalid_argument("This program runs models whose layers all see all tokens; some of this one's have a sliding window. Choose another model.");
  int const head_dim = model.config().head_dim;
  bool is_compiled = false, is_found = false;
  auto const try_width = [&]<int HeadDim>(std::integral_constant<int, HeadDim>) {
    if (head_dim != HeadDim) return;
    is_compiled = true;
    is_found = visit<HeadDim>(name, make);
  };
  [&]<int... HeadDim>(std::integer_sequence<int, HeadDim...>) { (try_width(std::integral_constant<int, HeadDim>{}), ...); }
  (std::integer_sequence<int, CELLAR_HEAD_DIMS>{});
  if (!is_compiled)
    throw std::invalid_argument("This program is not compiled for heads of " + std::to_string(head_dim) +
                                " channels, as the model has. Configure with -DCELLAR_TEXT2JSON_HEAD_DIMS=" + std::to_string(head_dim) + ".");
  if (!is_found) throw std::invalid_argument("There is no scheme " + name + ".");
  return made;
}

}  // namespace text2json
