"""Writes golden_tokenizers.hpp: small vocabularies, and what the Python packages tokenizers and sentencepiece make of texts with them.

    pip install tokenizers sentencepiece
    python golden_tokenizers.py > golden_tokenizers.hpp && clang-format -i golden_tokenizers.hpp
"""
import io
import json

import sentencepiece
from tokenizers import Regex, Tokenizer, models, pre_tokenizers, trainers

TEXTS = [
    "Hello, world! It's 12345 o'clock, we'LL see DON'T they've I'm",
    "  two  spaces\n\n\nand lines\t\tand tabs \n x\r\n\r\n  y   ",
    "1234567 12.5% 3e-7 ٣٤٥ ½ Ⅻ 10000000",
    "e\u0301a\u0308 ’quoted’ \u00a0nbsp\u2003em \u3000日本語テキスト 한국어 😀",
    "for (int i = 0; i < 10; ++i) { x[i] += 1; }  // ok\n\tif (a||b) return;",
    "Straße ÅÄÖ naïve übergroß İstanbul ǅ ʰ",
    " a", "a ", "   ", "\n", "'s 's'S ''re", "....\n\n\n...\r\n", "x\u0085y\u180ez \x0b\x0c",
]
CORPUS = TEXTS[:6] * 3 + ["the quick brown fox jumps over the lazy dog, and 123 other things. " * 3, "It is what it is: 2024-10-11, 12:30.\n" * 3]


def literal(data):
    """A C++ string literal of UTF-8 bytes: octal where it is not printable."""
    return '"' + "".join(chr(b) if 32 <= b < 127 and chr(b) not in '"\\?' else f"\\{b:03o}" for b in data.encode()) + '"'


def byte_characters():
    code, written = 256, []
    for b in range(256):
        printable = 33 <= b <= 126 or 161 <= b <= 172 or b >= 174
        written.append(chr(b if printable else code))
        code += not printable
    return written


# Byte-level BPE: merges are learnt without a pre-tokenizer, so that many of them cross the words that one cuts.
trainer = trainers.BpeTrainer(vocab_size=256 + 150, initial_alphabet=byte_characters(), special_tokens=[], show_progress=False, max_token_length=8)
learner = Tokenizer(models.BPE())
learner.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
learner.train_from_iterator(CORPUS, trainer)
merges = [tuple(m) for m in json.loads(learner.to_str())["model"]["merges"]]
tokens = byte_characters()
for left, right in merges:
    if left + right not in tokens:
        tokens.append(left + right)
whole = "".join(byte_characters()[b] for b in b" world")  # a token that no merge makes, for vocabularies that take whole words
tokens.append(whole)

GPT2 = r"'s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+"
LLAMA3 = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
QWEN2 = LLAMA3.replace("{1,3}", "")
DIGITS = pre_tokenizers.Digits(individual_digits=True)


def split(pattern):
    return [pre_tokenizers.Split(Regex(pattern), behavior="isolated"), pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)]


KINDS = {"gpt-2": (split(GPT2), False), "llama-bpe": (split(LLAMA3), True), "qwen2": (split(QWEN2), False), "smollm": ([DIGITS] + split(GPT2), False)}

# SentencePiece: pairs by score, characters without a token as bytes, nothing normalized.
model = io.BytesIO()
sentencepiece.SentencePieceTrainer.train(sentence_iterator=iter(CORPUS), model_writer=model, vocab_size=420, model_type="bpe", byte_fallback=True,
                                         normalization_rule_name="identity", remove_extra_whitespaces=False, character_coverage=0.98,
                                         allow_whitespace_only_pieces=True, split_digits=True, hard_vocab_limit=False, minloglevel=2)
spm = sentencepiece.SentencePieceProcessor(model_proto=model.getvalue())

print("""#pragma once
#include <string>
#include <vector>

/// Small vocabularies, and texts in them by the Python packages tokenizers and sentencepiece: written by golden_tokenizers.py.
struct golden_encoding {
  std::string text;
  std::vector<int> ids;
};
struct golden_pre_tokenizer {
  char const* name;
  std::vector<golden_encoding> encodings;
};
struct golden_piece {
  char const* text;
  double score;
  int kind;
};
""")
print("inline std::vector<std::string> const golden_byte_pair_tokens = {" + ", ".join(literal(t) for t in tokens) + "};")
print("inline std::vector<std::string> const golden_byte_pair_merges = {" + ", ".join(literal(f"{a} {b}") for a, b in merges) + "};")


def encodings(encode):
    return "{" + ", ".join(f"{{{literal(t)}, {{{', '.join(map(str, encode(t)))}}}}}" for t in TEXTS) + "}"


print("inline std::vector<golden_pre_tokenizer> const golden_pre_tokenizers = {")
for name, (steps, takes_whole_words) in KINDS.items():
    t = Tokenizer(models.BPE(vocab={t: i for i, t in enumerate(tokens)}, merges=merges, ignore_merges=takes_whole_words))
    t.pre_tokenizer = pre_tokenizers.Sequence(steps)
    print(f'{{"{name}", {encodings(lambda x: t.encode(x).ids)}}},')
print("};")
print("inline std::vector<golden_piece> const golden_sentence_pieces = {")
for i in range(spm.get_piece_size()):
    kind = 2 if spm.is_unknown(i) else 3 if spm.is_control(i) else 6 if spm.is_byte(i) else 1
    print(f"{{{literal(spm.id_to_piece(i))}, {spm.get_score(i):.9g}, {kind}}},")
print("};")
print(f"inline std::vector<golden_encoding> const golden_sentences = {encodings(spm.encode)};")
