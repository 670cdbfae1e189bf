#pragma once
#include <cstring>
#include <string>
#include <vector>

#include "cellar/core/checksum.hpp"
#include "cellar/tier/concept.hpp"
#include "cellar/tier/posix_file.hpp"

namespace cellar::inline CELLAR_ABI::tier {

/// Far bytes in a file: runs with a checksum each, behind a header that says what they are.
///
///     header (64 bytes)   magic, version, layers, heads, blocks, slice_bytes, shared_bytes, checksum
///     then a layer        block 0: | head 0 run, checksum | head 1 ... | shared run, checksum |   block 1 ...
///
/// A checksum is over the run's place and its bytes, so that a torn, damaged or misplaced run is never taken for data; a write that the system reports
/// as done and loses is noticed where no older run is in its place. The file is scratch of one
/// process: what must survive it is a snapshot (operation/snapshot.hpp).
///
/// Requires  a path whose file this tier may create or replace; removed with the tier unless options::keeps_file
/// Effects   construction writes the header and sets the size, space is taken as runs are stored; store and fetch each make one system call,
///           through a buffer that is allocated for runs above 4 KB. Thread-safe for different runs
/// Errors    io_error with the code, the operation and the path: for a full disk, a short file, a checksum that does not match
template <file_like File = posix_file>
class basic_file {
 public:
  static constexpr bool is_directly_readable = false;
  static constexpr bool is_device_reachable = false;

  struct options {
    std::string path;
    bool keeps_file = false;  ///< For looking at it.
  };

  basic_file(int layers, block_geometry const& geometry, i64 blocks, options const& o)
      : geometry_(geometry),
        blocks_(blocks),
        block_stride_(geometry.heads * stored(geometry.slice_bytes()) + stored(geometry.shared_bytes())),
        file_(o.path, o.keeps_file) {
    std::int64_t const fields[] = {magic, version, layers, geometry.heads, blocks, geometry.slice_bytes(), geometry.shared_bytes()};
    std::byte header[header_bytes] = {};
    std::memcpy(header, fields, sizeof fields);
    std::uint32_t const sum = checksum({header, i64(sizeof fields)});
    std::memcpy(header + sizeof fields, &sum, sizeof sum);
    file_.resize(header_bytes + layers * blocks * block_stride_);
    file_.write(0, {header, header_bytes});
  }

  /// Writes a run of block_geometry::slice_bytes, or shared_bytes where head is the number of heads.
  void store(int layer, physical_block block, int head, row_view<std::byte const> from) {
    if (from.count == 0) return;
    with_record(from.count, [&](std::byte* record) {
      std::memcpy(record, from.data, std::size_t(from.count));
      std::uint32_t const sum = sum_of(layer, block, head, from);
      std::memcpy(record + from.count, &sum, sizeof sum);
      file_.write(offset(layer, block, head), {record, from.count + sum_bytes});
    });
  }

  void fetch(int layer, physical_block block, int head, row_view<std::byte> to) {
    if (to.count == 0) return;
    with_record(to.count, [&](std::byte* record) {
      file_.read(offset(layer, block, head), {record, to.count + sum_bytes});
      std::uint32_t sum;
      std::memcpy(&sum, record + to.count, sizeof sum);
      if (sum != sum_of(layer, block, head, {record, to.count}))
        detail::raise(
            io_error(0, "checksum of a far block", file_.path() + ": the bytes are damaged or were never stored; recompute the sequence's keys and values"));
      std::memcpy(to.data, record, std::size_t(to.count));
    });
  }

 private:
  static constexpr std::int64_t magic = 0x31454c49464c4c43;  // "CLLFILE1"
  static constexpr std::int64_t version = 1;
  static constexpr i64 header_bytes = 64, sum_bytes = sizeof(std::uint32_t), on_stack = 4096;

  static i64 stored(i64 run) { return run > 0 ? run + sum_bytes : 0; }
  i64 offset(int layer, physical_block block, int head) const {
    return header_bytes + (layer * blocks_ + number(block)) * block_stride_ + head * stored(geometry_.slice_bytes());
  }
  static std::uint32_t sum_of(int layer, physical_block block, int head, row_view<std::byte const> run) {
    std::int64_t const place[] = {layer, number(block), head};
    return checksum(run, checksum({reinterpret_cast<std::byte const*>(place), i64(sizeof place)}));
  }
  /// A run and its checksum, side by side: one call moves both. Long runs allocate.
  template <class F>
  static void with_record(i64 run, F const& f) {
    std::byte small[on_stack];
    if (run + sum_bytes <= on_stack) return f(small);
    std::vector<std::byte> large(std::size_t(run + sum_bytes));
    f(large.data());
  }

  block_geometry geometry_;
  i64 blocks_, block_stride_;
  File file_;
};

using file = basic_file<>;
static_assert(block_tier<file>);

}  // namespace cellar::tier
