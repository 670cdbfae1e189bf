// Writes what a model expects next at every position of a text, for comparison with other engines:
//
//     logits MODEL.gguf (--text FILE | --tokens FILE) [--threads N] [--first POSITION] [--log-probabilities FILE]
//
// A tokens file holds token ids separated by white space. The log-probabilities go to FILE as float32 [positions, vocabulary], in the order of positions;
// standard output has a line per position: the position, its token, and the five likeliest next tokens as token:log-probability.
// --time repeats nothing and prints the time of the prefill and of decode steps with 1 and 9 rows instead.
#include <algorithm>
#include <chrono>
#include <cstdio>
#include <exception>
#include <fstream>
#include <iostream>
#include <iterator>
#include <numeric>
#include <sstream>
#include <stdexcept>
#include <string>
#include <thread>

#include "engine/model.hpp"
#include "engine/tokenizer.hpp"

namespace {

std::vector<int> likeliest(std::span<float const> row, int n) {
  std::vector<int> order(row.size());
  std::iota(order.begin(), order.end(), 0);
  std::partial_sort(order.begin(), order.begin() + n, order.end(), [&](int a, int b) { return row[std::size_t(a)] > row[std::size_t(b)]; });
  order.resize(std::size_t(n));
  return order;
}

double seconds_since(std::chrono::steady_clock::time_point start) { return std::chrono::duration<double>(std::chrono::steady_clock::now() - start).count(); }

void time_model(engine::model const& model, std::span<int const> tokens) {
  engine::staged_prompt staged;
  auto start = std::chrono::steady_clock::now();
  model.prefill(tokens, staged);
  double const prefill = seconds_since(start);
  std::printf("prefill: %zu tokens in %.2f s, %.0f tokens/s\n", tokens.size(), prefill, double(tokens.size()) / prefill);
  auto const no_attention = [&](int, float const* q, float const*, float const*, float* out) { std::copy_n(q, 1, out); };
  for (std::size_t rows : {1, 9}) {
    std::vector<int> const row_tokens(rows, tokens.back());
    std::vector<std::int64_t> const positions(rows, std::int64_t(tokens.size()));
    std::vector<float> logits;
    model.decode(row_tokens, positions, no_attention, logits);
    start = std::chrono::steady_clock::now();
    for (int i = 0; i < 5; ++i) model.decode(row_tokens, positions, no_attention, logits);
    std::printf("decode: %.4f s a step of %zu rows, attention aside\n", seconds_since(start) / 5, rows);
  }
}

int run(std::vector<std::string> const& arguments) {
  std::string model_path, text_path, tokens_path, output_path;
  int threads = int(std::max(1u, std::thread::hardware_concurrency()));
  std::int64_t first = 0;
  bool is_timing = false;
  for (std::size_t i = 0; i < arguments.size(); ++i) {
    std::string const& argument = arguments[i];
    auto const next = [&] {
      if (i + 1 == arguments.size()) throw std::runtime_error(argument + " needs a value.");
      return arguments[++i];
    };
    if (argument == "--text")
      text_path = next();
    else if (argument == "--tokens")
      tokens_path = next();
    else if (argument == "--threads")
      threads = std::stoi(next());
    else if (argument == "--first")
      first = std::stoll(next());
    else if (argument == "--log-probabilities")
      output_path = next();
    else if (argument == "--time")
      is_timing = true;
    else if (model_path.empty() && !argument.starts_with("--"))
      model_path = argument;
    else
      throw std::runtime_error("What is " + argument + "?");
  }
  if (model_path.empty() || text_path.empty() == tokens_path.empty())
    throw std::runtime_error("usage: logits MODEL.gguf (--text FILE | --tokens FILE) [--threads N] [--first POSITION] [--log-probabilities FILE] [--time]");
  engine::gguf_file const file(model_path);
  std::ifstream input(text_path.empty() ? tokens_path : text_path, std::ios::binary);
  if (!input) throw std::runtime_error("Cannot read " + text_path + tokens_path + ".");
  std::vector<int> tokens;
  if (text_path.empty())
    tokens.assign(std::istream_iterator<int>(input), {});
  else
    tokens = engine::tokenizer(file).encode(std::string(std::istreambuf_iterator<char>(input), {}));
  engine::model const model(file, threads);
  if (is_timing) {
    time_model(model, tokens);
    return 0;
  }
  std::ofstream output;
  if (!output_path.empty()) output.open(output_path, std::ios::binary);
  engine::staged_prompt staged;
  std::vector<float> row;
  model.prefill_all(tokens, staged, first, [&](std::int64_t position, std::span<float const> logits) {
    double const total = engine::log_sum_exp(logits.data(), std::int64_t(logits.size()));
    row.assign(logits.begin(), logits.end());
    for (float& value : row) value = float(value - total);
    if (output.is_open()) output.write(reinterpret_cast<char const*>(row.data()), std::streamsize(row.size() * sizeof(float)));
    std::printf("%lld %d", static_cast<long long>(position), tokens[std::size_t(position)]);
    for (int token : likeliest(row, 5)) std::printf(" %d:%.5f", token, row[std::size_t(token)]);
    std::printf("\n");
  });
  if (!output_path.empty() && !output.flush()) throw std::runtime_error("Cannot write " + output_path + ".");
  return 0;
}

}  // namespace

int main(int count, char** values) {
  try {
    return run({values + 1, values + count});
  } catch (std::exception const& error) {
    std::cerr << "logits: " << error.what() << "\n";
    return 1;
  }
}
