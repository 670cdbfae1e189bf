// The program itself, as a user calls it.
#include <sys/wait.h>
#include <unistd.h>

#include <cstdio>
#include <filesystem>
#include <fstream>
#include <string>

#include "catch.hpp"

namespace {

struct ended {
  int code;
  std::string output;  // of both streams
};

ended run(std::string const& options) {
  std::FILE* const pipe = popen(("\"" CELLAR_TEXT2JSON "\" " + options + " 2>&1").c_str(), "r");
  REQUIRE(pipe);
  ended e{};
  char part[256];
  while (std::fgets(part, sizeof part, pipe)) e.output += part;
  int const status = pclose(pipe);
  e.code = WIFEXITED(status) ? WEXITSTATUS(status) : -1;
  return e;
}

void refused(std::string const& options, std::string const& words) {
  auto const e = run(options);
  INFO(options << ": " << e.output);
  CHECK(e.code > 0);
  CHECK_THAT(e.output, contains(words));
}

class scratch_folder {
 public:
  scratch_folder() : path_(std::filesystem::temp_directory_path() / ("cellar options '" + std::to_string(getpid()))) {
    std::filesystem::create_directories(path_);
  }
  ~scratch_folder() { std::filesystem::remove_all(path_); }
  std::string operator/(char const* name) const { return '"' + (path_ / name).string() + '"'; }
  std::filesystem::path const& path() const { return path_; }

 private:
  std::filesystem::path path_;
};

}  // namespace

TEST_CASE("options out of range are refused, and say what is wanted") {
  for (std::string const budget : {"0", "-0.5", "1.01", "nan", "inf"}) refused("--budget " + budget, "(0, 1]");
  refused("--budget much", "--budget");
  refused("--tokens 100", "--tokens needs a number from 200 on");
  refused("--tokens 4000-2000", "--tokens needs");
  refused("--tokens many", "--tokens needs");
  refused("--documents 0", "--documents");
  refused("--documents -2", "--documents");
  refused("--threads 0", "--threads");
  refused("--task sums", "--task");
  refused("--schemes dense,nonsense", "nonsense");
  refused("--device tpu", "--device");
  refused("--model /nonexistent.gguf", "--model");
  refused("--dataset /nonexistent.jsonl", "--dataset");
  refused("--records /nonexistent.jsonl", "--records");
  refused("--records /proc/cpuinfo --task needle --generate-only /dev/null", "--task table");
  refused("--subjects none", "--subjects");
  refused("--against nonsense", "--against");
  refused("--model /dev/null --schemes quest --against yakv", "--against yakv is not among --schemes");
  refused("--nonsense", "--nonsense");
  refused("", "--model is needed");
}

TEST_CASE("a file that is no model, and a data set that is none, end with a sentence") {
  scratch_folder const folder;
  std::ofstream(folder.path() / "x.gguf") << "not a model";
  std::ofstream(folder.path() / "x.jsonl") << "{\"problem\": ";
  refused("--model " + folder / "x.gguf", "GGUF");
  refused("--dataset " + folder / "x.jsonl", "line 1: this is not JSON");
}

TEST_CASE("--help and --generate-only need no model") {
  auto const help = run("--help");
  CHECK(help.code == 0);
  for (char const* const option : {"--model", "--task", "--dataset", "--documents", "--tokens", "--schemes", "--budget", "--threads", "--seed", "--out",
                                   "--generate-only", "--forced-only", "--subjects", "--records", "--resume", "--against"})
    CHECK_THAT(help.output, contains(option));
  scratch_folder const folder;
  auto const made = run("--generate-only " + folder / "x.jsonl" + " --documents 3 --tokens 500-700");
  INFO(made.output);
  CHECK(made.code == 0);
  std::ifstream in(folder.path() / "x.jsonl");
  int lines = 0;
  for (std::string line; std::getline(in, line);) ++lines;
  CHECK(lines == 3);
}
