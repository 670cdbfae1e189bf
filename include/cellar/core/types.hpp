#pragma once
#include <cstdint>

#include "cellar/core/error.hpp"
#include "cellar/core/view.hpp"

/// The vocabulary: strong ids, the model's shape, capacities and budgets.
namespace cellar::inline CELLAR_ABI {

// Ids of different kinds do not mix. Logical ones count within a sequence, physical ones name memory.
enum class sequence_id : std::int32_t {};
enum class logical_block : std::int32_t {};  ///< Block number within the far part of one sequence.
enum class physical_block : i64 {};
enum class page_id : std::int32_t {};  ///< A physical page of far memory and of summaries.

CELLAR_HD constexpr i64 number(sequence_id x) { return i64(x); }
CELLAR_HD constexpr i64 number(logical_block x) { return i64(x); }
CELLAR_HD constexpr i64 number(physical_block x) { return i64(x); }
CELLAR_HD constexpr i64 number(page_id x) { return i64(x); }

/// Which channels one rotation turns together.
enum class rotary_pairing { adjacent, half_split };  ///< (2i, 2i+1), GGUF llama; (i, i + head_dim/2), qwen2 and most others.

/// Rotary position embedding: pair i turns by position * inverse_frequencies[i].
struct rotary {
  rotary_pairing pairing = rotary_pairing::half_split;
  row_view<double const> inverse_frequencies;  ///< [head_dim / 2]; owned by the caller, must outlive every use.
  row_view<float const> turns = {};            ///< Optional: cosines and sines by fill_turns, which spare the work at every row. A cache makes its own.

  CELLAR_HD bool is_set() const { return inverse_frequencies.data != nullptr; }
};

/// The model's geometry.
struct model_shape {
  int layers = 0;
  int query_heads = 0;
  int kv_heads = 0;
  int head_dim = 0;         ///< Of queries and keys.
  float softmax_scale = 0;  ///< Multiplies q.k; 0 means 1 / sqrt(head_dim).
  struct rotary rotary = {};

  CELLAR_HD int group() const { return query_heads / kv_heads; }
  CELLAR_HD float scale() const { return softmax_scale != 0 ? softmax_scale : 1.0f / std::sqrt(float(head_dim)); }
};

/// What a selection may take, and what stays near for good. Published values are members of the schemes.
struct budget {
  double share = 0;      ///< Of the prompt's tokens, fetched a step and KV head; used if `tokens` is 0.
  i64 tokens = 0;        ///< Fetched a step and KV head, as an absolute count.
  i64 sinks = 0;         ///< First tokens of a sequence, always near and exact.
  i64 window = 0;        ///< Last tokens, always near and exact.
  int dense_layers = 0;  ///< The first layers attend to everything.
  i64 outliers = 0;      ///< Blocks of a prompt and KV head that stay near and exact (schemes with a rule for them).

  /// Tokens that a step may fetch for a prompt of that length: at least 1, unless nothing is asked for.
  CELLAR_HD constexpr i64 fetched_tokens(i64 prompt_tokens) const {
    if (tokens > 0) return tokens;
    if (share <= 0) return 0;
    i64 const n = i64(share * double(prompt_tokens));
    return n > 0 ? n : 1;
  }
};

/// Capacities of a cache, fixed at construction: decode allocates nothing.
struct limits {
  int sequences = 1;
  i64 tokens = 0;            ///< A sequence, prompt and generated.
  i64 generated_tokens = 0;  ///< Of these, at most that many appended after the prompt (schemes that keep them near); 0 means `tokens`.
  i64 step_tokens = 1;       ///< Appended to one sequence in one step.
  i64 step_sequences = 0;    ///< In one batch; 0 means all of them.
  i64 pool_runs = 0;         ///< Planes of a block and KV head that the near pool keeps, for tiers not read in place; 0: what a step selects in a layer.
  i64 far_tokens = 0;        ///< Of all sequences together, in far memory; 0 means sequences * tokens. Whole pages of the scheme.
};

/// Refuses a geometry that no operation could serve.
inline void validate(model_shape const& s) {
  expects(s.layers > 0 && s.query_heads > 0 && s.kv_heads > 0, "model_shape: layers, query_heads and kv_heads must be positive");
  expects(s.query_heads % s.kv_heads == 0, "model_shape: query_heads must be a multiple of kv_heads (grouped-query attention)");
  expects(s.head_dim >= 8 && s.head_dim <= 576 && s.head_dim % 8 == 0, "model_shape: head_dim must be a multiple of 8 up to 576");
  expects(is_finite(s.softmax_scale) && s.softmax_scale >= 0, "model_shape: softmax_scale must be finite and not negative");
  if (s.rotary.is_set()) expects(s.rotary.inverse_frequencies.count == s.head_dim / 2, "model_shape: rotary needs head_dim / 2 inverse frequencies");
}

}  // namespace cellar
