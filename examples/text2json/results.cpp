#include "text2json/results.hpp"

#include <cmath>
#include <fstream>
#include <limits>
#include <nlohmann/json.hpp>
#include <stdexcept>
#include <type_traits>

namespace text2json {

namespace {

using nlohmann::json;

/// Calls f(name, number) for every figure of a result that is one number.
template <class Result, class F>
void for_numbers(Result& r, F const& f) {
  f("tokens", r.tokens.count);
  f("agreements", r.tokens.agreements);
  f("kl", r.tokens.kl);
  f("nll", r.tokens.nll);
  f("captured_mass", r.captured_mass);
  f("captured_far_mass", r.captured_far_mass);
  f("oracle_mass", r.oracle_mass);
  f("summary", r.bytes.summary);
  f("always_near", r.bytes.always_near);
  f("generated", r.bytes.generated);
  f("pool", r.bytes.pool);
  f("far", r.bytes.far);
  f("prompt_tokens", r.prompt_tokens);
  f("length", r.length);
  f("steps", r.steps);
  f("seconds", r.seconds);
  f("attends", r.work.attends);
  f("fetched_blocks", r.work.fetched_blocks);
  f("moved_bytes", r.work.moved_bytes);
  f("scored_blocks", r.work.scored_blocks);
  f("undefined_scores", r.work.undefined_scores);
  f("lost_samples", r.work.lost_samples);
  f("pool_hits", r.work.pool_hits);
  f("pool_misses", r.work.pool_misses);
  f("seconds_score", r.work.seconds.score);
  f("seconds_select", r.work.seconds.select);
  f("seconds_fetch", r.work.seconds.fetch);
  f("seconds_attend", r.work.seconds.attend);
}

double number_of(json const& x) { return x.is_null() ? std::numeric_limits<double>::quiet_NaN() : x.get<double>(); }

json to_json(document_result const& r) {
  json to;
  for_numbers(r, [&](char const* name, auto const& x) { to[name] = x; });
  for (field_result const& f : r.fields) to["fields"].push_back(2 * f.is_name + f.is_right);
  if (r.score) to["score"] = *r.score;
  to["output_error"] = r.output_error;
  if (r.missed.all().count > 0) {
    to["missed_rank_correlation"] = r.missed.rank_correlation;
    for (auto const& [count, said, real] : r.missed.by_class) to["missed"].push_back({count, said, real});
  }
  return to;
}

document_result from_json(json const& from) {
  document_result r;
  for_numbers(r, [&](char const* name, auto& x) {
    using type = std::remove_reference_t<decltype(x)>;
    if constexpr (std::is_same_v<type, double>)
      x = number_of(from.at(name));
    else
      x = from.at(name).get<type>();
  });
  json const none = json::array();
  auto const list = [&](char const* name) -> json const& { return from.contains(name) ? from.at(name) : none; };
  for (auto const& f : list("fields")) r.fields.push_back({f.get<int>() / 2 == 1, f.get<int>() % 2 == 1});
  if (from.contains("score")) r.score = from.at("score").get<double>();
  for (auto const& x : list("output_error")) r.output_error.push_back(number_of(x));
  if (from.contains("missed")) {
    r.missed.rank_correlation = number_of(from.at("missed_rank_correlation"));
    for (std::size_t c = 0; c < missed_sums::classes; ++c) {
      auto const& one = from.at("missed").at(c);
      r.missed.by_class[c] = {one.at(0).get<std::int64_t>(), one.at(1).get<double>(), one.at(2).get<double>()};
    }
  }
  return r;
}

}  // namespace

result_store::result_store(std::filesystem::path path, std::string const& settings, bool goes_on) : path_(std::move(path)) {
  std::string kept;  // whole lines
  if (goes_on && std::filesystem::exists(path_)) {
    std::ifstream in(path_);
    std::string line;
    for (int number = 1; std::getline(in, line); ++number) {
      auto const row = json::parse(line, nullptr, false);
      if (row.is_discarded() && in.peek() == std::ifstream::traits_type::eof()) break;
      std::string where = "The results ";
      where.append(path_.string()).append(", line ").append(std::to_string(number));
      try {
        if (number == 1) {
          auto const other = row.at("settings").get<std::string>();
          if (other != settings) {
            std::string message = "The results ";
            message.append(path_.string()).append(" are of another run: of ").append(other).append(", and not of ").append(settings);
            throw std::runtime_error(message.append(". Give another --out, or leave --resume away to begin anew."));
          }
        } else {
          results_[{row.at("document").get<int>(), row.at("scheme").get<std::string>()}] = from_json(row.at("result"));
        }
      } catch (json::exception const& e) {
        throw std::runtime_error(where + ": this is no result that text2json wrote: " + e.what());
      }
      kept.append(line).append("\n");
    }
  }
  if (kept.empty()) kept = json{{"settings", settings}}.dump() + "\n";
  std::ofstream out(path_, std::ios::binary);
  out << kept;
  if (!out.flush()) throw std::runtime_error("The results " + path_.string() + " cannot be written.");
}

document_result const* result_store::find(int document, std::string const& scheme) const {
  auto const at = results_.find({document, scheme});
  return at == results_.end() ? nullptr : &at->second;
}

void result_store::add(int document, std::string const& scheme, document_result result, std::string const& commit) {
  std::ofstream out(path_, std::ios::binary | std::ios::app);
  out << json{{"document", document}, {"scheme", scheme}, {"commit", commit}, {"result", to_json(result)}}.dump() << '\n';
  if (!out.flush()) throw std::runtime_error("The results " + path_.string() + " cannot be written.");
  results_[{document, scheme}] = std::move(result);
}

}  // namespace text2json
