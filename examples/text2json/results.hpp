#pragma once
#include <filesystem>
#include <map>
#include <string>
#include <utility>

#include "text2json/metrics.hpp"

namespace text2json {

/// What a run has decoded so far, in a file of a line for each document and scheme: a run that was cut off goes on where it was, and schemes are added to
/// what is there.
class result_store {
 public:
  /// Begins the file anew, or goes on with one that is there. settings: a text that is the same for all that may stand in one file. A last line that was
  /// cut off is dropped.
  ///
  /// Errors  std::runtime_error where the file cannot be written, is none of these, or is of other settings
  result_store(std::filesystem::path path, std::string const& settings, bool goes_on);

  /// Null where it has not been decoded.
  document_result const* find(int document, std::string const& scheme) const;
  /// Errors  std::runtime_error where it cannot be written
  void add(int document, std::string const& scheme, document_result result, std::string const& commit);

 private:
  std::filesystem::path path_;
  std::map<std::pair<int, std::string>, document_result> results_;
};

}  // namespace text2json
