#include "engine/tokenizer.hpp"

#define PCRE2_CODE_UNIT_WIDTH 8
#include <pcre2.h>

#include <algorithm>
#include <array>
#include <charconv>
#include <cmath>
#include <functional>
#include <limits>
#include <new>
#include <queue>
#include <set>
#include <stdexcept>
#include <tuple>

namespace engine {

namespace {

/// How byte-level BPE writes each byte: printable ones as themselves, the others as the characters from U+0100 on.
std::array<std::string, 256> make_byte_characters() {
  std::array<std::string, 256> written;
  int next = 256;
  for (int b = 0; b < 256; ++b) {
    bool const is_printable = (b >= '!' && b <= '~') || (b >= 0xa1 && b <= 0xac) || b >= 0xae;
    int const code = is_printable ? b : next++;
    if (code < 0x80)
      written[std::size_t(b)] = char(code);
    else
      written[std::size_t(b)] = {char(0xc0 | code >> 6), char(0x80 | (code & 0x3f))};
  }
  return written;
}

std::array<std::string, 256> const& byte_characters() {
  static auto const written = make_byte_characters();
  return written;
}

std::uint64_t pair_key(int left, int right) { return std::uint64_t(std::uint32_t(left)) << 32 | std::uint32_t(right); }

void require(bool condition, std::string const& what) {
  if (!condition) throw std::invalid_argument("The model's vocabulary is broken: " + what + ". Fetch or convert the model file again.");
}

bool is_utf8(std::string_view text) {
  for (std::size_t i = 0; i < text.size();) {
    unsigned const first = static_cast<unsigned char>(text[i]);
    std::size_t const length = first < 0x80 ? 1 : first < 0xc2 ? 0 : first < 0xe0 ? 2 : first < 0xf0 ? 3 : first < 0xf5 ? 4 : 0;
    if (length == 0 || length > text.size() - i) return false;
    unsigned code = length == 1 ? first : first & (0x7fu >> length);
    for (std::size_t k = 1; k < length; ++k) {
      unsigned const next = static_cast<unsigned char>(text[i + k]);
      if (next >> 6 != 2) return false;
      code = code << 6 | (next & 0x3f);
    }
    if (length == 3 && (code < 0x800 || code >> 11 == 0x1b)) return false;  // overlong, or half a surrogate pair
    if (length == 4 && (code < 0x10000 || code > 0x10ffff)) return false;
    i += length;
  }
  return true;
}

std::string const written_space = "\xe2\x96\x81";

std::string replaced(std::string_view text, std::string_view what, std::string_view by) {
  std::string result;
  for (;;) {
    auto const at = text.find(what);
    result += text.substr(0, at);
    if (at == text.npos) return result;
    result += by;
    text.remove_prefix(at + what.size());
  }
}

/// The byte of a token <0x41>, or -1.
int byte_of(std::string const& token) {
  if (token.size() != 6 || !token.starts_with("<0x") || token[5] != '>') return -1;
  int value = 0;
  auto const read = std::from_chars(token.data() + 3, token.data() + 5, value, 16);
  return read.ec == std::errc() && read.ptr == token.data() + 5 ? value : -1;
}

// The pre-tokenizers of the models' authors, as llama.cpp has them. Each pattern splits the pieces that the one before left. They stand here with their \s and
// \S, but PCRE2's \s holds U+180E, which Unicode no longer counts as white space: pattern puts in Unicode's set instead.
struct pre_tokenizer {
  std::vector<std::string> names, patterns;
  bool takes_whole_words = false, begins_texts = false;
};
std::vector<pre_tokenizer> const& pre_tokenizers() {
  static std::string const gpt2 = R"('s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S))";
  static auto const with_digits = [](std::string const& digits) {
    return R"((?:'[sS]|'[tT]|'[rR][eE]|'[vV][eE]|'[mM]|'[lL][lL]|'[dD])|[^\r\n\p{L}\p{N}]?\p{L}+|)" + digits +
           R"(| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+)";
  };
  static std::vector<pre_tokenizer> const all{
      {{"gpt-2", "phi-2", "olmo", "dbrx"}, {gpt2}},
      {{"llama-bpe", "llama3", "llama-v3", "falcon3"}, {with_digits(R"(\p{N}{1,3})")}, true, true},
      {{"qwen2", "stablelm2", "deepseek-r1-qwen"}, {with_digits(R"(\p{N})")}},
      {{"smollm", "starcoder", "refact", "command-r", "codeshell"}, {R"(\p{N})", gpt2}},
  };
  return all;
}
pre_tokenizer const* find_pre_tokenizer(std::string const& name) {
  for (auto const& p : pre_tokenizers())
    if (std::find(p.names.begin(), p.names.end(), name) != p.names.end()) return &p;
  return nullptr;
}

std::string with_unicode_spaces(std::string_view text) {
  std::string const spaces = R"(\p{Z}\t-\r\x{85})";
  std::string result;
  bool is_in_class = false;
  for (std::size_t i = 0; i < text.size(); ++i) {
    auto const two = text.substr(i, 2);
    if (two == R"(\s)" || two == R"(\S)") {
      result += is_in_class ? spaces : (two == R"(\s)" ? "[" : "[^") + spaces + "]";
      ++i;
      continue;
    }
    if (text[i] == '[' || text[i] == ']') is_in_class = text[i] == '[';
    result += text[i];
  }
  return result;
}

}  // namespace

/// A compiled regular expression.
class tokenizer::pattern {
 public:
  explicit pattern(std::string const& text) {
    std::string const unicode = with_unicode_spaces(text);
    int error = 0;
    PCRE2_SIZE at = 0;
    code_.reset(pcre2_compile(characters(unicode), unicode.size(), PCRE2_UTF | PCRE2_UCP, &error, &at, nullptr));
    if (!code_) throw std::runtime_error("The installed PCRE2 does not compile the pre-tokenizer's pattern; it needs support for Unicode.");
    pcre2_jit_compile(code_.get(), PCRE2_JIT_COMPLETE);  // where it cannot, matching interprets
  }

  /// Cuts UTF-8 text into matches and what lies between them.
  void split(std::string_view text, std::vector<std::string_view>& to) const {
    match_data const match = make_match_data();
    std::unique_ptr<pcre2_match_context, deleter> const context(pcre2_match_context_create(nullptr));
    if (!context) throw std::bad_alloc();
    pcre2_set_match_limit(context.get(), std::numeric_limits<std::uint32_t>::max());  // the patterns never try more than the length of a piece
    std::size_t done = 0;
    while (done < text.size()) {
      int const found = pcre2_match(code_.get(), characters(text), text.size(), done, PCRE2_NO_UTF_CHECK, match.get(), context.get());
      if (found == PCRE2_ERROR_NOMATCH) break;
      if (found < 0) throw std::runtime_error("Splitting a text into words failed with PCRE2's error " + std::to_string(found) + ". Try a shorter text.");
      auto const* const range = pcre2_get_ovector_pointer(match.get());
      if (range[0] > done) to.push_back(text.substr(done, range[0] - done));
      to.push_back(text.substr(range[0], range[1] - range[0]));
      done = range[1];
    }
    if (done < text.size()) to.push_back(text.substr(done));
  }

 private:
  struct deleter {
    void operator()(pcre2_code* x) const { pcre2_code_free(x); }
    void operator()(pcre2_match_data* x) const { pcre2_match_data_free(x); }
    void operator()(pcre2_match_context* x) const { pcre2_match_context_free(x); }
  };
  using match_data = std::unique_ptr<pcre2_match_data, deleter>;

  static match_data make_match_data() {
    match_data result(pcre2_match_data_create(1, nullptr));
    if (!result) throw std::bad_alloc();
    return result;
  }
  static PCRE2_SPTR characters(std::string_view text) { return reinterpret_cast<PCRE2_SPTR>(text.data()); }

  std::unique_ptr<pcre2_code, deleter> code_;
};

vocabulary read_vocabulary(gguf_file const& file) {
  std::string const prefix = "tokenizer.ggml.";
  auto const model = file.get<std::string>(prefix + "model");
  if (model != "gpt2" && model != "llama")
    throw gguf_error("The model's tokenizer is \"" + model + "\"; this engine has byte-level BPE, \"gpt2\", and SentencePiece, \"llama\".");
  vocabulary v;
  v.by = model == "gpt2" ? vocabulary::algorithm::byte_pairs : vocabulary::algorithm::sentence_piece;
  v.tokens = file.get<std::vector<std::string>>(prefix + "tokens");
  v.kinds = file.get<std::vector<std::int64_t>>(prefix + "token_type");
  auto const id = [&](std::string const& key) {
    auto const x = file.get<std::int64_t>(prefix + key);
    if (x < 0 || x >= std::int64_t(v.tokens.size()))
      throw gguf_error("The model file's " + prefix + key + " is not one of its tokens. Fetch or convert the model file again.");
    return int(x);
  };
  auto const flag = [&](std::string const& key, bool otherwise) { return file.has(prefix + key) ? file.get<bool>(prefix + key) : otherwise; };
  bool begins = false;
  if (v.by == vocabulary::algorithm::byte_pairs) {
    v.pre_tokenizer = file.get<std::string>(prefix + "pre");
    v.merges = file.get<std::vector<std::string>>(prefix + "merges");
    auto const* const pre = find_pre_tokenizer(v.pre_tokenizer);
    begins = pre && pre->begins_texts && file.has(prefix + "bos_token_id");
  } else {
    v.scores = file.get<std::vector<double>>(prefix + "scores");
    v.has_space_prefix = flag("add_space_prefix", true);
    if (file.has(prefix + "unknown_token_id")) v.unknown = id("unknown_token_id");
    begins = file.has(prefix + "bos_token_id");
  }
  if (flag("add_bos_token", begins)) v.begin = id("bos_token_id");
  if (flag("add_eos_token", false)) v.end = id("eos_token_id");
  for (char const* const key : {"eos_token_id", "eot_token_id"})
    if (file.has(prefix + key)) v.ends.push_back(id(key));
  static std::set<std::string> const ends{"<|im_end|>", "<|endoftext|>", "<|end_of_text|>", "<|eot_id|>", "<|eom_id|>", "<|end|>", "<end_of_turn>"};
  for (std::size_t i = 0; i < v.tokens.size(); ++i)
    if (ends.contains(v.tokens[i])) v.ends.push_back(int(i));
  return v;
}

tokenizer::tokenizer(vocabulary const& from) : by_(from.by), begin_(from.begin), end_(from.end) {
  require(!from.tokens.empty() && from.tokens.size() <= std::size_t(std::numeric_limits<int>::max()), "it has no tokens, or too many");
  require(from.kinds.empty() || from.kinds.size() == from.tokens.size(),
          "it has " + std::to_string(from.tokens.size()) + " tokens but the kinds of " + std::to_string(from.kinds.size()));
  read_tokens(from);
  if (by_ == vocabulary::algorithm::byte_pairs)
    read_byte_pairs(from);
  else
    read_sentence_pieces(from);
  ends_.resize(from.tokens.size());
  for (int const id : from.ends) {
    require(id >= 0 && id < size(), "the token " + std::to_string(id) + ", which ends texts, is not there");
    ends_[std::size_t(id)] = true;
  }
  require(begin_ >= -1 && begin_ < size(), "the token " + std::to_string(begin_) + ", which begins texts, is not there");
  require(end_ >= -1 && end_ < size(), "the token " + std::to_string(end_) + ", which is put after texts, is not there");
}

tokenizer::~tokenizer() = default;
tokenizer::tokenizer(tokenizer&&) noexcept = default;

void tokenizer::read_tokens(vocabulary const& from) {
  using kind = vocabulary::kind;
  auto const& written = byte_characters();
  std::unordered_map<std::string, char> bytes;  // written character -> byte
  for (int b = 0; b < 256; ++b) bytes.emplace(written[std::size_t(b)], char(b));
  auto const plain = [&](std::string const& token, kind is) {
    if (by_ == vocabulary::algorithm::sentence_piece) {
      int const byte = is == kind::byte ? byte_of(token) : -1;
      return byte >= 0 ? std::string(1, char(byte)) : replaced(token, written_space, " ");
    }
    std::string result;
    for (std::size_t at = 0; at < token.size();) {
      std::size_t const length = (token[at] & 0x80) == 0 ? 1 : 2;
      auto const byte = bytes.find(token.substr(at, length));
      if (byte == bytes.end()) return token;  // a token outside the byte alphabet can only be decoded
      result += byte->second;
      at += length;
    }
    return result;
  };
  texts_ = from.tokens;
  bytes_.reserve(texts_.size());
  ids_.reserve(texts_.size());
  for (std::size_t i = 0; i < texts_.size(); ++i) {
    std::string const& token = texts_[i];
    auto const is = from.kinds.empty() ? kind::normal : kind(from.kinds[i]);
    bool const is_special = is == kind::control || is == kind::user_defined || is == kind::unknown;
    bytes_.push_back(is_special ? token : plain(token, is));
    ids_.insert_or_assign(token, int(i));  // of equal ones the last, as in llama.cpp
    if (!is_special) continue;
    // a text between two specials is matched without a check, so it must not begin or end within a character
    require(!token.empty() && is_utf8(token), "the special token " + std::to_string(i) + " is empty or not UTF-8");
    specials_[token.size()].emplace(token, special{int(i), is == kind::user_defined});
  }
}

void tokenizer::read_byte_pairs(vocabulary const& from) {
  auto const* const pre = find_pre_tokenizer(from.pre_tokenizer);
  if (!pre) {
    std::string known;
    for (auto const& p : pre_tokenizers())
      for (auto const& name : p.names) known += (known.empty() ? "" : ", ") + name;
    throw std::invalid_argument("The pre-tokenizer \"" + from.pre_tokenizer + "\" is not known; this engine has " + known + ". Use a model with one of them.");
  }
  for (std::string const& text : pre->patterns) patterns_.emplace_back(text);
  takes_whole_words_ = pre->takes_whole_words;
  auto const& written = byte_characters();
  for (int b = 0; b < 256; ++b) {
    auto const id = ids_.find(written[std::size_t(b)]);
    byte_ids_[b] = id == ids_.end() ? -1 : id->second;
  }
  merges_.reserve(from.merges.size());
  for (std::size_t rank = 0; rank < from.merges.size(); ++rank) {
    std::string const& m = from.merges[rank];
    auto const space = m.find(' ', 1);
    require(space != std::string::npos && space + 1 < m.size(), "the merge \"" + m + "\" is not a pair");
    auto const left = ids_.find(m.substr(0, space)), right = ids_.find(m.substr(space + 1)), both = ids_.find(m.substr(0, space) + m.substr(space + 1));
    require(left != ids_.end() && right != ids_.end() && both != ids_.end(), "the merge \"" + m + "\" names or makes a token that is not there");
    merges_.emplace(pair_key(left->second, right->second), merge{int(rank), both->second});
  }
}

void tokenizer::read_sentence_pieces(vocabulary const& from) {
  require(from.scores.size() == from.tokens.size(),
          "it has " + std::to_string(from.tokens.size()) + " tokens but the scores of " + std::to_string(from.scores.size()));
  require(std::none_of(from.scores.begin(), from.scores.end(), [](double x) { return std::isnan(x); }), "one of its scores is not a number");
  require(from.unknown >= -1 && from.unknown < size(), "the token " + std::to_string(from.unknown) + ", which stands for unknown characters, is not there");
  scores_ = from.scores;
  unknown_ = from.unknown;
  has_space_prefix_ = from.has_space_prefix;
  std::fill(std::begin(byte_ids_), std::end(byte_ids_), -1);
  for (std::size_t i = 0; i < texts_.size(); ++i)
    if (int const byte = byte_of(texts_[i]); byte >= 0) byte_ids_[byte] = int(i);
  require(unknown_ >= 0 || std::find(std::begin(byte_ids_), std::end(byte_ids_), -1) == std::end(byte_ids_),
          "it has no unknown token, and not a token for every byte");
}

std::vector<int> tokenizer::encode(std::string_view text, bool parse_special, bool whole) const {
  std::vector<int> ids;
  if (text.empty()) return ids;
  if (text.size() > std::size_t(std::numeric_limits<int>::max() / 4)) throw std::invalid_argument("The text is longer than 512 MB; encode it in parts.");
  if (!is_utf8(text)) throw std::invalid_argument("The text is not valid UTF-8; convert it to UTF-8 first.");

  struct part {
    std::size_t begin, end;
    int special;  // -1 for plain text
  };
  std::vector<part> parts{{0, text.size(), -1}}, finer;
  for (auto const& [length, tokens] : specials_) {  // the longest first, each over what is still plain text
    finer.clear();
    for (part const& p : parts) {
      std::size_t done = p.begin;
      for (std::size_t at = p.begin; p.special < 0 && at + length <= p.end;) {
        auto const found = tokens.find(text.substr(at, length));
        if (found == tokens.end() || !(parse_special || found->second.is_user_defined)) {
          ++at;
          continue;
        }
        if (at > done) finer.push_back({done, at, -1});
        finer.push_back({at, at + length, found->second.id});
        done = at += length;
      }
      if (p.special >= 0 || done < p.end) finer.push_back({done, p.end, p.special});
    }
    parts.swap(finer);
  }

  if (whole && begin_ >= 0) ids.push_back(begin_);
  bool wants_space = whole && has_space_prefix_;
  for (part const& p : parts) {
    if (p.special >= 0)
      ids.push_back(p.special);
    else
      encode_plain(text.substr(p.begin, p.end - p.begin), wants_space, ids);
    wants_space = p.special >= 0 && has_space_prefix_;
  }
  if (whole && end_ >= 0) ids.push_back(end_);
  return ids;
}

void tokenizer::encode_plain(std::string_view text, bool with_space, std::vector<int>& to) const {
  if (by_ == vocabulary::algorithm::sentence_piece) {
    encode_sentence((with_space ? written_space : "") + replaced(text, " ", written_space), to);
    return;
  }
  std::vector<std::string_view> pieces{text}, smaller;
  for (pattern const& p : patterns_) {
    smaller.clear();
    for (auto const piece : pieces) p.split(piece, smaller);
    pieces.swap(smaller);
  }
  for (auto const piece : pieces) encode_byte_pairs(piece, to);
}

void tokenizer::encode_sentence(std::string const& text, std::vector<int>& to) const {
  struct symbol {
    int begin, size, before, after;  // size 0: it is part of another
  };
  std::vector<symbol> symbols;  // characters at first
  for (std::size_t at = 0; at < text.size();) {
    auto const first = static_cast<unsigned char>(text[at]);
    int const length = first < 0x80 ? 1 : first < 0xe0 ? 2 : first < 0xf0 ? 3 : 4, n = int(symbols.size());
    symbols.push_back({int(at), length, n - 1, n + 1});
    at += std::size_t(length);
  }
  symbols.back().after = -1;
  auto const written = [&](int begin, int bytes) { return std::string_view(text).substr(std::size_t(begin), std::size_t(bytes)); };

  using candidate = std::tuple<double, int, int, int>;  // score, less the left symbol; the right one, and the bytes of both when it was found
  std::priority_queue<candidate> best;
  auto const consider = [&](int left, int right) {
    if (left < 0 || right < 0) return;
    symbol const &a = symbols[std::size_t(left)], &b = symbols[std::size_t(right)];
    auto const found = ids_.find(written(a.begin, a.size + b.size));
    if (found != ids_.end()) best.emplace(scores_[std::size_t(found->second)], -left, right, a.size + b.size);
  };
  for (int i = 1; i < int(symbols.size()); ++i) consider(i - 1, i);
  while (!best.empty()) {
    auto const [score, minus_left, right, bytes] = best.top();
    best.pop();
    symbol &a = symbols[std::size_t(-minus_left)], &b = symbols[std::size_t(right)];
    if (a.size == 0 || b.size == 0 || a.size + b.size != bytes) continue;  // joined meanwhile
    a.size = bytes;
    b.size = 0;
    a.after = b.after;
    if (a.after >= 0) symbols[std::size_t(a.after)].before = -minus_left;
    consider(a.before, -minus_left);
    consider(-minus_left, a.after);
  }
  for (int i = 0; i >= 0; i = symbols[std::size_t(i)].after) {
    symbol const& s = symbols[std::size_t(i)];
    auto const found = ids_.find(written(s.begin, s.size));
    if (found != ids_.end()) {
      to.push_back(found->second);
      continue;
    }
    bool has_bytes = true;  // a single character, for what was joined is a token
    for (char const c : written(s.begin, s.size)) has_bytes = has_bytes && byte_ids_[static_cast<unsigned char>(c)] >= 0;
    if (!has_bytes) to.push_back(unknown_);
    for (char const c : written(s.begin, has_bytes ? s.size : 0)) to.push_back(byte_ids_[static_cast<unsigned char>(c)]);
  }
}

void tokenizer::encode_byte_pairs(std::string_view piece, std::vector<int>& to) const {
  if (takes_whole_words_) {
    std::string word;
    for (char const c : piece) word += byte_characters()[static_cast<unsigned char>(c)];
    if (auto const found = ids_.find(word); found != ids_.end()) {
      to.push_back(found->second);
      return;
    }
  }
  struct symbol {
    int id, before, after;
  };
  std::vector<symbol> symbols;
  for (char const c : piece) {
    int const id = byte_ids_[static_cast<unsigned char>(c)], n = int(symbols.size());
    if (id >= 0) symbols.push_back({id, n - 1, n + 1});
  }
  if (symbols.empty()) return;
  symbols.back().after = -1;

  using candidate = std::tuple<int, int, int, int>;  // rank, left symbol, ids of both when it was found
  std::priority_queue<candidate, std::vector<candidate>, std::greater<>> best;
  auto const consider = [&](int left) {
    if (left < 0 || symbols[std::size_t(left)].after < 0) return;
    int const a = symbols[std::size_t(left)].id, b = symbols[std::size_t(symbols[std::size_t(left)].after)].id;
    auto const found = merges_.find(pair_key(a, b));
    if (found != merges_.end()) best.emplace(found->second.rank, left, a, b);
  };
  for (int i = 0; i < int(symbols.size()); ++i) consider(i);
  while (!best.empty()) {
    auto const [rank, i, a, b] = best.top();
    best.pop();
    symbol& left = symbols[std::size_t(i)];
    if (left.id != a || left.after < 0 || symbols[std::size_t(left.after)].id != b) continue;  // merged meanwhile
    symbol& right = symbols[std::size_t(left.after)];
    left.id = merges_.at(pair_key(a, b)).result;
    right.id = -1;
    left.after = right.after;
    if (left.after >= 0) symbols[std::size_t(left.after)].before = i;
    consider(left.before);
    consider(i);
  }
  for (int i = 0; i >= 0; i = symbols[std::size_t(i)].after) to.push_back(symbols[std::size_t(i)].id);
}

std::string const& tokenizer::token_bytes(int id) const {
  if (id < 0 || id >= size())
    throw std::out_of_range("The token " + std::to_string(id) + " is not in the vocabulary of " + std::to_string(size()) + " tokens.");
  return bytes_[std::size_t(id)];
}

std::string tokenizer::decode(std::span<int const> tokens) const {
  if (begin_ >= 0 && !tokens.empty() && tokens.front() == begin_) tokens = tokens.subspan(1);
  if (end_ >= 0 && !tokens.empty() && tokens.back() == end_) tokens = tokens.first(tokens.size() - 1);
  std::string text;
  for (int const id : tokens) text += token_bytes(id);
  if (has_space_prefix_ && text.starts_with(' ')) text.erase(0, 1);
  return text;
}

}  // namespace engine
