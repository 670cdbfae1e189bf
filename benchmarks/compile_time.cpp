// What including the library costs: seconds to compile an empty program, the umbrella, and a cache of each scheme (-O0, as while developing); by nvcc too, for
// one architecture, where it is there.
#include <benchmark/benchmark.h>
#include <unistd.h>

#include <cstdlib>
#include <filesystem>
#include <fstream>
#include <string>

namespace {

/// A compiler, its options, and how it wants sources to end.
struct compiler {
  std::string command, suffix;
};

/// Compiles `program`; the time is the compiler's, process start included.
void compile(benchmark::State& state, compiler const& by, std::string const& program) {
  auto const source = std::filesystem::temp_directory_path() / ("cellar_compile_time_" + std::to_string(getpid()) + by.suffix);
  std::ofstream(source) << program;
  std::string const command = by.command + " -std=c++20 -I\"" + CELLAR_INCLUDE + "\" -c -o /dev/null \"" + source.string() + "\"";
  for (auto _ : state)
    if (std::system(command.c_str()) != 0) state.SkipWithError("the program does not compile");
  std::filesystem::remove(source);
}

void add(std::string const& name, compiler const& by, std::string const& program, int repetitions = 7) {
  benchmark::RegisterBenchmark(name.c_str(), [by, program](benchmark::State& state) { compile(state, by, program); })
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
  add("nvcc: empty program", device, empty, 3);
  add("nvcc: cellar.cuh", device, "#include \"cellar/cellar.cuh\"\n" + empty, 3);
  add("nvcc: prompt and step of yakv", device, cache_of("yakv", "cellar.cuh", "cuda::executor", false), 3);
#endif
  benchmark::Initialize(&count, arguments);
  benchmark::RunSpecifiedBenchmarks();
}
