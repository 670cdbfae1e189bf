#pragma once
#include <functional>
#include <stdexcept>
#include <string>
#include <vector>

#include "engine/model.hpp"
#include "engine/tokenizer.hpp"
#include "text2json/documents.hpp"
#include "text2json/metrics.hpp"
#include "text2json/schemes.hpp"

namespace text2json {

struct evaluation {
  std::vector<std::string> schemes;           ///< dense first.
  double budget = 0.03125;                    ///< Share of the prompt's tokens that a scheme may choose.
  std::int64_t window = 0;                    ///< Last tokens of the prompt that stay near; 0: the published 64, scaled with the budget.
  bool writes = true;                         ///< Let each scheme write an answer of its own too, for the score.
  decltype(&make_scheme) make = make_scheme;  ///< Or make_cuda_scheme.
};

/// What is being done: part, done, of.
using progress_report = std::function<void(char const* part, std::int64_t done, std::int64_t of)>;

struct document_evaluation {
  std::int64_t prompt_tokens = 0, answer_tokens = 0;
  std::vector<document_result> schemes;
};

/// A document that does not fit the model's context.
struct document_too_long : std::invalid_argument {
  using std::invalid_argument::invalid_argument;
};

/// Prefills a document densely, then decodes its answer with all schemes in lockstep: one row of the batch is fed the gold answer,
/// one goes its own way.
///
/// Errors  document_too_long; std::invalid_argument for an unknown scheme
document_evaluation evaluate(evaluation const& what, document const& d, engine::model const& model, engine::tokenizer const& tokenizer,
                             progress_report const& progress);

}  // namespace text2json
