#include "engine/tokenizer.hpp"

#include <cmath>
#include <cstdio>
#include <cstdlib>
#include <map>

#include "catch.hpp"
#include "engine/gguf_writer.hpp"
#include "engine/golden_tokenizers.hpp"
#include "engine/golden_tokens.hpp"
#include "random.hpp"

namespace {

/// Bytes and a few merges: "ab", "abc", " a", "aa".
engine::vocabulary small_vocabulary() {
  engine::vocabulary v{.pre_tokenizer = "smollm", .tokens = {}, .kinds = {}, .merges = {"a b", "ab c", "\xc4\xa0 a", "a a"}, .ends = {0}};
  v.tokens = {"<|end|>", "ab", "abc", "\304\240a", "aa"};
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
  refused([](auto& v) { v.pre_tokenizer = "poro-chat"; }, "\"poro-chat\" is not known; this engine has gpt-2");
  refused([](auto& v) { v.kinds.pop_back(); }, "but the kinds of");
  refused([](auto& v) { v.merges.push_back("a"); }, "not a pair");
  refused([](auto& v) { v.merges.push_back("q zz"); }, "not there");
  refused([](auto& v) { v.ends = {100000}; }, "which ends texts");
  refused([](auto& v) { v.begin = 100000; }, "which begins texts");
  refused([](auto& v) { v.end = -2; }, "put after texts");
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

TEST_CASE("the longest special token goes first, and user-defined ones count even in plain text") {
  auto v = small_vocabulary();
  for (char const* const token : {"<a>", "<a><b>", "><c>"}) {
    v.tokens.push_back(token);
    v.kinds.push_back(token == std::string("<a>") ? 4 : 3);
  }
  engine::tokenizer const t(v);
  CHECK(pieces(t, "x<a><b>x") == texts{"x", "<a><b>", "x"});
  CHECK(pieces(t, "<a><c>") == texts{"<", "a", "><c>"});  // "<a>" comes first, but "><c>" is longer
  CHECK(pieces(t, "<a><b>", false) == texts{"<a>", "<", "b", ">"});
}

TEST_CASE("a text stands between the tokens that the vocabulary puts around it") {
  auto v = small_vocabulary();
  v.begin = v.end = 0;
  engine::tokenizer const t(v);
  CHECK(t.encode("ab") == std::vector<int>{0, 1, 0});
  CHECK(t.encode("ab", true, false) == std::vector<int>{1});
  CHECK(t.encode("").empty());
  CHECK(t.decode(t.encode("ab")) == "ab");
  CHECK(t.decode(std::vector<int>{0}) == "");
  CHECK(t.decode(std::vector<int>{1, 0, 1}) == "ab<|end|>ab");
}

TEST_CASE("byte-level BPE cuts words where the Python package tokenizers cuts them") {
  for (golden_pre_tokenizer const& g : golden_pre_tokenizers) {
    INFO(g.name);
    engine::vocabulary v;
    v.pre_tokenizer = g.name;
    v.tokens = golden_byte_pair_tokens;
    v.merges = golden_byte_pair_merges;
    engine::tokenizer const t(v);
    for (auto const& e : g.encodings) {
      INFO(e.text);
      CHECK(t.encode(e.text) == e.ids);
      CHECK(t.decode(e.ids) == e.text);
    }
  }
}

namespace {

engine::vocabulary golden_sentence_vocabulary() {
  engine::vocabulary v;
  v.by = engine::vocabulary::algorithm::sentence_piece;
  v.has_space_prefix = true;
  for (golden_piece const& p : golden_sentence_pieces) {
    v.tokens.push_back(p.text);
    v.scores.push_back(p.score);
    v.kinds.push_back(p.kind);
  }
  v.unknown = 0;
  return v;
}

/// Characters of UTF-8 text.
texts characters(std::string const& text) {
  texts all;
  for (char const c : text)
    if ((c & 0xc0) == 0x80)
      all.back() += c;
    else
      all.push_back(std::string(1, c));
  return all;
}

/// Joins the pair with the highest score, the first of equal ones, until none has a token: by the definition, in quadratic time.
texts joined(texts parts, std::map<std::string, double> const& scores) {
  for (;;) {
    std::size_t best = parts.size();
    double highest = 0;
    for (std::size_t i = 0; i + 1 < parts.size(); ++i) {
      auto const found = scores.find(parts[i] + parts[i + 1]);
      if (found != scores.end() && (best == parts.size() || found->second > highest)) {
        best = i;
        highest = found->second;
      }
    }
    if (best == parts.size()) return parts;
    parts[best] += parts[best + 1];
    parts.erase(parts.begin() + std::ptrdiff_t(best) + 1);
  }
}

}  // namespace

TEST_CASE("SentencePiece gives what its Python package gives") {
  engine::tokenizer const t(golden_sentence_vocabulary());
  for (auto const& e : golden_sentences) {
    INFO(e.text);
    CHECK(t.encode(e.text) == e.ids);
    CHECK(t.decode(e.ids) == e.text);
  }
}

TEST_CASE("SentencePiece joins as the definition says, with random vocabularies") {
  random_numbers r(7);
  texts const alphabet{"a", "b", "c", "\xe2\x96\x81", "\xc3\xa9", "\xf0\x9f\x98\x80"};
  auto const random_text = [&](std::int64_t n) {
    std::string text;
    for (; n > 0; --n) text += alphabet[std::size_t(r.below(std::int64_t(alphabet.size())))];
    return text;
  };
  for (int trial = 0; trial < 200; ++trial) {
    engine::vocabulary v;
    v.by = engine::vocabulary::algorithm::sentence_piece;
    std::map<std::string, double> scores;
    std::map<std::string, int> ids;
    auto const add = [&](std::string const& token, double score, int kind) {
      if (!ids.emplace(token, int(v.tokens.size())).second) return;
      v.tokens.push_back(token);
      v.scores.push_back(score);
      v.kinds.push_back(kind);
      scores[token] = score;
    };
    add("<unk>", 0, 2);
    v.unknown = trial % 3 == 0 ? 0 : -1;
    v.has_space_prefix = trial % 2 == 0;
    if (v.unknown < 0)
      for (int b = 0; b < 256; ++b) {
        char text[8];
        std::snprintf(text, sizeof text, "<0x%02X>", unsigned(b));
        add(text, 0, 6);
      }
    for (std::size_t i = 0; i < 4; ++i) add(alphabet[i], -double(r.below(5)), 1);           // the others are unknown
    for (int i = 0; i < 30; ++i) add(random_text(2 + r.below(3)), -double(r.below(5)), 1);  // many of equal score
    engine::tokenizer const t(v);
    for (int i = 0; i < 20; ++i) {
      std::string const escaped = random_text(1 + r.below(40));
      std::string text;
      for (auto const& c : characters(escaped)) text += c == alphabet[3] ? " " : c;
      std::vector<int> expected;
      for (auto const& part : joined(characters((v.has_space_prefix ? alphabet[3] : "") + escaped), scores)) {
        if (auto const found = ids.find(part); found != ids.end())
          expected.push_back(found->second);
        else if (v.unknown >= 0)
          expected.push_back(0);
        else
          for (char const c : part) expected.push_back(1 + static_cast<unsigned char>(c));
      }
      CHECK(t.encode(text) == expected);
      if (v.unknown < 0) CHECK(t.decode(expected) == text);
    }
  }
}

TEST_CASE("a space comes before a SentencePiece text and behind special tokens, and goes again") {
  auto v = golden_sentence_vocabulary();
  v.begin = 1;
  engine::tokenizer const t(v);
  std::string const begin = golden_sentence_pieces[1].text, end = golden_sentence_pieces[2].text;
  auto const decoded_alone = [&](std::vector<int> const& ids) {
    std::string text;
    for (int const id : ids) text += t.token_bytes(id);
    return text;
  };
  CHECK(decoded_alone(t.encode("a" + end + "b")) == begin + " a" + end + " b");
  CHECK(decoded_alone(t.encode("a" + end + "b", true, false)) == "a" + end + " b");
  CHECK(decoded_alone(t.encode(end, false)) == begin + " " + end);
  CHECK(t.encode(end).size() == 2);
  CHECK(t.decode(t.encode(" a")) == " a");
  CHECK(t.decode(t.encode("a")) == "a");
  v.has_space_prefix = false;
  CHECK(engine::tokenizer(v).decode(t.encode(" a")) == "  a");
  CHECK(t.encode(std::string(100000, 'x')).size() > 1000);  // quadratic work would take minutes
  CHECK_THROWS_WITH(t.encode("a\xc0\x80"), contains("UTF-8"));
}

TEST_CASE("SentencePiece vocabularies that contradict themselves are refused") {
  auto const refused = [](auto const& change, std::string const& words) {
    auto v = golden_sentence_vocabulary();
    change(v);
    CHECK_THROWS_WITH(engine::tokenizer(v), contains(words));
  };
  refused([](auto& v) { v.scores.pop_back(); }, "but the scores of");
  refused([](auto& v) { v.scores[3] = std::nan(""); }, "not a number");
  refused([](auto& v) { v.unknown = 100000; }, "unknown characters");
  refused(
      [](auto& v) {
        v.unknown = -1;
        v.tokens[5] = "x";
      },
      "not a token for every byte");
}

TEST_CASE("tokenizers are read from metadata") {
  auto const file_of = [](std::string const& model, auto const& more) {
    gguf_writer w;
    std::string const p = "tokenizer.ggml.";
    w.string(p + "model", model);
    w.strings(p + "tokens", {"<unk>", "<s>", "</s>", "\xe2\x96\x81", "a", "\342\226\201a", "<|eot_id|>"});
    w.array(p + "token_type", 5, std::vector<std::int32_t>{2, 3, 3, 1, 1, 1, 3});
    w.array(p + "scores", 6, std::vector<float>{0, 0, 0, -1, -2, -3, 0});
    w.value(p + "bos_token_id", 4, std::uint32_t{1});
    w.value(p + "eos_token_id", 4, std::uint32_t{2});
    w.value(p + "unknown_token_id", 4, std::uint32_t{0});
    more(w, p);
    return scratch_file(w.bytes());
  };
  auto const flag = [](char const* name, std::uint8_t is) { return [=](gguf_writer& w, std::string const& p) { w.value(p + name, 7, is); }; };
  auto const none = [](gguf_writer&, std::string const&) {};
  auto const encoded = [](scratch_file const& f) { return engine::tokenizer(engine::gguf_file(f.path())).encode("az"); };
  CHECK(encoded(file_of("llama", none)) == std::vector<int>{1, 5, 0});
  CHECK(encoded(file_of("llama", flag("add_space_prefix", 0))) == std::vector<int>{1, 4, 0});
  CHECK(encoded(file_of("llama", flag("add_bos_token", 0))) == std::vector<int>{5, 0});
  CHECK(encoded(file_of("llama", flag("add_eos_token", 1))) == std::vector<int>{1, 5, 0, 2});
  auto const f = file_of("llama", none);
  engine::tokenizer const t{engine::gguf_file(f.path())};
  CHECK(t.is_end(2));
  CHECK(t.is_end(6));
  CHECK_FALSE(t.is_end(4));
  auto const byte_pairs = [&](char const* pre) {
    return file_of("gpt2", [=](gguf_writer& w, std::string const& p) {
      w.string(p + "pre", pre);
      w.strings(p + "merges", {});
    });
  };
  CHECK(encoded(byte_pairs("gpt-2")) == std::vector<int>{4});
  CHECK(encoded(byte_pairs("llama-bpe")) == std::vector<int>{1, 4});  // begins texts, said or not
  CHECK_THROWS_WITH(encoded(byte_pairs("viking")), contains("\"viking\" is not known"));
  CHECK_THROWS_WITH(encoded(file_of("t5", none)), contains("\"t5\"; this engine has"));
  CHECK_THROWS_WITH(encoded(file_of("gpt2", none)), contains("tokenizer.ggml.pre"));
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
