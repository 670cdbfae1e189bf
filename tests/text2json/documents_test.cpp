#include "text2json/documents.hpp"

#include <unistd.h>

#include <fstream>
#include <nlohmann/json.hpp>
#include <set>

#include "catch.hpp"
#include "text2json/score.hpp"

using namespace text2json;

namespace {

int quarter_of_characters(std::string_view text) { return int(text.size() / 4); }

/// FNV-1a, to pin a text in one number.
std::uint64_t fingerprint(std::string const& text) {
  std::uint64_t h = 14695981039346656037u;
  for (char const c : text) h = (h ^ static_cast<unsigned char>(c)) * 1099511628211u;
  return h;
}

class scratch_file {
 public:
  explicit scratch_file(std::string const& text) : path_(std::filesystem::temp_directory_path() / ("cellar_documents_" + std::to_string(getpid()))) {
    std::ofstream(path_, std::ios::binary) << text;
  }
  ~scratch_file() { std::filesystem::remove(path_); }
  std::filesystem::path const& path() const { return path_; }

 private:
  std::filesystem::path path_;
};

void refused(std::string const& text, std::string const& words) {
  scratch_file const f(text);
  CHECK_THROWS_WITH(read_jsonl(f.path()), contains(words));
}

}  // namespace

TEST_CASE("documents hold every fact of their answer, at the length asked for") {
  for (auto const from : {subjects::design, subjects::all, subjects::further})
    for (int const tokens : {1000, 2000, 6000, 16000})
      for (int index = 0; index < 6; ++index) {
        generator const make{.kind = task::text2json, .from = from, .seed = 5, .tokens = tokens, .count_tokens = quarter_of_characters};
        auto const d = make(index);
        CHECK(quarter_of_characters(d.problem) >= tokens);
        CHECK(quarter_of_characters(d.problem) <= tokens * 1.05);
        auto const gold = nlohmann::json::parse(d.answer);
        CHECK(gold.size() >= 12);
        CHECK(gold.size() <= 24);
        std::set<std::string> names;
        std::size_t last = 0;
        for (auto const& object : gold) {
          CHECK(object.size() == 3);
          auto const name = object["name"].get<std::string>();
          auto const at = d.problem.find(name);
          REQUIRE(at != std::string::npos);
          CHECK(at > last);  // in the order of the text
          last = at;
          CHECK(d.problem.find(name, at + 1) == std::string::npos);
          for (auto const& other : names) CHECK_FALSE((other.starts_with(name) || name.starts_with(other)));
          names.insert(name);
          for (auto const& [key, value] : object.items()) CHECK(d.problem.find(value.get<std::string>()) != std::string::npos);
        }
        CHECK(score(d.answer, d.answer) == 1);
      }
}

TEST_CASE("needles hide one fact, or one of many alike") {
  for (auto const kind : {task::needle, task::needles}) {
    generator const make{.kind = kind, .seed = 5, .tokens = 2000, .count_tokens = quarter_of_characters};
    auto const d = make(1);
    auto const gold = nlohmann::json::parse(d.answer);
    REQUIRE(gold.size() == 1);
    auto const sentence = "The access code of the " + gold[0]["name"].get<std::string>() + " is " + gold[0]["code"].get<std::string>() + " and its keeper is " +
                          gold[0]["keeper"].get<std::string>();
    CHECK(d.problem.find(sentence) != std::string::npos);
    std::size_t facts = 0;
    for (auto at = d.problem.find("The access code"); at != std::string::npos; at = d.problem.find("The access code", at + 1)) ++facts;
    CHECK(facts == (kind == task::needle ? 1u : 24u));
  }
}

TEST_CASE("variables are traced through the copies of one chain, each of which is told after the one before") {
  for (int index = 0; index < 10; ++index) {
    generator const make{.kind = task::variables, .seed = 5, .tokens = 1500, .count_tokens = quarter_of_characters};
    auto const d = make(index);
    auto const gold = nlohmann::json::parse(d.answer);
    REQUIRE(gold.size() == 6);
    auto const asked = "trace the register " + gold[0]["name"].get<std::string>() + ":";
    CHECK(d.problem.find(asked) != std::string::npos);
    std::size_t later = std::string::npos;
    for (std::size_t i = 0; i < 6; ++i) {
      auto const name = gold[i]["name"].get<std::string>(), from = gold[i]["from"].get<std::string>();
      if (i < 5) CHECK(gold[i + 1]["name"] == from);
      auto const at = d.problem.find("The register " + name + (i < 5 ? " was copied from " : " was set to ") + from + ".");
      REQUIRE(at != std::string::npos);
      CHECK(at < later);
      later = at;
    }
    std::size_t copied = 0, set = 0;
    for (auto at = d.problem.find(" was copied from "); at != std::string::npos; at = d.problem.find(" was copied from ", at + 1)) ++copied;
    for (auto at = d.problem.find(" was set to "); at != std::string::npos; at = d.problem.find(" was set to ", at + 1)) ++set;
    CHECK(copied == 20);  // four chains
    CHECK(set == 5);      // and the question says it
    CHECK(score(d.answer, d.answer) == 1);
  }
}

TEST_CASE("a table has the rows of its answer, of the subjects or of records of any kind") {
  generator make{.kind = task::table, .seed = 5, .tokens = 2000, .count_tokens = quarter_of_characters};
  auto const check = [&](std::size_t rows, std::vector<std::string> const& columns) {
    auto const d = make(3);
    CHECK(quarter_of_characters(d.problem) >= 2000);
    auto const gold = nlohmann::ordered_json::parse(d.answer);
    REQUIRE(gold.size() == rows);
    std::size_t last = 0;
    for (auto const& object : gold) {
      std::string line;
      std::size_t c = 0;
      for (auto const& [key, value] : object.items()) {
        REQUIRE(key == columns.at(c++));
        line += "| " + value.get<std::string>() + " ";
      }
      auto const at = d.problem.find("\n" + line + "|\n");
      REQUIRE(at != std::string::npos);
      CHECK(at > last);
      last = at;
    }
    CHECK(score(d.answer, d.answer) == 1);
  };
  check(14, {"name", "director", "year"});
  scratch_file const f(
      "{\"id\": \"ab\", \"n\": 3, \"is\": true}\n\n{\"n\": 4.5, \"id\": \"abc\", \"more\": 1}\n{\"id\": \"x|y\", \"n\": null, \"is\": \"\"}\n{\"id\": \"\", "
      "\"n\": 1}\n{\"id\": 7}\n");
  make.records = read_records(f.path());
  CHECK(make.records.columns == std::vector<std::string>{"name", "n", "is"});
  CHECK(make.records.rows == std::vector<std::vector<std::string>>{{"ab", "3", "true"}, {"abc", "4.5", ""}, {"x y", "", ""}, {"7", "", ""}});
  check(3, {"name", "n", "is"});  // one of the two whose names begin alike
}

TEST_CASE("what is wrong with records is said, with its line") {
  auto const refused_records = [](std::string const& text, std::string const& words) {
    scratch_file const f(text);
    CHECK_THROWS_WITH(read_records(f.path()), contains(words));
  };
  CHECK_THROWS_WITH(read_records("/nonexistent/file.jsonl"), contains("cannot be opened"));
  refused_records("", "no rows");
  refused_records("{\"a\": \"\", \"b\": 1}", "no rows");
  refused_records("\n{\"a\": ", "line 2: this is not JSON");
  refused_records("[1]", "line 1: this is not a JSON object");
  refused_records("{}", "line 1: this is not a JSON object");
  refused_records("{\"a\": 1}", "at least one more field");
  refused_records("{\"a\": 1, \"b\": 2}\n{\"a\": 1, \"b\": [2]}", "line 2: the field \"b\" is no text");
}

TEST_CASE("documents are the same on every machine, and differ between seeds, numbers and tasks") {
  generator make{.kind = task::text2json, .from = subjects::all, .seed = 1, .tokens = 1000, .count_tokens = quarter_of_characters};
  std::vector<std::uint64_t> fingerprints;  // of every subject and task; the frozen task is these documents
  for (int index = 0; index < 6; ++index) fingerprints.push_back(fingerprint(make(index).problem + make(index).answer));
  for (auto const kind : {task::needle, task::needles}) {
    make.kind = kind;
    fingerprints.push_back(fingerprint(make(0).problem + make(0).answer));
  }
  CHECK(fingerprints == std::vector<std::uint64_t>{6118835737343291664u, 6542297925814660134u, 16740315942282868272u, 4906211058561035605u,
                                                   12323431826630728610u, 12157269307042944263u, 10277790554149811542u, 13051128197706537814u});
  std::vector<std::uint64_t> later;  // what has been added since
  make.from = subjects::further;
  make.kind = task::text2json;
  for (int index = 0; index < 6; ++index) later.push_back(fingerprint(make(index).problem + make(index).answer));
  make.from = subjects::all;
  for (auto const kind : {task::variables, task::table}) {
    make.kind = kind;
    later.push_back(fingerprint(make(0).problem + make(0).answer));
  }
  CHECK(later == std::vector<std::uint64_t>{12280547131369394199u, 13045732851105765701u, 12373867947178421740u, 7979793050064754016u, 5510470013087199996u,
                                            9657005365366179675u, 8497250251938895197u, 6542634222787365658u});
  make.kind = task::text2json;
  auto const first = make(0);
  CHECK(make(6).problem != first.problem);  // the same subject
  make.from = subjects::design;
  CHECK(fingerprint(make(0).problem + make(0).answer) == 13088846350367880229u);
  CHECK(make(4).problem != make(0).problem);
  make.seed = 2;
  CHECK(make(0).problem != first.problem);
}

TEST_CASE("data sets are read back as they were written") {
  generator const make{.kind = task::needles, .seed = 1, .tokens = 500, .count_tokens = quarter_of_characters};
  std::vector<document> const written{make(0), make(1), {"odd \"text\"\n\xc3\xa9", "[{\"name\": \"x\", \"n\": 3, \"m\": null}]"}};
  scratch_file const f("");
  write_jsonl(f.path(), written);
  auto const read = read_jsonl(f.path());
  REQUIRE(read.size() == 3);
  for (std::size_t i = 0; i < 3; ++i) {
    CHECK(read[i].problem == written[i].problem);
    CHECK(read[i].answer == written[i].answer);
  }
  CHECK_THROWS_WITH(write_jsonl("/nonexistent/folder/file", written), contains("cannot be written"));
}

TEST_CASE("what is wrong with a data set is said, with its line") {
  std::string const good = R"({"problem": "p", "answer": "[{\"name\": \"x\"}]"})";
  CHECK_THROWS_WITH(read_jsonl("/nonexistent/file.jsonl"), contains("cannot be opened"));
  refused("", "no documents");
  refused("\n \n", "no documents");
  refused(good + "\n\n{\"problem\": ", "line 3: this is not JSON");
  refused("[1]", "line 1: this is not a JSON object");
  refused(R"({"answer": "[]"})", "\"problem\" is missing");
  refused(R"({"problem": "p"})", "\"answer\" is missing");
  refused(R"({"problem": "p", "answer": 3})", "\"answer\" is missing");
  refused(R"({"problem": "", "answer": "x"})", "\"problem\" is missing or empty");
  refused(R"({"problem": "p", "answer": "x"})", "not a JSON list");
  refused(R"({"problem": "p", "answer": "[]"})", "not a JSON list with objects");
  refused(R"({"problem": "p", "answer": "[{\"a\": 1}]"})", "no \"name\"");
  for (std::size_t n = 1; n < good.size(); ++n) refused(good.substr(0, n), "line 1");  // truncated anywhere
}
