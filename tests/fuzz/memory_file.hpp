#pragma once
#include <algorithm>
#include <cstdio>
#include <cstdlib>
#include <map>
#include <string>
#include <utility>
#include <vector>

#include "cellar/core/error.hpp"
#include "cellar/core/view.hpp"

/// Ends the program where a promise is broken: what a fuzzer takes for a finding.
inline void require(bool condition, char const* what) {
  if (condition) return;
  std::fprintf(stderr, "broken: %s\n", what);
  std::abort();
}

/// Facts in the header of a snapshot, each a number of 8 bytes after the first three: edits name fields by their place.
inline constexpr int snapshot_facts = 14;

/// A file in memory, for cache::save, cache::restore and tier::basic_file. Files are found by name, as on a disk.
class memory_file {
 public:
  using bytes = std::vector<std::byte>;
  static inline std::map<std::string, bytes> disk;

  memory_file(std::string const& path, bool is_kept) : path_(path), is_kept_(is_kept) { disk[path_].clear(); }
  explicit memory_file(std::string const& path) : path_(path), is_kept_(true) {
    if (!disk.contains(path)) throw cellar::io_error(2, "open", path);
  }
  memory_file(memory_file&& other) noexcept : path_(std::move(other.path_)), is_kept_(std::exchange(other.is_kept_, true)) {}
  memory_file& operator=(memory_file&& other) noexcept {
    std::swap(path_, other.path_);
    std::swap(is_kept_, other.is_kept_);
    return *this;
  }
  ~memory_file() {
    if (!is_kept_) disk.erase(path_);
  }

  std::string const& path() const { return path_; }
  cellar::i64 size() const { return cellar::i64(disk[path_].size()); }
  void resize(cellar::i64 n) { disk[path_].resize(std::size_t(n)); }
  void write(cellar::i64 at, cellar::row_view<std::byte const> from) {
    require(at >= 0 && from.count >= 0, "a write lies within the file");
    auto& to = disk[path_];
    to.resize(std::max(to.size(), std::size_t(at + from.count)));
    std::copy(from.begin(), from.end(), to.begin() + at);
  }
  void read(cellar::i64 at, cellar::row_view<std::byte> to) {
    require(at >= 0 && to.count >= 0, "a read begins within the file");
    auto const& from = disk[path_];
    if (at + to.count > cellar::i64(from.size())) throw cellar::io_error(0, "pread", path_ + ": the file ends before the bytes asked for");
    std::copy_n(from.begin() + at, to.count, to.begin());
  }
  void replace(std::string const& path) {
    disk[path] = std::move(disk[path_]);
    disk.erase(path_);
    path_ = path;
    is_kept_ = true;
  }

 private:
  std::string path_;
  bool is_kept_;
};
