#include "engine/rotary.hpp"

#include <algorithm>
#include <cmath>
#include <numbers>
#include <stdexcept>
#include <string>

namespace engine {
namespace {

void require(bool condition, std::string const& sentence) {
  if (!condition) throw std::runtime_error(sentence);
}

/// Channel pair that turns `turns` times within a context.
double pair_of(double turns, double context, int head_dim, double theta) {
  return head_dim * std::log(context / (turns * 2 * std::numbers::pi)) / (2 * std::log(theta));
}

}  // namespace

rotary_angles plain_angles(int head_dim, double theta) {
  rotary_angles a;
  for (int i = 0; i < head_dim / 2; ++i) a.inverse_frequencies.push_back(std::pow(theta, -2.0 * i / head_dim));
  return a;
}

rotary_angles scaled_angles(gguf_file const& file, int head_dim, double theta) {
  std::string const architecture = file.get<std::string>("general.architecture"), prefix = architecture + ".rope.scaling.";
  auto const number = [&](char const* key, double otherwise) { return file.has(prefix + key) ? file.get<double>(prefix + key) : otherwise; };
  rotary_angles a = plain_angles(head_dim, theta);
  double const old_factor = file.has(architecture + ".rope.scale_linear") ? file.get<double>(architecture + ".rope.scale_linear") : 0;
  double const factor = number("factor", old_factor);
  std::string const type = file.has(prefix + "type") ? file.get<std::string>(prefix + "type") : factor > 0 ? "linear" : "none";
  require(type == "none" || type == "linear" || type == "yarn",
          "The model scales its rotary positions by \"" + type + "\"; this engine has linear, yarn and rope_freqs.weight.");
  if (type != "none") require(factor > 0 && std::isfinite(factor), "The model scales its rotary positions, but the file has no " + prefix + "factor.");
  if (type == "linear")
    for (double& x : a.inverse_frequencies) x /= factor;
  if (type == "yarn") {
    for (auto const& [key, neutral] : {std::pair{"yarn_ext_factor", 1.0}, {"yarn_attn_factor", 1.0}, {"yarn_log_multiplier", 0.0}})
      require(number(key, neutral) == neutral, "The model's " + prefix + key + " is not " + std::to_string(int(neutral)) + "; this engine has plain yarn.");
    std::string const context_key = prefix + "original_context_length";
    require(file.has(context_key), "The model scales its rotary positions by yarn, but the file has no " + context_key + ".");
    double const context = double(file.get<std::int64_t>(context_key));
    require(context > 0 && theta > 1, "The model's " + context_key + " or its rotary base is too small for yarn.");
    double const low = std::max(0.0, std::floor(pair_of(number("yarn_beta_fast", 32), context, head_dim, theta)));
    double const high = std::min(head_dim - 1.0, std::ceil(pair_of(number("yarn_beta_slow", 1), context, head_dim, theta)));
    for (int i = 0; i < head_dim / 2; ++i) {
      double const divided = std::clamp((i - low) / std::max(0.001, high - low), 0.0, 1.0);  // share of the division
      a.inverse_frequencies[std::size_t(i)] *= divided / factor + (1 - divided);
    }
    a.magnitude = (factor > 1 ? 1 + 0.1 * std::log(factor) : 1) * number("attn_factor", 1);
  }
  require(!file.has_tensor("rope_factors_long.weight"), "The model has two sets of rotary factors, for long and short texts; this engine has one.");
  if (file.has_tensor("rope_freqs.weight")) {
    require(architecture == "llama", "The model of the architecture " + architecture + " has rotary factors of its own, which this engine has for llama.");
    require(file.shape("rope_freqs.weight") == std::vector<std::int64_t>{head_dim / 2},
            "The tensor rope_freqs.weight does not have a number for each of the " + std::to_string(head_dim / 2) + " channel pairs of a head.");
    auto const factors = file.read("rope_freqs.weight");
    for (std::size_t i = 0; i < factors.size(); ++i) {
      require(factors[i] > 0, "The tensor rope_freqs.weight has a number that is not positive.");
      a.inverse_frequencies[i] /= double(factors[i]);
    }
  }
  return a;
}

void rotate(float* x, std::int64_t rows, int heads, int head_dim, rotary_pairing pairing, float const* cosines, float const* sines) {
  int const half = head_dim / 2;
  for (std::int64_t r = 0; r < rows; ++r) {
    float const *const c = cosines + r * half, *const s = sines + r * half;
    for (int h = 0; h < heads; ++h) {
      float* const v = x + (r * heads + h) * head_dim;
      if (pairing == rotary_pairing::half_split) {
        for (int i = 0; i < half; ++i) {
          float const a = v[i], b = v[i + half];
          v[i] = a * c[i] - b * s[i];
          v[i + half] = a * s[i] + b * c[i];
        }
      } else {
        for (int i = 0; i < half; ++i) {
          float const a = v[2 * i], b = v[2 * i + 1];
          v[2 * i] = a * c[i] - b * s[i];
          v[2 * i + 1] = a * s[i] + b * c[i];
        }
      }
    }
  }
}

}  // namespace engine
