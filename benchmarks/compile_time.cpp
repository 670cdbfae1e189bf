// What including the library costs: seconds to compile an empty program, the umbrella, and a cache of each scheme (-O0, as while developing).
#include <benchmark/benchmark.h>
#include <unistd.h>

#include <cstdlib>
#include <filesystem>
#include <fstream>
#include <string>

namespace {

/// Compiles `program`; the time is the compiler's, process start included.
void compile(benchmark::State& state, std::string const& program) {
  auto const source = std::filesystem::temp_directory_path() / ("cellar_compile_time_" + std::to_string(getpid()) + ".cpp");
  std::ofstream(source) << program;
  std::string const command =
      std::string("\"") + CELLAR_COMPILER + "\" -std=c++20 -O0 -I\"" + CELLAR_INCLUDE + "\" -c -o /dev/null \"" + source.string() + "\"";
  for (auto _ : state)
    if (std::system(command.c_str()) != 0) state.SkipWithError("the program does not compile");
  std::filesystem::remove(source);
}

void add(std::string const& name, std::string const& program) {
  benchmark::RegisterBenchmark(name.c_str(), [program](benchmark::State& state) { compile(state, program); })
      ->Unit(benchmark::kMillisecond)
      ->Iterations(1)
      ->Repetitions(7)
      ->ReportAggregatesOnly()
      ->UseRealTime();
}

}  // namespace

int main(int count, char** arguments) {
  add("empty program", "int main() {}\n");
  add("cellar.hpp", "#include \"cellar/cellar.hpp\"\nint main() {}\n");
  for (std::string const scheme : {"dense", "sink_window", "quest", "mean_landmark", "arkvale", "yakv", "yakv_centred", "yakv_published", "yakv_residual"})
    add("cache of " + scheme,
        "#include \"cellar/cellar.hpp\"\n"
        "using namespace cellar;\n"
        "void step(host::executor const& on, cache<scheme::" +
            scheme +
            "<128>>& c, heads_view<bf16 const> k, heads_view<bf16> out) {\n"
            "  c.append(on, 0, k, k);\n  c.attend(on, 0, k, out);\n}\n"
            "template class cellar::cache<scheme::" +
            scheme + "<128>>;\nint main() {}\n");
  benchmark::Initialize(&count, arguments);
  benchmark::RunSpecifiedBenchmarks();
}
