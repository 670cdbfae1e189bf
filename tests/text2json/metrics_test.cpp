#include "text2json/metrics.hpp"

#include <unistd.h>
#include <cmath>
#include <filesystem>
#include <fstream>
#include <nlohmann/json.hpp>

#include "catch.hpp"
#include "random.hpp"
#include "text2json/report.hpp"

using namespace text2json;

namespace {

document_result result(std::vector<field_result> fields, std::vector<token_result> const& tokens) {
  document_result d;
  d.fields = std::move(fields);
  for (auto const& t : tokens) d.tokens.add(t);
  d.output_error = {0.25, 0.75};
  d.captured_mass = 0.5;
  d.length = 100;
  d.steps = 10;
  d.bytes = {3600, 100, 50, 0, 25600};
  d.seconds = 2;
  d.work.moved_bytes = 1000;
  return d;
}

}  // namespace

TEST_CASE("figures are sums over all documents, retained counts what dense has right") {
  std::vector<document_result> const dense{result({{true, true}, {false, true}, {false, true}, {false, false}}, {{true, 0, 1}, {true, 0, 2}}),
                                           result({{true, false}, {false, true}}, {{true, 0, 3}})};
  std::vector<document_result> scheme{result({{true, false}, {false, true}, {false, false}, {false, true}}, {{true, 0.5, 1}, {false, 1.0, 4}}),
                                      result({{true, true}, {false, true}}, {{false, 3.0, 5}})};
  scheme[0].score = 0.5;
  auto const s = summarize("some", scheme, dense, 1);
  CHECK(s.name == "some");
  CHECK(s.lookup_accuracy.mean == Approx(3.0 / 4));
  CHECK(s.retained.mean == Approx(2.0 / 3));
  CHECK(s.field_accuracy.mean == Approx(4.0 / 6));
  CHECK(s.agreement.mean == Approx(1.0 / 3));
  CHECK(s.kl.mean == Approx(4.5 / 3));
  CHECK(s.nll.mean == Approx(10.0 / 3));
  CHECK(s.score.mean == Approx(50));  // of the documents that have one
  CHECK(s.output_error.mean == Approx(0.5));
  CHECK(s.output_error_by_layer == std::vector<double>{0.25, 0.75});
  CHECK(s.captured_mass.mean == Approx(0.5));
  CHECK(s.summary_bytes == Approx(36));
  CHECK(s.near_bytes() == Approx(37.5));
  CHECK(s.far_bytes == Approx(256));
  CHECK(s.moved_bytes == Approx(100));
  CHECK(s.seconds == Approx(0.2));
  CHECK(std::isnan(summarize("dense", dense, dense, 1).score.mean));
  CHECK_THROWS_AS(summarize("none", {}, {}, 1), std::invalid_argument);
  CHECK_THROWS_AS(summarize("other", {scheme[0]}, dense, 1), std::invalid_argument);
}

TEST_CASE("differences of two schemes are over the same documents: what both have in common has no spread") {
  std::vector<document_result> dense, one, other;
  for (int i = 0; i < 8; ++i) {
    double const hard = 0.1 * (i % 5);
    dense.push_back(result({{false, true}, {false, true}}, {{true, 0, 1}}));
    one.push_back(result({{false, i % 2 == 0}, {false, true}}, {{true, hard, 1}}));
    other.push_back(result({{false, i % 2 == 0}, {false, false}}, {{true, hard + 0.25, 1}}));
    other.back().output_error = {0.5, 0.75};
  }
  auto const d = difference("one", one, other, dense, 1);
  CHECK(d.name == "one");
  CHECK(d.kl.mean == Approx(-0.25));
  CHECK(d.kl.low == Approx(-0.25));  // though that of each scheme alone has an interval
  CHECK(d.kl.high == Approx(-0.25));
  CHECK(summarize("one", one, dense, 1).kl.high > summarize("one", one, dense, 1).kl.low + 0.05);
  CHECK(d.retained.mean == Approx(0.5));
  CHECK(d.retained.low == Approx(0.5));
  CHECK(d.lookup_accuracy.mean == Approx(0.5));
  CHECK(d.output_error.mean == Approx(-0.125));
  CHECK_THROWS_AS(difference("one", {one[0]}, other, dense, 1), std::invalid_argument);
  auto const spread = bootstrap_difference({1, 0, 1, 0}, {1, 1, 1, 1}, {0, 0, 0, 0}, {1, 1, 1, 1}, 1);
  CHECK(spread.mean == 0.5);
  CHECK(spread.low < 0.3);
  CHECK(spread.high > 0.7);
  CHECK_THAT(difference_table_of("other", {d}), contains("less other") && contains("| one "));
}

TEST_CASE("rank correlation is Spearman's, and what schemes say that they missed is summed up by classes of it") {
  CHECK(rank_correlation({{1, 10}, {2, 20}, {3, 21}}) == Approx(1));
  CHECK(rank_correlation({{1, 3}, {2, 2}, {3, 1}}) == Approx(-1));
  CHECK(rank_correlation({{1, 1}, {2, 3}, {3, 2}, {4, 4}}) == Approx(0.8));      // 1 - 6 * 2 / (4 * 15)
  CHECK(rank_correlation({{1, 1}, {1, 2}, {2, 3}}) == Approx(std::sqrt(0.75)));  // ranks 1.5, 1.5, 3 and 1, 2, 3
  CHECK(std::isnan(rank_correlation({{1, 1}, {1, 2}})));
  CHECK(std::isnan(rank_correlation({})));

  std::vector<document_result> some{result({{false, true}}, {{true, 0, 1}}), result({{false, true}}, {{true, 0, 1}})}, none = some;
  some[0].missed = missed_sums::of({{0, 0.25}, {0.001, 0.5}, {0.0011, 0.75}, {1, 1}});
  some[1].missed = missed_sums::of({{0.3, 0.5}, {0.4, 0.25}, {1.5, 1}});
  auto const& classes = some[0].missed.by_class;
  CHECK((classes[0].count == 2 && classes[1].count == 1 && classes[9].count == 1));
  CHECK(classes[0].said == Approx(0.001));
  CHECK(classes[0].real == Approx(0.75));
  CHECK(some[0].missed.rank_correlation == Approx(1));
  CHECK(some[0].missed.all().count == 4);
  auto const s = summarize("some", some, some, 1);
  CHECK(s.missed_said.mean == Approx((1.0021 + 2.2) / 7));
  CHECK(s.missed_real.mean == Approx((2.5 + 1.75) / 7));
  CHECK(s.missed_rank_correlation.mean == Approx((1 + 0.5) / 2));
  CHECK((s.missed.by_class[8].count == 2 && s.missed.by_class[9].count == 2));
  CHECK(s.missed.by_class[9].real == Approx(2));
  auto const without = summarize("none", none, none, 1);
  CHECK(without.missed.all().count == 0);
  CHECK(std::isnan(without.missed_said.mean));
  CHECK(std::isnan(without.missed_rank_correlation.mean));
  report r;
  r.schemes = {without};
  CHECK(missed_table_of(r).empty());
  r.schemes = {without, s};
  CHECK(missed_table_of(r).find("some") != std::string::npos);
  CHECK(missed_table_of(r).find("none") == std::string::npos);
}

TEST_CASE("intervals cover the truth about as often as they say") {
  random_numbers r(1);
  int covered = 0;
  int const trials = 300, documents = 25;
  for (int t = 0; t < trials; ++t) {
    std::vector<double> tops, bottoms;
    for (int i = 0; i < documents; ++i) {
      double const n = double(10 + r.below(20));
      double right = 0;
      for (int k = 0; k < int(n); ++k) right += r.below(10) < 7;
      tops.push_back(right);
      bottoms.push_back(n);
    }
    auto const e = bootstrap_ratio(tops, bottoms, std::uint64_t(t), 400);
    CHECK(e.low <= e.mean);
    CHECK(e.mean <= e.high);
    covered += e.low <= 0.7 && 0.7 <= e.high;
  }
  CHECK(covered > trials * 0.88);
  CHECK(covered < trials * 0.99);
}

TEST_CASE("ratios without anything to count are not defined, and one document has no spread") {
  CHECK(std::isnan(bootstrap_ratio({0, 0}, {0, 0}, 1).mean));
  auto const one = bootstrap_ratio({3}, {4}, 1);
  CHECK(one.mean == 0.75);
  CHECK(one.low == 0.75);
  CHECK(one.high == 0.75);
  auto const a = bootstrap_ratio({1, 2, 3}, {4, 4, 4}, 9), b = bootstrap_ratio({1, 2, 3}, {4, 4, 4}, 9);
  CHECK(a.low == b.low);
  CHECK(a.high == b.high);
}

TEST_CASE("the report has every figure, as a number or null") {
  std::vector<document_result> const dense{result({{true, true}, {false, true}}, {{true, 0, 1}})};
  auto watched = dense;
  watched[0].missed = missed_sums::of({{0.01, 0.02}, {0.02, 0.03}, {0.9, 0.8}});
  report r{.model = "m.gguf",
           .task = "text2json",
           .device = "a processor",
           .compiler = "g++",
           .commit = "abc",
           .threads = 2,
           .seed = 7,
           .budget = 0.03125,
           .documents = 1,
           .prompt_tokens = 90,
           .answer_tokens = 10,
           .lookups = 1,
           .schemes = {summarize("dense", dense, dense, 1), summarize("watched", watched, dense, 1)}};
  auto const path = std::filesystem::temp_directory_path() / ("cellar_report_" + std::to_string(getpid()) + ".json");
  write_json(r, path);
  std::ifstream in(path);
  auto const j = nlohmann::json::parse(in);
  std::filesystem::remove(path);
  for (char const* const key : {"model", "device", "compiler", "commit", "task"}) CHECK(j[key].is_string());
  for (char const* const key : {"threads", "seed", "documents", "answer_tokens"}) CHECK(j[key].is_number());
  auto const& s = j["schemes"][0];
  CHECK(s["name"] == "dense");
  for (std::string const key : {"lookup_accuracy", "retained", "field_accuracy", "agreement", "kl", "nll", "output_error", "captured_mass", "oracle_mass"}) {
    CHECK(s[key].is_number());
    CHECK(s[key + "_interval"].size() == 2);
    CHECK(s[key + "_interval"][0].is_number());
  }
  CHECK(s["score"].is_null());
  CHECK(s["hit_rate"].is_null());
  for (char const* const key : {"summary_bytes_per_token", "always_near_bytes_per_token", "generated_bytes_per_token", "pool_bytes_per_token",
                                "far_bytes_per_token", "moved_bytes_per_step", "seconds_per_step"})
    CHECK(s[key].is_number());
  for (char const* const key : {"score", "select", "fetch", "attend"}) CHECK(s["seconds_per_stage"][key].is_number());
  CHECK(s["output_error_by_layer"].size() == 2);
  CHECK(!s.contains("missed_said"));
  auto const& w = j["schemes"][1];
  CHECK(w["missed_said"].is_number());
  CHECK(w["missed_rank_correlation"].is_number());
  REQUIRE(w["missed_classes"].size() == 10);
  CHECK(w["missed_classes"][9]["real"].is_number());
  CHECK(w["missed_classes"][0]["real"].is_null());
  auto const table = table_of(r);
  CHECK_THAT(table, contains("| dense ") && contains("lookups"));
  CHECK_THROWS_WITH(write_json(r, "/nonexistent/folder/report.json"), contains("cannot be written"));
}
