#pragma once
#include <filesystem>
#include <string>
#include <vector>

#include "text2json/metrics.hpp"

namespace text2json {

struct report {
  std::string model, task, device, compiler, commit;
  int threads = 0;
  std::uint64_t seed = 0;
  double budget = 0;          ///< Share of the prompt.
  std::int64_t left_out = 0;  ///< Documents that did not fit the model's context.
  std::int64_t documents = 0, prompt_tokens = 0, answer_tokens = 0, lookups = 0;
  std::vector<scheme_summary> schemes;
};

/// A table in Markdown, aligned for a terminal.
std::string table_of(report const& r);

/// The same of what schemes say that they missed; nothing where none does.
std::string missed_table_of(report const& r);

/// Schemes less another one.
std::string difference_table_of(std::string const& other, std::vector<scheme_difference> const& differences);

/// Writes report.json. Figures that are not defined are null. Errors  std::runtime_error
void write_json(report const& r, std::filesystem::path const& path);

/// Draws lookup accuracy against near bytes per token and layer. False where gnuplot does not, or there is nothing to draw.
bool draw_plot(report const& r, std::filesystem::path const& svg);

/// Runs a script. False where gnuplot is not there or fails.
bool gnuplot(std::string const& script);
/// A text as gnuplot has it in a script.
std::string in_quotes(std::string const& text);

}  // namespace text2json
