#pragma once
#include <memory>
#include <optional>
#include <span>
#include <string>
#include <vector>

#include "cellar/core/statistics.hpp"
#include "engine/model.hpp"
#include "text2json/metrics.hpp"

namespace text2json {

/// What every scheme may attend to, so that all are compared at one budget.
struct allowance {
  std::int64_t tokens = 0;  ///< Chosen from the far tokens of the prompt, a step and KV head.
  std::int64_t window = 0;  ///< Last tokens of the prompt, near beside them.
};

/// A scheme at work on one prompt, behind an interface, so that the program can hold all of them.
class scheme_on_prompt {
 public:
  virtual ~scheme_on_prompt() = default;

  /// Prepares one more token for some of the sequences, ascending.
  virtual void plan(std::span<int const> sequences) = 0;
  /// Appends and attends, one layer; rows as planned. q, out [row, heads, head_dim], k, v [row, kv_heads, head_dim].
  virtual void attend(int layer, float const* q, float const* k, float const* v, float* out) = 0;
  /// Whether the last attend of the first planned sequence read each position, for one KV head.
  virtual std::vector<bool> attended(int kv_head) const = 0;
  /// The share of its attention that each query head of the same says that it missed, [group]; nothing where the scheme does not say.
  virtual std::vector<float> missed(int kv_head) const = 0;
  /// Adds sizes, counts and times to a result.
  virtual void account(document_result& to) const = 0;
};

/// Names of the schemes, dense first.
std::vector<std::string> const& scheme_names();

/// Whether the scheme of that name learns from a prompt's queries: staged_prompt::queries, of as many tokens as its paper observes or of all.
bool needs_queries(std::string const& name);

/// Makes a scheme's cache, `sequences` times over the same prompt.
///
/// Requires  a name of scheme_names
/// Errors    std::invalid_argument for a head width that is not compiled in
std::unique_ptr<scheme_on_prompt> make_scheme(std::string const& name, engine::model const& model, engine::staged_prompt& prompt, int sequences,
                                              std::int64_t generated_tokens, allowance const& allowed);
/// The same with its cache on the current CUDA device. Rows go in and come out in host memory, and `ms/step` is without their copies. In programs that are
/// built with CELLAR_TEXT2JSON_CUDA.
std::unique_ptr<scheme_on_prompt> make_cuda_scheme(std::string const& name, engine::model const& model, engine::staged_prompt& prompt, int sequences,
                                                   std::int64_t generated_tokens, allowance const& allowed);

}  // namespace text2json
