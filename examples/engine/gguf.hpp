#pragma once
#include <cstddef>
#include <cstdint>
#include <filesystem>
#include <map>
#include <span>
#include <stdexcept>
#include <string>
#include <variant>
#include <vector>

#include "engine/dequantize.hpp"

namespace engine {

/// What is wrong with a model file, in a sentence.
struct gguf_error : std::runtime_error {
  using std::runtime_error::runtime_error;
};

/// A GGUF model file (versions 2 and 3, little endian): metadata by key, tensors by name, read as f32.
///
/// Nothing in the file is trusted: every count, length and offset is checked before it is used. The file stays open (mapped) while this lives.
/// Errors  gguf_error where the file is broken, a key or tensor is absent, or a type is not what is asked for
class gguf_file {
 public:
  explicit gguf_file(std::filesystem::path const& path);
  /// Reads from memory, which has to stay as long as this; errors call it `name`.
  gguf_file(std::span<std::byte const> bytes, std::string const& name);
  ~gguf_file();
  gguf_file(gguf_file const&) = delete;
  gguf_file& operator=(gguf_file const&) = delete;

  std::filesystem::path const& path() const { return path_; }
  bool has(std::string const& key) const { return values_.contains(key); }

  /// A value as std::int64_t, double, bool, std::string, or a vector of the first, second or last.
  template <class T>
  T get(std::string const& key) const;

  /// In the order of the alphabet.
  std::vector<std::string> tensor_names() const;
  bool has_tensor(std::string const& name) const { return tensors_.contains(name); }
  /// Sizes, outermost first: [rows, columns] of a matrix.
  std::vector<std::int64_t> const& shape(std::string const& name) const { return tensor(name).shape; }

  /// Reads all rows; row-major.
  std::vector<float> read(std::string const& name) const;
  /// Reads `count` rows of a matrix (a vector is one row) from `first` on.
  void read_rows(std::string const& name, std::int64_t first, std::int64_t count, float* to) const;

 private:
  using value = std::variant<std::int64_t, double, bool, std::string, std::vector<std::int64_t>, std::vector<double>, std::vector<std::string>>;
  struct tensor_info {
    std::vector<std::int64_t> shape;
    std::uint32_t type = 0;
    std::uint64_t offset = 0;  // from the start of the tensor data
  };
  class cursor;

  void parse();
  value read_value(cursor& at, std::uint32_t type, std::string const& key) const;
  tensor_info const& tensor(std::string const& name) const;
  [[noreturn]] void fail(std::string const& what) const;

  std::filesystem::path path_;
  bool is_mapped_ = false;
  std::byte const* data_ = nullptr;
  std::uint64_t size_ = 0, tensor_data_ = 0;
  std::map<std::string, value> values_;
  std::map<std::string, tensor_info> tensors_;
};

}  // namespace engine
