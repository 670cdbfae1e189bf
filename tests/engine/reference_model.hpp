#pragma once
#include <cmath>
#include <map>
#include <numbers>
#include <string>
#include <vector>

#include "engine/gguf_writer.hpp"
#include "random.hpp"

/// A small model of random weights: as a GGUF file, and its forward pass in double by naive loops.
struct reference_model {
  std::string architecture = "llama";
  int layers = 3, heads = 4, kv_heads = 2, head_dim = 16, hidden = 64, ffn = 48, vocabulary = 50;
  double theta = 10000, epsilon = 1e-5;
  bool has_bias = false, is_tied = true;
  std::string scaling;  // "linear" or "yarn"
  double factor = 4, original_context = 64;
  bool has_factors = false;
  int window = 0, period = 6;

  std::map<std::string, std::vector<float>> tensors;

  bool is_gemma() const { return architecture == "gemma3"; }
  bool has_head_norms() const { return is_gemma() || architecture == "qwen3"; }

  std::map<std::string, std::vector<int>> shapes() const {  // outermost first
    std::map<std::string, std::vector<int>> all{{"token_embd.weight", {vocabulary, hidden}}, {"output_norm.weight", {hidden}}};
    if (!is_tied) all["output.weight"] = {vocabulary, hidden};
    if (has_factors) all["rope_freqs.weight"] = {head_dim / 2};
    for (int layer = 0; layer < layers; ++layer) {
      std::string const p = "blk." + std::to_string(layer) + ".";
      for (auto const& [name, rows] :
           std::map<std::string, int>{{"attn_q", heads * head_dim}, {"attn_k", kv_heads * head_dim}, {"attn_v", kv_heads * head_dim}}) {
        all[p + name + ".weight"] = {rows, hidden};
        if (has_bias) all[p + name + ".bias"] = {rows};
        if (has_head_norms() && name != "attn_v") all[p + name + "_norm.weight"] = {head_dim};
      }
      all[p + "attn_output.weight"] = {hidden, heads * head_dim};
      all[p + "ffn_gate.weight"] = all[p + "ffn_up.weight"] = {ffn, hidden};
      all[p + "ffn_down.weight"] = {hidden, ffn};
      all[p + "attn_norm.weight"] = all[p + "ffn_norm.weight"] = {hidden};
      if (is_gemma()) all[p + "post_attention_norm.weight"] = all[p + "post_ffw_norm.weight"] = {hidden};
    }
    return all;
  }

  void draw(std::uint64_t seed) {
    random_numbers r(seed);
    for (auto const& [name, shape] : shapes()) {
      bool const is_matrix = shape.size() == 2, is_norm = name.find("norm") != name.npos;
      auto& t = tensors[name] = r.normals(std::int64_t(shape[0]) * (is_matrix ? shape[1] : 1), is_matrix ? 1.5f / std::sqrt(float(shape[1])) : 0.3f);
      if (is_norm)
        for (float& x : t) x += 1;
      if (name == "rope_freqs.weight")
        for (float& x : t) x = 1 + float(r.below(70)) / 10;
    }
  }

  gguf_writer file() const {
    gguf_writer w;
    std::string const p = architecture + ".";
    auto const count = [&](std::string const& key, int n) { w.value(p + key, 4, std::uint32_t(n)); };
    auto const number = [&](std::string const& key, double x) { w.value(p + key, 6, float(x)); };
    w.string("general.architecture", architecture);
    count("block_count", layers);
    count("context_length", 1000);
    count("embedding_length", hidden);
    count("feed_forward_length", ffn);
    count("attention.head_count", heads);
    count("attention.head_count_kv", kv_heads);
    count("attention.key_length", head_dim);
    count("attention.value_length", head_dim);
    number("attention.layer_norm_rms_epsilon", epsilon);
    number("rope.freq_base", theta);
    if (!scaling.empty()) {
      w.string(p + "rope.scaling.type", scaling);
      number("rope.scaling.factor", factor);
      count("rope.scaling.original_context_length", int(original_context));
    }
    if (window > 0) count("attention.sliding_window", window);
    if (period != 6) count("attention.sliding_window_pattern", period);
    for (auto const& [name, shape] : shapes()) {
      auto const& t = tensors.at(name);
      w.tensor(name, std::vector<std::uint64_t>(shape.rbegin(), shape.rend()), 0, {reinterpret_cast<char const*>(t.data()), t.size() * sizeof(float)});
    }
    return w;
  }

  using row = std::vector<double>;

  row product(std::string const& name, row const& x) const {
    auto const& w = tensors.at(name + ".weight");
    row y(w.size() / x.size());
    for (std::size_t o = 0; o < y.size(); ++o)
      for (std::size_t i = 0; i < x.size(); ++i) y[o] += double(w[o * x.size() + i]) * x[i];
    if (auto const bias = tensors.find(name + ".bias"); bias != tensors.end())
      for (std::size_t o = 0; o < y.size(); ++o) y[o] += double(bias->second[o]);
    return y;
  }
  row norm(std::string const& name, row const& x) const {
    double square = 0;
    for (double const v : x) square += v * v / double(x.size());
    row y;
    for (std::size_t i = 0; i < x.size(); ++i) y.push_back(x[i] / std::sqrt(square + epsilon) * double(tensors.at(name + ".weight")[i]));
    return y;
  }
  bool is_windowed(int layer) const { return is_gemma() && window > 0 && layer % period != period - 1; }

  /// Angle a position of channel pair i.
  double frequency(int layer, int i) const {
    if (is_windowed(layer)) return std::pow(1e4, -double(i) / (head_dim / 2));
    double const plain = std::pow(theta, -double(i) / (head_dim / 2));
    if (scaling == "linear") return plain / factor;
    if (scaling == "yarn") {  // by how often pairs turn within the original context: the last of at least 32 times, the first of at most once
      auto const turns = [&](int pair) { return original_context * std::pow(theta, -double(pair) / (head_dim / 2)) / (2 * std::numbers::pi); };
      int low = 0, high = 0;
      while (turns(low + 1) >= 32) ++low;
      while (turns(high) > 1 && high < head_dim - 1) ++high;
      double const share = i <= low ? 0 : i >= high ? 1 : double(i - low) / (high - low);
      return plain / factor * share + plain * (1 - share);
    }
    return has_factors ? plain / double(tensors.at("rope_freqs.weight")[std::size_t(i)]) : plain;
  }

  /// One head of one token, normalized and rotated.
  row turned(row head, int layer, std::string const& norm_name, std::size_t position) const {
    if (has_head_norms()) head = norm(norm_name, head);
    bool const is_adjacent = architecture == "llama";
    row y(head.size());
    double const size = scaling == "yarn" ? 0.1 * std::log(factor) + 1 : 1;
    for (int i = 0; i < head_dim / 2; ++i) {
      std::size_t const a = std::size_t(is_adjacent ? 2 * i : i), b = std::size_t(is_adjacent ? 2 * i + 1 : i + head_dim / 2);
      double const angle = double(position) * frequency(layer, i);
      y[a] = size * (head[a] * std::cos(angle) - head[b] * std::sin(angle));
      y[b] = size * (head[b] * std::cos(angle) + head[a] * std::sin(angle));
    }
    return y;
  }

  /// Logits after every token.
  std::vector<row> logits(std::vector<int> const& tokens) const {
    std::vector<row> x;
    for (int const token : tokens) {
      auto const& e = tensors.at("token_embd.weight");
      row& to = x.emplace_back();
      for (int c = 0; c < hidden; ++c) to.push_back(double(e[std::size_t(token * hidden + c)]) * (is_gemma() ? std::sqrt(double(hidden)) : 1));
    }
    for (int layer = 0; layer < layers; ++layer) {
      std::string const p = "blk." + std::to_string(layer) + ".";
      std::vector<std::vector<row>> keys, values;  // [token][kv head]
      auto const head_of = [&](row const& all, int h) { return row(all.begin() + h * head_dim, all.begin() + (h + 1) * head_dim); };
      auto const add = [&](row& to, std::string const& post, row delta) {
        if (is_gemma()) delta = norm(p + post, delta);
        for (std::size_t i = 0; i < to.size(); ++i) to[i] += delta[i];
      };
      for (std::size_t t = 0; t < x.size(); ++t) {
        row const n = norm(p + "attn_norm", x[t]), q = product(p + "attn_q", n), k = product(p + "attn_k", n), v = product(p + "attn_v", n);
        keys.emplace_back();
        values.emplace_back();
        for (int g = 0; g < kv_heads; ++g) {
          keys[t].push_back(turned(head_of(k, g), layer, p + "attn_k_norm", t));
          values[t].push_back(head_of(v, g));
        }
        row mixed;
        for (int h = 0; h < heads; ++h) {
          row const query = turned(head_of(q, h), layer, p + "attn_q_norm", t);
          auto const g = std::size_t(h / (heads / kv_heads));
          row sum(std::size_t(head_dim), 0.0);
          double total = 0;
          for (std::size_t j = 0; j <= t; ++j) {
            if (is_windowed(layer) && j + std::size_t(window) <= t) continue;
            double score = 0;
            for (std::size_t c = 0; c < query.size(); ++c) score += query[c] * keys[j][g][c];
            double const weight = std::exp(score / std::sqrt(is_gemma() && layers == 62 ? double(hidden) / heads : double(head_dim)));
            total += weight;
            for (std::size_t c = 0; c < sum.size(); ++c) sum[c] += weight * values[j][g][c];
          }
          for (double const s : sum) mixed.push_back(s / total);
        }
        add(x[t], "post_attention_norm", product(p + "attn_output", mixed));
        row const m = norm(p + "ffn_norm", x[t]), gate = product(p + "ffn_gate", m);
        row up = product(p + "ffn_up", m);
        for (std::size_t i = 0; i < up.size(); ++i) {
          double const a = gate[i];
          up[i] *= is_gemma() ? a / 2 * (1 + std::tanh(std::sqrt(2 / std::numbers::pi) * (a + 0.044715 * a * a * a))) : a / (1 + std::exp(-a));
        }
        add(x[t], "post_ffw_norm", product(p + "ffn_down", up));
      }
    }
    std::vector<row> all;
    for (auto const& last : x) all.push_back(product(is_tied ? "token_embd" : "output", norm("output_norm", last)));
    return all;
  }
};

/// Every kind of model that the engine runs.
inline std::vector<std::pair<std::string, reference_model>> reference_models() {
  std::vector<std::pair<std::string, reference_model>> all;
  auto const add = [&](std::string const& name, auto const& change) {
    reference_model m;
    change(m);
    m.draw(all.size() + 1);
    all.emplace_back(name, m);
  };
  add("llama", [](auto& m) { m.is_tied = false; });
  add("llama with a head width of its own", [](auto& m) { m.hidden = 40; });
  add("llama with rope_freqs", [](auto& m) { m.has_factors = true; });
  add("llama, linear", [](auto& m) { m.scaling = "linear"; });
  add("llama, yarn", [](auto& m) { m.scaling = "yarn"; });
  add("llama, yarn over a longer context", [](auto& m) {
    m.scaling = "yarn";
    m.theta = 5e5;
    m.original_context = 800;
  });
  add("qwen2", [](auto& m) {
    m.architecture = "qwen2";
    m.has_bias = true;
  });
  add("qwen3", [](auto& m) {
    m.architecture = "qwen3";
    m.hidden = 40;
    m.theta = 1e6;
  });
  add("qwen3, yarn", [](auto& m) {
    m.architecture = "qwen3";
    m.scaling = "yarn";
  });
  auto const gemma = [](auto& m) {
    m.architecture = "gemma3";
    m.layers = 7;
    m.hidden = 40;
    m.theta = 1e6;
    m.window = 5;
  };
  add("gemma3", gemma);
  add("gemma3, linear, every third layer global", [&](auto& m) {
    gemma(m);
    m.scaling = "linear";
    m.period = 3;
    m.window = 12;
  });
  add("gemma3 of as many layers as the one of 27 billion weights has", [&](auto& m) {
    gemma(m);
    m.layers = 62;
  });
  add("gemma3 without a window", [&](auto& m) {
    gemma(m);
    m.window = 0;
  });
  return all;
}
