#include <span>

#include "engine/gguf_writer.hpp"
#include "engine/model.hpp"
#include "engine/tokenizer.hpp"
#include "fuzz/replay.hpp"

extern "C" int fuzz_gguf(std::uint8_t const* data, std::size_t size);
extern "C" int fuzz_jsonl(std::uint8_t const* data, std::size_t size);

namespace {

using fuzz::inputs;

/// A model's metadata and tokenizer, with one layer of two heads of four channels; what is special about it is added by the caller.
gguf_writer small_model(std::string const& architecture, std::string const& tokenizer) {
  gguf_writer w;
  std::string const p = architecture + ".", t = "tokenizer.ggml.";
  w.string("general.architecture", architecture);
  for (auto const& [key, value] : std::map<std::string, std::uint32_t>{{"block_count", 1},
                                                                       {"context_length", 8},
                                                                       {"embedding_length", 8},
                                                                       {"feed_forward_length", 4},
                                                                       {"attention.head_count", 2},
                                                                       {"attention.head_count_kv", 1},
                                                                       {"attention.sliding_window", 2}})
    w.value(p + key, 4, value);
  w.value(p + "attention.layer_norm_rms_epsilon", 6, 1e-5f);
  w.string(p + "rope.scaling.type", "linear");
  w.value(p + "rope.scaling.factor", 6, 2.f);
  w.string(t + "model", tokenizer);
  w.strings(t + "tokens", {"<unk>", "<s>", "</s>", "<0x41>", "a", "b", "ab", "\xe2\x96\x81", "\xc4\xa0", "\304\240a"});
  w.array(t + "token_type", 5, std::vector<std::int32_t>{2, 3, 4, 6, 1, 1, 1, 1, 1, 5});
  w.value(t + "bos_token_id", 4, std::uint32_t{1});
  w.value(t + "eos_token_id", 4, std::uint32_t{2});
  w.value(t + "unknown_token_id", 4, std::uint32_t{0});
  w.value(t + "add_bos_token", 7, std::uint8_t{1});
  w.value(t + "add_space_prefix", 7, std::uint8_t{1});
  return w;
}

void add_tensors(gguf_writer& w, std::string const& architecture) {
  auto const add = [&](std::string const& name, std::vector<std::uint64_t> const& innermost_first) {
    std::uint64_t n = 1;
    for (auto const x : innermost_first) n *= x;
    w.tensor(name, innermost_first, 30, std::string(2 * n, '\x3c'));  // bf16
  };
  add("token_embd.weight", {8, 10});
  add("output_norm.weight", {8});
  std::string const p = "blk.0.";
  for (char const* const name : {"attn_norm.weight", "ffn_norm.weight"}) add(p + name, {8});
  for (char const* const name : {"attn_q.weight", "attn_output.weight"}) add(p + name, {8, 8});
  for (char const* const name : {"attn_k.weight", "attn_v.weight", "ffn_gate.weight", "ffn_up.weight"}) add(p + name, {8, 4});
  add(p + "ffn_down.weight", {4, 8});
  if (architecture == "gemma3")
    for (char const* const name : {"post_attention_norm.weight", "post_ffw_norm.weight"}) add(p + name, {8});
  if (architecture == "gemma3" || architecture == "qwen3")
    for (char const* const name : {"attn_q_norm.weight", "attn_k_norm.weight"}) add(p + name, {4});
  if (architecture == "llama") add("rope_freqs.weight", {2});
}

inputs gguf_seeds() {
  inputs seeds;
  {
    gguf_writer w;
    w.value("a.u8", 0, std::uint8_t{200});
    w.value("a.i16", 3, std::int16_t{-3});
    w.value("a.bool", 7, std::uint8_t{1});
    w.value("a.u64", 10, std::uint64_t{1} << 40);
    w.value("a.f64", 12, 2.25);
    w.value("general.alignment", 4, std::uint32_t{32});
    w.strings("a.list", {"x", "", "yz"});
    w.array("a.numbers", 5, std::vector<std::int32_t>{1, -2, 3});
    w.tensor("vector", {2}, 0, std::string(8, '\1'));
    seeds["values"] = w.bytes();
    w.version = 2;
    seeds["version_2"] = w.bytes();
  }
  for (auto const& [architecture, pre] : std::map<std::string, std::string>{{"llama", "llama-bpe"}, {"qwen2", "qwen2"}, {"qwen3", "gpt-2"}}) {
    auto w = small_model(architecture, "gpt2");
    w.string("tokenizer.ggml.pre", pre);
    w.strings("tokenizer.ggml.merges", {"a b", "\xc4\xa0 a"});
    add_tensors(w, architecture);
    seeds["byte_pairs_" + architecture] = w.bytes();
  }
  {
    auto w = small_model("gemma3", "llama");
    w.array("tokenizer.ggml.scores", 6, std::vector<float>{0, 0, 0, 0, -1, -2, -3, -4, -5, -6});
    add_tensors(w, "gemma3");
    seeds["sentence_piece"] = w.bytes();
  }
  {  // what once asked for more memory than there is
    auto w = small_model("llama", "gpt2");
    w.tensor("token_embd.weight", {1 << 20, 1 << 24}, 16, std::string(66, '\1'));
    seeds["huge_tensor"] = w.bytes();
    w = small_model("llama", "gpt2");
    w.value("llama.attention.key_length", 4, std::uint32_t{1} << 29);
    add_tensors(w, "llama");
    seeds["wide_heads"] = w.bytes();
  }
  {
    gguf_writer w;  // a block of every type
    for (auto const& [type, size] : std::map<std::uint32_t, std::pair<std::uint64_t, std::size_t>>{{0, {1, 4}},
                                                                                                   {1, {1, 2}},
                                                                                                   {2, {32, 18}},
                                                                                                   {3, {32, 20}},
                                                                                                   {6, {32, 22}},
                                                                                                   {7, {32, 24}},
                                                                                                   {8, {32, 34}},
                                                                                                   {10, {256, 84}},
                                                                                                   {11, {256, 110}},
                                                                                                   {12, {256, 144}},
                                                                                                   {13, {256, 176}},
                                                                                                   {14, {256, 210}},
                                                                                                   {15, {256, 292}},
                                                                                                   {16, {256, 66}},
                                                                                                   {20, {32, 18}},
                                                                                                   {23, {256, 136}},
                                                                                                   {30, {1, 2}},
                                                                                                   {39, {32, 17}}})
      w.tensor("t" + std::to_string(type), {size.first}, type, std::string(size.second, '\x3a'));
    seeds["types"] = w.bytes();
  }
  return seeds;
}

inputs jsonl_seeds() {
  return {{"two", R"({"problem": "Read \u00e9.", "answer": "[{\"name\": \"A\", \"x\": \"1\"}, {\"name\": \"B\", \"x\": 1, \"y\": null}]"})"
                  "\n\n"
                  R"({"answer": "[{\"name\": \"C\u2019s\", \"z\": {\"k\": [true, 2.5e3]}}]", "problem": "p"})"
                  "\r\n"},
          {"no_answer", R"({"problem": "p"})"},
          {"no_name", R"({"problem": "p", "answer": "[{\"x\": 1}]"})"},
          {"not_json", "{\"problem\": "}};
}

}  // namespace

TEST_CASE("the seeds hold models that run") {
  for (auto const& [name, bytes] : gguf_seeds()) {
    if (name.find("byte_pairs") == name.npos && name != "sentence_piece") continue;
    INFO(name);
    engine::gguf_file const file(std::as_bytes(std::span(bytes)), name);
    engine::staged_prompt staged;
    CHECK(engine::model(file, 1).prefill(std::vector<int>{2, 0, 1}, staged).size() == 10);
    CHECK(engine::tokenizer(file).encode("ab").size() >= 2);
  }
}

TEST_CASE("the seeds of the fuzzed inputs are what the tests make") {
  fuzz::check_seeds("gguf", gguf_seeds());
  fuzz::check_seeds("jsonl", jsonl_seeds());
}

TEST_CASE("model files that fuzzing found are read or refused") { fuzz::replay("gguf", fuzz_gguf); }

TEST_CASE("data sets that fuzzing found are read or refused") { fuzz::replay("jsonl", fuzz_jsonl); }
