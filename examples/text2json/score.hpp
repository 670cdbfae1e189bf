#pragma once
#include <cstddef>
#include <string_view>
#include <vector>

namespace text2json {

/// The score of one answer, 0 to 1.
///
/// The output must hold exactly one [ and one ], in order, around a list that parses, else it scores 0. Objects match by name (a curly apostrophe is a
/// straight one). A matched object is worth 1, less 1/2 for a missing or null field and 1/4 for a wrong one (integers compare as their text). Divided by the
/// number of gold objects plus unknown and repeated names.
///
/// Requires  gold is a JSON list of objects with distinct names
double score(std::string_view output, std::string_view gold);

/// Whether no two objects of a gold answer have the same name: else it has no score.
bool has_distinct_names(std::string_view gold);

/// Where a string value of an answer stands, in bytes, without its quotes.
struct field_span {
  std::size_t begin, end;
  bool is_name;
};

/// All string values of an answer's objects, in order.
std::vector<field_span> field_spans(std::string_view answer);

}  // namespace text2json
