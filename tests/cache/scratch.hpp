#pragma once
#include <unistd.h>

#include <filesystem>
#include <string>

#include "cellar/cellar.hpp"

/// A path that nothing else uses, in the folder for temporary files.
inline std::string scratch_path() {
  static int n = 0;
  return (std::filesystem::temp_directory_path() / ("cellar_test_" + std::to_string(::getpid()) + "_" + std::to_string(n++))).string();
}

/// A file of its own for every cache.
struct scratch_file : cellar::tier::file {
  struct options {};
  scratch_file(int layers, cellar::block_geometry const& g, cellar::i64 blocks, options const&) : basic_file(layers, g, blocks, {.path = scratch_path()}) {}
};
static_assert(cellar::block_tier<scratch_file>);

template <class Scheme>
struct in_file : Scheme {
  using tier = scratch_file;
};
