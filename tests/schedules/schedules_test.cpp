// Random schedules of calls against a sequential model: what a cache answers, refuses and keeps, also where memory and transfers fail.
#include <array>
#include <cstdlib>
#include <map>
#include <memory>
#include <mutex>
#include <new>
#include <optional>
#include <sstream>

#include "cache/reference.hpp"
#include "sanitizers.hpp"

using namespace cellar;

namespace {

constexpr std::uint64_t schedules = is_sanitized ? 5000 : 150000;
constexpr std::uint64_t first_seed = 1;
constexpr std::uint64_t one_seed = 1;  ///< Of the hidden test, which tells its schedule: test_schedules "[.seed]"

/// Memory that runs out: the n-th allocation while armed, or all from there on.
struct failing_memory {
  bool is_armed, has_failed, stays;
  i64 left;
} memory;

}  // namespace

#if !CELLAR_UNDER_ADDRESS_SANITIZER  // which replaces these itself
// noinline: g++ takes an inlined pair of malloc and free for a mismatch.
[[gnu::noinline]] void* operator new(std::size_t n) {
  if (memory.is_armed && memory.left-- <= 0) {
    memory.has_failed = true;
    memory.is_armed = memory.stays;
    throw std::bad_alloc();
  }
  if (void* const p = std::malloc(n ? n : 1)) return p;
  throw std::bad_alloc();
}
[[gnu::noinline]] void operator delete(void* p) noexcept { std::free(p); }
[[gnu::noinline]] void operator delete(void* p, std::size_t) noexcept { std::free(p); }
#endif

namespace {

/// Memory does not fail in here.
struct enough_memory {
  bool was_armed = std::exchange(memory.is_armed, false);
  ~enough_memory() { memory.is_armed = was_armed; }
};

/// Numbers that cost little, the same everywhere (splitmix64).
struct dice {
  std::uint64_t state;

  std::uint64_t next() {
    std::uint64_t x = state += 0x9e3779b97f4a7c15u;
    x = (x ^ x >> 30) * 0xbf58476d1ce4e5b9u;
    x = (x ^ x >> 27) * 0x94d049bb133111ebu;
    return x ^ x >> 31;
  }
  i64 below(i64 n) { return n <= 1 ? 0 : i64(next() % std::uint64_t(n)); }
  i64 within(i64 low, i64 high) { return low + below(high - low + 1); }
  bool chance(i64 percent) { return below(100) < percent; }
  float number() { return float(i64(next() >> 40) - (1 << 23)) * 0x1p-22f; }  // within [-2, 2)
  void fill(std::vector<float>& x) {
    for (float& y : x) y = number();
  }
};

// Files in memory, which fail.

enum class damage { none, error, torn, torn_silently, flipped };

struct stored_file {
  std::vector<std::byte> bytes;
  std::map<i64, i64> damaged;  // offset of a write: its bytes, of which some are not what was written
};

struct failing_disk {
  std::map<std::string, std::shared_ptr<stored_file>> files;
  std::mutex mutex;
  damage how = damage::none;
  i64 left = 0;             // calls until it happens
  bool has_failed = false;  // a call threw
  bool has_lied = false;    // damaged bytes were read

  /// What happens to this call.
  damage next() { return how != damage::none && left-- == 0 ? how : damage::none; }
} disk;

class memory_file {
 public:
  memory_file(std::string const& path, bool is_kept) : path_(path), is_kept_(is_kept) {
    enough_memory const here;
    std::lock_guard const lock(disk.mutex);
    if (disk.next() != damage::none) fail("open");
    file_ = disk.files[path] = std::make_shared<stored_file>();
  }
  explicit memory_file(std::string const& path) : path_(path), is_kept_(true) {
    enough_memory const here;
    std::lock_guard const lock(disk.mutex);
    auto const found = disk.files.find(path);
    if (found == disk.files.end() || disk.next() != damage::none) fail("open");
    file_ = found->second;
  }
  memory_file(memory_file&& other) noexcept : path_(std::move(other.path_)), is_kept_(other.is_kept_), file_(std::move(other.file_)) {}
  memory_file& operator=(memory_file&& other) noexcept {
    std::swap(path_, other.path_);
    std::swap(is_kept_, other.is_kept_);
    std::swap(file_, other.file_);
    return *this;
  }
  ~memory_file() {
    if (file_ && !is_kept_) disk.files.erase(path_);
  }

  std::string const& path() const { return path_; }
  i64 size() const { return i64(file_->bytes.size()); }
  void resize(i64 n) {
    enough_memory const here;
    if (disk.next() != damage::none) fail("resize");
    file_->bytes.resize(std::size_t(n));
  }
  void write(i64 offset, row_view<std::byte const> from) {
    enough_memory const here;
    std::lock_guard const lock(disk.mutex);
    damage const how = disk.next();
    if (how == damage::error) fail("write");
    i64 const n = how == damage::torn || how == damage::torn_silently ? from.count / 2 : from.count;
    if (i64(file_->bytes.size()) < offset + n) file_->bytes.resize(std::size_t(offset + n));
    std::memcpy(file_->bytes.data() + offset, from.data, std::size_t(n));
    if (how == damage::flipped) file_->bytes[std::size_t(offset + from.count / 3)] ^= std::byte{4};
    bool const is_whole = i64(file_->bytes.size()) >= offset + from.count && std::memcmp(file_->bytes.data() + offset, from.data, std::size_t(from.count)) == 0;
    if (!is_whole)
      file_->damaged[offset] = from.count;
    else if (!file_->damaged.empty())
      file_->damaged.erase(offset);
    if (how == damage::torn) fail("write");
  }
  void read(i64 offset, row_view<std::byte> to) {
    enough_memory const here;
    std::lock_guard const lock(disk.mutex);
    damage const how = disk.next();
    if (how == damage::error || offset + to.count > size()) fail("read");
    i64 const n = how == damage::torn || how == damage::torn_silently ? to.count / 2 : to.count;
    std::memcpy(to.data, file_->bytes.data() + offset, std::size_t(n));
    if (n < to.count) fail("read");  // short
    if (how == damage::flipped) to[to.count / 2] ^= std::byte{1};
    disk.has_lied |= how == damage::flipped;
    for (auto const& [at, count] : file_->damaged) disk.has_lied |= at < offset + to.count && offset < at + count;
  }
  void replace(std::string const& path) {
    enough_memory const here;
    std::lock_guard const lock(disk.mutex);
    if (disk.next() != damage::none) fail("rename");
    disk.files[path] = file_;
    disk.files.erase(path_);
    path_ = path;
    is_kept_ = true;
  }

 private:
  [[noreturn]] void fail(char const* what) const {
    disk.has_failed = true;
    throw io_error(5, what, path_);
  }

  std::string path_;
  bool is_kept_;
  std::shared_ptr<stored_file> file_;
};
static_assert(tier::file_like<memory_file>);

struct failing_tier : tier::basic_file<memory_file> {
  struct options {};
  failing_tier(int layers, block_geometry const& g, i64 blocks, options const&) : basic_file(layers, g, blocks, {.path = "far"}) {}
};

// Schemes whose pages are 64 tokens.

constexpr int d = 8;
struct everything : scheme::dense<d, float> {};
struct bounds : scheme::quest<d, float> {
  static constexpr int block_tokens = 4;
};
struct single_tokens : scheme_defaults<d, float> {
  static constexpr int block_tokens = 1;
  using summary = cellar::summary::mean<float>;
  using select = cellar::select::top_k;
};
struct centred : scheme::yakv_centred<d, float> {};
struct groups : scheme_defaults<d, float> {  // codes for 2 and 4 tokens at a time
  static constexpr int block_tokens = 4;
  using key_codec = cellar::codec::centred<cellar::codec::higgs<2, 256, 1>, cellar::codec::block_mean<2>>;
  using value_codec = cellar::codec::centred<cellar::codec::higgs<2, 256, 1>, cellar::codec::block_mean<4>>;
  using summary = cellar::summary::mean<float>;
  using select = cellar::select::top_k;
};
struct shared_planes : scheme_defaults<d, float> {
  static constexpr int block_tokens = 2;
  using layout = cellar::layout::token_major;
  using key_codec = cellar::codec::higgs<2, 256, 0, bf16, cellar::scope::all_heads>;
  using value_codec = cellar::codec::identity<f16>;
  using summary = cellar::summary::quantized_key<cellar::codec::higgs<4, 256, 0, bf16, cellar::scope::all_heads>>;
  using select = cellar::select::top_k;
};
struct near_only : scheme::sink_window<d, float> {
  static constexpr int block_tokens = 4;
};
template <class Scheme>
struct filed : Scheme {
  using layout = cellar::layout::tile_major;
  using tier = failing_tier;
};

/// The cache and the model do not agree.
struct disagreement {
  std::string what;
};

struct counters {
  i64 schedules = 0, operations = 0, refusals = 0, faults = 0, attends = 0, checks = 0, seals = 0, copies = 0;
} counts;

template <class S>
class schedule {
 public:
  static constexpr int B = S::block_tokens;
  static constexpr bool is_filed = !S::tier::is_directly_readable;
  static constexpr bool selects_all = operation::selects_everything<S>;
  using map_type = memory_map<S>;

  schedule(std::uint64_t seed, std::ostream* log) : dice_{seed * 0x2545f4914f6cdd1du}, log_(log) {
    for (int i = 0; i < d / 2; ++i) frequencies_.push_back(std::pow(1e4, -2.0 * i / d));
    layers_ = int(dice_.within(1, 2));
    heads_ = int(dice_.within(1, 3));
    shape_ = {.layers = layers_, .query_heads = heads_ * int(dice_.within(1, 3)), .kv_heads = heads_, .head_dim = d};
    shape_.rotary = {rotary_pairing::half_split, {frequencies_.data(), d / 2}};
    is_faulty_ = dice_.chance(60);
    disk.files.clear();
    disk.how = damage::none;
    b_.sinks = dice_.chance(50) ? 0 : dice_.within(1, 6);
    choose_limits(140);
    room_ = tokens_ + dice_.within(1, 20);
  }
  ~schedule() {
    cache_.reset();
    disk.files.clear();
  }

  void run() {
    open_cache();
    for (i64 n = dice_.within(5, 40); n > 0; --n) {
      has_failed_ = false;
      operate();
      ++counts.operations;
      check_state();
      if (has_failed_) check_free_pages();
    }
    close();
  }

 private:
  enum class phase { free, prompt, decode };
  enum class outcome { done, refused, failed };

  /// What a sequence holds. Rows are [layer][token][head][channel], keys and values.
  struct sequence {
    schedule::phase phase = phase::free;
    i64 prompt_tokens = 0, length = 0, sealed = 0, kept = 0, selected = 0;
    std::vector<int> pages;
    std::vector<float> near[2], far[2];  // as they read while near, and as decoded
    std::vector<std::byte> states[3];    // of key codec, value codec and summary: [layer][head]
    std::vector<std::byte> tiles;        // [layer][copy][tile]
    // while a prompt fills
    i64 target = 0, capacity = 0;
    std::vector<i64> filled;
    std::vector<float> staging[2];
  };
  struct saved_sequence {
    sequence s;
    i64 sinks;
    bool is_without_far;
  };
  struct entry {
    i64 slot, new_tokens, first_row, sealed_before, kept;
  };

  void say(auto const&... parts) {
    if (log_) ((*log_ << parts), ...) << '\n';
  }
  static void require(bool condition, char const* what) {
    if (!condition) throw disagreement{what};
  }

  // Configurations.

  void choose_limits(i64 most_tokens) {
    limits_ = {};
    limits_.sequences = int(dice_.within(1, 4));
    limits_.tokens = std::min(most_tokens, dice_.chance(85) ? dice_.within(4, 60) : dice_.within(61, 140));
    limits_.generated_tokens = dice_.chance(50) ? 0 : dice_.within(1, 20);
    limits_.step_tokens = dice_.within(1, 5);
    limits_.step_sequences = dice_.chance(70) ? 0 : dice_.within(1, 4);
    limits_.pool_runs = dice_.chance(50) ? 0 : dice_.chance(70) ? dice_.within(1, 8) : 1000;
    limits_.far_tokens = dice_.chance(40) ? 0 : dice_.within(1, limits_.sequences * limits_.tokens);
    b_.window = dice_.chance(40) ? 0 : dice_.chance(90) ? dice_.within(1, 12) : 1000;
    b_.tokens = dice_.chance(70) ? dice_.within(1, 24) : 0;
    b_.share = b_.tokens > 0 ? 0 : double(dice_.within(1, 8)) / 8;
    b_.dense_layers = dice_.chance(80) ? 0 : 1;
    // What a cache makes of them.
    tokens_ = limits_.tokens;
    generated_ = limits_.generated_tokens == 0 ? tokens_ : std::min(limits_.generated_tokens, tokens_);
    step_tokens_ = std::min(limits_.step_tokens, tokens_);
    step_sequences_ = limits_.step_sequences == 0 ? limits_.sequences : std::min<i64>(limits_.step_sequences, limits_.sequences);
    window_ = std::min(b_.window, tokens_);
    sinks_ = std::min(b_.sinks, tokens_);
    i64 const a_sequence = (tokens_ + map_type::page_tokens - 1) / map_type::page_tokens;
    page_count_ = limits_.far_tokens > 0 ? (limits_.far_tokens + map_type::page_tokens - 1) / map_type::page_tokens : limits_.sequences * a_sequence;
    near_room_ = std::min(tokens_, B - 1 + (S::keeps_generated ? window_ + generated_ : std::max(window_, step_tokens_) + step_tokens_));
  }
  i64 budget_blocks(i64 prompt) const {
    i64 const n = b_.tokens > 0 ? b_.tokens : std::max<i64>(1, i64(b_.share * double(prompt)));
    return std::max<i64>(1, n / B);
  }
  i64 most_selected(i64 budget, i64 blocks) const { return S::select::reads_scores ? std::min(budget, blocks) : 0; }

  void open_cache() {
    say("cache: ", layers_, " layers, ", heads_, " KV heads, group ", shape_.group(), ", sequences ", limits_.sequences, ", tokens ", tokens_, ", generated ",
        generated_, ", step_tokens ", step_tokens_, ", step_sequences ", step_sequences_, ", pool_runs ", limits_.pool_runs, ", pages ", page_count_,
        ", sinks ", sinks_, ", window ", window_, ", budget ", b_.tokens, " or ", b_.share, ", dense_layers ", b_.dense_layers);
    auto const make = [&] { cache_.emplace(on_, shape_, limits_, b_); };
    cache_.reset();
    if (attempt(true, make) != outcome::done) {
      require(!disk.files.count("far"), "a cache that was not made leaves its file");
      make();
    }
    sequences_.assign(std::size_t(limits_.sequences), {});
    users_.assign(std::size_t(page_count_), 0);
    step_.clear();
    rows_ = 0;
    is_appended_.assign(std::size_t(layers_), 0);
    pool_share_ = -1;
  }
  void close() {
    say("close");
    cache_->discard();
    for (i64 i = 0; i < limits_.sequences; ++i)
      if (sequences_[std::size_t(i)].phase != phase::free) cache_->free(sequence_id(i));
    if (is_filed || dice_.chance(30)) {  // all of far memory and all sequences are there again
      std::vector<float> x(std::size_t(layers_ * tokens_ * width()), 0.5f);
      i64 left = page_count_;
      for (i64 i = 0; i < limits_.sequences; ++i) {
        i64 const n = std::min(tokens_, left * map_type::page_tokens + sinks_ + window_ + B - 1);
        auto const id = cache_->begin_prompt(prompt_staging<float>{x.data(), x.data(), n, n});
        if (n > 0) cache_->finish_prompt(on_, id);
        left -= pages_of(blocks_before_window(n, 0));
      }
      bool is_full = false;
      try {
        cache_->begin_prompt(prompt_staging<float>{x.data(), x.data(), 1, 1});
      } catch (precondition_error const&) {
        is_full = true;
      }
      require(is_full, "there are more sequences than limits.sequences");
    }
    cache_.reset();
    require(!disk.files.count("far"), "a cache leaves its file");
  }

  // One call: with faults, perhaps, and the rules for what may come of it.

  outcome attempt(bool is_valid, auto const& call, bool is_damaged = false) {
    if (is_faulty_ && dice_.chance(30)) {
      if (dice_.chance(is_filed ? 35 : 60)) {
        memory.stays = dice_.chance(30);
        memory.left = dice_.below(1 << dice_.below(5));
        memory.is_armed = !CELLAR_UNDER_ADDRESS_SANITIZER;
        say("  memory fails at ", memory.left);
      } else {
        disk.how = damage(dice_.within(1, 4));
        disk.left = dice_.below(1 << dice_.below(6));
        say("  the disk fails at ", disk.left, ", in way ", int(disk.how));
      }
    }
    memory.has_failed = disk.has_failed = disk.has_lied = false;
    outcome result = outcome::done;
    char const* wrong = nullptr;
    try {
      call();
    } catch (precondition_error const& e) {
      memory.is_armed = false;
      result = outcome::refused;
      if (is_valid && !is_damaged && !disk.has_lied) wrong = "refused what is valid";
      if (log_) *log_ << "  refused: " << e.what() << '\n';
    } catch (io_error const& e) {
      memory.is_armed = false;
      result = outcome::failed;
      if (!disk.has_failed && !disk.has_lied && !is_damaged) wrong = "an io_error without a fault";
      if (log_) *log_ << "  failed: " << e.what() << '\n';
    } catch (std::bad_alloc const&) {
      memory.is_armed = false;
      result = outcome::failed;
      if (!memory.has_failed) wrong = "a bad_alloc without a fault";
      say("  failed: no memory");
    }
    memory.is_armed = false;
    disk.how = damage::none;
    counts.faults += memory.has_failed || disk.has_failed || disk.has_lied;
    counts.refusals += result == outcome::refused;
    has_failed_ |= result == outcome::failed;
    if (wrong) throw disagreement{wrong};
    if (result == outcome::done) {
      require(is_valid, "accepted what cannot be done");
      require(!disk.has_failed, "a failed transfer was taken for a success");
      require(!disk.has_lied && !is_damaged, "damaged bytes were taken for data");
    }
    return result;
  }
  /// A call that is not made to fail.
  void certain(bool is_valid, auto const& call) {
    bool const was_faulty = std::exchange(is_faulty_, false);
    attempt(is_valid, call);
    is_faulty_ = was_faulty;
  }

  void check_state() {
    i64 const token = heads_ * 2 * d * i64(sizeof(float));
    auto const& map = cache_->map();
    bool const asks_refusals = dice_.chance(2);
    for (i64 i = 0; i < limits_.sequences; ++i) {
      sequence const& s = sequences_[std::size_t(i)];
      sequence_id const id{int(i)};
      if (s.phase != phase::decode) {
        if (asks_refusals) certain(false, [&] { cache_->length(id); });
        continue;
      }
      require(cache_->length(id) == s.length, "length");
      require(cache_->sealed_blocks(id) == s.sealed, "sealed_blocks");
      require(cache_->selected_blocks(id) == s.selected, "selected_blocks");
      auto const u = cache_->usage(id);
      i64 const near = s.length - s.sealed * B, beyond = S::keeps_generated ? near : std::max<i64>(0, near - sinks_ - window_);
      i64 const generated = std::min(beyond, s.length - s.prompt_tokens);
      require(u.generated == generated * token, "usage: generated");
      require(u.always_near == (near - generated) * token, "usage: always_near");
      i64 const stored = discards() ? 0 : s.sealed;
      require(u.far == stored * map.geometry().block_bytes(), "usage: far");
      require(u.summary == map.tile_copies() * ((stored + tile_blocks - 1) / tile_blocks) * map.tile() + map.state_sequence(), "usage: summary");
      if (pool_share_ < 0) pool_share_ = u.pool;
      require(u.pool == pool_share_ && (is_filed || u.pool == 0), "usage: pool");
    }
  }

  /// Pages that a failed call took are there again: a prompt that needs all of them fits.
  void check_free_pages() {
    i64 const slot = free_slot(), n = std::min(tokens_, free_pages() * map_type::page_tokens + sinks_ + window_);
    if (slot < 0 || n < 1 || pages_of(blocks_before_window(n, 0)) < free_pages()) return;
    std::vector<float> x(std::size_t(layers_ * n * width()), 0.5f);
    certain(true, [&] { cache_->finish_prompt(on_, cache_->begin_prompt(prompt_staging<float>{x.data(), x.data(), n, n})); });
    certain(true, [&] { cache_->free(sequence_id(slot)); });
  }

  // Arithmetic.

  i64 width() const { return i64{heads_} * d; }
  i64 at(i64 layer, i64 position, i64 head = 0) const { return ((layer * room_ + position) * heads_ + head) * d; }
  /// What leaves the window is lost, and needs no page.
  bool discards() const { return std::is_same_v<typename S::select, select::none> && b_.dense_layers == 0; }
  i64 pages_of(i64 blocks) const { return discards() ? 0 : (blocks + map_type::page_blocks - 1) / map_type::page_blocks; }
  i64 blocks_before_window(i64 length, i64 new_tokens) const { return std::max<i64>(0, length - std::max(window_, new_tokens) - sinks_) / B; }
  i64 sealed_after(sequence const& s, i64 n) const { return S::keeps_generated ? s.sealed : std::max(s.sealed, blocks_before_window(s.length + n, n)); }
  i64 free_pages() const { return std::count(users_.begin(), users_.end(), 0); }
  void take_pages(sequence& s, i64 n) {
    for (int p = 0; n > 0; ++p)
      if (users_[std::size_t(p)] == 0) users_[std::size_t(p)] = 1, s.pages.push_back(p), --n;
  }
  void give_pages(sequence& s, i64 kept) {
    for (; i64(s.pages.size()) > kept; s.pages.pop_back()) --users_[std::size_t(s.pages.back())];
  }
  i64 used_pages(sequence const& s) const { return pages_of(s.sealed + (s.kept > 0)); }
  /// The next block lies in the last page, which is there already.
  bool goes_on_in_page(sequence const& s, i64 sealed) const { return sealed > s.sealed && i64(s.pages.size()) > s.sealed / map_type::page_blocks; }
  bool is_open() const { return rows_ > 0 && std::count(is_appended_.begin(), is_appended_.end(), 1) < layers_; }
  bool is_in_step(i64 slot) const {
    return std::any_of(step_.begin(), step_.end(), [&](entry const& e) { return e.slot == slot; });
  }
  bool is_busy(i64 slot) const { return is_open() && is_in_step(slot); }
  void end_step() {
    step_.clear();
    rows_ = 0;
    std::fill(is_appended_.begin(), is_appended_.end(), 0);
  }
  i64 free_slot() const {
    for (i64 i = 0; i < limits_.sequences; ++i)
      if (sequences_[std::size_t(i)].phase == phase::free) return i;
    return -1;
  }
  bool has(i64 slot, phase wanted) const { return slot >= 0 && slot < limits_.sequences && sequences_[std::size_t(slot)].phase == wanted; }
  /// A slot in that phase where there is one, and now and then any number.
  i64 choose(phase wanted) {
    if (dice_.chance(4)) return dice_.within(-1, limits_.sequences);
    i64 const first = dice_.below(limits_.sequences);
    for (i64 i = 0; i < limits_.sequences; ++i)
      if (i64 const slot = (first + i) % limits_.sequences; sequences_[std::size_t(slot)].phase == wanted) return slot;
    return first;
  }

  // Policies, bound as a cache binds them.

  static constexpr int tile_blocks = S::summary::tile_blocks;
  template <class Policy>
  static constexpr bool is_shared = scope_of<Policy> == scope::all_heads;
  template <class Policy>
  i64 channels() const {
    return is_shared<Policy> ? width() : d;
  }
  template <class Policy>
  Policy of_head(i64 head) const {
    Policy p{};
    if constexpr (of_all_heads<Policy>) p = p.of_head(int(head), heads_);
    if constexpr (block_aware<Policy>) p = p.of_blocks(B);
    if constexpr (rotary_aware<Policy>) p = p.with(shape_.rotary);
    return p;
  }
  template <class Policy>
  i64 state_bytes() const {
    if constexpr (trained<Policy>)
      return (of_head<Policy>(0).state_bytes(channels<Policy>()) + 15) / 16 * 16;
    else
      return 0;
  }
  template <class Policy>
  Policy bound(sequence const& s, int which, i64 layer, i64 head, i64 position) const {
    Policy p = of_head<Policy>(head);
    if constexpr (trained<Policy>) p = p.bind(s.states[which].data() + (layer * heads_ + head) * state_bytes<Policy>());
    if constexpr (positional<Policy>) p = p.at(position);
    return p;
  }
  template <class Policy>
  void train(sequence& s, int which, std::vector<float> const& rows) {
    if constexpr (trained<Policy>) {
      static_assert(!is_shared<Policy> && !trains_in_scratch<Policy>);
      s.states[which].assign(std::size_t(layers_ * heads_ * state_bytes<Policy>()), {});
      serial_team t(nullptr, 0, host::executor().kernels());  // as the cache codes
      for (i64 layer = 0; layer < layers_; ++layer)
        for (i64 head = 0; head < heads_; ++head)
          of_head<Policy>(head).train(t, matrix_view<float const, d>{rows.data() + at(layer, 0, head), s.length, width()}, 0,
                                      s.states[which].data() + (layer * heads_ + head) * state_bytes<Policy>());
    }
  }
  /// Codes a block's rows from token `first` on, and decodes them to where they are read.
  template <class Codec>
  void code(sequence& s, int side, i64 layer, i64 position, i64 kept) {
    i64 const first = kept / Codec::token_group * Codec::token_group, n = B - first, groups = n / Codec::token_group;
    if (n == 0) return;
    serial_team t(nullptr, 0, host::executor().kernels());  // as the cache codes
    float const* const from = s.near[side].data() + at(layer, position + first);
    float* const to = s.far[side].data() + at(layer, position + first);
    row_bytes const size = of_head<Codec>(0).bytes(channels<Codec>());
    codes_.resize(std::size_t(groups * (size.codes + size.scales)) + 1);
    row_parts<std::byte> const parts{codes_.data(), codes_.data() + groups * size.codes, size.codes, size.scales};
    if constexpr (is_shared<Codec>) bound<Codec>(s, side, layer, 0, position + first).encode(t, matrix_view<float const>{from, n, width(), width()}, parts);
    for (i64 head = 0; head < heads_; ++head) {
      auto const codec = bound<Codec>(s, side, layer, head, position + first);
      if constexpr (!is_shared<Codec>) codec.encode(t, matrix_view<float const, d>{from + head * d, n, width()}, parts);
      codec.decode(t, row_parts<std::byte const>(parts), matrix_view<float, d>{to + head * d, n, width()});
    }
  }
  i64 tile_copies() const { return is_shared<typename S::summary> ? 1 : heads_; }
  std::byte* tile(sequence& s, i64 layer, i64 head, i64 block) const {
    i64 const tiles = room_ / (B * tile_blocks) + 1, copy = is_shared<typename S::summary> ? 0 : head;
    return s.tiles.data() + ((layer * tile_copies() + copy) * tiles + block / tile_blocks) * tile_bytes();
  }
  i64 tile_bytes() const { return (of_head<typename S::summary>(0).tile_bytes(channels<typename S::summary>()) + 15) / 16 * 16; }
  void seal(sequence& s, i64 layer, i64 block, i64 kept) {
    using summary = typename S::summary;
    i64 const position = sinks_ + block * B;
    code<typename S::key_codec>(s, 0, layer, position, kept);
    code<typename S::value_codec>(s, 1, layer, position, kept);
    serial_team t(nullptr, 0, host::executor().kernels());  // as the cache codes
    float const* const keys = s.near[0].data() + at(layer, position);
    for (i64 copy = 0; copy < tile_copies(); ++copy) {
      auto const policy = bound<summary>(s, 2, layer, copy, position);
      if constexpr (is_shared<summary>)
        policy.build(t, matrix_view<float const>{keys, B, width(), width()}, 1, tile(s, layer, copy, block), int(block % tile_blocks));
      else
        policy.build(t, matrix_view<float const, d>{keys + copy * d, B, width()}, 1, tile(s, layer, copy, block), int(block % tile_blocks));
    }
    ++counts.seals;
  }

  // Operations.

  void operate() {
    if (is_open() && dice_.chance(6)) return discard();
    if (is_open() && dice_.chance(80)) return dice_.chance(60) ? append() : attend();
    if (rows_ > 0 && !is_open() && dice_.chance(35)) return attend();
    auto const count = [&](phase wanted) { return std::count_if(sequences_.begin(), sequences_.end(), [&](sequence const& s) { return s.phase == wanted; }); };
    i64 const prompts = count(phase::prompt), decoding = count(phase::decode);
    if (prompts > 0 && dice_.chance(50)) return finish_prompt();
    if (prompts + decoding < (decoding > 0 ? dice_.below(limits_.sequences + 1) : 1)) return dice_.chance(40) ? fork_or_restore() : begin_prompt();
    i64 const x = dice_.below(100);
    if (x < 2) return begin_prompt();
    if (x < 3) return append_chunk();
    if (x < 5) return finish_prompt();
    if (x < 55) return plan();
    if (x < 56) return append();
    if (x < 57) return attend();
    if (x < 62) return discard();
    if (x < 71) return truncate();
    if (x < 84) return fork();
    if (x < 89) return free();
    if (x < 92) return save();
    if (x < 94) return restore();
    if (x < 98) return prefetch();
    if (x < 99) return mistake();
    if (dice_.chance(60)) return;
    say("another cache");
    if (dice_.chance(10)) b_.sinks = dice_.below(4);
    choose_limits(room_ - 1);
    open_cache();
  }

  void fork_or_restore() { dice_.chance(75) ? fork() : restore(); }

  void begin_prompt() {
    i64 const slot = free_slot();
    sequence s;
    s.target = dice_.chance(4) ? tokens_ + 1 : dice_.chance(50) ? dice_.within(1, tokens_) : dice_.within(tokens_ / 2 + 1, tokens_);
    s.capacity = s.target + dice_.below(3);
    i64 const filled = dice_.chance(50) ? s.target : dice_.below(s.target);
    s.filled.assign(std::size_t(layers_), filled);
    for (int side = 0; side < 2; ++side) {
      s.near[side].resize(std::size_t(layers_ * room_ * width()));
      s.staging[side].assign(std::size_t(layers_ * s.capacity * width()), std::nanf(""));
    }
    if (s.target <= room_)
      for (i64 layer = 0; layer < layers_; ++layer)
        for (int side = 0; side < 2; ++side)
          for (i64 i = 0; i < s.target * width(); ++i) {
            float const x = dice_.number();
            s.near[side][std::size_t(at(layer, 0) + i)] = x;
            if (i < filled * width()) s.staging[side][std::size_t(layer * s.capacity * width() + i)] = x;
          }
    bool const is_null = dice_.chance(2), is_over = dice_.chance(2);
    prompt_staging<float> const staging{is_null ? nullptr : s.staging[0].data(), s.staging[1].data(), s.capacity, is_over ? s.capacity + 1 : filled};
    say("begin_prompt of ", s.target, ", ", staging.filled, " filled");
    sequence_id id{-1};
    if (attempt(slot >= 0 && !is_null && !is_over && filled <= tokens_, [&] { id = cache_->begin_prompt(staging); }) != outcome::done) return;
    require(number(id) == slot, "an id that is in use, or not the first free one");
    s.phase = phase::prompt;
    sequences_[std::size_t(slot)] = std::move(s);  // buffers keep their addresses
  }

  void append_chunk() {
    i64 const slot = choose(phase::prompt);
    if (!has(slot, phase::prompt)) {
      if (dice_.chance(80)) return plan();
      say("append_chunk to no prompt ", slot);
      float x[3 * d] = {};
      auto const rows = packed_heads<float const>(x, 1, heads_, d);
      attempt(false, [&] { cache_->append_chunk(on_, sequence_id(slot), 0, rows, rows); });
      return;
    }
    sequence& s = sequences_[std::size_t(slot)];
    for (i64 layer = dice_.chance(80) ? 0 : dice_.within(-1, layers_); layer <= layers_; ++layer) {
      bool const has_layer = layer >= 0 && layer < layers_;
      if (layer == layers_ && !dice_.chance(5)) break;
      i64 const filled = has_layer ? s.filled[std::size_t(layer)] : 0, rest = s.target - filled;
      if (rest == 0 && dice_.chance(95)) continue;
      i64 const n = dice_.chance(50) ? rest : dice_.chance(95) ? dice_.within(rest > 0, rest) : s.capacity - filled + 1;
      std::vector<float> x[2];
      for (int side = 0; side < 2; ++side) {
        x[side].resize(std::size_t(std::max<i64>(n, 1) * width()));
        if (has_layer && filled + n <= room_) std::copy_n(s.near[side].begin() + at(layer, filled), n * width(), x[side].begin());
      }
      say("append_chunk of ", n, " to ", slot, ", layer ", layer);
      bool const is_valid = has_layer && n > 0 && filled + n <= s.capacity && filled + n <= tokens_ && filled + n <= s.target;
      if (!is_valid && has_layer && n > 0 && filled + n <= s.capacity) continue;  // beyond the target, which the model holds no rows for
      if (attempt(is_valid, [&] {
            cache_->append_chunk(on_, sequence_id(slot), int(layer), packed_heads<float const>(x[0].data(), n, heads_, d),
                                 packed_heads<float const>(x[1].data(), n, heads_, d));
          }) == outcome::done)
        s.filled[std::size_t(layer)] += n;
    }
  }

  void finish_prompt() {
    i64 const slot = choose(phase::prompt);
    bool is_valid = has(slot, phase::prompt);
    float* poisoned = nullptr;
    float kept = 0;
    i64 sealed = 0;
    if (is_valid) {
      sequence& s = sequences_[std::size_t(slot)];
      i64 const n = s.filled[0];
      if (n < s.target && dice_.chance(80)) return append_chunk();
      is_valid = n > 0 && std::count(s.filled.begin(), s.filled.end(), n) == layers_;
      sealed = blocks_before_window(n, 0);
      is_valid = is_valid && pages_of(sealed) <= free_pages();
      if (is_valid && dice_.chance(3)) {
        poisoned = &s.staging[dice_.below(2)][std::size_t(dice_.below(n * width()))];
        kept = std::exchange(*poisoned, dice_.chance(50) ? infinity : std::nanf(""));
        is_valid = false;
      }
    }
    say("finish_prompt of ", slot, is_valid ? "" : ", which cannot be");
    auto const result = attempt(is_valid, [&] { cache_->finish_prompt(on_, sequence_id(slot)); });
    if (poisoned) *poisoned = kept;
    if (result != outcome::done) return;
    sequence& s = sequences_[std::size_t(slot)];
    for (auto& x : s.staging) std::fill(x.begin(), x.end(), std::nanf("")), x.clear(), x.shrink_to_fit();
    s.phase = phase::decode;
    s.prompt_tokens = s.length = s.filled[0];
    s.sealed = sealed;
    s.selected = budget_blocks(s.length);
    if (b_.tokens == 0 && b_.share <= 0) s.selected = 0;
    for (auto& x : s.far) x.resize(s.near[0].size());
    s.tiles.resize(std::size_t(layers_ * tile_copies() * (room_ / (B * tile_blocks) + 1) * tile_bytes()));
    take_pages(s, pages_of(sealed));
    train<typename S::key_codec>(s, 0, s.near[0]);
    train<typename S::value_codec>(s, 1, s.near[1]);
    train<typename S::summary>(s, 2, s.near[0]);
    for (i64 layer = 0; layer < layers_; ++layer)
      for (i64 b = 0; b < sealed; ++b) seal(s, layer, b, 0);
  }

  void plan() {
    std::vector<batch_entry> batch;
    i64 const first = dice_.below(limits_.sequences), most = dice_.within(1, limits_.sequences);
    for (i64 i = 0; i < limits_.sequences && i64(batch.size()) < most; ++i) {
      i64 const slot = dice_.chance(2) ? dice_.within(-1, limits_.sequences) : (first + i * (limits_.sequences == 3 ? 2 : 1)) % limits_.sequences;
      if (!has(slot, phase::decode) && !dice_.chance(2)) continue;
      i64 const n = dice_.chance(60) ? 1 : dice_.chance(94) ? dice_.within(1, step_tokens_) : dice_.within(-1, step_tokens_ + 1);
      batch.push_back({sequence_id(slot), n});
    }
    if (batch.empty() && !dice_.chance(10)) return begin_prompt();
    // May it be, and what does it take?
    bool is_valid = !batch.empty() && i64(batch.size()) <= step_sequences_ && !is_open();
    auto users = users_;
    i64 needed = 0;
    for (std::size_t i = 0; i < batch.size() && is_valid; ++i) {
      i64 const slot = number(batch[i].sequence), n = batch[i].new_tokens;
      is_valid = has(slot, phase::decode) && n > 0 && n <= step_tokens_;
      for (std::size_t j = 0; j < i; ++j) is_valid = is_valid && batch[j].sequence != batch[i].sequence;
      if (!is_valid) break;
      sequence const& s = sequences_[std::size_t(slot)];
      is_valid = s.length + n <= tokens_ && (!S::keeps_generated || s.length + n - s.prompt_tokens <= generated_) &&
                 s.length + n - sinks_ - s.sealed * B <= near_room_;
      i64 const sealed = sealed_after(s, n);
      if (goes_on_in_page(s, sealed) && users[std::size_t(s.pages.back())] > 1) --users[std::size_t(s.pages.back())], ++needed;
      needed += std::max<i64>(0, pages_of(sealed) - i64(s.pages.size()));
    }
    is_valid = is_valid && needed <= free_pages();
    if (log_) {
      *log_ << "plan" << (is_valid ? "" : " of what cannot be");
      for (auto const& e : batch) *log_ << ", " << e.new_tokens << " of " << number(e.sequence);
      *log_ << '\n';
    }
    if (attempt(is_valid, [&] { cache_->plan(on_, {batch.data(), i64(batch.size())}); }) != outcome::done) return;
    end_step();
    for (auto const& e : batch) {
      i64 const slot = number(e.sequence);
      sequence& s = sequences_[std::size_t(slot)];
      i64 const sealed = sealed_after(s, e.new_tokens);
      if (goes_on_in_page(s, sealed) && users_[std::size_t(s.pages.back())] > 1) {
        give_pages(s, i64(s.pages.size()) - 1);
        take_pages(s, 1);
        ++counts.copies;
      }
      take_pages(s, pages_of(sealed) - i64(s.pages.size()));
      step_.push_back({slot, e.new_tokens, rows_, s.sealed, s.kept});
      rows_ += e.new_tokens;
      s.length += e.new_tokens;
      if (sealed > s.sealed) s.kept = 0;
      s.sealed = sealed;
    }
    for (auto& x : step_rows_) {
      x.resize(std::size_t(layers_ * rows_ * width()));
      dice_.fill(x);
    }
  }

  void discard() {
    say("discard");
    certain(true, [&] { cache_->discard(); });
    if (is_open())
      for (entry const& e : step_) {
        sequence& s = sequences_[std::size_t(e.slot)];
        s.length -= e.new_tokens;
        s.sealed = e.sealed_before;
        s.kept = e.kept;
        give_pages(s, used_pages(s));
      }
    end_step();
  }

  void append() {
    i64 layer = dice_.below(layers_);
    if (rows_ > 0 && is_appended_[std::size_t(layer)] && dice_.chance(85)) layer = layers_ - 1 - layer;
    if (dice_.chance(2)) layer = dice_.chance(50) ? -1 : layers_;
    bool is_valid = rows_ > 0 && layer >= 0 && layer < layers_ && !is_appended_[std::size_t(layer)];
    i64 n = rows_;
    if (rows_ == 0 || dice_.chance(2)) is_valid = false, ++n;
    std::vector<float> x[2];
    for (int side = 0; side < 2; ++side) {
      x[side].resize(std::size_t(n * width()), 0.0f);
      if (is_valid) std::copy_n(step_rows_[side].begin() + layer * rows_ * width(), rows_ * width(), x[side].begin());
    }
    if (is_valid && dice_.chance(3)) {
      x[dice_.below(2)][std::size_t(dice_.below(n * width()))] = dice_.chance(50) ? std::nanf("") : -infinity;
      is_valid = false;
    }
    say("append to layer ", layer, is_valid ? "" : ", which cannot be");
    if (attempt(is_valid, [&] {
          cache_->append(on_, int(layer), packed_heads<float const>(x[0].data(), n, heads_, d), packed_heads<float const>(x[1].data(), n, heads_, d));
        }) != outcome::done)
      return;
    is_appended_[std::size_t(layer)] = 1;
    for (entry const& e : step_) {
      sequence& s = sequences_[std::size_t(e.slot)];
      for (int side = 0; side < 2; ++side)
        std::copy_n(x[side].begin() + e.first_row * width(), e.new_tokens * width(), s.near[side].begin() + at(layer, s.length - e.new_tokens));
      for (i64 b = e.sealed_before; b < s.sealed; ++b) seal(s, layer, b, b == e.sealed_before ? e.kept : 0);
    }
  }

  void attend() {
    i64 layer = dice_.below(layers_);
    if (rows_ > 0 && !is_appended_[std::size_t(layer)] && dice_.chance(80)) layer = layers_ - 1 - layer;
    if (dice_.chance(2)) layer = dice_.chance(50) ? -1 : layers_;
    bool is_valid = rows_ > 0 && layer >= 0 && layer < layers_ && is_appended_[std::size_t(layer)];
    i64 n = rows_;
    if (rows_ == 0 || dice_.chance(2)) is_valid = false, ++n;
    std::vector<float> q(std::size_t(n * shape_.query_heads * d)), out(q.size(), std::nanf(""));
    dice_.fill(q);
    if (is_valid && dice_.chance(2)) q[std::size_t(dice_.below(i64(q.size())))] = infinity, is_valid = false;
    say("attend in layer ", layer, is_valid ? "" : ", which cannot be");
    if (attempt(is_valid, [&] {
          cache_->attend(on_, int(layer), packed_heads<float const>(q.data(), n, shape_.query_heads, d), packed_heads(out.data(), n, shape_.query_heads, d));
        }) != outcome::done)
      return;
    ++counts.attends;
    for (std::size_t i = 0; i < step_.size(); ++i)
      for (i64 head = 0; head < heads_; ++head) check_head(layer, i, head, q, out);
  }
  void check_head(i64 layer, std::size_t i, i64 head, std::vector<float> const& q, std::vector<float> const& out) {
    entry const& e = step_[i];
    sequence& s = sequences_[std::size_t(e.slot)];
    i64 const group = shape_.group(), tail = sinks_ + s.sealed * B, rows = e.new_tokens * group;
    scaled_.resize(std::size_t(rows * d));
    for (i64 r = 0; r < rows; ++r)
      for (int c = 0; c < d; ++c)
        scaled_[std::size_t(r * d + c)] = q[std::size_t(((e.first_row + r / group) * shape_.query_heads + head * group + r % group) * d + c)] * shape_.scale();
    auto const selected = cache_->selected(i64(i), int(head));
    require(selected.has_value() == !(selects_all || layer < b_.dense_layers), "whether blocks are selected");
    positions_.clear();
    for (i64 p = 0; p < std::min(sinks_, s.length); ++p) positions_.push_back(p);
    if (selected) {
      require(selected->count == most_selected(s.selected, s.sealed), "the count of selected blocks");
      i64 last = -1;
      for (logical_block const b : *selected) {
        require(number(b) > last && number(b) < s.sealed, "selected blocks are not ascending, or not sealed");
        last = number(b);
      }
      if constexpr (S::select::reads_scores) check_selection(s, layer, head, *selected);
    }
    for (i64 j = 0; j < (selected ? selected->count : s.sealed); ++j)
      for (i64 k = 0; k < B; ++k) positions_.push_back(sinks_ + (selected ? number((*selected)[j]) : j) * B + k);
    for (i64 p = std::max(sinks_, tail); p < s.length; ++p) positions_.push_back(p);
    for (i64 r = 0; r < rows; ++r) {
      i64 const position = s.length - e.new_tokens + r / group;
      logits_.clear();
      double top = -1e300, sum = 0, expected[d] = {};
      for (i64 const p : positions_) {
        if (p > position) break;
        float const* const k = s_row(s, 0, layer, p, head, tail);
        double x = 0;
        for (int c = 0; c < d; ++c) x += double(scaled_[std::size_t(r * d + c)]) * double(k[c]);
        logits_.push_back(x);
        top = std::max(top, x);
      }
      for (std::size_t j = 0; j < logits_.size(); ++j) {
        double const w = std::exp(logits_[j] - top);
        float const* const v = s_row(s, 1, layer, positions_[j], head, tail);
        sum += w;
        for (int c = 0; c < d; ++c) expected[c] += w * double(v[c]);
      }
      i64 const first = ((e.first_row + r / group) * shape_.query_heads + head * group + r % group) * d;
      for (int c = 0; c < d; ++c)
        if (!(std::abs(double(out[std::size_t(first + c)]) - expected[c] / sum) <= rounding)) {
          std::ostringstream text;
          text << "sequence " << e.slot << ", layer " << layer << ", head " << head << ", query row " << r << ", channel " << c << ": "
               << out[std::size_t(first + c)] << " for " << expected[c] / sum;
          throw disagreement{text.str()};
        }
      counts.checks += d;
    }
  }
  float const* s_row(sequence const& s, int side, i64 layer, i64 p, i64 head, i64 tail) const {
    return (p >= sinks_ && p < tail ? s.far : s.near)[side].data() + at(layer, p, head);
  }
  /// No block that was left out scores higher than one that was taken.
  void check_selection(sequence& s, i64 layer, i64 head, row_view<logical_block const> selected) {
    if (s.sealed == 0) return;
    using summary = typename S::summary;
    i64 const rows = i64(scaled_.size()) / d, padded = (s.sealed + tile_blocks - 1) / tile_blocks * tile_blocks;
    serial_team t(nullptr, 0, host::executor().kernels());  // as the cache codes
    auto const policy = bound<summary>(s, 2, layer, head, sinks_);
    prepared_.resize(std::size_t(policy.prepared_bytes(rows, d)));
    scratch_.resize(std::size_t(policy.scratch_bytes(d)));
    scores_.resize(std::size_t((rows + 1) * padded));
    policy.prepare(t, matrix_view<float const, d>{scaled_.data(), rows}, prepared_queries<std::byte, d>{prepared_.data(), rows, scratch_.data()});
    for (i64 b = 0; b < s.sealed; b += tile_blocks)
      bound<summary>(s, 2, layer, head, sinks_ + b * B)
          .score_tile(t, prepared_queries<std::byte const, d>{prepared_.data(), rows, scratch_.data()}, tile(s, layer, head, b),
                      matrix_view<float>{scores_.data() + b, rows, padded, tile_blocks});
    float* const reduced = scores_.data() + rows * padded;
    typename S::reduce{}(t, matrix_view<float const>{scores_.data(), rows, padded, s.sealed}, row_view<float>{reduced, s.sealed});
    float lowest = infinity, highest = -infinity;
    i64 next = 0;
    for (i64 b = 0; b < s.sealed; ++b)
      if (next < selected.count && number(selected[next]) == b)
        lowest = std::min(lowest, reduced[b]), ++next;
      else
        highest = std::max(highest, reduced[b]);
    require(lowest >= highest - 1e-4f, "a block was selected in place of one that scores higher");
    ++counts.checks;
  }

  void truncate() {
    i64 const slot = choose(phase::decode);
    bool is_valid = has(slot, phase::decode) && !is_busy(slot);
    i64 length = 1;
    if (has(slot, phase::decode)) {
      i64 const all = sequences_[std::size_t(slot)].length;
      length = dice_.chance(4) ? 0 : dice_.chance(4) ? all + 1 : dice_.chance(50) ? dice_.within(std::max<i64>(1, all - 8), all) : dice_.within(1, all);
      is_valid = is_valid && length >= 1 && length <= all;
      if (discards()) is_valid = is_valid && length >= std::min(all, sinks_ + sequences_[std::size_t(slot)].sealed * B);
    }
    say("truncate ", slot, " to ", length);
    if (attempt(is_valid, [&] { cache_->truncate(on_, sequence_id(slot), length); }) != outcome::done) return;
    sequence& s = sequences_[std::size_t(slot)];
    i64 const begin_of_block = std::max<i64>(0, length - sinks_) / B;
    bool const is_cut = begin_of_block < s.sealed;
    s.sealed = std::min(s.sealed, begin_of_block);
    i64 const in_block = std::max<i64>(0, length - sinks_ - s.sealed * B);
    s.kept = is_cut ? in_block : std::min(s.kept, in_block);
    if (is_cut)  // what is left of the block is near as it was decoded
      for (i64 layer = 0; layer < layers_; ++layer)
        for (int side = 0; side < 2; ++side)
          std::copy_n(s.far[side].begin() + at(layer, sinks_ + s.sealed * B), in_block * width(), s.near[side].begin() + at(layer, sinks_ + s.sealed * B));
    s.length = length;
    s.prompt_tokens = std::min(s.prompt_tokens, length);
    give_pages(s, used_pages(s));
    if (is_in_step(slot)) end_step();
  }

  void fork() {
    i64 const slot = choose(phase::decode), to = free_slot();
    say("fork ", slot);
    sequence_id id{-1};
    if (attempt(has(slot, phase::decode) && !is_busy(slot) && to >= 0, [&] { id = cache_->fork(on_, sequence_id(slot)); }) != outcome::done) return;
    require(number(id) == to, "an id that is in use, or not the first free one");
    sequences_[std::size_t(to)] = sequences_[std::size_t(slot)];
    for (int const p : sequences_[std::size_t(to)].pages) ++users_[std::size_t(p)];
  }

  void free() {
    i64 const slot = choose(dice_.chance(85) ? phase::decode : phase::prompt);
    bool const is_valid = (has(slot, phase::decode) || has(slot, phase::prompt)) && !is_busy(slot);
    say("free ", slot);
    if (attempt(is_valid, [&] { cache_->free(sequence_id(slot)); }) != outcome::done) return;
    if (is_in_step(slot)) end_step();
    give_pages(sequences_[std::size_t(slot)], 0);
    sequences_[std::size_t(slot)] = {};
  }

  void save() {
    i64 const slot = choose(phase::decode);
    std::string const path = dice_.chance(70) ? "a" : "b";
    say("save ", slot, " to ", path);
    auto const result = attempt(has(slot, phase::decode) && !is_busy(slot), [&] { cache_->template save<memory_file>(on_, sequence_id(slot), path); });
    require(!disk.files.count(path + ".partial"), "an unfinished snapshot is left");
    if (result != outcome::done) return;
    saved_[path] = {sequences_[std::size_t(slot)], sinks_, discards()};
    saved_[path].s.pages.clear();
  }

  void restore() {
    std::string const path = dice_.chance(65) ? "a" : "b";
    i64 const to = free_slot();
    auto const file = disk.files.find(path);
    require((file != disk.files.end()) == (saved_.count(path) > 0), "a snapshot appeared or vanished");
    if (!saved_.count(path) && dice_.chance(80)) return save();
    bool is_valid = saved_.count(path) && to >= 0, is_damaged = false;
    if (saved_.count(path)) {
      auto const& [s, sinks, is_without_far] = saved_[path];
      is_valid = is_valid && sinks == sinks_ && is_without_far == discards() && s.length <= tokens_ &&
                 s.length - std::min(s.length, sinks_ + s.sealed * B) + (S::keeps_generated || s.length == tokens_ ? 0 : 1) <= near_room_;
      i64 const blocks = (tokens_ + B - 1) / B;
      is_valid = is_valid && (selects_all || most_selected(s.selected, blocks) <= most_selected(budget_blocks(tokens_), blocks));
      is_valid = is_valid && used_pages(s) <= free_pages();
      is_damaged = !file->second->damaged.empty();
    } else {
      is_damaged = true;  // is not there
    }
    say("restore from ", path, is_valid ? "" : ", which cannot be");
    sequence_id id{-1};
    if (attempt(
            is_valid, [&] { id = cache_->template restore<memory_file>(on_, path); }, is_damaged) != outcome::done)
      return;
    require(number(id) == to, "an id that is in use, or not the first free one");
    sequence& s = sequences_[std::size_t(to)] = saved_[path].s;
    take_pages(s, used_pages(s));
  }

  void prefetch() {
    i64 const slot = choose(phase::decode), layer = dice_.chance(97) ? dice_.below(layers_) : layers_, head = dice_.chance(97) ? dice_.below(heads_) : heads_;
    bool is_valid = has(slot, phase::decode) && layer < layers_ && head < heads_;
    i64 sealed = has(slot, phase::decode) && !discards() ? sequences_[std::size_t(slot)].sealed : 0;
    for (entry const& e : step_)
      if (!discards() && e.slot == slot && layer < layers_ && !is_appended_[std::size_t(layer)]) sealed = e.sealed_before;
    std::vector<logical_block> blocks;
    for (i64 i = dice_.below(8); i > 0; --i) blocks.push_back(logical_block(dice_.below(sealed + dice_.chance(3))));
    for (auto const b : blocks) is_valid = is_valid && number(b) < sealed;
    say("prefetch ", blocks.size(), " blocks of ", slot, ", layer ", layer, ", head ", head);
    attempt(is_valid, [&] { cache_->prefetch(on_, int(layer), sequence_id(slot), int(head), {blocks.data(), i64(blocks.size())}); });
  }

  /// What the other operations do not get wrong.
  void mistake() {
    say("mistakes");
    certain(false, [&] { cache_->plan(on_, {nullptr, 0}); });
    certain(false, [&] { cache_->selected(i64(step_.size()), 0); });
    certain(false, [&] { cache_->selected(0, heads_); });
    certain(false, [&] { cache_->usage(sequence_id(limits_.sequences)); });
    std::vector<f16> const other(static_cast<std::size_t>(width()));
    auto const rows = packed_heads<f16 const>(other.data(), 1, heads_, d);
    i64 const slot = choose(phase::prompt);
    certain(false, [&] { cache_->append_chunk(on_, sequence_id(slot), 0, rows, rows); });
  }

  dice dice_;
  std::ostream* log_;
  std::vector<double> frequencies_;
  model_shape shape_;
  int layers_, heads_;
  limits limits_;
  budget b_;
  i64 tokens_, generated_, step_tokens_, step_sequences_, window_, sinks_, page_count_, near_room_;
  i64 room_;  // tokens that the model holds rows for
  bool is_faulty_, has_failed_ = false;
  host::executor on_;
  std::optional<cache<S>> cache_;

  std::vector<sequence> sequences_;
  std::vector<int> users_;  // of a page
  std::vector<entry> step_;
  i64 rows_ = 0, pool_share_ = -1;
  std::vector<char> is_appended_;
  std::vector<float> step_rows_[2];  // [layer][row][head][channel]
  std::map<std::string, saved_sequence> saved_;

  std::vector<std::byte> codes_, prepared_, scratch_;
  std::vector<float> scaled_, scores_;
  std::vector<double> logits_;
  std::vector<i64> positions_;
};

template <class S>
void one(std::uint64_t seed, std::ostream* log) {
  schedule<S>(seed, log).run();
  ++counts.schedules;
}

/// A seed is a scheme, a tier and a schedule.
void run_seed(std::uint64_t seed, std::ostream* log) {
  using run = void (*)(std::uint64_t, std::ostream*);
  static constexpr auto runs = [] {
    if constexpr (is_sanitized)
      return std::array<run, 5>{one<groups>, one<shared_planes>, one<near_only>, one<filed<centred>>, one<filed<shared_planes>>};
    else
      return std::array<run, 14>{one<everything>,     one<bounds>,        one<single_tokens>,        one<centred>,         one<groups>,
                                 one<shared_planes>,  one<near_only>,     one<filed<everything>>,    one<filed<bounds>>,   one<filed<single_tokens>>,
                                 one<filed<centred>>, one<filed<groups>>, one<filed<shared_planes>>, one<filed<near_only>>};
  }();
  runs[seed % runs.size()](seed, log);
}

/// What went wrong, or nothing.
std::string outcome_of(std::uint64_t seed, std::ostream* log) {
  try {
    run_seed(seed, log);
    return {};
  } catch (disagreement const& e) {
    memory.is_armed = false;
    return e.what;
  } catch (std::exception const& e) {
    memory.is_armed = false;
    return std::string("an exception: ") + e.what();
  }
}

}  // namespace

TEST_CASE("random schedules of calls and faults end as a sequential model says") {
  i64 failures = 0;
  std::map<std::string, std::vector<std::uint64_t>> kinds;  // what went wrong: seeds
  for (std::uint64_t seed = first_seed; seed < first_seed + schedules && failures < 1000; ++seed) {
    std::string const what = outcome_of(seed, nullptr);
    if (what.empty()) continue;
    ++failures;
    kinds[what.substr(0, 24)].push_back(seed);
  }
  std::ostringstream told;
  for (auto const& [kind, seeds] : kinds) {
    told << "\n" << seeds.size() << " schedules, one of them seed " << seeds[0] << ":\n";
    std::string const what = outcome_of(seeds[0], &told);
    told << what << "\n";
  }
  INFO(told.str());
  INFO(failures << " schedules of " << counts.schedules + failures << " fail");
  CHECK(failures == 0);
  WARN(counts.schedules << " schedules, " << counts.operations << " operations, " << counts.refusals << " refused, " << counts.faults << " with faults, "
                        << counts.attends << " attends, " << counts.checks << " numbers compared, " << counts.seals << " blocks sealed, " << counts.copies
                        << " pages copied");
}

TEST_CASE("one schedule, told", "[.seed]") {
  std::ostringstream log;
  std::string const what = outcome_of(one_seed, &log);
  WARN("seed " << one_seed << "\n" << log.str() << (what.empty() ? "as the model says" : what));
  CHECK(what.empty());
}
