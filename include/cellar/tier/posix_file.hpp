#pragma once
#include <fcntl.h>
#include <unistd.h>

#include <cerrno>
#include <concepts>
#include <cstdio>
#include <string>
#include <type_traits>
#include <utility>

#include "cellar/core/error.hpp"
#include "cellar/core/view.hpp"

namespace cellar::inline CELLAR_ABI::tier {

/// What tier::basic_file needs of a file: positioned whole reads and writes. Tests put one in its place that fails.
///
/// Laws  write and read move all bytes, or throw; both may be called by several threads for different ranges
template <class F>
concept file_like = std::movable<F> && std::constructible_from<F, std::string const&, bool> &&
    requires(F& f, F const& open, i64 offset, row_view<std::byte const> from, row_view<std::byte> to) {
  { f.resize(offset) } -> std::same_as<void>;
  { f.write(offset, from) } -> std::same_as<void>;
  { f.read(offset, to) } -> std::same_as<void>;
  { open.path() } -> std::same_as<std::string const&>;
};

/// A file by pread and pwrite. Created anew, and removed with the object unless it is kept; or opened for reading.
///
/// Errors  io_error with errno, the call and the path. Interrupted and short calls go on; the end of the file is an error
class posix_file {
 public:
  posix_file(std::string const& path, bool is_kept)
      : path_(path), is_kept_(is_kept), descriptor_(uninterrupted([&] { return ::open(path.c_str(), O_RDWR | O_CREAT | O_TRUNC | O_CLOEXEC, 0600); })) {
    if (descriptor_ < 0) fail("open");
  }
  /// An existing file, to read.
  explicit posix_file(std::string const& path)
      : path_(path), is_kept_(true), descriptor_(uninterrupted([&] { return ::open(path.c_str(), O_RDONLY | O_CLOEXEC); })) {
    if (descriptor_ < 0) fail("open");
  }
  posix_file(posix_file&& other) noexcept : path_(std::move(other.path_)), is_kept_(other.is_kept_), descriptor_(std::exchange(other.descriptor_, -1)) {}
  posix_file& operator=(posix_file&& other) noexcept {
    std::swap(path_, other.path_);
    std::swap(is_kept_, other.is_kept_);
    std::swap(descriptor_, other.descriptor_);
    return *this;
  }
  ~posix_file() {
    if (descriptor_ < 0) return;
    ::close(descriptor_);
    if (!is_kept_) ::unlink(path_.c_str());
  }

  std::string const& path() const { return path_; }

  /// Sets the size; space on the device is taken as bytes are written.
  void resize(i64 bytes) {
    if (uninterrupted([&] { return ::ftruncate(descriptor_, bytes); }) != 0) fail("ftruncate");
  }
  void write(i64 offset, row_view<std::byte const> from) {
    for (i64 done = 0; done < from.count;) {
      auto const n = uninterrupted([&] { return ::pwrite(descriptor_, from.data + done, std::size_t(from.count - done), offset + done); });
      if (n <= 0) fail("pwrite");
      done += n;
    }
  }
  void read(i64 offset, row_view<std::byte> to) {
    for (i64 done = 0; done < to.count;) {
      auto const n = uninterrupted([&] { return ::pread(descriptor_, to.data + done, std::size_t(to.count - done), offset + done); });
      if (n < 0) fail("pread");
      if (n == 0) cellar::detail::raise(io_error(0, "pread", path_ + ": the file ends before the bytes asked for"));
      done += n;
    }
  }
  i64 size() const {
    auto const end = ::lseek(descriptor_, 0, SEEK_END);
    if (end < 0) fail("lseek");
    return end;
  }
  /// Puts the file in another's place for good: whoever opens that path finds the old file or all of this one, whenever the machine stops.
  ///
  /// Effects  waits until bytes and name are on the device
  void replace(std::string const& path) {
    if (uninterrupted([&] { return ::fsync(descriptor_); }) != 0) fail("fsync");
    if (::rename(path_.c_str(), path.c_str()) != 0) fail("rename");
    path_ = path;
    is_kept_ = true;
    auto const slash = path.rfind('/');
    std::string const folder = slash == std::string::npos ? "." : path.substr(0, slash + 1);
    int const directory = uninterrupted([&] { return ::open(folder.c_str(), O_RDONLY | O_DIRECTORY | O_CLOEXEC); });
    if (directory < 0) fail("open of the folder");
    int const result = uninterrupted([&] { return ::fsync(directory); });
    ::close(directory);
    if (result != 0) fail("fsync of the folder");
  }

 private:
  static_assert(sizeof(off_t) >= 8, "cellar: files are larger than 2 GiB: define _FILE_OFFSET_BITS=64");

  template <class Call>
  static std::invoke_result_t<Call const&> uninterrupted(Call const& call) {
    for (;;)
      if (auto const result = call(); result >= 0 || errno != EINTR) return result;
  }
  [[noreturn]] void fail(char const* operation) const { cellar::detail::raise(io_error(errno, operation, path_)); }

  std::string path_;
  bool is_kept_;
  int descriptor_;
};
static_assert(file_like<posix_file>);

}  // namespace cellar::tier
