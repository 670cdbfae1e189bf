#include "text2json/evaluate.hpp"

#include <algorithm>
#include <cmath>
#include <numeric>
#include <stdexcept>

#include "cellar/core/math.hpp"
#include "text2json/schemes.hpp"
#include "text2json/score.hpp"

namespace text2json {

namespace {

constexpr std::int64_t published_window = 64;
constexpr double published_share = 0.03125;
constexpr std::int64_t measured_every = 16;  // steps between measurements of attention, which cost as much as a dense step

std::string in_chat(std::string const& problem) {
  auto const end = problem.find_last_not_of(" \n\r\t");
  return "<|im_start|>system\nYou are a helpful assistant.<|im_end|>\n<|im_start|>user\n" + problem.substr(0, end == std::string::npos ? 0 : end + 1) +
         "<|im_end|>\n<|im_start|>assistant\n";
}

int likeliest(std::span<float const> logits) { return int(std::max_element(logits.begin(), logits.end()) - logits.begin()); }

/// Against dense's logits, at a position whose gold token is `gold`.
token_result compare(std::span<float const> dense, std::span<float const> scheme, int gold) {
  double const dense_sum = engine::log_sum_exp(dense.data(), std::int64_t(dense.size())), sum = engine::log_sum_exp(scheme.data(), std::int64_t(scheme.size()));
  double kl = 0;
  for (std::size_t i = 0; i < dense.size(); ++i) {
    double const log_p = double(dense[i]) - dense_sum;
    if (log_p > -30) kl += std::exp(log_p) * (log_p - (double(scheme[i]) - sum));
  }
  return {likeliest(dense) == likeliest(scheme), kl, sum - double(scheme[std::size_t(gold)])};
}

/// One scheme's rows of the batch and what is learnt from them.
struct lane {
  std::unique_ptr<scheme_on_prompt> scheme;
  document_result result;
  std::vector<float> keys, values;    // of forced tokens: [layer][token][kv_head][head_dim]
  std::vector<int> likeliest_tokens;  // after each forced token, the gold answer before
  std::vector<int> written;           // its own answer
  bool is_writing = false;
  std::vector<int> planned;  // sequences of this step: 0 forced, 1 its own
  std::int64_t first_row = 0;
  // Sums over measured steps, [layer][kv_head].
  std::vector<double> error, captured, captured_far, all_far, oracle;
};

/// Compares the attention of one step with exact dense attention of the same queries.
class attention_meter {
 public:
  attention_meter(engine::model_config const& c, engine::staged_prompt const& prompt, allowance const& allowed)
      : config_(c), prompt_(prompt), far_tokens_(std::max<std::int64_t>(0, prompt.tokens - allowed.window)), budget_(std::min(allowed.tokens, far_tokens_)) {}

  /// q, out [heads, head_dim] of the forced row; `generated` tokens are in the lane's keys and values.
  void measure(lane& to, int layer, int kv_head, float const* q, float const* out, std::int64_t generated, std::int64_t generated_capacity) const {
    int const d = config_.head_dim, group = config_.heads / config_.kv_heads;
    std::int64_t const width = config_.kv_width(), n = prompt_.tokens + generated;
    auto const row = [&](std::vector<float> const& mine, float const* prompt, std::int64_t p) {
      return p < prompt_.tokens ? prompt + p * width + kv_head * d : mine.data() + ((layer * generated_capacity + p - prompt_.tokens) * width + kv_head * d);
    };
    float const *const prompt_keys = prompt_.key(layer, 0), *const prompt_values = prompt_.value(layer, 0);
    auto const attended = to.scheme->attended(kv_head);
    std::vector<float> weights(static_cast<std::size_t>(n)), best(std::size_t(far_tokens_), 0.f);
    std::vector<std::vector<float>> shares;
    double error = 0, size = 0, captured = 0, captured_far = 0, all_far = 0;
    for (int h = kv_head * group; h < (kv_head + 1) * group; ++h) {
      for (std::int64_t p = 0; p < n; ++p) {
        float const* const k = row(to.keys, prompt_keys, p);
        float s = 0;
        for (int c = 0; c < d; ++c) s += q[h * d + c] * k[c];
        weights[std::size_t(p)] = s / std::sqrt(float(d));
      }
      double const sum = double(engine::exponentials(weights.data(), n, engine::maximum(weights.data(), n)));
      std::vector<double> exact(std::size_t(d), 0.0);
      double far = 0;
      for (std::int64_t p = 0; p < n; ++p) {
        double const w = double(weights[std::size_t(p)]) / sum;
        weights[std::size_t(p)] = float(w);
        float const* const v = row(to.values, prompt_values, p);
        for (int c = 0; c < d; ++c) exact[std::size_t(c)] += w * double(v[c]);
        if (p < far_tokens_) far += w;
        if (attended[std::size_t(p)]) {
          captured += w;
          if (p < far_tokens_) captured_far += w;
        }
      }
      all_far += far;
      for (std::int64_t p = 0; p < far_tokens_; ++p)
        best[std::size_t(p)] = std::max(best[std::size_t(p)], float(double(weights[std::size_t(p)]) / std::max(far, 1e-300)));
      shares.push_back(weights);
      for (int c = 0; c < d; ++c) {
        error += std::pow(double(out[h * d + c]) - exact[std::size_t(c)], 2);
        size += std::pow(exact[std::size_t(c)], 2);
      }
    }
    std::vector<int> order(static_cast<std::size_t>(far_tokens_));
    std::iota(order.begin(), order.end(), 0);
    std::nth_element(order.begin(), order.begin() + budget_, order.end(), [&](int a, int b) { return best[std::size_t(a)] > best[std::size_t(b)]; });
    double oracle = group - all_far;  // what lies near
    for (auto const& share : shares)
      for (std::int64_t i = 0; i < budget_; ++i) oracle += double(share[std::size_t(order[std::size_t(i)])]);
    auto const at = std::size_t(layer * config_.kv_heads + kv_head);
    to.error[at] += std::sqrt(error / std::max(size, 1e-300));
    to.captured[at] += captured / group;
    to.oracle[at] += oracle / group;
    to.captured_far[at] += captured_far;
    to.all_far[at] += all_far;
  }

 private:
  engine::model_config const& config_;
  engine::staged_prompt const& prompt_;
  std::int64_t far_tokens_, budget_;
};

std::vector<field_result> judge(document const& d, std::vector<int> const& answer, std::vector<int> const& likeliest_tokens,
                                engine::tokenizer const& tokenizer) {
  std::vector<field_result> fields;
  for (field_span const& span : field_spans(d.answer)) {
    bool is_right = true;
    std::size_t begin = 0;
    for (std::size_t i = 0; i < answer.size(); ++i) {
      std::size_t const end = begin + tokenizer.token_bytes(answer[i]).size();
      if (begin < span.end && end > span.begin) is_right = is_right && likeliest_tokens[i] == answer[i];
      begin = end;
    }
    fields.push_back({span.is_name, is_right});
  }
  return fields;
}

}  // namespace

document_evaluation evaluate(evaluation const& what, document const& d, engine::model const& model, engine::tokenizer const& tokenizer,
                             progress_report const& progress) {
  auto const& c = model.config();
  std::vector<int> const prompt = tokenizer.encode(in_chat(d.problem)), answer = tokenizer.encode(d.answer, false);
  auto const answer_tokens = std::int64_t(answer.size()), most_written = answer_tokens + answer_tokens / 4 + 32;
  std::int64_t const generated = what.writes ? most_written : answer_tokens;
  if (std::int64_t(prompt.size()) + generated > c.context)
    throw std::invalid_argument("The document has " + std::to_string(prompt.size()) + " tokens, with its answer more than the model's context of " +
                                std::to_string(c.context) + ". Ask for fewer --tokens.");

  engine::staged_prompt staged;
  std::vector<float> const first = model.prefill(prompt, staged, [&](std::int64_t done) { progress("prefill", done, std::int64_t(prompt.size())); });

  allowance const allowed{std::max<std::int64_t>(1, std::int64_t(what.budget * double(staged.tokens))),
                          what.window > 0 ? what.window : std::max<std::int64_t>(1, std::llround(double(published_window) * what.budget / published_share))};
  std::size_t const heads = std::size_t(c.layers * c.kv_heads);
  std::vector<lane> lanes(what.schemes.size());
  for (std::size_t i = 0; i < lanes.size(); ++i) {
    progress("seal", std::int64_t(i), std::int64_t(lanes.size()));
    lane& l = lanes[i];
    l.scheme = make_scheme(what.schemes[i], model, staged, what.writes ? 2 : 1, generated, allowed);
    l.keys.resize(std::size_t(c.layers * answer_tokens * c.kv_width()));
    l.values.resize(l.keys.size());
    l.error = l.captured = l.captured_far = l.all_far = l.oracle = std::vector<double>(heads, 0.0);
    l.result.tokens.push_back(compare(first, first, answer[0]));
    l.likeliest_tokens.push_back(likeliest(first));
    l.written.push_back(likeliest(first));
    l.is_writing = what.writes && !tokenizer.is_end(l.written.back());
  }

  attention_meter const meter(c, staged, allowed);
  std::int64_t measured = 0;
  std::vector<int> tokens;
  std::vector<std::int64_t> positions;
  std::vector<float> logits;
  auto const q_width = std::int64_t(c.heads) * c.head_dim, kv_width = c.kv_width();
  for (std::int64_t step = 0;; ++step) {
    bool const is_forced = step + 1 < answer_tokens, is_measured = is_forced && step % measured_every == 0;
    tokens.clear();
    for (lane& l : lanes) {
      l.first_row = std::int64_t(tokens.size());
      l.planned.clear();
      if (is_forced) {
        l.planned.push_back(0);
        tokens.push_back(answer[std::size_t(step)]);
      }
      if (l.is_writing) {
        l.planned.push_back(1);
        tokens.push_back(l.written.back());
      }
      if (!l.planned.empty()) l.scheme->plan(l.planned);
    }
    if (tokens.empty()) break;
    measured += is_measured;
    positions.assign(tokens.size(), staged.tokens + step);
    model.decode(
        tokens, positions,
        [&](int layer, float const* q, float const* k, float const* v, float* out) {
          for (lane& l : lanes) {
            if (l.planned.empty()) continue;
            std::int64_t const r = l.first_row;
            l.scheme->attend(layer, q + r * q_width, k + r * kv_width, v + r * kv_width, out + r * q_width);
            if (is_forced) {
              auto const at = (layer * answer_tokens + step) * kv_width;
              std::copy_n(k + r * kv_width, kv_width, l.keys.begin() + at);
              std::copy_n(v + r * kv_width, kv_width, l.values.begin() + at);
            }
          }
          if (is_measured)
            model.threads().run(std::int64_t(lanes.size()) * c.kv_heads, [&](std::int64_t item, int) {
              lane& l = lanes[std::size_t(item / c.kv_heads)];
              meter.measure(l, layer, int(item % c.kv_heads), q + l.first_row * q_width, out + l.first_row * q_width, step + 1, answer_tokens);
            });
        },
        logits);
    auto const row = [&](std::int64_t r) { return std::span<float const>(logits).subspan(std::size_t(r * c.vocabulary), std::size_t(c.vocabulary)); };
    model.threads().run(std::int64_t(lanes.size()), [&](std::int64_t i, int) {
      lane& l = lanes[std::size_t(i)];
      if (is_forced) {
        l.result.tokens.push_back(compare(row(lanes[0].first_row), row(l.first_row), answer[std::size_t(step) + 1]));
        l.likeliest_tokens.push_back(likeliest(row(l.first_row)));
      }
      if (l.is_writing) {
        l.written.push_back(likeliest(row(l.first_row + is_forced)));
        l.is_writing = !tokenizer.is_end(l.written.back()) && std::int64_t(l.written.size()) < most_written;
      }
    });
    progress("decode", step + 1, answer_tokens);
  }

  document_evaluation done{staged.tokens, answer_tokens, {}};
  for (lane& l : lanes) {
    l.scheme->account(l.result);
    l.result.fields = judge(d, answer, l.likeliest_tokens, tokenizer);
    if (what.writes) {
      while (!l.written.empty() && tokenizer.is_end(l.written.back())) l.written.pop_back();
      l.result.score = score(tokenizer.decode(l.written), d.answer);
    }
    auto const per_head = double(measured) * double(heads);
    for (int layer = 0; layer < c.layers; ++layer) {
      double sum = 0;
      for (int h = 0; h < c.kv_heads; ++h) sum += l.error[std::size_t(layer * c.kv_heads + h)];
      l.result.output_error.push_back(sum / (double(measured) * c.kv_heads));
    }
    for (std::size_t i = 0; i < heads; ++i) {
      l.result.captured_mass += l.captured[i] / per_head;
      l.result.oracle_mass += l.oracle[i] / per_head;
      l.result.captured_far_mass += l.all_far[i] > 0 ? l.captured_far[i] / l.all_far[i] / double(heads) : 1 / double(heads);
    }
    done.schemes.push_back(std::move(l.result));
  }
  return done;
}

}  // namespace text2json
