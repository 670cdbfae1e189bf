#include "engine/gguf.hpp"

#include <fcntl.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <unistd.h>

#include <bit>
#include <cerrno>
#include <cstring>
#include <utility>

namespace engine {

namespace {

static_assert(std::endian::native == std::endian::little, "The GGUF reader is for little-endian machines.");

// Metadata types of the format.
enum : std::uint32_t { u8, i8, u16, i16, u32, i32, f32, boolean, string, array, u64, i64, f64 };

constexpr std::uint64_t most_dimensions = 4;

}  // namespace

/// A position in the file; every read is checked against its end.
class gguf_file::cursor {
 public:
  explicit cursor(gguf_file const& file) : file_(file) {}

  std::uint64_t position() const { return at_; }
  std::uint64_t rest() const { return file_.size_ - at_; }
  template <class T>
  T read() {
    T x;
    std::memcpy(&x, take(sizeof x), sizeof x);
    return x;
  }
  std::string text() {
    auto const length = read<std::uint64_t>();
    auto const* const from = take(length);
    return {reinterpret_cast<char const*>(from), length};
  }
  /// A count of things that take at least `bytes_each` each.
  std::uint64_t count(std::uint64_t bytes_each) {
    auto const n = read<std::uint64_t>();
    if (n > rest() / bytes_each) file_.fail("it ends before what it announces");
    return n;
  }

 private:
  std::byte const* take(std::uint64_t bytes) {
    if (bytes > rest()) file_.fail("it ends before what it announces");
    return file_.data_ + std::exchange(at_, at_ + bytes);
  }

  gguf_file const& file_;
  std::uint64_t at_ = 0;
};

void gguf_file::fail(std::string const& what) const { throw gguf_error("The model file " + path_.string() + " cannot be used: " + what + "."); }

gguf_file::gguf_file(std::filesystem::path const& path) : path_(path) {
  int const file = open(path.c_str(), O_RDONLY | O_CLOEXEC);
  if (file < 0) fail(std::string("opening it failed, ") + std::strerror(errno));
  struct stat status {};
  bool const is_file = fstat(file, &status) == 0 && S_ISREG(status.st_mode);
  void* const mapped = is_file && status.st_size > 0 ? mmap(nullptr, std::size_t(status.st_size), PROT_READ, MAP_PRIVATE, file, 0) : MAP_FAILED;
  close(file);
  if (mapped == MAP_FAILED) fail(is_file && status.st_size == 0 ? "it is empty" : "it is not a file that can be mapped");
  data_ = static_cast<std::byte const*>(mapped);
  size_ = std::uint64_t(status.st_size);
  is_mapped_ = true;
  try {
    parse();
  } catch (...) {
    munmap(mapped, size_);
    throw;
  }
}

gguf_file::gguf_file(std::span<std::byte const> bytes, std::string const& name) : path_(name), data_(bytes.data()), size_(bytes.size()) { parse(); }

gguf_file::~gguf_file() {
  if (is_mapped_) munmap(const_cast<std::byte*>(data_), size_);
}

void gguf_file::parse() {
  cursor at(*this);
  if (size_ < 24 || std::memcmp(data_, "GGUF", 4) != 0) fail("it is no GGUF file");
  at.read<std::uint32_t>();
  auto const version = at.read<std::uint32_t>();
  if (version != 2 && version != 3) fail("it has GGUF version " + std::to_string(version) + ", this reader knows 2 and 3");
  auto const tensors = at.count(1), values = at.count(1);
  for (std::uint64_t i = 0; i < values; ++i) {
    auto const key = at.text();
    auto const type = at.read<std::uint32_t>();
    if (!values_.emplace(key, read_value(at, type, key)).second) fail("it has the key " + key + " twice");
  }
  for (std::uint64_t i = 0; i < tensors; ++i) {
    auto const name = at.text();
    auto const dimensions = at.read<std::uint32_t>();
    if (dimensions == 0 || dimensions > most_dimensions) fail("its tensor " + name + " has " + std::to_string(dimensions) + " dimensions");
    tensor_info info;
    info.shape.resize(dimensions);
    std::uint64_t elements = 1;
    for (std::uint32_t d = dimensions; d-- > 0;) {  // the file has the innermost first
      auto const n = at.read<std::uint64_t>();
      if (n == 0 || n > (std::uint64_t{1} << 48) / elements) fail("its tensor " + name + " has an impossible shape");
      elements *= n;
      info.shape[d] = std::int64_t(n);
    }
    info.type = at.read<std::uint32_t>();
    info.offset = at.read<std::uint64_t>();
    if (!tensors_.emplace(name, std::move(info)).second) fail("it has the tensor " + name + " twice");
  }

  std::int64_t const alignment = has("general.alignment") ? get<std::int64_t>("general.alignment") : 32;
  if (alignment <= 0 || alignment > 1 << 20 || !std::has_single_bit(std::uint64_t(alignment))) fail("its alignment is not a power of two");
  tensor_data_ = (at.position() + std::uint64_t(alignment) - 1) & ~(std::uint64_t(alignment) - 1);
  for (auto const& [name, info] : tensors_) {
    auto const facts = facts_of(info.type);
    std::uint64_t elements = 1;
    for (auto const n : info.shape) elements *= std::uint64_t(n);
    if (!facts) {  // refused when it is read; no type has less than a bit for an element
      if (elements / 8 > size_) fail("its tensor " + name + " lies beyond its end; it may be truncated");
      continue;
    }
    if (info.shape.back() % facts->elements != 0) fail("a row of its tensor " + name + " is not a whole number of blocks");
    std::uint64_t const blocks = elements / std::uint64_t(facts->elements);
    if (tensor_data_ > size_ || info.offset > size_ - tensor_data_ || blocks > (size_ - tensor_data_ - info.offset) / std::uint64_t(facts->bytes))
      fail("its tensor " + name + " lies beyond its end; it may be truncated");
  }
}

gguf_file::value gguf_file::read_value(cursor& at, std::uint32_t type, std::string const& key) const {
  switch (type) {
    case u8:
      return std::int64_t(at.read<std::uint8_t>());
    case i8:
      return std::int64_t(at.read<std::int8_t>());
    case u16:
      return std::int64_t(at.read<std::uint16_t>());
    case i16:
      return std::int64_t(at.read<std::int16_t>());
    case u32:
      return std::int64_t(at.read<std::uint32_t>());
    case i32:
      return std::int64_t(at.read<std::int32_t>());
    case u64: {
      auto const x = at.read<std::uint64_t>();
      if (x >> 63) fail("the value of " + key + " is too large");
      return std::int64_t(x);
    }
    case i64:
      return at.read<std::int64_t>();
    case f32:
      return double(at.read<float>());
    case f64:
      return at.read<double>();
    case boolean:
      return at.read<std::uint8_t>() != 0;
    case string:
      return at.text();
    case array:
      break;
    default:
      fail("the value of " + key + " has the unknown type " + std::to_string(type));
  }
  auto const element = at.read<std::uint32_t>();
  if (element == array) fail("the value of " + key + " is an array of arrays");
  auto const count = at.count(1);
  std::vector<std::int64_t> integers;
  std::vector<double> reals;
  std::vector<std::string> texts;
  for (std::uint64_t i = 0; i < count; ++i) {
    value x = read_value(at, element, key);
    if (auto* const n = std::get_if<std::int64_t>(&x)) integers.push_back(*n);
    if (auto* const b = std::get_if<bool>(&x)) integers.push_back(*b);
    if (auto* const r = std::get_if<double>(&x)) reals.push_back(*r);
    if (auto* const s = std::get_if<std::string>(&x)) texts.push_back(std::move(*s));
  }
  if (element == string) return texts;
  if (element == f32 || element == f64) return reals;
  return integers;
}

template <class T>
T gguf_file::get(std::string const& key) const {
  static constexpr char const* names[] = {"an integer", "a number", "a truth value", "a text", "a list of integers", "a list of numbers", "a list of texts"};
  auto const found = values_.find(key);
  if (found == values_.end()) fail("it has no " + key);
  if (auto const* const x = std::get_if<T>(&found->second)) return *x;
  fail("its " + key + " is " + names[found->second.index()] + ", where " + names[value(T{}).index()] + " is needed");
}
template std::int64_t gguf_file::get(std::string const&) const;
template double gguf_file::get(std::string const&) const;
template bool gguf_file::get(std::string const&) const;
template std::string gguf_file::get(std::string const&) const;
template std::vector<std::int64_t> gguf_file::get(std::string const&) const;
template std::vector<double> gguf_file::get(std::string const&) const;
template std::vector<std::string> gguf_file::get(std::string const&) const;

std::vector<std::string> gguf_file::tensor_names() const {
  std::vector<std::string> names;
  for (auto const& [name, info] : tensors_) names.push_back(name);
  return names;
}

gguf_file::tensor_info const& gguf_file::tensor(std::string const& name) const {
  auto const found = tensors_.find(name);
  if (found == tensors_.end()) fail("it has no tensor " + name);
  return found->second;
}

std::vector<float> gguf_file::read(std::string const& name) const {
  auto const& s = shape(name);
  std::int64_t rows = 1;
  for (std::size_t d = 0; d + 1 < s.size(); ++d) rows *= s[d];
  std::vector<float> x(std::size_t(rows * s.back()));
  read_rows(name, 0, rows, x.data());
  return x;
}

void gguf_file::read_rows(std::string const& name, std::int64_t first, std::int64_t count, float* to) const {
  auto const& info = tensor(name);
  auto const facts = facts_of(info.type);
  if (!facts) fail("its tensor " + name + " has the type " + type_name(info.type) + ", which this reader does not decode");
  std::int64_t rows = 1;
  for (std::size_t d = 0; d + 1 < info.shape.size(); ++d) rows *= info.shape[d];
  if (first < 0 || count < 0 || first > rows || count > rows - first) fail("its tensor " + name + " has only " + std::to_string(rows) + " rows");
  std::int64_t const row_bytes = info.shape.back() / facts->elements * facts->bytes;
  dequantize(info.type, data_ + tensor_data_ + info.offset + std::uint64_t(first * row_bytes), count * info.shape.back(), to);
}

}  // namespace engine
