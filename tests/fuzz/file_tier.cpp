// A file tier under any order of stores, fetches and damage, against a map of what was stored: a fetch gives what was stored last, or an error, and never
// bytes whose checksum a program of its own does not confirm.
//
//   input   geometry (4 bytes), then operations of 4 bytes: what, which run (2), an argument
#include <array>
#include <cstdint>
#include <cstring>

#include "cellar/tier/file.hpp"
#include "fuzz/memory_file.hpp"

using namespace cellar;

namespace {

/// Bit by bit, by the definition of CRC-32C.
std::uint32_t crc(std::vector<std::byte> const& bytes) {
  std::uint32_t x = 0xffffffff;
  for (auto const b : bytes)
    for (int bit = 0; bit < 8; ++bit) {
      bool const out = ((x ^ std::uint32_t(b) >> bit) & 1) != 0;
      x = x >> 1 ^ (out ? 0x82f63b78u : 0);
    }
  return ~x;
}

/// Writes that are lost or torn, reads and writes that fail, when told so.
struct faulty_file : memory_file {
  enum class fault { none, error, lost, torn };
  static inline fault next_write = fault::none, next_read = fault::none;

  using memory_file::memory_file;
  void write(i64 at, row_view<std::byte const> from) {
    switch (std::exchange(next_write, fault::none)) {
      case fault::error:
        throw io_error(5, "pwrite", path());
      case fault::lost:
        return;
      case fault::torn:
        return memory_file::write(at, {from.data, from.count / 2});
      case fault::none:
        memory_file::write(at, from);
    }
  }
  void read(i64 at, row_view<std::byte> to) {
    if (std::exchange(next_read, fault::none) == fault::error) throw io_error(5, "pread", path());
    memory_file::read(at, to);
  }
};

struct run_state {
  std::vector<std::byte> stored;  // empty: never
  bool is_damaged = false;        // something happened to its bytes since
};

}  // namespace

extern "C" int LLVMFuzzerTestOneInput(std::uint8_t const* data, std::size_t size) {
  if (size < 4) return 0;
  int const layers = 1 + data[0] % 3, heads = 1 + data[1] % 3;
  i64 const blocks = 1 + data[2] % 5;
  block_geometry const g{heads, {1, 2, 1, 2}, {data[3] % 16, data[3] / 16, 2, 1}, {false, data[0] / 64 > 1, false, data[0] / 64 > 2}};
  faulty_file::next_write = faulty_file::next_read = faulty_file::fault::none;
  std::string const path = "far";
  tier::basic_file<faulty_file> far(layers, g, blocks, {.path = path});
  auto& disk = memory_file::disk[path];

  i64 const slice = g.slice_bytes(), shared = g.shared_bytes(), stored_slice = slice > 0 ? slice + 4 : 0, stored_shared = shared > 0 ? shared + 4 : 0;
  i64 const stride = heads * stored_slice + stored_shared, runs = layers * blocks * (heads + 1);
  require(i64(disk.size()) == 64 + layers * blocks * stride, "the file has room for all runs");
  std::vector<run_state> model(static_cast<std::size_t>(runs));
  auto const place = [&](i64 run) { return std::array<std::int64_t, 3>{run / (blocks * (heads + 1)), run / (heads + 1) % blocks, run % (heads + 1)}; };
  auto const bytes_of = [&](i64 run) { return place(run)[2] < heads ? slice : shared; };
  auto const offset = [&](i64 run) { return std::size_t(64 + run / (heads + 1) * stride + place(run)[2] * stored_slice); };

  for (data += 4, size -= 4; size >= 4; data += 4, size -= 4) {
    i64 const run = (data[1] + 256 * data[2]) % runs, n = bytes_of(run);
    auto const [layer, block, head] = place(run);
    auto& state = model[std::size_t(run)];
    if (n == 0) continue;
    auto const mark = [&](std::size_t begin, std::size_t end) {  // what happened to bytes of the file may be to any run
      for (i64 r = 0; r < runs; ++r)
        if (bytes_of(r) > 0 && offset(r) < end && begin < offset(r) + std::size_t(bytes_of(r)) + 4) model[std::size_t(r)].is_damaged = true;
    };
    switch (data[0] % 8) {
      case 0:
      case 1: {  // a store, perhaps one that fails
        std::vector<std::byte> x(static_cast<std::size_t>(n));
        for (std::size_t i = 0; i < x.size(); ++i) x[i] = std::byte(data[3] + i * 7);
        auto const fault = data[0] % 8 == 0 ? faulty_file::fault::none : faulty_file::fault(data[0] / 8 % 4);
        faulty_file::next_write = fault;
        bool is_done = true;
        try {
          far.store(int(layer), physical_block(block), int(head), {x.data(), n});
        } catch (io_error const&) {
          is_done = false;
        }
        require(is_done == (fault != faulty_file::fault::error), "a store that fails says so");
        if (fault == faulty_file::fault::none) state = {x, false};
        if (fault == faulty_file::fault::torn) state = {x, true};
        break;  // a lost write leaves the older run, if there is one
      }
      case 2:
      case 3:
      case 4: {
        std::vector<std::byte> x(std::size_t(n), std::byte{0xee}), record;
        bool const fails = data[0] % 8 == 4;
        if (fails) faulty_file::next_read = faulty_file::fault::error;
        bool is_done = true;
        try {
          far.fetch(int(layer), physical_block(block), int(head), {x.data(), n});
        } catch (io_error const&) {
          is_done = false;
        }
        if (!is_done) require(x == std::vector<std::byte>(x.size(), std::byte{0xee}), "a fetch that fails gives out nothing");
        bool is_whole = disk.size() >= offset(run) + std::size_t(n) + 4 && !fails;
        if (is_whole) {
          std::int64_t const at[]{layer, block, head};
          record.assign(reinterpret_cast<std::byte const*>(at), reinterpret_cast<std::byte const*>(at) + sizeof at);
          record.insert(record.end(), disk.begin() + std::ptrdiff_t(offset(run)), disk.begin() + std::ptrdiff_t(offset(run)) + n);
          std::uint32_t sum;
          std::memcpy(&sum, disk.data() + offset(run) + n, 4);
          is_whole = sum == crc(record);
        }
        require(is_done == is_whole, "a fetch succeeds where the checksum is that of the bytes and their place");
        if (!state.is_damaged && !fails) require(is_done == !state.stored.empty(), "a run that was stored is there, and no other");
        if (is_done && !state.is_damaged) require(x == state.stored, "a fetch gives what was stored last");
        break;
      }
      case 5: {  // damage
        std::size_t const at = offset(run) + data[3] % std::size_t(n + 4);
        if (at >= disk.size()) break;
        disk[at] ^= std::byte(1 + data[0] / 8);
        bool const was_whole = !state.is_damaged && !state.stored.empty();
        mark(at, at + 1);
        if (!was_whole) break;
        std::vector<std::byte> x(static_cast<std::size_t>(n));
        bool is_noticed = false;
        try {
          far.fetch(int(layer), physical_block(block), int(head), {x.data(), n});
        } catch (io_error const&) {
          is_noticed = true;
        }
        require(is_noticed, "one damaged byte is noticed");
        break;
      }
      case 6: {  // the run of another place, with its checksum
        i64 const other = (run + data[3]) % runs;
        if (bytes_of(other) != n || std::max(offset(other), offset(run)) + std::size_t(n) + 4 > disk.size()) break;
        std::copy_n(disk.begin() + std::ptrdiff_t(offset(other)), n + 4, disk.begin() + std::ptrdiff_t(offset(run)));
        if (other != run) mark(offset(run), offset(run) + std::size_t(n) + 4);
        break;
      }
      case 7: {  // the file ends early, or is as long again
        std::size_t const whole = std::size_t(64 + layers * blocks * stride),
                          end = data[3] % 2 ? whole : std::min(disk.size(), offset(run) + data[3] % std::size_t(n + 4));
        if (end < disk.size()) mark(end, disk.size());
        disk.resize(end);
        break;
      }
    }
  }
  return 0;
}
