#include "text2json/score.hpp"

#include <string>

#include "catch.hpp"

using namespace text2json;

namespace {

std::string const gold = R"([{"name": "A", "x": "1", "y": "red"}, {"name": "B's", "x": "2", "y": "blue"}])";

}  // namespace

TEST_CASE("the score of an answer, by its definition") {
  CHECK(score(gold, gold) == 1);
  CHECK(score("Here it is: " + gold + " Done.", gold) == 1);
  CHECK(score("", gold) == 0);
  CHECK(score("[", gold) == 0);
  CHECK(score("][", gold) == 0);
  CHECK(score("no list", gold) == 0);
  CHECK(score(gold + gold, gold) == 0);                       // two lists
  CHECK(score(R"([{"name": "A", "x": ["1"]}])", gold) == 0);  // a list within
  CHECK(score(R"([{"name": "A", )", gold) == 0);
  CHECK(score(R"([{"name": "A" "x"}])", gold) == 0);
  CHECK(score("[]", gold) == 0);
  CHECK(score(R"([{"name": "A", "x": "1", "y": "red"}])", gold) == 0.5);     // one of two
  CHECK(score(R"([{"name": "A", "x": "1"}])", gold) == 0.25);                // a missing field
  CHECK(score(R"([{"name": "A", "x": "1", "y": null}])", gold) == 0.25);     // a null one
  CHECK(score(R"([{"name": "A", "x": "1", "y": "blue"}])", gold) == 0.375);  // a wrong one
  CHECK(score(R"([{"name": "A"}])", gold) == 0);                             // both missing
  CHECK(score(R"([{"name": "A", "x": 1, "y": "red"}])", gold) == 0.5);       // an integer is its text
  CHECK(score(R"([{"name": "A", "x": "1", "y": "red", "z": "more"}])", gold) == 0.5);
  CHECK(score(R"([{"name": "C", "x": "1", "y": "red"}])", gold) == 0);  // unknown
  CHECK(score(R"([{"name": "A", "x": "1", "y": "red"}, {"name": "C"}])", gold) == Approx(1.0 / 3));
  CHECK(score(R"([{"name": "A", "x": "1", "y": "red"}, {"name": "A", "x": "1", "y": "red"}])", gold) == Approx(1.0 / 3));  // repeated
  CHECK(score(R"([{"name": "A", "x": "1", "y": "red"}, 7])", gold) == Approx(1.0 / 3));
  CHECK(score(R"([{"name": 5, "x": "1"}])", R"([{"name": "5", "x": "1"}])") == 0);               // a name is a text
  CHECK(score(R"([{"name": "A", "x": true}])", R"([{"name": "A", "x": "true"}])") == 0.75);      // only integers are their texts
  CHECK(score("[{\"name\": \"B\xe2\x80\x99s\", \"x\": \"2\", \"y\": \"blue\"}]", gold) == 0.5);  // a curly apostrophe
}

TEST_CASE("field spans are the string values, without their quotes") {
  std::string const answer = R"([{"name": "A \"q\" [x], {y}: z", "n": 5, "x": "one, two", "e": ""}, {"name":"B","x":"three"}])";
  auto const spans = field_spans(answer);
  std::vector<std::string> values;
  std::vector<bool> names;
  for (auto const& s : spans) {
    values.push_back(answer.substr(s.begin, s.end - s.begin));
    names.push_back(s.is_name);
  }
  CHECK(values == std::vector<std::string>{R"(A \"q\" [x], {y}: z)", "one, two", "", "B", "three"});
  CHECK(names == std::vector<bool>{true, false, false, true, false});
  CHECK(field_spans("").empty());
  CHECK(field_spans("[{\"name\": \"open").size() == 1);
}

TEST_CASE("a gold answer that repeats a name has no score") {
  CHECK(has_distinct_names(gold));
  CHECK_FALSE(has_distinct_names(R"([{"name": "A"}, {"name": "B"}, {"name": "A"}])"));
  CHECK_FALSE(has_distinct_names("[{\"name\": \"B's\"}, {\"name\": \"B\xe2\x80\x99s\"}]"));
}
