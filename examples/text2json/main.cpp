// Text2JSON: decodes documents full of facts with every scheme, over the same prefilled keys and values, and reports what each keeps of dense attention.
#include <unistd.h>

#include <CLI/CLI.hpp>
#include <algorithm>
#include <chrono>
#include <cstdio>
#include <filesystem>
#include <fstream>
#include <iostream>
#include <map>
#include <optional>
#include <thread>

#include "engine/cuda.hpp"
#include "text2json/evaluate.hpp"
#include "text2json/report.hpp"
#include "text2json/results.hpp"
#include "text2json/schemes.hpp"

namespace {

using namespace text2json;

std::map<std::string, task> const tasks{
    {"text2json", task::text2json}, {"needle", task::needle}, {"needles", task::needles}, {"variables", task::variables}, {"table", task::table}};
std::map<std::string, subjects> const about{{"design", subjects::design}, {"all", subjects::all}, {"further", subjects::further}};

struct options {
  std::string model, dataset, records, generate_only, out = "out", task = "text2json", subjects = "design", tokens = "1000", device = "host", against;
  int documents = 0;
  std::vector<std::string> schemes;
  double budget = 0.03125;
  int threads = int(std::max(1u, std::thread::hardware_concurrency()));
  std::uint64_t seed = 1;
  bool is_forced_only = false, resumes = false;
};

/// "4000", or "2000-6000": lengths spread evenly over the documents.
std::pair<int, int> token_range(std::string const& text) {
  auto const dash = text.find('-');
  std::size_t used = 0, used_high = 0;
  try {
    int const low = std::stoi(text.substr(0, dash), &used), high = dash == text.npos ? low : std::stoi(text.substr(dash + 1), &used_high);
    bool const is_whole = used == (dash == text.npos ? text.size() : dash) && (dash == text.npos || used_high == text.size() - dash - 1);
    if (is_whole && low >= 200 && low <= high) return {low, high};
  } catch (std::logic_error const&) {
  }
  throw std::invalid_argument("--tokens needs a number from 200 on, or two as in 2000-6000; it is " + text + ".");
}

/// One line on standard error: rewritten on a terminal, else a line every ten seconds.
class progress_line {
 public:
  void operator()(std::string const& document, char const* part, std::int64_t done, std::int64_t of) {
    auto const now = std::chrono::steady_clock::now();
    if (now - last_ < (is_terminal_ ? std::chrono::milliseconds(100) : std::chrono::milliseconds(10000))) return;
    last_ = now;
    std::fprintf(stderr, is_terminal_ ? "\r\033[K%s: %s %lld of %lld" : "%s: %s %lld of %lld\n", document.c_str(), part, static_cast<long long>(done),
                 static_cast<long long>(of));
  }
  void clear() const {
    if (is_terminal_) std::fputs("\r\033[K", stderr);
  }

 private:
  bool is_terminal_ = isatty(STDERR_FILENO) == 1;
  std::chrono::steady_clock::time_point last_ = std::chrono::steady_clock::now();
};

std::string processor() {
  std::ifstream in("/proc/cpuinfo");
  for (std::string line; std::getline(in, line);)
    if (line.starts_with("model name")) return line.substr(line.find(':') + 2);
  return "unknown processor";
}

std::string compiler() {
#ifdef __clang__
  return "clang " __clang_version__;
#else
  return "g++ " __VERSION__;
#endif
}

std::vector<document> documents_of(options const& o, engine::tokenizer const* tokenizer) {
  if (!o.dataset.empty()) {
    auto all = read_jsonl(o.dataset);
    if (o.documents > 0 && std::size_t(o.documents) < all.size()) all.resize(std::size_t(o.documents));
    return all;
  }
  if (!o.records.empty() && o.task != "table") throw std::invalid_argument("--records are the rows of --task table; the task is " + o.task + ".");
  auto const [low, high] = token_range(o.tokens);
  int const count = o.documents > 0 ? o.documents : 2;
  generator make{.kind = tasks.at(o.task),
                 .from = about.at(o.subjects),
                 .seed = o.seed,
                 .tokens = low,
                 .count_tokens = [&](std::string_view text) { return tokenizer ? int(tokenizer->encode(text).size()) : int(text.size() / 4); },
                 .records = o.records.empty() ? table_rows{} : read_records(o.records)};
  std::vector<document> all;
  for (int i = 0; i < count; ++i) {
    make.tokens = count > 1 ? low + int(std::int64_t(high - low) * i / (count - 1)) : low;
    all.push_back(make(i));
  }
  return all;
}

void run(options const& o) {
  std::optional<engine::gguf_file> file;
  std::optional<engine::tokenizer> tokenizer;
  if (!o.model.empty()) tokenizer.emplace(file.emplace(o.model));
  std::vector<document> const documents = documents_of(o, tokenizer ? &*tokenizer : nullptr);
  if (!o.generate_only.empty()) {
    write_jsonl(o.generate_only, documents);
    std::cout << "Wrote " << documents.size() << " documents to " << o.generate_only << ".\n";
    return;
  }
  if (!file) throw std::invalid_argument("--model is needed: a GGUF file of the llama, qwen2 or qwen3 family.");
  std::filesystem::create_directories(o.out);

  evaluation what{.schemes = {"dense"}, .budget = o.budget, .writes = !o.is_forced_only};
  for (auto const& name : o.schemes.empty() ? scheme_names() : o.schemes)
    if (name != "dense") what.schemes.push_back(name);

  std::unique_ptr<engine::backend> backend;  // of the host's threads where there is none
  std::string device = processor();
  if (o.device == "cuda") {
#ifdef CELLAR_TEXT2JSON_CUDA
    backend = engine::cuda_backend();
    device = engine::cuda_device_name();
    what.make = make_cuda_scheme;
#else
    throw std::invalid_argument("This program is built without CUDA. Configure with -DCELLAR_TEXT2JSON_CUDA=ON, where there is nvcc.");
#endif
  }
  engine::model const model(*file, o.threads, std::move(backend));
  progress_line progress;
  std::string const settings = std::filesystem::path(o.model).filename().string() + ", " + (o.dataset.empty() ? o.task : o.dataset) + ", " + o.records + ", " +
                               o.subjects + ", " + std::to_string(documents.size()) + " documents of " + o.tokens + " tokens, seed " + std::to_string(o.seed) +
                               ", budget " + std::to_string(o.budget) + (o.is_forced_only ? ", forced only" : "") + ", " + o.device;
  result_store store(std::filesystem::path(o.out) / "results.jsonl", settings, o.resumes);
  report r{.model = std::filesystem::path(o.model).filename().string(),
           .task = o.dataset.empty() ? o.task : std::filesystem::path(o.dataset).filename().string(),
           .device = device,
           .compiler = compiler(),
           .commit = CELLAR_COMMIT,
           .threads = o.threads,
           .seed = o.seed,
           .budget = o.budget,
           .schemes = {}};
  std::vector<std::vector<document_result>> results(what.schemes.size());
  for (std::size_t i = 0; i < documents.size(); ++i) {
    std::string const title = "document " + std::to_string(i + 1) + " of " + std::to_string(documents.size());
    evaluation left = what;
    std::erase_if(left.schemes, [&](std::string const& name) { return name != "dense" && store.find(int(i), name); });
    try {
      if (left.schemes.size() > 1 || !store.find(int(i), "dense")) {
        auto const done =
            evaluate(left, documents[i], model, *tokenizer, [&](char const* part, std::int64_t at, std::int64_t of) { progress(title, part, at, of); });
        for (std::size_t s = 0; s < left.schemes.size(); ++s)
          if (!store.find(int(i), left.schemes[s])) store.add(int(i), left.schemes[s], done.schemes[s], CELLAR_COMMIT);
      }
    } catch (document_too_long const& e) {
      progress.clear();
      ++r.left_out;
      std::cerr << title << " is left out: " << e.what() << '\n';
      continue;
    }
    progress.clear();
    ++r.documents;
    document_result const& dense = *store.find(int(i), "dense");
    r.prompt_tokens += dense.prompt_tokens;
    r.answer_tokens += dense.tokens.count;
    for (auto const& f : dense.fields) r.lookups += !f.is_name;
    r.schemes.clear();
    for (std::size_t s = 0; s < results.size(); ++s) {
      results[s].push_back(*store.find(int(i), what.schemes[s]));
      r.schemes.push_back(summarize(what.schemes[s], results[s], results[0], o.seed));
    }
    write_json(r, std::filesystem::path(o.out) / "report.json");  // after every document: a long run that is cut off leaves what it has
    std::cerr << title << ": " << dense.prompt_tokens << " prompt tokens, " << dense.tokens.count << " answer tokens, dense has "
              << r.schemes[0].lookup_accuracy.mean << " of the lookups so far\n";
  }
  if (r.documents == 0) throw std::invalid_argument("No document fits the model's context.");
  std::cout << '\n' << table_of(r) << '\n';
  if (auto const missed = missed_table_of(r); !missed.empty()) std::cout << missed << '\n';
  if (!o.against.empty()) {
    auto const at = std::find(what.schemes.begin(), what.schemes.end(), o.against);
    std::vector<scheme_difference> differences;
    for (std::size_t s = 0; s < results.size(); ++s)
      if (what.schemes[s] != o.against)
        differences.push_back(difference(what.schemes[s], results[s], results[std::size_t(at - what.schemes.begin())], results[0], o.seed));
    std::cout << difference_table_of(o.against, differences) << '\n';
  }
  auto const folder = std::filesystem::absolute(o.out);
  if (r.left_out > 0) std::cout << r.left_out << " documents were left out: they do not fit the model's context.\n";
  std::cout << r.documents << " documents, " << r.lookups << " lookups, " << r.answer_tokens << " answer tokens. Report: " << (folder / "report.json").string()
            << '\n';
  if (draw_plot(r, folder / "plot.svg"))
    std::cout << "Plot: " << (folder / "plot.svg").string() << '\n';
  else
    std::cout << "No plot: gnuplot is needed to draw it.\n";
}

}  // namespace

int main(int count, char** arguments) {
  options o;
  CLI::App app("Decodes documents full of facts with every scheme, and reports what each keeps of dense attention.");
  app.add_option("--model", o.model, "GGUF file of the llama, qwen2 or qwen3 family")->check(CLI::ExistingFile);
  app.add_option("--task", o.task,
                 "text2json: every fact of the text; needle: the only one; needles: one of many; variables: a chain of copies, traced back; table: the rows of "
                 "a table")
      ->check(CLI::IsMember(tasks))
      ->capture_default_str();
  app.add_option("--dataset", o.dataset, "JSONL file of {problem, answer}, in place of generated documents")->check(CLI::ExistingFile);
  app.add_option("--documents", o.documents, "how many (default: 2, or all of --dataset)")->check(CLI::PositiveNumber);
  app.add_option("--tokens", o.tokens, "length of generated documents, one number or a range as 2000-6000")->capture_default_str();
  app.add_option("--records", o.records, "JSONL file of flat objects of any kind: the rows that --task table draws from")->check(CLI::ExistingFile);
  app.add_option("--subjects", o.subjects, "what generated documents are about; all has two that are kept for final tables; further are six others")
      ->check(CLI::IsMember(about))
      ->capture_default_str();
  app.add_option("--schemes", o.schemes, "names with commas (default: all); dense is always there")->delimiter(',')->check(CLI::IsMember(scheme_names()));
  app.add_option("--budget", o.budget, "share of the prompt's tokens that a scheme may read from far memory, in (0, 1]")->capture_default_str();
  app.add_option("--device", o.device, "where products, a prompt's attention and the schemes run")
      ->check(CLI::IsMember({"host", "cuda"}))
      ->capture_default_str();
  app.add_option("--threads", o.threads)->check(CLI::PositiveNumber)->capture_default_str();
  app.add_option("--seed", o.seed)->capture_default_str();
  app.add_option("--out", o.out, "folder of report.json, results.jsonl and plot.svg")->capture_default_str();
  app.add_flag("--resume", o.resumes, "go on with the results of --out: what was decoded there is not decoded again, schemes may be added");
  app.add_option("--against", o.against, "show each scheme less this one, document by document, with intervals")->check(CLI::IsMember(scheme_names()));
  app.add_option("--generate-only", o.generate_only, "write the documents to this JSONL file and stop");
  app.add_flag("--forced-only", o.is_forced_only, "feed the gold answers only: no score of own answers, half the time");
  CLI11_PARSE(app, count, arguments);
  try {
    if (!(o.budget > 0 && o.budget <= 1)) throw std::invalid_argument("--budget is a share of the prompt in (0, 1]; it is " + std::to_string(o.budget) + ".");
    if (!o.against.empty() && o.against != "dense" && !o.schemes.empty() && std::ranges::count(o.schemes, o.against) == 0)
      throw std::invalid_argument("--against " + o.against + " is not among --schemes.");
    run(o);
    return 0;
  } catch (std::exception const& e) {
    std::cerr << "text2json: " << e.what() << '\n';
    return 1;
  }
}
