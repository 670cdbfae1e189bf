#pragma once
#include <cstdint>
#include <cstdlib>
#include <filesystem>
#include <fstream>
#include <iterator>
#include <map>
#include <string>

#include "catch.hpp"

/// What fuzzers of tests/fuzz begin with, and what they once found: inputs that lie in the corpus.
namespace fuzz {

using inputs = std::map<std::string, std::string>;  // bytes by file name

inline std::filesystem::path corpus(std::string const& target) { return std::filesystem::path(CELLAR_TESTS_FOLDER) / "fuzz" / "corpus" / target; }

inline std::string bytes_of(std::filesystem::path const& path) {
  std::ifstream in(path, std::ios::binary);
  return {std::istreambuf_iterator<char>(in), {}};
}

/// The seeds lie in the corpus as they are made here; with CELLAR_WRITE_CORPUS set, they are put there.
inline void check_seeds(std::string const& target, inputs const& seeds) {
  for (auto const& [name, bytes] : seeds) {
    auto const path = corpus(target) / name;
    if (std::getenv("CELLAR_WRITE_CORPUS")) std::ofstream(path, std::ios::binary) << bytes;
    INFO(path.string());
    CHECK(bytes_of(path) == bytes);
  }
}

template <class F>
void replay(std::string const& target, F const& run) {
  int files = 0;
  for (auto const& entry : std::filesystem::directory_iterator(corpus(target))) {
    INFO(entry.path().string());
    std::string const bytes = bytes_of(entry.path());
    CHECK(run(reinterpret_cast<std::uint8_t const*>(bytes.data()), bytes.size()) == 0);
    ++files;
  }
  CHECK(files > 3);
}

}  // namespace fuzz
