#include "text2json/evaluate.hpp"

#include <cmath>
#include <cstdlib>
#include <set>

#include "catch.hpp"
#include "sanitizers.hpp"
#include "text2json/schemes.hpp"

using namespace text2json;

TEST_CASE("all schemes decode a document in lockstep, with the whole prompt as budget they are dense attention") {
  char const* const path = std::getenv("CELLAR_TEST_MODEL_SMOLLM");
  if (!path || !*path) {
    skip("no model: set CELLAR_TEST_MODEL_SMOLLM to a GGUF file");
    return;
  }
  engine::gguf_file const file(path);
  engine::tokenizer const tokenizer(file);
  engine::model const model(file, 2);
  // Codes of the whole prompt differ from exact rows by the codec's error alone: 4 bits have a mean squared error of 0.0078 a channel, so values cost
  // sqrt(0.0078) of the output, and keys, by moving weights, at most as much again.
  double const coded = std::sqrt(2 * 0.0078);
  document const d{"Velmora Foods is based in Oslo. It was founded by Anna Keller. Zanport Glass is based in Riga. It was founded by Hugo Berg. " +
                       std::string(40, '.') + " List the companies as JSON with the keys name, city and founder.",
                   R"([{"name": "Velmora Foods", "city": "Oslo", "founder": "Anna Keller"}])"};
  // Under sanitizers one of each kind.
  auto const names = is_sanitized ? std::vector<std::string>{"dense", "sink_window", "quest", "yakv_centred", "low_rank_keys"} : scheme_names();
  bool was_called = false;
  auto const e = evaluate({.schemes = names, .budget = 1, .window = 8, .writes = true}, d, model, tokenizer,
                          [&](char const*, std::int64_t, std::int64_t) { was_called = true; });
  CHECK(was_called);
  REQUIRE(e.schemes.size() == names.size());
  for (std::size_t i = 0; i < e.schemes.size(); ++i) {
    auto const& s = e.schemes[i];
    INFO(names[i]);
    CHECK(s.fields.size() == 3);
    CHECK(s.tokens.count == e.answer_tokens);
    CHECK(s.score.has_value());
    CHECK(s.output_error.size() == std::size_t(model.config().layers));
    double const kl = s.tokens.kl / double(s.tokens.count);
    double error = 0;
    for (double const x : s.output_error) error += x / double(s.output_error.size());
    // With so large a budget sink_window, h2o and snap_kv keep the whole prompt near, and all chunks of so short a prompt are outliers of shadow_kv as
    // published.
    std::set<std::string> const without_far{"sink_window", "h2o", "snap_kv", "shadow_kv"};
    INFO("fetched blocks: " << s.work.fetched_blocks);
    CHECK((s.work.fetched_blocks > 0) == !without_far.contains(names[i]));
    if (names[i] == "magic_pig") {  // whatever its hashes sample
      CHECK(std::isfinite(kl));
      continue;
    }
    std::set<std::string> const leaves_out{"twilight", "rabitq_cache", "yakv_guarded", "h2o"};  // what has little weight, h2o of what was generated
    if (leaves_out.contains(names[i])) {
      CHECK(std::isfinite(kl));
      CHECK(s.captured_mass > 0.5);
      if (names[i] == "yakv_guarded") CHECK(s.captured_mass > 0.95);
      continue;
    }
    CHECK(s.captured_mass == Approx(1));
    auto const missed = s.missed.all();
    CHECK((missed.count > 0) == names[i].ends_with("_watched"));
    CHECK((missed.said == 0 && std::abs(missed.real) <= 1e-5 * double(missed.count)));  // everything was read
    if (names[i] == "low_rank_keys" || names[i] == "shadow_kv_scaled") {                // what a rank loses has no bound that is known here
      CHECK(std::isfinite(kl));
      CHECK(error > 2e-3);
      continue;
    }
    bool const is_coded = names[i].starts_with("yakv") || names[i] == "balanced_landmarks";
    CHECK(kl < (is_coded ? 0.02 : 1e-4));
    CHECK(error < (is_coded ? coded : 2e-3));
  }
  CHECK_THROWS_WITH(evaluate({.schemes = {"dense", "nonsense"}}, d, model, tokenizer, [](char const*, std::int64_t, std::int64_t) {}),
                    contains("no scheme nonsense"));
  document const long_one{std::string(200000, 'x') + " y", d.answer};
  CHECK_THROWS_WITH(evaluate({.schemes = {"dense"}}, long_one, model, tokenizer, [](char const*, std::int64_t, std::int64_t) {}), contains("context"));
}
