#include "text2json/score.hpp"

#include <algorithm>
#include <map>
#include <nlohmann/json.hpp>
#include <optional>
#include <set>
#include <string>

namespace text2json {

namespace {

using nlohmann::json;

std::string straight(std::string_view text) {
  static constexpr std::string_view curly = "\xe2\x80\x99";
  std::string plain;
  for (std::size_t at = 0; at < text.size();) {
    bool const is_curly = text.substr(at).starts_with(curly);
    plain += is_curly ? '\'' : text[at];
    at += is_curly ? curly.size() : 1;
  }
  return plain;
}

/// None where there is no string "name".
std::optional<std::string> name_of(json const& object) {
  if (!object.is_object() || !object.contains("name") || !object["name"].is_string()) return std::nullopt;
  return straight(object["name"].get<std::string>());
}

/// Texts compare with straight apostrophes, integers as texts, anything else as JSON.
bool is_equal(json const& a, json const& b) {
  auto const is_text = [](json const& x) { return x.is_string() || x.is_number_integer(); };
  auto const text = [](json const& x) { return x.is_string() ? straight(x.get<std::string>()) : x.dump(); };
  return is_text(a) && is_text(b) ? text(a) == text(b) : a == b;
}

}  // namespace

double score(std::string_view output, std::string_view gold) {
  auto const open = output.find('['), close = output.find(']');
  if (open == output.npos || close == output.npos || close < open || output.find('[', open + 1) != output.npos || output.find(']', close + 1) != output.npos)
    return 0;
  json const predicted = json::parse(output.substr(open, close - open + 1), nullptr, false);
  if (!predicted.is_array()) return 0;

  std::map<std::string, json> wanted;
  for (json const& object : json::parse(gold)) wanted.emplace(name_of(object).value_or(""), object);
  std::set<std::string> seen;
  double sum = 0;
  std::size_t extra = 0;
  for (json const& object : predicted) {
    auto const name = name_of(object);
    auto const match = name ? wanted.find(*name) : wanted.end();
    if (match == wanted.end() || !seen.insert(match->first).second) {
      ++extra;
      continue;
    }
    double worth = 1;
    for (auto const& [key, value] : match->second.items()) {
      if (key == "name") continue;
      if (!object.contains(key) || object[key].is_null())
        worth -= 0.5;
      else if (!is_equal(object[key], value))
        worth -= 0.25;
    }
    sum += std::max(0.0, worth);
  }
  return sum / double(wanted.size() + extra);
}

bool has_distinct_names(std::string_view gold) {
  std::set<std::optional<std::string>> names;
  json const objects = json::parse(gold);
  return std::all_of(objects.begin(), objects.end(), [&](json const& object) { return names.insert(name_of(object)).second; });
}

std::vector<field_span> field_spans(std::string_view answer) {
  std::vector<field_span> spans;
  std::string_view key;
  bool is_value = false;  // a key and a colon have gone before
  for (std::size_t i = 0; i < answer.size(); ++i) {
    if (answer[i] == ':') is_value = !key.empty();
    if (answer[i] == ',' || answer[i] == '{' || answer[i] == '[') {
      key = {};
      is_value = false;
    }
    if (answer[i] != '"') continue;
    std::size_t end = i + 1;
    while (end < answer.size() && answer[end] != '"') end += answer[end] == '\\' ? 2 : 1;
    end = std::min(end, answer.size());
    if (is_value)
      spans.push_back({i + 1, end, key == "name"});
    else
      key = answer.substr(i + 1, end - i - 1);
    i = end;
  }
  return spans;
}

}  // namespace text2json
