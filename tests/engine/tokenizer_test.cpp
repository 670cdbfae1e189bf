#include "engine/tokenizer.hpp"

#include <cstdlib>
#include <map>

#include "catch.hpp"
#include "engine/golden_tokens.hpp"
#include "random.hpp"

namespace {

/// Bytes and a few merges: "ab", "abc", " a", "aa".
engine::vocabulary small_vocabulary() {
  engine::vocabulary v{.pre_tokenizer = "smollm", .tokens = {}, .kinds = {}, .merges = {"a b", "ab c", "\xc4\xa0 a", "a a"}, .ends = {0}};
  v.tokens = {"<|end|>", "ab", "abc",
              "\xc4\xa0"
              "a",
              "aa"};
  v.kinds = {3, 1, 1, 1, 1};
  for (int b = 0; b < 256; ++b) {  // the printable form of each byte, as byte-level BPE defines it
    static int next;
    if (b == 0) next = 256;
    bool const is_printable = (b >= 33 && b <= 126) || (b >= 161 && b <= 172) || b >= 174;
    int const code = is_printable ? b : next++;
    v.tokens.push_back(code < 128 ? std::string(1, char(code)) : std::string{char(0xc0 | code >> 6), char(0x80 | (code & 63))});
    v.kinds.push_back(1);
  }
  return v;
}

std::vector<std::string> pieces(engine::tokenizer const& t, std::string const& text, bool parse_special = true) {
  std::vector<std::string> out;
  for (int const id : t.encode(text, parse_special)) out.push_back(t.token_bytes(id));
  return out;
}

using texts = std::vector<std::string>;

char const* model_path(char const* variable) {
  char const* const path = std::getenv(variable);
  return path && *path ? path : nullptr;
}

}  // namespace

TEST_CASE("merges go by rank, within the words of the pre-tokenizer") {
  engine::tokenizer const t(small_vocabulary());
  CHECK(pieces(t, "abc") == texts{"abc"});
  CHECK(pieces(t, "aab") == texts{"a", "ab"});  // "a b" ranks before "a a"
  CHECK(pieces(t, "aaa") == texts{"aa", "a"});  // the leftmost of equal rank first
  CHECK(pieces(t, "x a") == texts{"x", " a"});
  CHECK(pieces(t, "12") == texts{"1", "2"});
  CHECK(pieces(t, "") == texts{});
  CHECK(pieces(t, "ab<|end|>ab") == texts{"ab", "<|end|>", "ab"});
  CHECK(pieces(t, "<|end|>", false).size() == 7);
  CHECK(t.is_end(0));
  CHECK_FALSE(t.is_end(1));
  CHECK_FALSE(t.is_end(-1));
  CHECK_FALSE(t.is_end(100000));
}

TEST_CASE("decoding gives the text back, whatever UTF-8 it is") {
  engine::tokenizer const t(small_vocabulary());
  random_numbers r(1);
  texts const parts{"a",        "b", "c",       " ",  "  ",  "\n", "\r\n", "7", "'s", "\xc3\xa9", "\xe4\xb8\xad", "\xf0\x9f\x98\x80",
                    "\xc2\xa0", ".", "<|end|>", "\t", "\x01"};
  for (int i = 0; i < 500; ++i) {
    std::string text;
    for (std::int64_t n = r.below(30); n >= 0; --n) text += parts[std::size_t(r.below(std::int64_t(parts.size())))];
    CHECK(t.decode(t.encode(text)) == text);
    CHECK(t.decode(t.encode(text, false)) == text);
  }
}

TEST_CASE("long words do not take long") {
  engine::tokenizer const t(small_vocabulary());
  CHECK(t.encode(std::string(200000, 'a')).size() == 100000);  // quadratic work would take minutes
}

TEST_CASE("texts that are not UTF-8 are refused") {
  engine::tokenizer const t(small_vocabulary());
  for (std::string const bad : {"\xff", "a\xc3", "\xed\xa0\x80", "\xf8\x88\x80\x80\x80", "ok\x80"}) CHECK_THROWS_WITH(t.encode(bad), contains("UTF-8"));
}

TEST_CASE("vocabularies that contradict themselves are refused") {
  auto const refused = [](auto const& change, std::string const& words) {
    auto v = small_vocabulary();
    change(v);
    CHECK_THROWS_WITH(engine::tokenizer(v), contains(words));
  };
  refused([](auto& v) { v.pre_tokenizer = "llama3"; }, "\"llama3\" is not known");
  refused([](auto& v) { v.kinds.pop_back(); }, "but the kinds of");
  refused([](auto& v) { v.merges.push_back("a"); }, "not a pair");
  refused([](auto& v) { v.merges.push_back("q zz"); }, "not there");
  refused([](auto& v) { v.ends = {100000}; }, "which ends texts");
  refused([](auto& v) { v.begin = 100000; }, "which begins texts");
  refused(
      [](auto& v) {
        v.tokens.clear();
        v.kinds.clear();
      },
      "no tokens");
  auto v = small_vocabulary();
  v.begin = 0;
  CHECK(engine::tokenizer(v).encode("a").size() == 2);
}

namespace {

void check_tokenizer(char const* variable, std::vector<int> golden_tokens::*golden) {
  char const* const path = model_path(variable);
  if (!path) {
    skip(std::string("no model: set ") + variable + " to a GGUF file");
    return;
  }
  engine::gguf_file const file(path);
  engine::tokenizer const t(file);
  for (golden_tokens const& g : goldens) CHECK(t.encode(g.text) == g.*golden);
}

}  // namespace

TEST_CASE("smollm's tokenizer gives what llama.cpp gives") { check_tokenizer("CELLAR_TEST_MODEL_SMOLLM", &golden_tokens::smollm); }

TEST_CASE("qwen's tokenizer gives what llama.cpp gives") { check_tokenizer("CELLAR_TEST_MODEL_QWEN", &golden_tokens::qwen); }
