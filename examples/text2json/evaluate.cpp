#include "text2json/evaluate.hpp"

#include <algorithm>
#include <cmath>
#include <stdexcept>

#include "text2json/attention_metrics.hpp"
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
  std::vector<std::vector<missed_share>> missed;
};

/// Adds the comparison of one step's attention with exact dense attention, for one layer and KV head, to a lane's sums.
///
/// q, out [heads, head_dim] of the forced row; `generated` tokens are in the lane's keys and values.
void measure(lane& to, engine::model_config const& c, engine::staged_prompt const& prompt, allowance const& allowed, int layer, int kv_head, float const* q,
             float const* out, std::int64_t generated, std::int64_t generated_capacity) {
  std::int64_t const width = c.kv_width(), far_tokens = std::max<std::int64_t>(0, prompt.tokens - allowed.window);
  int const group = c.heads / c.kv_heads, first = kv_head * group * c.head_dim;
  attended_rows rows;
  for (std::int64_t p = 0; p < prompt.tokens; ++p) {
    rows.keys.push_back(prompt.key(layer, p) + kv_head * c.head_dim);
    rows.values.push_back(prompt.value(layer, p) + kv_head * c.head_dim);
  }
  for (std::int64_t p = 0; p < generated; ++p) {
    std::int64_t const at = (layer * generated_capacity + p) * width + kv_head * c.head_dim;
    rows.keys.push_back(to.keys.data() + at);
    rows.values.push_back(to.values.data() + at);
  }
  auto const compared =
      compare_attention(c.head_dim, group, q + first, out + first, rows, to.scheme->attended(kv_head), far_tokens, std::min(allowed.tokens, far_tokens));
  auto const at = std::size_t(layer * c.kv_heads + kv_head);
  to.error[at] += compared.error;
  to.captured[at] += compared.captured;
  to.oracle[at] += compared.oracle;
  to.captured_far[at] += compared.captured_far;
  to.all_far[at] += compared.all_far;
  auto const said = to.scheme->missed(kv_head);
  for (std::size_t h = 0; h < said.size(); ++h) to.missed[at].push_back({double(said[h]), compared.missed[h]});
}

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
  std::vector<int> const prompt = tokenizer.encode(in_chat(d.problem)), answer = tokenizer.encode(d.answer, false, false);
  auto const answer_tokens = std::int64_t(answer.size()), most_written = answer_tokens + answer_tokens / 4 + 32;
  std::int64_t const generated = what.writes ? most_written : answer_tokens;
  if (std::int64_t(prompt.size()) + generated > c.context)
    throw document_too_long("The document has " + std::to_string(prompt.size()) + " tokens, with its answer more than the model's context of " +
                            std::to_string(c.context) + ". Ask for fewer --tokens.");

  engine::staged_prompt staged;
  if (std::ranges::any_of(what.schemes, needs_queries)) staged.observed = std::int64_t(prompt.size());
  std::vector<float> const first = model.prefill(prompt, staged, [&](std::int64_t done) { progress("prefill", done, std::int64_t(prompt.size())); });

  allowance const allowed{std::max<std::int64_t>(1, std::int64_t(what.budget * double(staged.tokens))),
                          what.window > 0 ? what.window : std::max<std::int64_t>(1, std::llround(double(published_window) * what.budget / published_share))};
  std::size_t const heads = std::size_t(c.layers * c.kv_heads);
  std::vector<lane> lanes(what.schemes.size());
  for (std::size_t i = 0; i < lanes.size(); ++i) {
    progress("seal", std::int64_t(i), std::int64_t(lanes.size()));
    lane& l = lanes[i];
    l.scheme = what.make(what.schemes[i], model, staged, what.writes ? 2 : 1, generated, allowed);
    l.keys.resize(std::size_t(c.layers * answer_tokens * c.kv_width()));
    l.values.resize(l.keys.size());
    l.error = l.captured = l.captured_far = l.all_far = l.oracle = std::vector<double>(heads, 0.0);
    l.missed.resize(heads);
    l.result.tokens.add(compare(first, first, answer[0]));
    l.likeliest_tokens.push_back(likeliest(first));
    l.written.push_back(likeliest(first));
    l.is_writing = what.writes && !tokenizer.is_end(l.written.back());
  }

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
              measure(l, c, staged, allowed, layer, int(item % c.kv_heads), q + l.first_row * q_width, out + l.first_row * q_width, step + 1, answer_tokens);
            });
        },
        logits);
    auto const row = [&](std::int64_t r) { return std::span<float const>(logits).subspan(std::size_t(r * c.vocabulary), std::size_t(c.vocabulary)); };
    model.threads().run(std::int64_t(lanes.size()), [&](std::int64_t i, int) {
      lane& l = lanes[std::size_t(i)];
      if (is_forced) {
        l.result.tokens.add(compare(row(lanes[0].first_row), row(l.first_row), answer[std::size_t(step) + 1]));
        l.likeliest_tokens.push_back(likeliest(row(l.first_row)));
      }
      if (l.is_writing) {
        l.written.push_back(likeliest(row(l.first_row + is_forced)));
        l.is_writing = !tokenizer.is_end(l.written.back()) && std::int64_t(l.written.size()) < most_written;
      }
    });
    progress("decode", step + 1, generated);
  }

  document_evaluation done{staged.tokens, answer_tokens, {}};
  for (lane& l : lanes) {
    l.scheme->account(l.result);
    l.result.prompt_tokens = staged.tokens;
    l.result.fields = judge(d, answer, l.likeliest_tokens, tokenizer);
    if (what.writes && has_distinct_names(d.answer)) {  // else the score is not defined
      while (!l.written.empty() && tokenizer.is_end(l.written.back())) l.written.pop_back();
      l.result.score = score(tokenizer.decode(l.written), d.answer);
    }
    auto const per_head = double(measured) * double(heads);
    for (int layer = 0; layer < c.layers; ++layer) {
      double sum = 0;
      for (int h = 0; h < c.kv_heads; ++h) sum += l.error[std::size_t(layer * c.kv_heads + h)];
      l.result.output_error.push_back(sum / (double(measured) * c.kv_heads));
    }
    std::vector<missed_share> missed;
    for (std::size_t i = 0; i < heads; ++i) {
      l.result.captured_mass += l.captured[i] / per_head;
      l.result.oracle_mass += l.oracle[i] / per_head;
      missed.insert(missed.end(), l.missed[i].begin(), l.missed[i].end());
      l.result.captured_far_mass += l.all_far[i] > 0 ? l.captured_far[i] / l.all_far[i] / double(heads) : 1 / double(heads);
    }
    l.result.missed = missed_sums::of(missed);
    done.schemes.push_back(std::move(l.result));
  }
  return done;
}

}  // namespace text2json
