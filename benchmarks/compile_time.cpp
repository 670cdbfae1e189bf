// What including the library costs: seconds to compile an empty program, the umbrella, and a cache of each scheme (-O0, as while developing); by nvcc too, for
// one architecture, where it is there.
#include <benchmark/benchmark.h>
#include <sys/resource.h>
#include <unistd.h>

#include <chrono>
#include <cstdlib>
#include <filesystem>
#include <fstream>
#include <string>

namespace {

/// A compiler, its options, and how it wants sources to end.
struct compiler {
  std::string command, suffix;
};

/// What a program may take, in seconds: by itself, or more than another one, whose last time it is given.
struct budget {
  double seconds = 0;  // 0: none
  double const* beyond = nullptr;
};

double processor_seconds() {
  rusage used{};
  getrusage(RUSAGE_CHILDREN, &used);
  return double(used.ru_utime.tv_sec + used.ru_stime.tv_sec) + double(used.ru_utime.tv_usec + used.ru_stime.tv_usec) * 1e-6;
}

/// Compiles `program`; the time is the compiler's, process start included.
double compile(benchmark::State& state, compiler const& by, std::string const& program) {
  auto const source = std::filesystem::temp_directory_path() / ("cellar_compile_time_" + std::to_string(getpid()) + by.suffix);
  std::ofstream(source) << program;
  std::string const command = by.command + " -std=c++20 -I\"" + CELLAR_INCLUDE + "\" -c -o /dev/null \"" + source.string() + "\"";
  double const before = processor_seconds();
  auto const begin = std::chrono::steady_clock::now();
  for (auto _ : state)
    if (std::system(command.c_str()) != 0) state.SkipWithError("the program does not compile");
  std::chrono::duration<double> const took = std::chrono::steady_clock::now() - begin;
  state.counters["processor_s"] = processor_seconds() - before;  // what a busy machine inflates less
  std::filesystem::remove(source);
  return took.count();
}

void add(std::string const& name, compiler const& by, std::string const& program, int repetitions = 7, budget const& allowed = {}, double* last = nullptr) {
  auto const run = [=](benchmark::State& state) {
    double const took = compile(state, by, program);
    if (last) *last = took;
    if (allowed.seconds == 0) return;
    double const counted = took - (allowed.beyond ? *allowed.beyond : 0);
    state.counters[allowed.beyond ? "more_s" : "taken_s"] = counted;
    state.counters["budget_s"] = allowed.seconds;
    state.counters["of_budget"] = counted / allowed.seconds;
  };
  benchmark::RegisterBenchmark(name.c_str(), run)
      ->Unit(benchmark::kMillisecond)
      ->Iterations(1)
      ->Repetitions(repetitions)
      ->ReportAggregatesOnly()
      ->UseRealTime();
}

/// A cache of a scheme, with all of its members or with those of a prompt and a step.
std::string cache_of(std::string const& scheme, std::string const& umbrella, std::string const& executor, bool is_whole) {
  std::string const type = "cache<scheme::" + scheme + "<128>, " + executor + ">";
  return "#include \"cellar/" + umbrella + "\"\nusing namespace cellar;\nvoid step(" + executor + " const& on, " + type +
         "& c, row_view<batch_entry const> batch, heads_view<bf16 const> k, heads_view<bf16> out) {\n"
         "  c.finish_prompt(on, batch[0].sequence);\n  c.plan(on, batch);\n  c.append(on, 0, k, k);\n  c.attend(on, 0, k, out);\n}\n" +
         (is_whole ? "template class cellar::" + type + ";\n" : "") + "int main() {}\n";
}

}  // namespace

int main(int count, char** arguments) {
  compiler const host{std::string("\"") + CELLAR_COMPILER + "\" -O0", ".cpp"};
  std::string const empty = "int main() {}\n";
  add("empty program", host, empty);
  add("cellar.hpp", host, "#include \"cellar/cellar.hpp\"\n" + empty);
  for (std::string const scheme : {"dense", "sink_window", "quest", "mean_landmark", "arkvale", "yakv", "yakv_centred", "yakv_published", "yakv_residual"})
    add("cache of " + scheme, host, cache_of(scheme, "cellar.hpp", "host::executor", true));
#ifdef CELLAR_NVCC
  compiler const device{std::string("\"") + CELLAR_NVCC + "\" -gencode arch=compute_90,code=sm_90", ".cu"};
  static double including = 0;
  add("nvcc: empty program", device, empty, 3);
  add("nvcc: cellar.cuh", device, "#include \"cellar/cellar.cuh\"\n" + empty, 3, {.seconds = 9}, &including);
  add("nvcc: prompt and step of yakv", device, cache_of("yakv", "cellar.cuh", "cuda::executor", false), 3, {.seconds = 10, .beyond = &including});
#else
  benchmark::RegisterBenchmark("nvcc", [](benchmark::State& state) { state.SkipWithError("skipped: no nvcc was found when this was configured"); });
#endif
  benchmark::Initialize(&count, arguments);
  benchmark::RunSpecifiedBenchmarks();
}
