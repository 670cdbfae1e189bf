// What a cache asks of the CUDA runtime: while decoding nothing but launches, and what it does where a call fails.
#include <cstring>
#include <functional>
#include <map>
#include <set>

#include "cache/scratch.hpp"
#include "catch.hpp"
#include "cellar/cellar.cuh"
#include "recorder.hpp"

using namespace cellar;

namespace {

constexpr int D = 64, layers = 2, kv_heads = 2, query_heads = 4;

struct sealing : scheme::yakv<D> {
  static constexpr bool keeps_generated = false, is_reproducible = false;
};
struct shared : scheme::quest<D> {
  using reuse = cellar::select::reuse_ids<1, 2>;
};

cudaStream_t stream_of(std::uintptr_t number) { return reinterpret_cast<cudaStream_t>(number << 8); }

struct rows {
  std::vector<bf16> memory;
  explicit rows(int heads, i64 tokens) : memory(std::size_t(tokens * heads * D)), heads_(heads), tokens_(tokens) {}
  heads_view<bf16> view() { return packed_heads(memory.data(), tokens_, heads_, D); }

 private:
  int heads_;
  i64 tokens_;
};

/// A cache's life, by a user who is told of each part before it begins.
template <class Scheme>
void live(cuda::executor const& on, std::function<void(char const*)> const& tell) {
  tell("construction");
  budget b = Scheme::published;
  b.tokens = 64;
  b.window = 16;
  b.dense_layers = 0;
  cache<Scheme, cuda::executor> c(on, {.layers = layers, .query_heads = query_heads, .kv_heads = kv_heads, .head_dim = D},
                                  {.sequences = 3, .tokens = 500, .step_tokens = 2, .step_sequences = 2}, b);
  tell("prompt");
  i64 const tokens = 300;
  rows k(kv_heads, layers * tokens), v(kv_heads, layers * tokens);
  sequence_id ids[2];
  for (auto& id : ids) {
    id = c.begin_prompt(prompt_staging<bf16>{k.memory.data(), v.memory.data(), tokens, tokens});
    c.finish_prompt(on, id);
  }
  rows step_k(kv_heads, 3), step_v(kv_heads, 3), q(query_heads, 3), out(query_heads, 3);
  cuda::executor const side = on.on_stream(stream_of(2));
  auto const step = [&](sequence_id one, sequence_id other) {
    tell("plan");
    batch_entry const batch[] = {{one, 2}, {other, 1}};
    c.plan(on, row_view<batch_entry const>{batch, 2});
    for (int layer = 0; layer < layers; ++layer) {
      tell("decoding");
      c.append(on, layer, step_k.view(), step_v.view());
      c.template attend<bf16>(on, layer, q.view(), out.view());
      if constexpr (operation::keeps_selections<Scheme>) {
        tell("selecting ahead");
        c.select(side, layer, q.view());
      }
    }
  };
  for (int i = 0; i < 20; ++i) step(ids[i % 2], ids[1 - i % 2]);
  tell("replay");
  c.complete();
  tell("sequences");
  auto const forked = c.fork(on, ids[0]);
  c.truncate(on, ids[0], 150);
  step(ids[0], forked);
  tell("sequences");
  c.free(ids[1]);
  step(forked, ids[0]);
  tell("sequences");
  logical_block const wanted[] = {logical_block{1}, logical_block{0}};
  c.prefetch(on, 0, forked, 1, row_view<logical_block const>{wanted, 2});
  tell("prefetching");
  c.prefetch(on, 0, forked, 0, row_view<logical_block const>{wanted, 2});
  tell("sequences");
  static_cast<void>(c.selected(on, 0, 0));
  static_cast<void>(c.outliers(on, 0, forked, 0));
  static_cast<void>(c.pool_hits_and_misses(on));
  auto const path = scratch_path();
  c.save(on, forked, path);
  struct removed {
    std::string path;
    ~removed() { std::filesystem::remove(path); }
  } const file{path};
  auto const restored = c.restore(on, path);
  step(restored, ids[0]);
  if constexpr (operation::keeps_selections<Scheme>) {
    tell("joining");
    side.wait();
  }
  tell("destruction");
}

/// What an error calls a function of the runtime, by what the cache was doing.
std::vector<char const*> names_of(std::string const& function) {
  static std::map<std::string, std::vector<char const*>> const names{
      {"cudaGetDevice", {"cuda::executor: cudaGetDevice"}},
      {"cudaDeviceGetAttribute", {"cuda::executor: cudaDeviceGetAttribute"}},
      {"cudaMallocHost", {"cache: allocating pinned memory for steps"}},
      {"cudaMemcpyAsync", {"cuda: copying memory", "plan: copying the step", "plan: copying a page table"}},
      {"cudaMemsetAsync", {"cuda: clearing a buffer"}},
      {"cudaStreamSynchronize", {"cuda::executor: cudaStreamSynchronize"}},
      {"cudaEventCreateWithFlags", {"cache: creating an event"}},
      {"cudaEventRecord", {"plan: recording an event"}},
      {"cudaEventSynchronize", {"plan: waiting for an earlier step"}},
      {"cudaFuncSetAttribute", {"cuda: cudaFuncSetAttribute"}},
      {"cudaLaunchKernelExC", {"cuda: launching a kernel"}}};
  auto const found = names.find(function);
  return found == names.end() ? std::vector<char const*>{} : found->second;
}

template <class F>
void for_each_scheme(F const& f) {
  f(std::type_identity<sealing>{});
  f(std::type_identity<shared>{});
}

}  // namespace

TEST_CASE("decoding asks the CUDA runtime for launches and nothing else, plans for copies from pinned memory, and the null stream is left alone") {  // H6
  for_each_scheme([]<class Scheme>(std::type_identity<Scheme>) {
    recorder::state() = {};
    auto const on = stream_of(1);
    std::map<std::string, std::set<std::string>> asked;
    std::string part;
    i64 launches = 0;
    auto const look = [&] {
      for (auto const& c : recorder::state().calls) {
        asked[part].insert(c.function);
        INFO(part << ": " << c.function << " " << c.kernel);
        bool const is_on_stream = c.function.starts_with("cudaMem") || c.function.starts_with("cudaLaunch") || c.function.starts_with("cudaStream") ||
                                  c.function == "cudaEventRecord";
        if (is_on_stream) CHECK(c.stream == (part == "selecting ahead" || part == "joining" ? stream_of(2) : on));
        if (part == "plan" && c.function == "cudaMemcpyAsync") CHECK((c.is_from_pinned && c.is_to_device));
        if (c.function == "cudaLaunchKernelExC") CHECK(!c.kernel.empty());
        launches += part == "decoding" && c.function == "cudaLaunchKernelExC";
      }
      recorder::state().calls.clear();
    };
    i64 freed_beside_side = 0;  // of calls on the main stream while the other was at work: of nothing that it uses
    live<Scheme>(cuda::executor(on), [&](char const* next) {
      look();
      freed_beside_side = recorder::state().freed_meanwhile[stream_of(2)];
      part = next;
    });
    look();
    using functions = std::set<std::string>;
    for (auto const& [name, all] : asked)
      if (name == "decoding" || name == "selecting ahead" || name == "plan" || name == "prefetching") {
        functions const allowed = name == "plan"          ? functions{"cudaMemcpyAsync", "cudaEventRecord", "cudaEventSynchronize", "cudaLaunchKernelExC"}
                                  : name == "prefetching" ? functions{"cudaEventRecord", "cudaEventSynchronize", "cudaLaunchKernelExC"}
                                                          : functions{"cudaLaunchKernelExC", "cudaFuncSetAttribute"};
        for (auto const& function : all) {
          INFO(name << " called " << function);
          CHECK(allowed.contains(function));
        }
      }
    CHECK(asked["replay"].empty());
    CHECK(asked["prefetching"].contains("cudaLaunchKernelExC"));
    CHECK(asked["construction"].contains("cudaHostRegister"));
    CHECK(asked["selecting ahead"].empty() == !operation::keeps_selections<Scheme>);
    CHECK(launches > 22 * layers * 6);
    CHECK(recorder::state().holds_nothing());
    CHECK(recorder::state().freed_meanwhile[on] == 0);  // what frees has waited, the destructor too
    CHECK(recorder::state().freed_meanwhile[stream_of(2)] == freed_beside_side);
  });
}

TEST_CASE("a completion is one event, recorded on its stream as often as wanted, and what is not done yet is no error") {
  recorder::state() = {};
  {
    cuda::executor const on(stream_of(1)), other(stream_of(2));
    cuda::completion done;
    recorder::state().calls.clear();
    done.record(on);
    done.wait(other);
    recorder::state().unfinished_queries = 2;
    CHECK_FALSE(done.is_done());
    CHECK_FALSE(done.is_done());
    CHECK(done.is_done());
    done.synchronize();
    cuda::completion moved = std::move(done);
    moved.record(other);
    std::vector<std::pair<std::string, cudaStream_t>> calls;
    for (auto const& c : recorder::state().calls) calls.push_back({c.function, c.stream});
    CHECK(calls == std::vector<std::pair<std::string, cudaStream_t>>{{"cudaEventRecord", stream_of(1)},
                                                                     {"cudaStreamWaitEvent", stream_of(2)},
                                                                     {"cudaEventQuery", nullptr},
                                                                     {"cudaEventQuery", nullptr},
                                                                     {"cudaEventQuery", nullptr},
                                                                     {"cudaEventSynchronize", nullptr},
                                                                     {"cudaEventRecord", stream_of(2)}});
    CHECK(recorder::state().events == 1);
    for (std::string const function : {"cudaEventQuery", "cudaEventSynchronize", "cudaEventRecord", "cudaStreamWaitEvent"}) {
      recorder::state().failing_function = function;
      auto const call = [&] {
        if (function == "cudaEventQuery") static_cast<void>(moved.is_done());
        if (function == "cudaEventSynchronize") moved.synchronize();
        if (function == "cudaEventRecord") moved.record(on);
        if (function == "cudaStreamWaitEvent") moved.wait(on);
      };
      CHECK_THROWS_WITH(call(), contains("cuda::completion"));
    }
  }
  CHECK(recorder::state().holds_nothing());
}

TEST_CASE("a CUDA call that fails is an error that names it, whichever it is, and nothing is left behind") {
  for_each_scheme([]<class Scheme>(std::type_identity<Scheme>) {
    for (bool const keeps_failing : {false, true}) {
      std::set<std::string> failed;
      i64 thrown = 0;
      for (i64 n = 1;; ++n) {
        recorder::state() = {};
        recorder::state().fails_at = n;
        recorder::state().keeps_failing = keeps_failing;
        bool is_done = false, is_destroyed = false;
        try {
          live<Scheme>(cuda::executor(stream_of(1)), [&](char const* part) { is_destroyed = std::strcmp(part, "destruction") == 0; });
          is_done = recorder::state().failed.empty();
          INFO(recorder::state().failed << " failed as call " << n);
          // Where pinning is refused, a device that reads pageable memory goes on; a destructor has nobody to tell.
          if (!is_done) CHECK((recorder::state().failed == "cudaHostRegister" || is_destroyed));
        } catch (cuda_error const& e) {
          ++thrown;
          INFO(e.what());
          CHECK(std::string(e.what()).ends_with(": it was asked to fail"));
          if (!keeps_failing) {  // else a call before it may have failed and been borne
            bool is_named = false;
            for (char const* const name : names_of(recorder::state().failed)) is_named |= std::string(e.what()).starts_with(std::string(name) + " failed: ");
            CHECK(is_named);
          }
        } catch (std::bad_alloc const&) {
          ++thrown;
          CHECK((recorder::state().failed == "cudaMalloc" || keeps_failing));
        }
        if (!recorder::state().failed.empty()) failed.insert(recorder::state().failed);
        INFO(recorder::state().failed << " failed as call " << n);
        REQUIRE(recorder::state().holds_nothing());
        if (is_done) break;
      }
      for (char const* const function :
           {"cudaGetDevice", "cudaDeviceGetAttribute", "cudaMalloc", "cudaMallocHost", "cudaHostRegister", "cudaMemcpyAsync", "cudaMemsetAsync",
            "cudaStreamSynchronize", "cudaEventCreateWithFlags", "cudaEventRecord", "cudaEventSynchronize", "cudaLaunchKernelExC"}) {
        INFO(function);
        CHECK(failed.contains(function));
      }
      CHECK(thrown > 500);
    }
  });
}

TEST_CASE("a device that lacks something is refused by name, and so is memory that cannot be pinned where it must be") {
  auto const on = [] { return cuda::executor(stream_of(1)); };
  auto const whole_life = [&] { live<sealing>(on(), [](char const*) {}); };
  recorder::state() = {};
  recorder::state().major = 7;
  CHECK_THROWS_WITH(on(), contains("older than compute capability 8.0"));
  recorder::state() = {};
  recorder::state().has_unified_addressing = false;
  CHECK_THROWS_WITH(on(), contains("registered host memory"));
  recorder::state() = {};
  recorder::state().shared_limit = 16 * 1024;
  CHECK_THROWS_WITH(whole_life(), contains("more shared memory"));
  CHECK(recorder::state().holds_nothing());
  recorder::state() = {};
  recorder::state().failing_function = "cudaHostRegister";
  CHECK_NOTHROW(whole_life());
  recorder::state().reads_pageable = false;
  CHECK_THROWS_WITH(whole_life(), contains("ulimit -l"));
  CHECK(recorder::state().holds_nothing());
}
