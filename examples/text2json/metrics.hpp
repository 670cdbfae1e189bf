#pragma once
#include <cstdint>
#include <limits>
#include <optional>
#include <string>
#include <vector>

#include "cellar/core/statistics.hpp"

namespace text2json {

/// What a scheme did with one token of the gold answer, fed whatever it would have said itself.
struct token_result {
  bool agrees;  ///< Its likeliest token is dense attention's.
  double kl;    ///< KL(dense, scheme), nats.
  double nll;   ///< Of the gold token, nats.
};

/// Sums over the tokens of an answer.
struct token_sums {
  std::int64_t count = 0, agreements = 0;
  double kl = 0, nll = 0;

  void add(token_result const& t) {
    ++count;
    agreements += t.agrees;
    kl += t.kl;
    nll += t.nll;
  }
};

/// A gold value is right if each of its tokens was the likeliest.
struct field_result {
  bool is_name, is_right;
};

/// The share of its attention that a query head missed in a step: as the scheme said, and in truth.
struct missed_share {
  double said, real;
};

/// What was said beside the truth, summed by classes of what was said.
struct missed_sums {
  static constexpr int classes = 10;
  static constexpr double most_said[classes] = {.001, .002, .005, .01, .02, .05, .1, .2, .5, 1};  ///< Of each class.

  struct sums {
    std::int64_t count = 0;
    double said = 0, real = 0;
  } by_class[classes];
  double rank_correlation = std::numeric_limits<double>::quiet_NaN();  ///< Spearman's, over all.

  sums all() const;
  static missed_sums of(std::vector<missed_share> const& pairs);
};

/// One scheme on one document.
struct document_result {
  token_sums tokens;
  std::vector<field_result> fields;
  std::optional<double> score;                      ///< Of the text that it wrote by itself; none where that was not asked for.
  std::vector<double> output_error;                 ///< By layer: relative L2 error of attention's output, mean over measured steps.
  double captured_mass = 0, captured_far_mass = 0;  ///< Share of dense attention on the attended tokens: of all tokens, of those before the window.
  missed_sums missed;                               ///< Of measured steps, all layers and query heads; nothing where the scheme does not say.
  double oracle_mass = 0;                           ///< As captured_mass, for the best choice of as many tokens by exact scores.
  struct {
    double summary = 0, always_near = 0, generated = 0, pool = 0, far = 0;
  } bytes;  ///< Of one layer at the end.
  std::int64_t prompt_tokens = 0;
  std::int64_t length = 0;  ///< Tokens at the end.
  std::int64_t steps = 0;   ///< Tokens decoded, all sequences of the scheme.
  double seconds = 0;       ///< In the scheme's append and attend, all layers and steps.
  cellar::statistics work;
};

/// A mean over documents with its 95 % interval by bootstrap; NaN where it is not defined.
struct estimate {
  double mean = 0, low = 0, high = 0;
};

struct scheme_summary {
  std::string name;
  estimate lookup_accuracy, retained, field_accuracy, agreement, kl, nll, score, output_error, captured_mass, captured_far_mass, oracle_mass;
  estimate missed_said, missed_real,
      missed_rank_correlation;  ///< The last by document: Spearman's, of query heads and steps; NaN where the scheme does not say.
  missed_sums missed;           ///< Of all documents; its rank correlation is not formed.
  std::vector<double> output_error_by_layer;
  double summary_bytes = 0, always_near_bytes = 0, generated_bytes = 0, pool_bytes = 0, far_bytes = 0;  ///< A token and layer.
  double moved_bytes = 0, seconds = 0;                                                                  ///< A step: all layers, one sequence.
  double hit_rate = std::numeric_limits<double>::quiet_NaN();                                           ///< Of the near pool; NaN where there is none.
  decltype(cellar::statistics::seconds) stage_seconds;                                                  ///< A step, summed over threads.

  double near_bytes() const { return summary_bytes + always_near_bytes + generated_bytes + pool_bytes; }
};

/// sum(numerators) / sum(denominators) over documents, and its interval over `resamples` draws of as many documents. Equal seeds draw the same
/// documents, so estimates of several schemes are paired.
estimate bootstrap_ratio(std::vector<double> const& numerators, std::vector<double> const& denominators, std::uint64_t seed, int resamples = 2000);

/// The difference of two such ratios, over the same draws.
estimate bootstrap_difference(std::vector<double> const& numerators, std::vector<double> const& denominators, std::vector<double> const& other_numerators,
                              std::vector<double> const& other_denominators, std::uint64_t seed, int resamples = 2000);

/// A scheme less another one, document by document.
struct scheme_difference {
  std::string name;
  estimate kl, retained, lookup_accuracy, output_error;
};

/// Spearman's rank correlation, equal values of a mean rank; NaN where one side is constant.
double rank_correlation(std::vector<missed_share> const& pairs);

/// Requires  as many documents of the scheme as of dense, in the same order, at least one
scheme_summary summarize(std::string name, std::vector<document_result> const& scheme, std::vector<document_result> const& dense, std::uint64_t seed);
scheme_difference difference(std::string name, std::vector<document_result> const& scheme, std::vector<document_result> const& other,
                             std::vector<document_result> const& dense, std::uint64_t seed);

}  // namespace text2json
