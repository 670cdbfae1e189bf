// A data set of any bytes is read, or refused with a sentence; an answer that is read can be scored.
#include <cstdint>
#include <cstdlib>
#include <sstream>
#include <stdexcept>
#include <string>

#include "text2json/documents.hpp"
#include "text2json/score.hpp"

extern "C" int LLVMFuzzerTestOneInput(std::uint8_t const* data, std::size_t size) {
  std::istringstream in(std::string(reinterpret_cast<char const*>(data), size));
  std::vector<text2json::document> documents;
  try {
    documents = text2json::read_jsonl(in, "fuzzed");
  } catch (std::runtime_error const&) {  // anything else is a defect
  }
  for (auto const& d : documents) {
    text2json::field_spans(d.answer);
    if (!text2json::has_distinct_names(d.answer)) continue;
    double const score = text2json::score(d.answer, d.answer);
    if (!(score >= 0 && score <= 1)) std::abort();
  }
  return 0;
}
