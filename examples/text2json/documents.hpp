#pragma once
#include <cstdint>
#include <filesystem>
#include <functional>
#include <iosfwd>
#include <string>
#include <string_view>
#include <vector>

/// Documents of the Text2JSON task: a text full of facts, and all of them as JSON. Read from any JSONL file of that format, or generated.
namespace text2json {

struct document {
  std::string problem;  ///< The whole prompt.
  std::string answer;   ///< The gold JSON text: a list of objects with "name" and further fields.
};

/// text2json: every entity of the text. needle: one fact among prose. needles: one of many facts that are alike. variables: a chain of copies, one of several,
/// traced back to where it began (variable tracking as in RULER, arXiv:2404.06654, asked backwards, so that each object is one look-up). table: every row of a
/// table among prose.
enum class task { text2json, needle, needles, variables, table };

/// Which subjects the generator writes about: those that it was designed with; also two that no design decision has seen, for final tables; or others.
enum class subjects { design, all, further };

/// Rows of a data set, each as many texts as there are columns. The first column is called "name".
struct table_rows {
  std::vector<std::string> columns;
  std::vector<std::vector<std::string>> rows;
};

struct generator {
  task kind = task::text2json;
  subjects from = subjects::design;
  std::uint64_t seed = 1;
  int tokens = 2000;  ///< Length to aim at, within 5 percent from 1000 on.
  std::function<int(std::string_view)> count_tokens;
  table_rows records = {};  ///< Where task::table draws its rows from; none: entities of the subjects.

  /// Document `index` of the seed: the same on every machine.
  document operator()(int index) const;
};

/// Reads a JSONL file of objects with "problem" and "answer"; blank lines are passed over.
///
/// Errors  std::runtime_error with file, line and what is wrong
std::vector<document> read_jsonl(std::filesystem::path const& path);
/// As above, from a stream; errors call it `name`.
std::vector<document> read_jsonl(std::istream& in, std::string const& name);

/// Reads a JSONL file of flat objects of any kind, as rows: columns are the first object's keys, the first of which becomes "name"; numbers, truth values and
/// what is missing become text. Rows whose name is empty are left out.
///
/// Errors  std::runtime_error with file, line and what is wrong
table_rows read_records(std::filesystem::path const& path);

/// Errors  std::runtime_error where the file cannot be written
void write_jsonl(std::filesystem::path const& path, std::vector<document> const& documents);

}  // namespace text2json
