#pragma once
#include <unistd.h>

#include <cstdint>
#include <filesystem>
#include <fstream>
#include <string>
#include <vector>

/// Writes GGUF by the format's description, for tests: good files, and bad ones by changing bytes.
class gguf_writer {
 public:
  std::string metadata, infos, data;
  std::uint64_t values = 0, tensors = 0;
  std::uint32_t version = 3;

  template <class T>
  static void put(std::string& to, T x) {
    to.append(reinterpret_cast<char const*>(&x), sizeof x);
  }
  static void text(std::string& to, std::string const& s) {
    put(to, std::uint64_t(s.size()));
    to += s;
  }
  template <class T>
  void value(std::string const& key, std::uint32_t type, T x) {
    text(metadata, key);
    put(metadata, type);
    put(metadata, x);
    ++values;
  }
  void string(std::string const& key, std::string const& x) {
    text(metadata, key);
    put(metadata, std::uint32_t{8});
    text(metadata, x);
    ++values;
  }
  template <class T>
  void array(std::string const& key, std::uint32_t type, std::vector<T> const& list) {
    text(metadata, key);
    put(metadata, std::uint32_t{9});
    put(metadata, type);
    put(metadata, std::uint64_t(list.size()));
    for (auto const x : list) put(metadata, x);
    ++values;
  }
  void strings(std::string const& key, std::vector<std::string> const& list) {
    text(metadata, key);
    put(metadata, std::uint32_t{9});
    put(metadata, std::uint32_t{8});
    put(metadata, std::uint64_t(list.size()));
    for (auto const& s : list) text(metadata, s);
    ++values;
  }
  void tensor(std::string const& name, std::vector<std::uint64_t> const& innermost_first, std::uint32_t type, std::string const& bytes) {
    text(infos, name);
    put(infos, std::uint32_t(innermost_first.size()));
    for (auto const n : innermost_first) put(infos, n);
    put(infos, type);
    put(infos, std::uint64_t(data.size()));
    data += bytes;
    data.resize((data.size() + 31) / 32 * 32);
    ++tensors;
  }
  std::string bytes() const {
    std::string out = "GGUF";
    put(out, version);
    put(out, tensors);
    put(out, values);
    out += metadata + infos;
    out.resize((out.size() + 31) / 32 * 32);
    return out + data;
  }
};

/// A file that lives as long as the test.
class scratch_file {
 public:
  explicit scratch_file(std::string const& bytes) : path_(new_path()) { std::ofstream(path_, std::ios::binary) << bytes; }
  scratch_file(scratch_file const&) = delete;
  scratch_file& operator=(scratch_file const&) = delete;
  ~scratch_file() { std::filesystem::remove(path_); }
  std::filesystem::path const& path() const { return path_; }

 private:
  static std::filesystem::path new_path() {
    static int count = 0;
    return std::filesystem::temp_directory_path() / ("cellar_test_" + std::to_string(getpid()) + "_" + std::to_string(count++) + ".gguf");
  }

  std::filesystem::path path_;
};
