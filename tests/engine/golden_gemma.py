"""Writes golden_gemma.hpp: tokens of texts by llama.cpp, and what a forward pass in NumPy (f32, no code shared with the engine) expects after them.

    pip install gguf numpy xllamacpp
    python golden_gemma.py gemma-3-270m-q4_k_m.gguf > golden_gemma.hpp && clang-format -i golden_gemma.hpp
"""
import json
import sys
import urllib.request

import gguf
import numpy as np
import xllamacpp

LONG = "".join(f"Line {i}: the number of this line is {i * 37 % 100}, and it is followed by others.\n" for i in range(40))  # more tokens than the window
TEXTS = [
    "The capital of France is Paris, and the capital of Italy is Rome. The capital of Spain is",
    "int main() {\n  for (int i = 0; i < 10; ++i) std::cout << i",
    "<start_of_turn>user\nCafé   日本語 😀?<end_of_turn>\n<start_of_turn>model\n",
    LONG + "Line 3: the number of this line is",
]

path = sys.argv[1]
reader = gguf.GGUFReader(path)
field = lambda key: reader.get_field("gemma3." + key).contents()
layers, heads, kv_heads, hidden = (field(k) for k in ("block_count", "attention.head_count", "attention.head_count_kv", "embedding_length"))
width, window, epsilon, theta = (field(k) for k in ("attention.key_length", "attention.sliding_window", "attention.layer_norm_rms_epsilon", "rope.freq_base"))
tensors = {t.name: gguf.quants.dequantize(t.data, t.tensor_type).astype(np.float32) for t in reader.tensors}


def norm(x, weight):
    return x / np.sqrt((x * x).mean(-1, keepdims=True) + epsilon) * weight


def turned(x, base):  # [token, head, width]
    angles = np.arange(len(x))[:, None] * base ** (-np.arange(0, width, 2) / width)
    c, s = np.cos(angles)[:, None], np.sin(angles)[:, None]
    a, b = np.split(x, 2, axis=-1)
    return np.concatenate([a * c - b * s, a * s + b * c], axis=-1)


def log_probabilities(ids):
    x = tensors["token_embd.weight"][ids] * np.sqrt(hidden)
    n = len(ids)
    distance = np.arange(n)[:, None] - np.arange(n)[None]
    for i in range(layers):
        t = lambda name: tensors[f"blk.{i}.{name}.weight"]
        is_global = i % 6 == 5
        base = theta if is_global else 10000.0
        y = norm(x, t("attn_norm"))
        q = turned(norm((y @ t("attn_q").T).reshape(n, heads, width), t("attn_q_norm")), base)
        k = turned(norm((y @ t("attn_k").T).reshape(n, kv_heads, width), t("attn_k_norm")), base)
        v = (y @ t("attn_v").T).reshape(n, kv_heads, width)
        k, v = (np.repeat(z, heads // kv_heads, axis=1) for z in (k, v))
        scores = np.einsum("qhd,khd->hqk", q, k) / np.sqrt(width)
        scores[:, (distance < 0) | ((distance >= window) & (not is_global))] = -np.inf
        weights = np.exp(scores - scores.max(-1, keepdims=True))
        weights /= weights.sum(-1, keepdims=True)
        mixed = np.einsum("hqk,khd->qhd", weights, v).reshape(n, heads * width)
        x = x + norm(mixed @ t("attn_output").T, t("post_attention_norm"))
        y = norm(x, t("ffn_norm"))
        gate = y @ t("ffn_gate").T
        gate = gate / 2 * (1 + np.tanh(np.sqrt(2 / np.pi) * (gate + 0.044715 * gate**3)))
        x = x + norm((gate * (y @ t("ffn_up").T)) @ t("ffn_down").T, t("post_ffw_norm"))
    logits = (norm(x[-1], tensors["output_norm.weight"]) @ tensors["token_embd.weight"].T).astype(np.float64)
    return logits - logits.max() - np.log(np.exp(logits - logits.max()).sum())


parameters = xllamacpp.CommonParams()
parameters.model.path, parameters.n_ctx, parameters.n_parallel, parameters.warmup, parameters.port = path, 2048, 1, False, 0
server = xllamacpp.Server(parameters)


def post(what, body):
    request = urllib.request.Request(server.listening_address + what, json.dumps(body).encode(), {"Content-Type": "application/json"})
    return json.loads(urllib.request.urlopen(request).read())


def literal(data):
    return '"' + "".join(chr(b) if 32 <= b < 127 and chr(b) not in '"\\?' else f"\\{b:03o}" for b in data.encode()) + '"'


print("""#pragma once
#include <string>
#include <vector>

/// Texts, their tokens by llama.cpp, and log-probabilities after the last by a forward pass in NumPy: written by golden_gemma.py.
struct golden_gemma {
  std::string text;
  std::vector<int> tokens;
  struct next {
    int token;
    double log_probability;
  };
  std::vector<next> expected;  // the five likeliest, and three others
};
inline std::vector<golden_gemma> const golden_gemmas = {""")
for text in TEXTS:
    ids = post("/tokenize", {"content": text, "add_special": True, "parse_special": True})["tokens"]
    ours = log_probabilities(ids)
    theirs = post("/completion", {"prompt": ids, "n_predict": 1, "n_probs": 5, "temperature": 0})["completion_probabilities"][0]["top_logprobs"]
    print(len(ids), "tokens; llama.cpp differs by", [round(p["logprob"] - ours[p["id"]], 4) for p in theirs], file=sys.stderr)
    chosen = list(np.argsort(-ours)[:5]) + [100, 2000, 30000]
    pairs = ", ".join(f"{{{i}, {ours[i]:.5f}}}" for i in chosen)
    print(f"{{{literal(text)}, {{{', '.join(map(str, ids))}}}, {{{pairs}}}}},")
print("};")
