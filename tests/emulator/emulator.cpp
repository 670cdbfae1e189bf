// Fibres and rendezvous. Never compiled with -fsanitize=thread: it switches
// stacks and tells that sanitizer itself what happens.
#include "emulator/emulator.hpp"

#include <sys/mman.h>
#include <ucontext.h>

#include <algorithm>
#include <exception>
#include <map>
#include <memory>
#include <random>
#include <vector>

// The sanitizers' entry points; null where that sanitizer is not linked in.
extern "C" {
[[gnu::weak]] void __sanitizer_start_switch_fiber(void** fake_stack_save, void const* bottom, std::size_t size);
[[gnu::weak]] void __sanitizer_finish_switch_fiber(void* fake_stack_save, void const** bottom_old, std::size_t* size_old);
[[gnu::weak]] void __asan_poison_memory_region(void const volatile*, std::size_t);
[[gnu::weak]] void __asan_unpoison_memory_region(void const volatile*, std::size_t);
[[gnu::weak]] void* __asan_region_is_poisoned(void*, std::size_t);
[[gnu::weak]] void* __tsan_get_current_fiber();
[[gnu::weak]] void* __tsan_create_fiber(unsigned);
[[gnu::weak]] void __tsan_destroy_fiber(void*);
[[gnu::weak]] void __tsan_switch_to_fiber(void*, unsigned);
[[gnu::weak]] void __tsan_acquire(void*);
[[gnu::weak]] void __tsan_release(void*);
[[gnu::weak]] void __tsan_write_range(void*, long);  // long, as g++ predeclares it
[[gnu::weak]] void __tsan_read_range(void*, long);
[[gnu::weak]] void AnnotateIgnoreReadsBegin(char const*, int);
[[gnu::weak]] void AnnotateIgnoreReadsEnd(char const*, int);
[[gnu::weak]] void AnnotateIgnoreWritesBegin(char const*, int);
[[gnu::weak]] void AnnotateIgnoreWritesEnd(char const*, int);
}

#ifdef __x86_64__
// emulator_switch(&saved, to): keeps the callee-saved registers of the System V
// ABI on the stack, and takes the other stack's.
extern "C" void emulator_switch(void** saved, void* to);
asm(R"(
.text
.globl emulator_switch
.type emulator_switch,@function
emulator_switch:
  push %rbp
  push %rbx
  push %r12
  push %r13
  push %r14
  push %r15
  mov %rsp, (%rdi)
  mov %rsi, %rsp
  pop %r15
  pop %r14
  pop %r13
  pop %r12
  pop %rbx
  pop %rbp
  ret
.size emulator_switch, .-emulator_switch
)");
#endif

namespace emulator::detail {

namespace {

constexpr std::size_t stack_bytes = 256 * 1024, page = 4096, red_zone = 256;

enum class state : std::uint8_t { ready, waiting, done };

struct pending_copy {
  void* to;
  void const* from;
  int group;
};

bool operator==(place const& a, place const& b) { return a.line == b.line && std::string_view(a.what) == b.what && std::string_view(a.file) == b.file; }

// What the sanitizers are told; nothing where there is none.
bool const asan = __asan_poison_memory_region != nullptr, tsan = __tsan_create_fiber != nullptr;

void leave_stack(void** fake, void const* to_bottom, std::size_t to_size) {
  if (asan) __sanitizer_start_switch_fiber(fake, to_bottom, to_size);
}
void enter_stack(void* fake, void const** from_bottom, std::size_t* from_size) {
  if (asan) __sanitizer_finish_switch_fiber(fake, from_bottom, from_size);
}
void poison(void* p, std::size_t n) {
  if (asan) __asan_poison_memory_region(p, n);
}
void unpoison(void* p, std::size_t n) {
  if (asan) __asan_unpoison_memory_region(p, n);
}
bool is_poisoned(void const* p, std::size_t n) { return asan && __asan_region_is_poisoned(const_cast<void*>(p), n) != nullptr; }
void switch_tsan_fibre(void* to) {
  if (tsan) __tsan_switch_to_fiber(to, 1);  // 1: a switch orders nothing
}
void acquire(void* p) {
  if (tsan) __tsan_acquire(p);
}
void release(void* p) {
  if (tsan) __tsan_release(p);
}
void touches(void* written, void const* read) {
  if (!tsan) return;
  __tsan_write_range(written, 16);
  __tsan_read_range(const_cast<void*>(read), 16);
}
void ignore(bool on) {
  if (!tsan) return;
  (on ? AnnotateIgnoreReadsBegin : AnnotateIgnoreReadsEnd)("", 0);
  (on ? AnnotateIgnoreWritesBegin : AnnotateIgnoreWritesEnd)("", 0);
}

}  // namespace

struct running_block;

struct fibre {
  running_block* block = nullptr;
  unsigned rank = 0;
  char* stack = nullptr;
  void* stack_pointer = nullptr;
  ucontext_t context{};
  void* fake_stack = nullptr;
  void* tsan = nullptr;

  state now = state::ready;
  scope where{};  // what it waits at
  place at{};
  void* slot = nullptr;
  combine how = nullptr;
  void* how_context = nullptr;

  std::size_t allocations = 0;
  std::vector<pending_copy> copies;
  int group = 0;
  unsigned block_epoch = 0, warp_epoch = 0;
  std::exception_ptr error;
};

namespace {

struct shared_region {
  std::size_t offset, bytes;
  place at;
};

struct running_warp {
  int size = 0, arrived = 0;
  char order[2][8];  // two sync objects, by turns: a barrier's acquire must not
                     // see the next one's release
};

}  // namespace

struct running_block {
  launch_options const* options = nullptr;
  std::function<void(fibre*)> const* body = nullptr;
  unsigned index = 0;
  std::vector<fibre> fibres;
  std::vector<running_warp> warps;
  int arrived = 0;
  char order[2][8];
  char *started = nullptr, *finished = nullptr;  // of the launch

  char* arena = nullptr;
  std::size_t arena_bytes = 0, used = 0, declared = 0;
  std::vector<shared_region> regions;

  void* main_stack_pointer = nullptr;
  ucontext_t main_context{};
  void* main_fake_stack = nullptr;
  void* main_tsan = nullptr;
  void const* main_bottom = nullptr;
  std::size_t main_size = 0;
  fibre* running = nullptr;
  std::vector<fibre*> ready;
  std::mt19937_64 random;
};

namespace {

running_block* starting = nullptr;  // whose fibre enters next

std::string who_waits_where(running_block const& b) {
  std::string text;
  auto const same = [](fibre const& x, fibre const& y) { return x.now == y.now && (x.now == state::done || x.at == y.at); };
  for (std::size_t i = 0, j; i < b.fibres.size(); i = j) {
    for (j = i + 1; j < b.fibres.size() && same(b.fibres[i], b.fibres[j]);) ++j;
    fibre const& f = b.fibres[i];
    text += "  thread " + std::to_string(i) + (j > i + 1 ? " to " + std::to_string(j - 1) : "");
    text += f.now == state::done ? " returned\n" : std::string(" at ") + f.at.what + " (" + f.at.file + ":" + std::to_string(f.at.line) + ")\n";
    if (text.size() > 1500) return text + "  ...\n";
  }
  return text;
}

void switch_to_main(fibre* f, bool for_good) {
  running_block* const b = f->block;
  release(b->finished);  // whom a defect of another leaves behind never gets to its end
  leave_stack(for_good ? nullptr : &f->fake_stack, b->main_bottom, b->main_size);
  switch_tsan_fibre(b->main_tsan);
#ifdef __x86_64__
  if (!b->options->portable_switch)
    emulator_switch(&f->stack_pointer, b->main_stack_pointer);
  else
#endif
    swapcontext(&f->context, &b->main_context);
  enter_stack(f->fake_stack, &b->main_bottom, &b->main_size);
}

void switch_to_fibre(running_block* b, fibre* f) {
  b->running = f;
  leave_stack(&b->main_fake_stack, f->stack, stack_bytes);
  switch_tsan_fibre(f->tsan);
#ifdef __x86_64__
  if (!b->options->portable_switch)
    emulator_switch(&b->main_stack_pointer, f->stack_pointer);
  else
#endif
    swapcontext(&b->main_context, &f->context);
  enter_stack(b->main_fake_stack, nullptr, nullptr);
}

void entry() {
  running_block* const b = starting;
  fibre* const f = b->running;
  enter_stack(nullptr, &b->main_bottom, &b->main_size);
  acquire(b->started);
  try {
    (*b->body)(f);
    if (!f->copies.empty()) throw defect("thread " + std::to_string(f->rank) + " returned with asynchronous copies that it did not wait for");
  } catch (...) {
    f->error = std::current_exception();
  }
  release(b->finished);
  f->now = state::done;
  switch_to_main(f, true);
  __builtin_trap();  // nobody goes back to it
}

/// Sixteen bytes, without a call that a sanitizer intercepts.
void copy_16(void* to, void const* from) {
  auto* const x = static_cast<std::uint64_t volatile*>(to);
  auto const* const y = static_cast<std::uint64_t const volatile*>(from);
  x[0] = y[0];
  x[1] = y[1];
}

/// All of [first, first + count) wait at one barrier.
void release_all(running_block& b, std::size_t first, int count) {
  fibre const& one = b.fibres[first];
  for (int i = 1; i < count; ++i)
    if (!(b.fibres[first + std::size_t(i)].at == one.at)) throw defect("divergent barrier: threads meet at different places\n" + who_waits_where(b));
  if (one.how) {
    void* slots[1024];
    for (int i = 0; i < count; ++i) slots[i] = b.fibres[first + std::size_t(i)].slot;
    one.how(slots, count, one.how_context);
  }
  for (int i = 0; i < count; ++i) {
    fibre& f = b.fibres[first + std::size_t(i)];
    f.now = state::ready;
    b.ready.push_back(&f);
  }
}

void run(running_block& b) {
  int const threads = int(b.fibres.size());
  for (auto& f : b.fibres) b.ready.push_back(&f);
  std::size_t head = 0;
  for (int done = 0; done < threads;) {
    if (head == b.ready.size()) throw defect("stalled: a barrier that not every thread reaches\n" + who_waits_where(b));
    fibre* f;
    if (b.options->order.by == rank_order::rule::forward) {
      f = b.ready[head++];
      if (head == b.ready.size()) {
        b.ready.clear();
        head = 0;
      }
    } else {
      if (b.options->order.by == rank_order::rule::shuffled) std::swap(b.ready[std::size_t(b.random() % b.ready.size())], b.ready.back());
      f = b.ready.back();
      b.ready.pop_back();
    }
    switch_to_fibre(&b, f);
    if (f->error) std::rethrow_exception(f->error);
    if (f->now == state::done) {
      ++done;
    } else if (f->where == scope::block) {
      if (++b.arrived == threads) {
        b.arrived = 0;
        release_all(b, 0, threads);
      }
    } else {
      running_warp& w = b.warps[f->rank / warp_width];
      if (++w.arrived == w.size) {
        w.arrived = 0;
        release_all(b, std::size_t(f->rank / warp_width * warp_width), w.size);
      }
    }
  }
  for (fibre const& f : b.fibres)
    if (f.allocations != b.regions.size())
      throw defect("threads disagree about shared arrays: thread " + std::to_string(f.rank) + " has " + std::to_string(f.allocations) + " of " +
                   std::to_string(b.regions.size()));
}

/// Stacks are kept: mapping them is dear, and a TSan fibre keeps its stack for
/// good.
class stack_pool {
 public:
  char* take() {
    if (free_.empty()) {
      void* const p = mmap(nullptr, stack_bytes + page, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
      if (p == MAP_FAILED) throw std::bad_alloc();
      mprotect(p, page, PROT_NONE);  // an overflow stops here
      return static_cast<char*>(p) + page;
    }
    char* const p = free_.back();
    free_.pop_back();
    return p;
  }
  void give_back(char* p) { free_.push_back(p); }
  void shuffle(std::mt19937_64& random) { std::shuffle(free_.begin(), free_.end(), random); }

  void* tsan_fibre(char* stack) {
    void*& fibre = tsan_fibres_[stack];
    if (tsan && !fibre) fibre = __tsan_create_fiber(0);
    return fibre;
  }
  void abandon_tsan_fibre(char* stack) {
    if (tsan) __tsan_destroy_fiber(tsan_fibres_[stack]);
    tsan_fibres_.erase(stack);
  }

 private:
  std::vector<char*> free_;
  std::map<char*, void*> tsan_fibres_;
};

stack_pool& stacks() {
  static stack_pool pool;
  return pool;
}

void prepare(running_block& b, fibre& f, unsigned rank) {
  f.block = &b;
  f.rank = rank;
  f.stack = stacks().take();
  f.tsan = stacks().tsan_fibre(f.stack);
  ++b.warps[rank / warp_width].size;
#ifdef __x86_64__
  if (!b.options->portable_switch) {
    // Staggered tops, so that equal frames of all fibres do not share cache
    // sets. Above entry: an end for unwinders, and alignment as after a call.
    auto** top = reinterpret_cast<void**>(f.stack + stack_bytes - std::size_t(rank % 61) * 192);
    for (int i = 0; i < 3; ++i) *--top = nullptr;
    *--top = reinterpret_cast<void*>(entry);
    for (int i = 0; i < 6; ++i) *--top = nullptr;
    f.stack_pointer = top;
    return;
  }
#endif
  getcontext(&f.context);
  f.context.uc_stack.ss_sp = f.stack;
  f.context.uc_stack.ss_size = stack_bytes;
  f.context.uc_link = nullptr;
  makecontext(&f.context, entry, 0);
}

struct arena_unmapper {
  void operator()(running_block* b) const {
    if (b->arena) munmap(b->arena, b->arena_bytes);
    delete b;
  }
};

}  // namespace

void meet(fibre* self, scope of, place at, void* slot, combine how, void* context, bool orders_memory) {
  self->where = of;
  self->at = at;
  self->slot = slot;
  self->how = how;
  self->how_context = context;
  self->now = state::waiting;
  running_block& b = *self->block;
  unsigned& epoch = of == scope::block ? self->block_epoch : self->warp_epoch;
  char* const order = of == scope::block ? b.order[epoch & 1] : b.warps[self->rank / warp_width].order[epoch & 1];
  if (orders_memory) {
    ++epoch;
    release(order);
  }
  switch_to_main(self, false);
  if (orders_memory) acquire(order);
}

void* shared(fibre* self, std::size_t bytes, place at) {
  running_block& b = *self->block;
  std::size_t const n = self->allocations++;
  if (n == b.regions.size()) {
    b.declared = (b.declared + 15) / 16 * 16 + bytes;
    if (b.declared > std::size_t(b.options->shared_bytes))
      throw defect("shared memory: " + std::to_string(b.declared) + " bytes are asked for, " + std::to_string(b.options->shared_bytes) + " were launched");
    std::size_t const offset = (b.used + red_zone + 127) / 128 * 128;
    if (n == b.regions.capacity() || offset + bytes + red_zone > b.arena_bytes) throw defect("shared memory: too many arrays for the emulator");
    b.used = offset + bytes;
    b.regions.push_back({offset, bytes, at});
    unpoison(b.arena + offset, bytes);
    char volatile* const p = b.arena + offset;
    for (std::size_t i = 0; i < bytes; ++i) p[i] = char(0xff);  // NaN in every float type
  }
  shared_region const& r = b.regions[n];
  if (r.bytes != bytes || !(r.at == at)) throw defect("threads disagree about shared array " + std::to_string(n));
  return b.arena + r.offset;
}

void copy_async(fibre* self, void* to, void const* from) {
  running_block const& b = *self->block;
  if (reinterpret_cast<std::uintptr_t>(to) % 16 != 0 || reinterpret_cast<std::uintptr_t>(from) % 16 != 0)
    throw defect("copy_async: an address is not 16-byte aligned");
  bool const is_shared = std::any_of(b.regions.begin(), b.regions.end(), [&](shared_region const& r) {
    char const *const p = b.arena + r.offset, *const q = static_cast<char*>(to);
    return q >= p && q + 16 <= p + r.bytes;
  });
  if (!is_shared) throw defect("copy_async: the destination is not within a shared array");
  if (is_poisoned(from, 16)) throw defect("copy_async: the source is out of bounds");
  touches(to, from);
  std::uint64_t const junk[2] = {~std::uint64_t{0}, ~std::uint64_t{0}};
  copy_16(to, junk);
  if (self->copies.size() == self->copies.capacity()) throw defect("copy_async: too many copies in flight for the emulator");
  self->copies.push_back({to, from, self->group});
}

void commit_async(fibre* self) { ++self->group; }

void wait_async(fibre* self, int groups_left) {
  std::size_t landed = 0;
  for (pending_copy const& c : self->copies) {
    if (c.group >= self->group - groups_left) break;
    touches(c.to, c.from);
    copy_16(c.to, c.from);
    ++landed;
  }
  for (std::size_t i = landed; i < self->copies.size(); ++i) self->copies[i - landed] = self->copies[i];
  self->copies.resize(self->copies.size() - landed);
}

unsigned rank(fibre const* self) { return self->rank; }
unsigned size(fibre const* self) { return unsigned(self->block->fibres.size()); }
unsigned block(fibre const* self) { return self->block->index; }

void launch(launch_options const& options, std::function<void(fibre*)> const& body) {
  if (options.threads < warp_width || options.threads > 1024 || options.threads % warp_width != 0)
    throw defect("launch: threads must be a multiple of 32, from 32 to 1024");
  if (options.blocks < 1) throw defect("launch: there must be a block");
  if (options.shared_bytes < 0) throw defect("launch: shared_bytes must not be negative");
  std::mt19937_64 random(options.order.seed);
  std::vector<unsigned> indices;
  for (int i = 0; i < options.blocks; ++i) indices.push_back(unsigned(i));
  if (options.order.by == rank_order::rule::shuffled) std::shuffle(indices.begin(), indices.end(), random);

  // All memory is taken before the launch is released and given back after it
  // was acquired: the sanitizer sees it owned by the launching thread.
  static char started[8], finished[8];
  std::vector<std::unique_ptr<running_block, arena_unmapper>> blocks;
  for (unsigned const index : indices) {
    auto& b = *blocks.emplace_back(new running_block);
    b.options = &options;
    b.body = &body;
    b.index = index;
    b.started = started;
    b.finished = finished;
    b.random.seed(random());
    b.warps.resize(std::size_t(options.threads / warp_width));
    b.regions.reserve(64);
    b.ready.reserve(std::size_t(2 * options.threads));
    b.arena_bytes = std::size_t(options.shared_bytes) + 64 * (red_zone + 128);
    void* const arena = mmap(nullptr, b.arena_bytes, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    if (arena == MAP_FAILED) throw std::bad_alloc();
    b.arena = static_cast<char*>(arena);
  }
  std::vector<fibre> fibres(std::size_t(options.threads));  // of the block that runs
  for (fibre& f : fibres) f.copies.reserve(256);
  release(started);
  std::exception_ptr error;
  for (auto const& owned : blocks) {
    running_block& b = *owned;
    for (fibre& f : fibres) {
      f.now = state::ready;
      f.allocations = 0;
      f.copies.clear();
      f.group = 0;
      f.block_epoch = f.warp_epoch = 0;
      f.fake_stack = nullptr;
    }
    b.fibres.swap(fibres);
    stacks().shuffle(random);
    poison(b.arena, b.arena_bytes);
    if (tsan) b.main_tsan = __tsan_get_current_fiber();
    ignore(true);
    for (std::size_t i = 0; i < b.fibres.size(); ++i) prepare(b, b.fibres[i], unsigned(i));
    starting = &b;
    try {
      run(b);
    } catch (...) {
      error = std::current_exception();
    }
    ignore(false);
    unpoison(b.arena, b.arena_bytes);
    for (fibre& f : b.fibres) {
      if (error) stacks().abandon_tsan_fibre(f.stack);
      unpoison(f.stack,
               stack_bytes);  // frames that were left for good are still marked
      stacks().give_back(f.stack);
    }
    b.fibres.swap(fibres);
    if (error) break;
  }
  acquire(finished);
  if (error) std::rethrow_exception(error);
}

}  // namespace emulator::detail

namespace emulator {

std::string name_of(rank_order order) {
  if (order.by == rank_order::rule::shuffled) return "shuffled with seed " + std::to_string(order.seed);
  return order.by == rank_order::rule::forward ? "forward" : "backward";
}
bool has_address_sanitizer() { return detail::asan; }
bool has_thread_sanitizer() { return detail::tsan; }

}  // namespace emulator
