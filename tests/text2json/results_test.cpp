#include "text2json/results.hpp"

#include <unistd.h>

#include <cmath>
#include <fstream>
#include <sstream>

#include "catch.hpp"

using namespace text2json;

namespace {

document_result some(double x) {
  document_result r;
  r.tokens = {.count = 2, .agreements = 1, .kl = 0.25 + x, .nll = 2.5};
  r.fields = {{true, false}, {false, true}, {false, false}, {true, true}};
  r.output_error = {0.5 * x, 0.125};
  r.captured_mass = 0.75;
  r.captured_far_mass = 0.5;
  r.oracle_mass = 0.875;
  r.missed = missed_sums::of({{0.125, 0.25}, {0.0000004, 1}, {0.3, 0.5}});
  r.bytes = {1, 2, 3, 4, 5};
  r.prompt_tokens = 90;
  r.length = 100;
  r.steps = 10;
  r.seconds = 2.5;
  r.work.attends = 7;
  r.work.fetched_blocks = 8;
  r.work.moved_bytes = 9;
  r.work.pool_hits = 11;
  r.work.pool_misses = 12;
  r.work.scored_blocks = 13;
  r.work.undefined_scores = 14;
  r.work.lost_samples = 15;
  r.work.seconds = {.score = 1, .select = 2, .fetch = 3, .attend = 4};
  return r;
}

class scratch_file {
 public:
  scratch_file() : path_(std::filesystem::temp_directory_path() / ("cellar_results_" + std::to_string(getpid()))) { std::filesystem::remove(path_); }
  ~scratch_file() { std::filesystem::remove(path_); }
  std::filesystem::path const& path() const { return path_; }
  std::string text() const {
    std::ostringstream all;
    all << std::ifstream(path_).rdbuf();
    return all.str();
  }

 private:
  std::filesystem::path path_;
};

}  // namespace

TEST_CASE("results are read back as they were written, figure by figure") {
  scratch_file const f;
  document_result without = some(0);
  without.missed = {};
  without.fields.clear();
  without.tokens.kl = std::nan("");
  without.score = 0.5;
  {
    result_store store(f.path(), "a model", false);
    store.add(3, "quest", some(1), "abc");
    store.add(3, "dense", without, "abc");
    CHECK(store.find(3, "quest"));
    CHECK(!store.find(4, "quest"));
  }
  result_store const store(f.path(), "a model", true);
  REQUIRE(store.find(3, "quest"));
  document_result const &r = *store.find(3, "quest"), expected = some(1);
  CHECK((r.tokens.count == 2 && r.tokens.agreements == 1 && r.tokens.kl == 1.25 && r.tokens.nll == 2.5));
  REQUIRE(r.fields.size() == 4);
  for (std::size_t i = 0; i < 4; ++i) {
    CHECK(r.fields[i].is_name == expected.fields[i].is_name);
    CHECK(r.fields[i].is_right == expected.fields[i].is_right);
  }
  CHECK(!r.score);
  CHECK(r.output_error == expected.output_error);
  CHECK((r.captured_mass == 0.75 && r.captured_far_mass == 0.5 && r.oracle_mass == 0.875));
  CHECK(r.missed.rank_correlation == Approx(-0.5));
  for (int c = 0; c < missed_sums::classes; ++c) {
    auto const &one = r.missed.by_class[c], &same = expected.missed.by_class[c];
    CHECK((one.count == same.count && one.said == same.said && one.real == same.real));
  }
  CHECK((r.bytes.summary == 1 && r.bytes.always_near == 2 && r.bytes.generated == 3 && r.bytes.pool == 4 && r.bytes.far == 5));
  CHECK((r.prompt_tokens == 90 && r.length == 100 && r.steps == 10 && r.seconds == 2.5));
  CHECK((r.work.attends == 7 && r.work.fetched_blocks == 8 && r.work.moved_bytes == 9 && r.work.pool_hits == 11 && r.work.pool_misses == 12));
  CHECK((r.work.scored_blocks == 13 && r.work.undefined_scores == 14 && r.work.lost_samples == 15));
  CHECK((r.work.seconds.score == 1 && r.work.seconds.select == 2 && r.work.seconds.fetch == 3 && r.work.seconds.attend == 4));
  auto const& other = *store.find(3, "dense");
  CHECK(std::isnan(other.tokens.kl));
  CHECK(other.score == 0.5);
  CHECK((other.missed.all().count == 0 && other.fields.empty()));
}

TEST_CASE("a run that was cut off goes on, one of other settings does not, and one that begins anew forgets") {
  scratch_file const f;
  {
    result_store store(f.path(), "a model", false);
    store.add(0, "dense", some(0), "abc");
    store.add(1, "dense", some(1), "abc");
  }
  std::string const whole = f.text();
  std::size_t const second = whole.find('\n', whole.find('\n') + 1) + 1;
  for (std::size_t const n : {whole.size() - 1, whole.size() - 2, second + 5}) {  // in the last line
    std::ofstream(f.path(), std::ios::binary) << whole.substr(0, n);
    {
      result_store store(f.path(), "a model", true);
      CHECK(store.find(0, "dense"));
      CHECK(bool(store.find(1, "dense")) == (n == whole.size() - 1));  // which lacks its end of line alone
      store.add(1, "dense", some(1), "abc");
    }
    result_store const again(f.path(), "a model", true);
    CHECK(again.find(1, "dense"));
  }
  CHECK_THROWS_WITH(result_store(f.path(), "another model", true), contains("are of another run: of a model, and not of another model"));
  std::ofstream(f.path(), std::ios::binary) << whole.substr(0, second + 5) << "\n" << whole.substr(second);
  CHECK_THROWS_WITH(result_store(f.path(), "a model", true), contains("line 3"));
  std::ofstream(f.path(), std::ios::binary) << "[1]\n[2]\n";
  CHECK_THROWS_WITH(result_store(f.path(), "a model", true), contains("line 1"));
  CHECK(f.text() == "[1]\n[2]\n");  // what is not ours is left as it is
  CHECK(!result_store(f.path(), "another model", false).find(0, "dense"));
  CHECK(f.text().find("another model") != std::string::npos);
  CHECK_THROWS_WITH(result_store("/nonexistent/folder/results.jsonl", "a", true), contains("cannot be written"));
}
