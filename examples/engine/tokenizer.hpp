#pragma once
#include <cstdint>
#include <functional>
#include <map>
#include <memory>
#include <span>
#include <string>
#include <string_view>
#include <unordered_map>
#include <vector>

#include "engine/gguf.hpp"

namespace engine {

/// Tokens, and how texts are put together from them, as GGUF metadata have them. Byte-level BPE writes bytes as its printable characters, SentencePiece
/// spaces as U+2581; special tokens are written as they are.
struct vocabulary {
  enum class kind : std::int64_t { normal = 1, unknown = 2, control = 3, user_defined = 4, unused = 5, byte = 6 };
  enum class algorithm { byte_pairs, sentence_piece };

  std::string pre_tokenizer;  ///< Of byte_pairs: "gpt-2", "llama-bpe", "qwen2", "smollm", or one that is the same under another name.
  std::vector<std::string> tokens;
  std::vector<std::int64_t> kinds;  ///< A `kind` a token, or empty: all normal. Control, user-defined and unknown tokens are special.
  std::vector<std::string> merges;  ///< Of byte_pairs: "left right", best first.
  std::vector<int> ends;            ///< Tokens that end a text.
  int begin = -1;                   ///< Put before every text that is not empty; -1 for none.
  int end = -1;                     ///< Put after every text that is not empty; -1 for none.
  algorithm by = algorithm::byte_pairs;
  std::vector<double> scores = {};  ///< Of sentence_piece: a score a token; the highest is joined first.
  int unknown = -1;                 ///< Of sentence_piece: stands for characters that have neither a token nor tokens of their bytes; -1 for none.
  bool has_space_prefix = false;    ///< Of sentence_piece: a space is put before a text, and behind every special token in it.
};

/// Reads the vocabulary of a model file.
///
/// Errors  gguf_error where a key is absent, an id is not one of the tokens, or the tokenizer is neither byte-level BPE nor SentencePiece
vocabulary read_vocabulary(gguf_file const& file);

/// Byte-level BPE: a text is cut into pieces by the pre-tokenizer, and within a piece the pair of the best merge is joined until none is left. SentencePiece:
/// within the whole text the pair is joined whose token has the highest score; characters without a token become tokens of their bytes.
///
/// Errors  std::invalid_argument at construction where the vocabulary contradicts itself or its pre-tokenizer is not known
class tokenizer {
 public:
  explicit tokenizer(gguf_file const& file) : tokenizer(read_vocabulary(file)) {}
  explicit tokenizer(vocabulary const& from);
  ~tokenizer();
  tokenizer(tokenizer&&) noexcept;

  /// Tokens of a text; an empty text has none. With parse_special, special tokens written in the text count as themselves, otherwise only the user-defined
  /// ones do, as in llama.cpp: where they overlap, the longest first. With whole, what the vocabulary puts around a text is there; without, the text
  /// continues another. A byte for which a byte-level vocabulary has no token is left out, as in llama.cpp (SmolLM2 lacks 21 bytes: control characters,
  /// and first bytes of code points that are nearly all unassigned).
  ///
  /// Errors      std::invalid_argument if the text is not UTF-8
  /// Complexity  O(n log n), times the lengths that special tokens have
  std::vector<int> encode(std::string_view utf8, bool parse_special = true, bool whole = true) const;

  /// The bytes of the tokens behind each other, without what `encode` put around the text: the first and last token, the space. Part of a text may end
  /// within a character.
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
  void read_byte_pairs(vocabulary const& from);
  void read_sentence_pieces(vocabulary const& from);
  void encode_plain(std::string_view text, bool with_space, std::vector<int>& to) const;
  void encode_byte_pairs(std::string_view piece, std::vector<int>& to) const;
  void encode_sentence(std::string const& text, std::vector<int>& to) const;

  vocabulary::algorithm by_;
  std::vector<std::string> texts_;                 // of every token, as written in the vocabulary
  std::vector<std::string> bytes_;                 // of every token
  std::unordered_map<std::string_view, int> ids_;  // by texts_
  struct special {
    int id;
    bool is_user_defined;
  };
  std::map<std::size_t, std::unordered_map<std::string_view, special>, std::greater<>> specials_;  // by length
  std::vector<bool> ends_;
  int byte_ids_[256] = {};  // -1 for none
  int begin_ = -1, end_ = -1;

  // byte-level BPE
  std::vector<pattern> patterns_;
  std::unordered_map<std::uint64_t, merge> merges_;  // (left id, right id)
  bool takes_whole_words_ = false;                   // a piece that is a token is that token, whatever the merges

  // SentencePiece
  std::vector<double> scores_;
  int unknown_ = -1;
  bool has_space_prefix_ = false;
};

}  // namespace engine
