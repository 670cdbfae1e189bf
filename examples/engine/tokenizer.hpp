#pragma once
#include <cstdint>
#include <memory>
#include <span>
#include <string>
#include <string_view>
#include <unordered_map>
#include <vector>

#include "engine/gguf.hpp"

namespace engine {

/// Tokens and merges as GGUF metadata have them: bytes are written as the printable characters of byte-level BPE, special tokens as they are.
struct vocabulary {
  enum class kind : std::int64_t { normal = 1, unknown = 2, control = 3, user_defined = 4, unused = 5, byte = 6 };

  std::string pre_tokenizer;  ///< "qwen2" or "smollm".
  std::vector<std::string> tokens;
  std::vector<std::int64_t> kinds;  ///< A `kind` a token, or empty: all normal. Control and user-defined tokens are special.
  std::vector<std::string> merges;  ///< "left right", best first.
  std::vector<int> ends;            ///< Tokens that end a text.
  int begin = -1;                   ///< Put before every text that is not empty; -1 for none.
};

/// Reads the vocabulary of a model file.
///
/// Errors  gguf_error where a key is absent, an id is not one of the tokens, or the tokenizer is not byte-level BPE
vocabulary read_vocabulary(gguf_file const& file);

/// Byte-level BPE: a text is cut into pieces by the pre-tokenizer, and within a piece the pair of the best merge is joined until none is left.
///
/// Errors  std::invalid_argument at construction where the vocabulary contradicts itself or its pre-tokenizer is not known
class tokenizer {
 public:
  explicit tokenizer(gguf_file const& file) : tokenizer(read_vocabulary(file)) {}
  explicit tokenizer(vocabulary const& from);
  ~tokenizer();
  tokenizer(tokenizer&&) noexcept;

  /// Tokens of a text; an empty text has none. With parse_special, special tokens written in the text count as themselves, otherwise as plain text.
  /// A byte for which the vocabulary has no token is left out, as in llama.cpp (SmolLM2 lacks 21 bytes: control characters, and first bytes of code
  /// points that are nearly all unassigned).
  ///
  /// Errors      std::invalid_argument if the text is not UTF-8
  /// Complexity  O(n log n)
  std::vector<int> encode(std::string_view utf8, bool parse_special = true) const;

  /// The bytes of the tokens behind each other; part of a text may end within a character.
  ///
  /// Errors  std::out_of_range if an id is not in the vocabulary; so in token_bytes
  std::string decode(std::span<int const> tokens) const;

  /// Bytes that a token stands for.
  std::string const& token_bytes(int id) const;

  int size() const { return int(bytes_.size()); }
  bool is_end(int id) const { return id >= 0 && id < size() && ends_[std::size_t(id)]; }

 private:
  struct merge {
    int rank, result;
  };
  class pattern;

  void read_tokens(vocabulary const& from);
  void read_merges(vocabulary const& from);
  void encode_plain(std::string_view text, std::vector<int>& to) const;
  void encode_piece(std::string_view piece, std::vector<int>& to) const;

  std::vector<pattern> patterns_;
  std::vector<std::string> bytes_;  // of every token
  std::vector<int> specials_;       // tokens matched as a whole, longest first
  std::vector<bool> ends_;
  int byte_ids_[256] = {};                           // -1 for none
  std::unordered_map<std::uint64_t, merge> merges_;  // (left id, right id)
  int begin_ = -1;
};

}  // namespace engine
