#include "engine/tokenizer.hpp"

#define PCRE2_CODE_UNIT_WIDTH 8
#include <pcre2.h>

#include <algorithm>
#include <array>
#include <functional>
#include <limits>
#include <new>
#include <queue>
#include <stdexcept>
#include <tuple>

namespace engine {

namespace {

/// How byte-level BPE writes each byte: printable ones as themselves, the others as the characters from U+0100 on.
std::array<std::string, 256> byte_characters() {
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

std::uint64_t pair_key(int left, int right) { return std::uint64_t(std::uint32_t(left)) << 32 | std::uint32_t(right); }

void require(bool condition, std::string const& what) {
  if (!condition) throw std::invalid_argument("The model's vocabulary is broken: " + what + ". Fetch or convert the model file again.");
}

// The pre-tokenizers of the models' authors, as llama.cpp has them. Each pattern splits the pieces that the one before left. They stand here with their \s and
// \S, but PCRE2's \s holds U+180E, which Unicode no longer counts as white space: pattern puts in Unicode's set instead.
std::vector<std::string> patterns_of(std::string const& name) {
  if (name == "qwen2")
    return {R"((?:'[sS]|'[tT]|'[rR][eE]|'[vV][eE]|'[mM]|'[lL][lL]|'[dD])|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+)"};
  if (name == "smollm") return {R"(\p{N})", R"('s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S))"};
  throw std::invalid_argument("The pre-tokenizer \"" + name + "\" is not known; this engine has qwen2 and smollm. Use a model with one of them.");
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

  bool is_utf8(std::string_view text) const {  // PCRE2 looks before it matches
    match_data const match = make_match_data();
    int const found = pcre2_match(code_.get(), characters(text), text.size(), 0, 0, match.get(), nullptr);
    return found > PCRE2_ERROR_UTF8_ERR1 || found < PCRE2_ERROR_UTF8_ERR21;
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
  if (model != "gpt2") throw gguf_error("The model's tokenizer is \"" + model + "\"; this engine has byte-level BPE, \"gpt2\", only.");
  vocabulary v;
  v.pre_tokenizer = file.get<std::string>(prefix + "pre");
  v.tokens = file.get<std::vector<std::string>>(prefix + "tokens");
  v.merges = file.get<std::vector<std::string>>(prefix + "merges");
  v.kinds = file.get<std::vector<std::int64_t>>(prefix + "token_type");
  auto const id = [&](std::string const& key) {
    auto const x = file.get<std::int64_t>(prefix + key);
    if (x < 0 || x >= std::int64_t(v.tokens.size()))
      throw gguf_error("The model file's " + prefix + key + " is not one of its tokens. Fetch or convert the model file again.");
    return int(x);
  };
  for (char const* const key : {"eos_token_id", "eot_token_id"})
    if (file.has(prefix + key)) v.ends.push_back(id(key));
  for (std::size_t i = 0; i < v.tokens.size(); ++i)
    if (v.tokens[i] == "<|im_end|>" || v.tokens[i] == "<|endoftext|>") v.ends.push_back(int(i));
  if (file.has(prefix + "add_bos_token") && file.get<bool>(prefix + "add_bos_token")) v.begin = id("bos_token_id");
  return v;
}

tokenizer::tokenizer(vocabulary const& from) : begin_(from.begin) {
  require(!from.tokens.empty() && from.tokens.size() <= std::size_t(std::numeric_limits<int>::max()), "it has no tokens, or too many");
  require(from.kinds.empty() || from.kinds.size() == from.tokens.size(),
          "it has " + std::to_string(from.tokens.size()) + " tokens but the kinds of " + std::to_string(from.kinds.size()));
  for (std::string const& text : patterns_of(from.pre_tokenizer)) patterns_.emplace_back(text);
  read_tokens(from);
  read_merges(from);
  ends_.resize(from.tokens.size());
  for (int const id : from.ends) {
    require(id >= 0 && id < size(), "the token " + std::to_string(id) + ", which ends texts, is not there");
    ends_[std::size_t(id)] = true;
  }
  require(begin_ >= -1 && begin_ < size(), "the token " + std::to_string(begin_) + ", which begins texts, is not there");
}

tokenizer::~tokenizer() = default;
tokenizer::tokenizer(tokenizer&&) noexcept = default;

void tokenizer::read_tokens(vocabulary const& from) {
  auto const written = byte_characters();
  std::unordered_map<std::string, char> bytes;  // written character -> byte
  for (int b = 0; b < 256; ++b) bytes.emplace(written[std::size_t(b)], char(b));
  bytes_.reserve(from.tokens.size());
  for (std::size_t i = 0; i < from.tokens.size(); ++i) {
    std::string const& token = from.tokens[i];
    auto const kind = from.kinds.empty() ? vocabulary::kind::normal : vocabulary::kind(from.kinds[i]);
    if (kind == vocabulary::kind::control || kind == vocabulary::kind::user_defined) {
      // a text between two specials is matched without a check, so it must not begin or end within a character
      require(!token.empty() && patterns_.front().is_utf8(token), "the special token " + std::to_string(i) + " is empty or not UTF-8");
      bytes_.push_back(token);
      specials_.push_back(int(i));
      continue;
    }
    std::string plain;
    for (std::size_t at = 0; at < token.size();) {
      std::size_t const length = (token[at] & 0x80) == 0 ? 1 : 2;
      auto const byte = bytes.find(token.substr(at, length));
      if (byte == bytes.end()) {  // a token outside the byte alphabet can only be decoded
        plain = token;
        break;
      }
      plain += byte->second;
      at += length;
    }
    bytes_.push_back(std::move(plain));
  }
  std::stable_sort(specials_.begin(), specials_.end(), [&](int a, int b) { return token_bytes(a).size() > token_bytes(b).size(); });
}

void tokenizer::read_merges(vocabulary const& from) {
  std::unordered_map<std::string_view, int> ids;
  for (std::size_t i = 0; i < from.tokens.size(); ++i) ids.emplace(from.tokens[i], int(i));
  auto const written = byte_characters();
  for (int b = 0; b < 256; ++b) {
    auto const id = ids.find(written[std::size_t(b)]);
    byte_ids_[b] = id == ids.end() ? -1 : id->second;
  }
  merges_.reserve(from.merges.size());
  for (std::size_t rank = 0; rank < from.merges.size(); ++rank) {
    std::string const& m = from.merges[rank];
    auto const space = m.find(' ', 1);
    require(space != std::string::npos && space + 1 < m.size(), "the merge \"" + m + "\" is not a pair");
    auto const left = ids.find(m.substr(0, space)), right = ids.find(m.substr(space + 1)), both = ids.find(m.substr(0, space) + m.substr(space + 1));
    require(left != ids.end() && right != ids.end() && both != ids.end(), "the merge \"" + m + "\" names or makes a token that is not there");
    merges_.emplace(pair_key(left->second, right->second), merge{int(rank), both->second});
  }
}

std::vector<int> tokenizer::encode(std::string_view text, bool parse_special) const {
  std::vector<int> ids;
  if (text.empty()) return ids;
  if (text.size() > std::size_t(std::numeric_limits<int>::max())) throw std::invalid_argument("The text is longer than 2 GB; encode it in parts.");
  if (!patterns_.front().is_utf8(text)) throw std::invalid_argument("The text is not valid UTF-8; convert it to UTF-8 first.");
  if (begin_ >= 0) ids.push_back(begin_);
  std::size_t done = 0;
  for (std::size_t at = 0; parse_special && at < text.size();) {
    auto const special = std::find_if(specials_.begin(), specials_.end(), [&](int id) { return text.substr(at).starts_with(token_bytes(id)); });
    if (special == specials_.end()) {
      ++at;
      continue;
    }
    encode_plain(text.substr(done, at - done), ids);
    ids.push_back(*special);
    done = at += token_bytes(*special).size();
  }
  encode_plain(text.substr(done), ids);
  return ids;
}

void tokenizer::encode_plain(std::string_view text, std::vector<int>& to) const {
  std::vector<std::string_view> pieces, smaller;
  if (!text.empty()) pieces.push_back(text);
  for (pattern const& p : patterns_) {
    smaller.clear();
    for (auto const piece : pieces) p.split(piece, smaller);
    pieces.swap(smaller);
  }
  for (auto const piece : pieces) encode_piece(piece, to);
}

void tokenizer::encode_piece(std::string_view piece, std::vector<int>& to) const {
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
  std::string text;
  for (int const id : tokens) text += token_bytes(id);
  return text;
}

}  // namespace engine
