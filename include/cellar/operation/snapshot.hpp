#pragma once
#include <cstring>
#include <string>
#include <utility>
#include <vector>

#include "cellar/core/checksum.hpp"
#include "cellar/operation/memory.hpp"
#include "cellar/tier/posix_file.hpp"

/// Whole sequences in files, so that a prompt's cache survives a restart.
///
///     header   magic, version, bytes of the header, facts (what must be the same in the cache that reads), the record, the scheme's name, checksum
///     layer    state | outliers | near rows by position | summary tiles | far blocks: runs of all heads, shared ones last | checksum of the layer
///
/// Nothing depends on page tables, layouts or limits. Numbers are as the machine has them; a file of the other byte order has no magic.
namespace cellar::inline CELLAR_ABI::operation {

namespace detail {

inline constexpr std::int64_t snapshot_magic = 0x3150414e534c4c43, snapshot_version = 1;  // "CLLSNAP1"

struct snapshot_fact {
  char const* name;
  std::int64_t value;
};

/// What is stored depends on these, and on the scheme. `f`: the map's inverse frequencies, where the host reads them.
template <offloading_scheme S>
std::vector<snapshot_fact> snapshot_facts(memory_map<S> const& map, row_view<double const> f) {
  auto const g = map.geometry();
  model_shape const& shape = map.shape;
  std::vector<snapshot_fact> facts{{"layers", shape.layers},
                                   {"kv_heads", shape.kv_heads},
                                   {"head_dim", S::head_dim},
                                   {"block_tokens", S::block_tokens},
                                   {"sinks", map.sinks},
                                   {"bytes of a near scalar", sizeof(typename S::near_scalar)},
                                   {"bytes of a block", g.block_bytes()},
                                   {"bytes of a head's planes", g.slice_bytes()},
                                   {"bytes of a summary tile", map.tile()},
                                   {"blocks of a summary tile", S::summary::tile_blocks},
                                   {"bytes of learnt state", map.state_sequence() + shape.kv_heads * map.outlier_sums() * i64(sizeof(float))},
                                   {"outliers", map.outliers},
                                   {"far memory discarded", map.discards_far}};
  std::int64_t embedding = 0;
  if (shape.rotary.is_set()) {
    embedding = 1 + std::int64_t(checksum({reinterpret_cast<std::byte const*>(f.data), f.count * i64(sizeof(double))})) * 2 +
                (shape.rotary.pairing == rotary_pairing::adjacent);
  }
  facts.push_back({"rotary embedding", embedding});
  return facts;
}

/// As the compiler writes it, without the name of this function.
template <class S>
std::string scheme_name() {
  std::string const all = __PRETTY_FUNCTION__;
  return all.substr(all.find('='));
}

/// Calls f(row_view<std::byte>) over everything that a layer of a sequence stores, in the file's order and in pieces as long as they lie together; far runs
/// through far(block, head, run).
template <offloading_scheme S, class Bytes, class Run>
void for_stored_bytes(memory_map<S> const& map, layer_memory<S> const& memory, i64 slot, row_view<page_id const> pages, snapshot_record const& r,
                      Bytes const& f, Run const& far) {
  sequence_view<S> const of{map, memory, slot, pages};
  f(row_view<std::byte>{memory.state + slot * map.state_sequence(), map.state_sequence()});
  if (map.outlier_sequence() > 0) f(row_view<std::byte>{memory.outliers + slot * map.outlier_sequence(), map.outlier_sequence()});
  i64 const tail = std::max(map.sinks, of.position(r.sealed));
  for (int head = 0; head < map.shape.kv_heads; ++head)
    for (int side = 0; side < map.sides; ++side) {
      if (!map.has_side(side)) continue;
      i64 const row_bytes = map.side_dim(side) * i64(sizeof(typename S::near_scalar));
      auto const rows = [&](i64 from, i64 to) {
        if (from < to) f(row_view<std::byte>{reinterpret_cast<std::byte*>(of.near_row(head, side, from)), (to - from) * row_bytes});
      };
      rows(0, std::min(map.sinks, r.length));
      for (i64 p = tail; p < r.length;) {  // the tail is a ring
        i64 const end = std::min(r.length, p + map.tail_rows - (p - map.sinks) % map.tail_rows);
        rows(p, end);
        p = end;
      }
    }
  if (map.discards_far) return;
  using map_type = memory_map<S>;
  for (int copy = 0; copy < map.tile_copies(); ++copy)
    for (i64 b = 0; b < r.sealed; b += map_type::page_blocks)
      f(row_view<std::byte>{of.tile(b, copy), ceil_div(std::min<i64>(map_type::page_blocks, r.sealed - b), i64{map_type::tile_blocks}) * map.tile()});
  auto const g = map.geometry();
  for (i64 b = 0; b < r.sealed + (r.kept_tokens > 0); ++b)
    for (int head = 0; head <= g.heads; ++head)
      if (i64 const bytes = head < g.heads ? g.slice_bytes() : g.shared_bytes(); bytes > 0) far(of, logical_block(b), head, bytes);
}

/// Bytes of a layer, its checksum included.
template <offloading_scheme S>
i64 snapshot_layer_bytes(memory_map<S> const& map, snapshot_record const& r) {
  i64 const near_rows = std::min(r.length, map.sinks) + std::max<i64>(0, r.length - map.sinks - r.sealed * S::block_tokens);
  i64 const near = map.shape.kv_heads * near_rows * map.near_token();
  i64 const tiles = map.tile_copies() * ceil_div(r.sealed, S::summary::tile_blocks) * map.tile();
  i64 const far = (r.sealed + (r.kept_tokens > 0)) * map.geometry().block_bytes();
  return map.state_sequence() + map.outlier_sequence() + near + (map.discards_far ? 0 : tiles + far) + i64(sizeof(std::uint32_t));
}

/// Memory that the host reads and writes.
struct in_place {
  row_view<std::byte const> read(row_view<std::byte> x) const { return {x.data, x.count}; }
  template <class Fill>
  void write(row_view<std::byte> x, Fill const& fill) const {
    fill(x);
  }
  void wait() const {}
};

/// Copies a run between a far block and `run`: through the layout, or through the tier. `memory` reaches far memory that is near its device.
template <bool Writes, offloading_scheme S, class Memory>
void move_run(sequence_view<S> const& of, logical_block block, int head, row_view<std::byte> run, Memory& memory) {
  auto const g = of.map.geometry();
  if constexpr (!S::tier::is_directly_readable) {
    auto const at = of.far_layout().resolve(block);
    if constexpr (Writes)
      of.memory.tier->store(of.memory.layer, at, head, run);
    else
      of.memory.tier->fetch(of.memory.layer, at, head, run);
  } else {
    auto const l = of.far_layout();
    bool const shared = head == g.heads;
    for (int p = 0; p < plane_count; ++p)
      if (g.is_shared[p] == shared)
        for (i64 row = 0; row < g.rows[p]; ++row) {
          row_view<std::byte> const far{of.memory.far + l.offset(plane(p), block, shared ? 0 : head, row), g.row_bytes[p]};
          std::byte* const in_run = run.data + g.bytes_before(p, shared) + row * g.row_bytes[p];
          auto const copy = [&](auto& by) {
            if constexpr (Writes)
              by.write(far, [&](row_view<std::byte> to) { std::memcpy(to.data, in_run, std::size_t(to.count)); });
            else
              std::memcpy(in_run, by.read(far).data, std::size_t(far.count));
          };
          in_place here;
          if constexpr (S::tier::is_device_reachable)
            copy(memory);
          else
            copy(here);
        }
  }
}

/// Bytes one after another, through a buffer, with a checksum over those since the last one.
template <class File>
class byte_stream {
 public:
  explicit byte_stream(File& file, i64 at = 0) : file_(file), at_(at) { buffer_.reserve(capacity); }

  void write(row_view<std::byte const> bytes) {
    sum_ = checksum(bytes, sum_);
    if (i64(buffer_.size()) + bytes.count > i64(capacity)) flush();
    if (bytes.count >= i64(capacity)) {
      file_.write(at_, bytes);
      at_ += bytes.count;
    } else {
      buffer_.insert(buffer_.end(), bytes.begin(), bytes.end());
    }
  }
  void write_checksum() {
    std::uint32_t const sum = take_sum();
    write({reinterpret_cast<std::byte const*>(&sum), i64(sizeof sum)});
    take_sum();
  }
  void flush() {
    if (buffer_.empty()) return;
    file_.write(at_, {buffer_.data(), i64(buffer_.size())});
    at_ += i64(buffer_.size());
    buffer_.clear();
  }
  /// The next bytes, of `left` that the file still has.
  void read(row_view<std::byte> to, i64 left) {
    for (i64 done = 0; done < to.count;) {
      if (next_ == buffer_.size()) {
        buffer_.resize(std::size_t(std::min<i64>(i64(capacity), left)));
        file_.read(at_, {buffer_.data(), i64(buffer_.size())});
        at_ += i64(buffer_.size());
        next_ = 0;
      }
      i64 const n = std::min<i64>(to.count - done, i64(buffer_.size() - next_));
      std::memcpy(to.data + done, buffer_.data() + next_, std::size_t(n));
      next_ += std::size_t(n);
      done += n;
      left -= n;
    }
    sum_ = checksum(to, sum_);
  }
  /// The checksum of what was read since the last one.
  std::uint32_t take_sum() { return std::exchange(sum_, 0); }

 private:
  static constexpr std::size_t capacity = std::size_t{1} << 18;
  File& file_;
  i64 at_;
  std::vector<std::byte> buffer_;
  std::size_t next_ = 0;
  std::uint32_t sum_ = 0;
};

/// Writes a sequence aside, of memory that is reached by `access`, and puts it in the place of `path`.
template <class File, offloading_scheme S, class Memory>
void write_sequence(memory_map<S> const& map, std::vector<snapshot_fact> const& facts, row_view<layer_memory<S> const> layers, i64 slot,
                    row_view<page_id const> pages, snapshot_record const& record, std::string const& path, Memory access) {
  File file(path + ".partial", false);
  detail::byte_stream<File> out(file);
  auto const put = [&](std::int64_t x) { out.write({reinterpret_cast<std::byte const*>(&x), i64(sizeof x)}); };
  std::string const name = detail::scheme_name<S>();
  put(detail::snapshot_magic);
  put(detail::snapshot_version);
  put(i64(sizeof(std::int64_t)) * (3 + i64(facts.size()) + 5 + 1) + i64(name.size() + sizeof(std::uint32_t)));
  for (auto const& fact : facts) put(fact.value);
  for (i64 const x : {record.prompt_tokens, record.length, record.sealed, record.kept_tokens, record.selected_blocks}) put(x);
  put(std::int64_t(name.size()));
  out.write({reinterpret_cast<std::byte const*>(name.data()), i64(name.size())});
  out.write_checksum();
  auto const g = map.geometry();
  std::vector<std::byte> run(std::size_t(std::max(g.slice_bytes(), g.shared_bytes())));
  access.wait();
  for (layer_memory<S> const& memory : layers) {
    detail::for_stored_bytes(
        map, memory, slot, pages, record, [&](row_view<std::byte> bytes) { out.write(access.read(bytes)); },
        [&](sequence_view<S> const& of, logical_block block, int head, i64 bytes) {
          detail::move_run<false>(of, block, head, {run.data(), bytes}, access);
          out.write({run.data(), bytes});
        });
    out.write_checksum();
  }
  out.flush();
  file.replace(path);
}

}  // namespace detail

/// A snapshot whose header is read and fits the scheme and the model. `Memory` reaches what it is read into.
template <class File, offloading_scheme S, class Memory = detail::in_place>
class snapshot_reader {
 public:
  snapshot_record record;

  snapshot_reader(memory_map<S> const& map, std::vector<detail::snapshot_fact> const& facts, std::string const& path, Memory memory = {})
      : map_(map), access_(std::move(memory)), file_(path), size_(file_.size()) {
    i64 const numbers = 3 + i64(facts.size()) + 5 + 1, fixed = numbers * i64(sizeof(std::int64_t));
    std::vector<std::int64_t> fields(static_cast<std::size_t>(numbers), 0);
    if (size_ < fixed + i64(sizeof(std::uint32_t))) damaged("it is shorter than a header");
    file_.read(0, {reinterpret_cast<std::byte*>(fields.data()), fixed});
    if (fields[0] != detail::snapshot_magic) damaged("it does not begin as a snapshot does");
    expect(fields[1] == detail::snapshot_version,
           "its version is " + std::to_string(fields[1]) + ", this library reads " + std::to_string(detail::snapshot_version));
    i64 const name_bytes = fields.back();
    if (name_bytes < 0 || name_bytes > longest_name) damaged("its header is not consistent");
    header_bytes_ = fixed + name_bytes + i64(sizeof(std::uint32_t));
    if (fields[2] != header_bytes_ || header_bytes_ > size_) damaged("its header is not consistent");
    std::vector<std::byte> rest(std::size_t(name_bytes + i64(sizeof(std::uint32_t))));
    file_.read(fixed, {rest.data(), i64(rest.size())});
    std::uint32_t sum;
    std::memcpy(&sum, rest.data() + name_bytes, sizeof sum);
    if (sum != checksum({rest.data(), name_bytes}, checksum({reinterpret_cast<std::byte const*>(fields.data()), fixed})))
      damaged("the header's checksum does not match");
    std::string const name(reinterpret_cast<char const*>(rest.data()), std::size_t(name_bytes));
    expect(name == detail::scheme_name<S>(), "it is of another scheme: " + name);
    for (std::size_t i = 0; i < facts.size(); ++i)
      expect(fields[3 + i] == facts[i].value,
             std::string(facts[i].name) + ": " + std::to_string(fields[3 + i]) + " there, " + std::to_string(facts[i].value) + " in this cache");
    std::int64_t const* const r = fields.data() + 3 + facts.size();
    record = {r[0], r[1], r[2], r[3], r[4]};
    i64 const far = record.length > 0 ? record.length - map.sinks : 0;  // the least number less a sink would overflow
    if (record.length < 1 || record.length > longest || record.prompt_tokens < 1 || record.prompt_tokens > record.length || record.sealed < 0 ||
        record.sealed > std::max<i64>(0, far) / S::block_tokens || record.kept_tokens < 0 || record.kept_tokens >= S::block_tokens ||
        record.kept_tokens > std::max<i64>(0, far) - record.sealed * S::block_tokens || record.selected_blocks < 0)
      damaged("its lengths contradict each other");
    if (size_ != header_bytes_ + map.shape.layers * detail::snapshot_layer_bytes(map, record)) damaged("its size is not that of what it says it holds");
  }

  /// Reads all layers into a sequence's memory.
  ///
  /// Errors  io_error where a checksum does not match; what was written is then garbage
  template <class Executor>
  void read(Executor const&, row_view<layer_memory<S> const> layers, i64 slot, row_view<page_id const> pages) {
    detail::byte_stream<File> in(file_, header_bytes_);
    i64 left = size_ - header_bytes_;
    auto const get = [&](row_view<std::byte> to) {
      in.read(to, left);
      left -= to.count;
    };
    auto const g = map_.geometry();
    std::vector<std::byte> run(std::size_t(std::max(g.slice_bytes(), g.shared_bytes())));
    access_.wait();  // what was there before may still be used
    for (layer_memory<S> const& memory : layers) {
      detail::for_stored_bytes(
          map_, memory, slot, pages, record, [&](row_view<std::byte> to) { access_.write(to, get); },
          [&](sequence_view<S> const& of, logical_block block, int head, i64 bytes) {
            get({run.data(), bytes});
            detail::move_run<true>(of, block, head, {run.data(), bytes}, access_);
          });
      std::uint32_t const expected = in.take_sum();
      std::uint32_t stored;
      get({reinterpret_cast<std::byte*>(&stored), i64(sizeof stored)});
      in.take_sum();
      if (stored != expected) damaged("a layer's checksum does not match");
    }
  }

 private:
  static constexpr i64 longest_name = 65536, longest = i64{1} << 32;  // sizes stay within 64 bits

  [[noreturn]] void damaged(char const* why) const { cellar::detail::raise(io_error(0, "restore", file_.path() + ": " + why)); }
  void expect(bool condition, std::string const& what) const {
    if (!condition) cellar::detail::raise(precondition_error("restore: " + file_.path() + " does not fit this cache: " + what));
  }

  memory_map<S> map_;
  Memory access_;
  File file_;
  i64 size_, header_bytes_ = 0;
};

}  // namespace cellar::operation
