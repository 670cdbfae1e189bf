#!/usr/bin/env python3
"""Breaks the library one line at a time, and checks that a test notices: the check of the checks. Over an hour on two cores; not part of tests/run.sh.

    tests/mutations.py [PART...]        only the mutations whose file or text contains one of the parts

Each mutation is made in a copy of the headers, one test source is compiled against it (CXX, default g++) and run. Prints a Markdown table; the exit status is
the number of mutations that survived. Needs Catch2 2 (one header), as Debian 12 has it.
"""
import os, subprocess, sys, tempfile
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from shutil import copytree

ROOT = Path(__file__).resolve().parent.parent
CXX = os.environ.get("CXX", "g++")
FLAGS = ["-std=c++20", "-O1", "-w", "-pthread"]

# file below include/cellar, the text, what it becomes, the test source below tests/. A text stands in its file exactly once.
MUTATIONS = [
    # core, layout
    ("core/math.hpp", "(u >> 16 & 1u)) >> 16", "1u) >> 16", "core/math_test.cpp"),
    ("core/math.hpp", "bit_cast<std::uint32_t>(x == 0 ? 0.0f : x)", "bit_cast<std::uint32_t>(x)", "select/select_test.cpp"),
    ("core/rotary.hpp", "y[second] = a * s + b * c", "y[second] = b * c - a * s", "codec/centred_test.cpp"),
    ("core/rotary_scaling.hpp", "low = std::max(low, 0.0);", "", "core/rotary_scaling_test.cpp"),
    ("core/rotary_scaling.hpp", "(1 - s) * x / scaling.factor + s * x", "s * x / scaling.factor + (1 - s) * x", "core/rotary_scaling_test.cpp"),
    ("layout/concept.hpp", "before < p; ++before", "before <= p; ++before", "layout/layout_test.cpp"),
    ("layout/token_major.hpp", "+ copy * geometry.row_bytes[int(p)]", "", "layout/layout_test.cpp"),
    ("layout/paged.hpp", "+ number(b) % page_blocks", "", "layout/layout_test.cpp"),
    ("core/rotary.hpp", "if (position < 0) sine = -sine;", "", "host/vector_level_test.cpp"),
    ("core/rotary.hpp", "(e - turn_run) * turn_run", "(e - turn_run)", "host/vector_level_test.cpp"),
    # vector kernels
    ("host/vector_avx2.hpp", "keys.rows[i + j < keys.count ? i + j : keys.count - 1]", "keys.rows[i]", "host/vector_level_test.cpp"),
    ("host/vector_avx2.hpp", "_mm256_set1_ps(-104.0f)", "_mm256_set1_ps(-90.0f)", "host/vector_level_test.cpp"),
    ("host/vector_avx2.hpp", "equals-- <= 0", "equals-- < 0", "host/vector_level_test.cpp"),
    ("host/vector_avx2.hpp", "0x1.7f7d1cp-20f", "0.0f", "host/vector_level_test.cpp"),
    ("host/vector_avx2.hpp", "shift == 0 ? 10 : 11", "10", "host/vector_level_test.cpp"),
    ("host/vector_avx2.hpp", "_mm256_slli_epi32(index, 28)", "_mm256_slli_epi32(index, 27)", "host/vector_level_test.cpp"),
    ("host/vector_avx2.hpp", "_mm256_set1_epi32(0x7fff))), 16)", "_mm256_set1_epi32(0x8000))), 16)", "host/vector_level_test.cpp"),
    ("host/vector_avx2.hpp", "_CMP_NLE_UQ", "_CMP_GT_OQ", "host/vector_level_test.cpp"),
    ("host/vector_avx2.hpp", "_mm256_set1_epi32(0x3c7fffff)", "_mm256_set1_epi32(0x3bffffff)", "host/vector_level_test.cpp"),
    ("host/vector_avx2.hpp", "_mm256_set1_ps(256)", "_mm256_set1_ps(128)", "host/vector_level_test.cpp"),
    ("host/vector_avx512.hpp", "entries + 16 * (Group + g)", "entries + 16 * g", "host/vector_level_test.cpp"),
    # codec
    ("codec/nearest_in_plane.hpp", "<= bound * (1 + 1e-5f) + 1e-5f", "<= bound * 0.7f", "codec/higgs_test.cpp"),
    ("codec/nearest_in_plane.hpp", "found = d < best ? p : found", "found = d <= best ? p : found", "codec/higgs_test.cpp"),
    ("codec/nearest_in_plane.hpp", "while (++group < first_[cell + 1])", "while (false)", "codec/higgs_test.cpp"),
    ("operation/attend.hpp", "multiply(t, weight, some.key_scales, some.filled)", "multiply(t, weight, some.value_scales, some.filled)", "cache/compositions_test.cpp"),
    ("operation/attend.hpp", "if (scales_values && some.is_far) multiply(t, weight, some.value_scales, some.filled);", "", "cache/compositions_test.cpp"),
    ("operation/attend.hpp", "if (is_far_apart && chunks[filling].filled > 0) flush();\n  i64 passed", "i64 passed", "cache/compositions_test.cpp"),
    ("host/append.hpp", "!sizes::has_side(side) || layer.rows(side).type == type", "true", "operation/engine_owned_test.cpp"),
    ("codec/identity.hpp", "x.row(r), x.columns(), to.codes + r * to.code_stride", "x.row(0), x.columns(), to.codes + r * to.code_stride", "codec/identity_test.cpp"),
    ("codec/higgs.hpp", "x(r, c) * sign(c) * unit", "x(r, c) * unit", "codec/higgs_test.cpp"),
    ("codec/higgs.hpp", ">> (4 * (sub % 2)) & 15", "& 15", "codec/higgs_test.cpp"),
    ("core/vector.hpp", "while (distance[p] != best) ++p;", "while (distance[p] != best) p += 2;", "codec/higgs_test.cpp"),
    ("codec/higgs.hpp", "hadamard_rows(t, x);\n    share_rows(t, x", "share_rows(t, x", "codec/higgs_test.cpp"),
    ("codec/higgs.hpp", "std::sqrt(float(channels)), y.row(r)", "float(channels), y.row(r)", "codec/higgs_test.cpp"),
    ("codec/higgs.hpp", "(sub * Points + p) * group + g]", "(sub * Points + p) * group]", "codec/higgs_test.cpp"),
    ("codec/centred.hpp", "y(r, c) += middle[c]", "y(r, c) -= middle[c]", "codec/centred_test.cpp"),
    ("codec/centred.hpp", "position_ + offset, to", "position_, to", "codec/centred_test.cpp"),
    ("codec/centred.hpp", "first_position + r, c, s", "r, c, s", "codec/centred_test.cpp"),
    ("codec/centred.hpp", "mean[c] = to_float(stored);", "mean[c] = s / Tokens;", "codec/centred_test.cpp"),
    ("core/math.hpp", "0x7ffffu + (magnitude >> 20 & 1u)", "0x80000u", "codec/fp8_test.cpp"),
    ("core/math.hpp", "+ 0x1p14f", "+ 0x1p15f", "codec/fp8_test.cpp"),
    ("codec/fp8.hpp", "rounded_up<Scale>(largest_magnitude", "from_float<Scale>(largest_magnitude", "codec/fp8_test.cpp"),
    ("codec/concept.hpp", "load_float<Scale>(scales + lane * i64(sizeof(Scale)))", "load_float<Scale>(scales)", "codec/fp8_test.cpp"),
    ("core/vector.hpp", "y > 127 ? 127 : y", "y", "codec/int8_test.cpp"),
    ("codec/int8.hpp", "y(r, c) *= s", "y(r, c) *= s * 1.01f", "codec/int8_test.cpp"),
    ("codec/int4.hpp", "rounded_down<Scale>(low)", "from_float<Scale>(low)", "codec/int4_test.cpp"),
    ("codec/int4.hpp", "+ minimum(mine, g) * q[D + g]", "+ minimum(mine, g)", "codec/int4_test.cpp"),
    ("codec/nvfp4.hpp", "a >= 0.75f", "a > 0.75f", "codec/nvfp4_test.cpp"),
    ("codec/nvfp4.hpp", "most(row, begin, end) / 6 / g", "most(row, 0, channels) / 6 / g", "codec/nvfp4_test.cpp"),
    # summary: build, prepare, score
    ("summary/mean.hpp", "from_float<Scalar>(s / float(tokens))", "from_float<Scalar>(s)", "summary/summary_test.cpp"),
    ("summary/min_max.hpp", "x > 0 ? 0.0f : x", "x > 0 ? x : 0.0f", "summary/summary_test.cpp"),
    ("core/math.hpp", "return to_float(y) >= x ? y : detail::neighbour(y, +1);", "return y;", "summary/summary_test.cpp"),
    ("summary/quantized_key.hpp", "lane = first_lane + b,", "lane = b,", "summary/summary_test.cpp"),
    ("summary/quantized_key.hpp", "i64{i % tile_blocks} * block_tokens", "i64{i % tile_blocks}", "summary/summary_test.cpp"),
    ("summary/quantized_key.hpp", "p * a + q * b;", "p * a - q * b;", "summary/summary_test.cpp"),
    ("summary/quantized_key.hpp", "scores(h, lane) += share;", "scores(h, lane) += 0;", "summary/summary_test.cpp"),
    ("summary/box_digest.hpp", "float const radius = spread / float(tokens);", "float const radius = (high - low) / 2;", "summary/summary_test.cpp"),
    ("summary/residual.hpp", "row[lane] += share;", "row[lane] += 0;", "summary/summary_test.cpp"),
    ("summary/residual.hpp", "if (first_lane == 0) {", "{", "summary/summary_test.cpp"),
    ("summary/residual.hpp", "lane = first_lane + b,", "lane = b,", "summary/summary_test.cpp"),
    # reduce, select
    ("select/reduce.hpp", "row[b] != row[b] ? undefined", "row[b] != row[b] ? infinity", "select/select_test.cpp"),
    ("core/vector.hpp", "if (y > to[i] || to[i] != to[i])", "if (y < to[i] || to[i] != to[i])", "select/select_test.cpp"),
    ("select/reduce.hpp", "out[c] = s / float(rows.rows);", "out[c] = s;", "select/select_test.cpp"),
    ("select/radix.hpp", "(is_equal && e < equals)", "(is_equal && e <= equals)", "select/select_test.cpp"),
    ("select/radix.hpp", "known |= 255u << shift;", "known |= 127u << shift;", "select/select_test.cpp"),
    ("select/radix.hpp", "(old + low < old ? 1u : 0u)", "0u", "select/select_test.cpp"),
    ("select/threshold.hpp", "key > limit || key == top", "key > limit", "select/select_test.cpp"),
    ("select/threshold.hpp", "key > limit || key == top", "key >= limit", "select/select_test.cpp"),
    ("select/top_p.hpp", "(last.rest + one - 1) / one", "last.rest / one", "select/select_test.cpp"),
    ("select/top_p.hpp", "if (needed > most) return", "if (needed > most + 1) return", "select/select_test.cpp"),
    ("select/top_p.hpp", "if (key == top) return", "if (false) return", "select/select_test.cpp"),
    # the softmax state, variants of attention
    ("attention/softmax_state.hpp", "state.l *= shrink;", "", "attention/softmax_state_test.cpp"),
    ("attention/softmax_state.hpp", "state.l += weight * other.l;", "state.l += other.l;", "attention/softmax_state_test.cpp"),
    ("attention/causal.hpp", "k_position <= q_position", "k_position < q_position", "cache/attend_test.cpp"),
    ("attention/soft_cap.hpp", "std::tanh(x / cap)", "std::tanh(x)", "cache/compositions_test.cpp"),
    ("attention/sliding_window.hpp", "q_position - k_position < Tokens", "q_position - k_position <= Tokens", "cache/compositions_test.cpp"),
    # score, attend, seal, train
    ("operation/score.hpp", "from.summary(head, from.position(first))", "from.summary(head, from.position(0))", "cache/select_test.cpp"),
    ("operation/score.hpp", "from.tile(first, head)", "from.tile(first, 0)", "cache/select_test.cpp"),
    ("operation/score.hpp", "(t, matrix_view<float const>{queries.data, queries.rows, queries.stride, D}", "(t, matrix_view<float const>{queries.data, 1, queries.stride, D}", "cache/select_test.cpp"),
    ("operation/attend.hpp", "gather_near(0, step.length < from.map.sinks ? step.length : from.map.sinks);", "", "cache/attend_test.cpp"),
    ("operation/attend.hpp", "q_position = first_query + r / group", "q_position = first_query", "cache/attend_test.cpp"),
    ("operation/attend.hpp", "? 1.0f / total.states[r].l : 0.0f", "? 1.0f : 0.0f", "cache/attend_test.cpp"),
    ("operation/attend.hpp", "if (in_place && waiting >= 0) attend_to(chunks[waiting], token_rows{});", "", "cache/attend_test.cpp"),
    ("operation/attend.hpp", "some.is_far ? far_sums : sums", "sums", "cache/attend_test.cpp"),
    ("operation/attend.hpp", "sums[r * W + c] += rotated_sums[r * W + c];", "", "cache/attend_test.cpp"),
    ("operation/attend.hpp", "some.is_far ? far_queries : queries", "queries", "cache/attend_test.cpp"),
    ("operation/seal.hpp", "S::value_codec::token_group), rows.values, target.values);", "S::value_codec::token_group), rows.keys, target.values);", "cache/attend_test.cpp"),
    ("operation/seal.hpp", "i64 const position = to.position(block);", "i64 const position = to.position(block + 1);", "cache/attend_test.cpp"),
    ("operation/seal.hpp", "to.summary(head, to.position(first + b));", "to.summary(head, to.position(first));", "cache/select_test.cpp"),
    ("operation/seal.hpp", "detail::train(t, to.summary(head, 0), keys, to.summary_state(head), scratch, queries);", "", "cache/attend_test.cpp"),
    ("operation/memory.hpp", "(position - map.sinks) % map.tail_rows", "(position - map.sinks) % (map.tail_rows - 1)", "cache/attend_test.cpp"),
    ("operation/memory.hpp", "(copy * map_type::tiles_per_page + within) * map.tile()", "head * map_type::tiles_per_page * map.tile()", "cache/select_test.cpp"),
    # host drivers
    ("core/vector.hpp", "all &= (x < 0 ? -x : x) <= most", "all &= !((x < 0 ? -x : x) > most)", "host/vector_level_test.cpp"),
    ("host/append.hpp", "if (p >= far_begin && p < far_end) continue;", "if (p >= far_begin) continue;", "cache/attend_test.cpp"),
    ("host/append.hpp", "step.sealed_before <= step.sealed &&", "", "operation/engine_owned_test.cpp"),
    ("host/attend.hpp", "to_float(q.row(step.first_row + i, kv_head * group + h)[c])", "to_float(q.row(step.first_row + i, h)[c])", "cache/attend_test.cpp"),
    ("host/attend.hpp", "to[i] = logical_block{-1};", ";", "operation/engine_owned_test.cpp"),
    ("host/attend.hpp", "part == 0 ? slot(item) : slot(items + unit)", "slot(item)", "cache/attend_test.cpp"),
    ("host/attend.hpp", "std::max<i64>(first, 1); part < end", "std::max<i64>(first, 1) + 1; part < end", "cache/attend_test.cpp"),
    ("host/attend.hpp", "unit % most_runs * run", "unit % most_runs * (run - 32)", "cache/attend_test.cpp"),
    ("operation/attend.hpp", "if (part == 0) gather_near(0", "gather_near(0", "cache/attend_test.cpp"),
    ("operation/attend.hpp", "if (part + 1 == parts) gather_near(tail", "gather_near(tail", "cache/attend_test.cpp"),
    ("operation/attend.hpp", "for (i64 o = 0; part == 0 && o < outliers.count", "for (i64 o = 0; o < outliers.count", "cache/attend_test.cpp"),
    ("core/vector.hpp", "codes + first, bytes, lanes, wide", "codes, bytes, lanes, wide", "host/vector_level_test.cpp"),
    ("host/executor.hpp", "f(context, item, worker); });", "f(context, item, 0 * worker); });", "host/executor_test.cpp"),
    ("host/thread_pool.hpp", "if (!failure_) failure_ = std::current_exception();", "", "host/executor_test.cpp"),
    # the cache's bookkeeping
    ("operation/workspace.hpp", "std::max(b.window, new_tokens)", "b.window", "cache/contract_test.cpp"),
    ("cache/cache.hpp", "s.sealed = step.sealed_before;", "", "cache/contract_test.cpp"),
    ("cache/cache.hpp", "guard{*this, s, slot, 0}", "guard{*this, s, slot, 1 << 30}", "cache/contract_test.cpp"),
    ("cache/cache.hpp", "give_pages(s, number(id), 0);", "", "cache/contract_test.cpp"),
    ("cache/cache.hpp", "expects(!is_appended_[std::size_t(layer)]", "expects(true", "cache/contract_test.cpp"),
    ("cache/cache.hpp", "++page_users_[std::size_t(number(shared))];", "", "schedules/schedules_test.cpp"),
    ("cache/cache.hpp", "guard{*this, s, slot, 0}", "guard{*this, s, slot, 1 << 30}", "schedules/schedules_test.cpp"),
    ("cache/cache.hpp", "s.kept_tokens = step.kept_tokens;", "", "schedules/schedules_test.cpp"),
    ("cache/cache.hpp", "for (sequence_step const& step : steps_) forget_runs(layer, step.pages, step.sealed_before, step.sealed);", "", "schedules/schedules_test.cpp"),
    ("cache/cache.hpp", "is_cut ? cut : std::min", "is_cut ? std::max<i64>(0, cut - 1) : std::min", "schedules/schedules_test.cpp"),
    ("operation/workspace.hpp", "std::max(b.window, new_tokens) - b.sinks) /", "std::max(b.window, new_tokens) - b.sinks + 1) /", "schedules/schedules_test.cpp"),
    ("cache/cache.hpp", "expects<capacity_error>(needed <= i64(free_pages_.size()), \"restore:", "expects<capacity_error>(true, \"restore:", "schedules/schedules_test.cpp"),
    ("cache/slot_pool.hpp", "|| slots_[std::size_t(slot)].used_in == step_", "", "schedules/schedules_test.cpp"),
    # windows, remainders, kept ids, limits of storage
    ("cache/cache.hpp", "l.tokens - near - 1)", "l.tokens - near - 2)", "cache/shared_selection_test.cpp"),
    ("cache/cache.hpp", "b.dense_layers < shape.layers; }", "b.dense_layers == 0; }", "cache/shared_selection_test.cpp"),
    ("cache/cache.hpp", "sealed == 0 || !sees_lost", "!sees_lost", "cache/shared_selection_test.cpp"),
    ("cache/cache.hpp", "if constexpr (keeps_selections) kept_.drop(on, number(id), sealed);", "", "cache/shared_selection_test.cpp"),
    ("operation/remainder.hpp", "f(variant.logit(row[b], q_position, from.position(b)))", "f(row[b])", "cache/shared_selection_test.cpp"),
    ("operation/attend.hpp", "if (remainder.states && is_finite(from.mean_value(head)[0]))", "if (remainder.states)", "cache/shared_selection_test.cpp"),
    ("cache/cache.hpp", "to_float(rounded_down<near>(largest_stored<Policy>(dim)))", "largest_stored<Policy>(dim)", "cache/contract_test.cpp"),
    ("host/sequence.hpp", "std::clamp(row[c], -most, most)", "row[c]", "cache/contract_test.cpp"),
    # device bodies: barriers, under the emulated block
    ("select/radix.hpp", "s.bins[i] = 0;\n    t.sync();", "s.bins[i] = 0;", "emulator/bodies_test.cpp"),
    ("summary/quantized_key.hpp", "        }\n      }\n      t.sync();", "        }\n      }", "emulator/bodies_test.cpp"),
    ("summary/residual.hpp", "      }\n      t.sync();", "      }", "emulator/bodies_test.cpp"),
    ("operation/attend.hpp", "t.sync();\n    i64 const key_bytes", "i64 const key_bytes", "emulator/bodies_test.cpp"),
    ("operation/score.hpp", "scratch});\n  }\n  t.sync();", "scratch});\n  }", "emulator/bodies_test.cpp"),
    # a device's bodies and drivers, under emulated blocks
    ("operation/resolve.hpp", "pool.stamps[slot] = -infinity;", "pool.stamps[slot] = now;", "cuda/emulated_resolve_test.cpp"),
    ("operation/resolve.hpp", "if (logical_block const old = pool.holders[slot]; number(old) >= 0) pool.where[number(old)] = -1;", "", "cuda/emulated_resolve_test.cpp"),
    ("operation/resolve.hpp", "if (first == 0 || number(pool.holders[s]) >= first) {", "if (number(pool.holders[s]) > first) {", "cuda/emulated_resolve_test.cpp"),
    ("operation/select_runs.hpp", "above += mine > cell;", "above += mine >= cell;", "cuda/emulated_select_runs_test.cpp"),
    ("operation/select_runs.hpp", "if (s.places[i] < first) {", "if (s.places[i] <= first) {", "cuda/emulated_select_runs_test.cpp"),
    ("operation/select_runs.hpp", "if (*s.found > run_selection::room) {", "if (false) {", "cuda/emulated_select_runs_test.cpp"),
    ("select/radix.hpp", "if (*found > cells::room) return radix_search(t, scores, take, one, s);", "", "emulator/bodies_test.cpp"),
    ("host/reuse.hpp", "if (!is_appended) step.sealed = step.sealed_before;", "", "cache/shared_selection_test.cpp"),
    ("cache/cache.hpp", "run_pools_.forget(on, id, 0);\n    auto const layers", "auto const layers", "cuda/emulated_snapshot_test.cpp"),
    ("cuda/attend.hpp", "missing ? missing[item] : 0;", "0;", "cuda/emulated_overlap_test.cpp"),
    ("cuda/resolve.hpp", "ids[head * width + first + i] = named[i]", "ids[head * width + i] = named[i]", "cuda/emulated_prefetch_test.cpp"),
    ("cuda/resolve.hpp", "counts[h] = h == head ? all : 0;", "counts[h] = all;", "cuda/emulated_prefetch_test.cpp"),
    ("cuda/resolve.hpp", "misses[before] == i ? count - missing + before : i - before;", "misses[before] == i ? count - missing + before : i;", "cuda/emulated_overlap_test.cpp"),
    ("operation/attend_span.hpp", "is_late ? far + (chunk", "is_late ? (chunk", "emulator/bodies_test.cpp"),
    ("operation/attend_span.hpp", "late > 0 ? spans - 1 : spans", "spans", "emulator/bodies_test.cpp"),
    ("cuda/reuse.hpp", "if (!is_appended) step.sealed = step.sealed_before;", "", "cuda/emulated_reuse_test.cpp"),
    ("cuda/reuse.hpp", "if (t.rank() == 0 && at.x == 0) kept.made_in[from] = step.number;", "", "cuda/emulated_reuse_test.cpp"),
    ("cuda/resolve.hpp", "found_[is_ahead ? steps_at_once - 1 : 0]", "found_[0]", "cuda/emulated_streams_test.cpp"),
    ("operation/score_points.hpp", "int const row = pair % 2 * 2 + pair / 2;", "int const row = pair;", "cuda/emulated_yakv_test.cpp"),
    ("operation/score_points.hpp", "return g < 4 ? high : from_float<f16>(x - to_float(high));", "return high;", "cuda/emulated_yakv_test.cpp"),
    ("operation/score_planes.hpp", "value += is_upper ? n : 0;", "value += is_upper ? 0 : n;", "cuda/emulated_blocks_test.cpp"),
    ("operation/attend_span.hpp", "totals[r] = totals[r] * shrink + sum;", "totals[r] = totals[r] + sum;", "emulator/bodies_test.cpp"),
    ("operation/attend_span.hpp", "outliers[below] == block ? -1 : from.position", "outliers[below] == block ? from.position(0) : from.position", "emulator/bodies_test.cpp"),
    ("operation/attend_span.hpp", "weights[token * Rows + r] = x;\n        sum += x;", "weights[token * Rows + r] = x;", "cuda/emulated_exact_test.cpp"),
    ("operation/attend_span.hpp", "t.sync();  // before the next chunk's places are written over these; within the loop other barriers see to that\n", "", "emulator/bodies_test.cpp"),
    ("operation/append.hpp", "bool const is_staged = S::layout::is_run_contiguous && kept == 0;", "bool const is_staged = S::layout::is_run_contiguous;", "cuda/emulated_learnt_test.cpp"),
    ("cuda/attend.hpp", "for (i64 i = i64{p.take} + t.rank(); i < to.count; i += t.size()) to[i] = logical_block{-1};", "", "cuda/emulated_yakv_test.cpp"),
    ("cuda/append.hpp", "copy(to.position(step.sealed), step.length);", "", "cuda/emulated_exact_test.cpp"),
    ("cuda/resolve.hpp", "missing = operation::resolve(", "missing = 0 * operation::resolve(", "cuda/emulated_yakv_test.cpp"),
    ("cache/cache.hpp", "run_pools_.forget(on, number(id), sealed);", "", "cuda/emulated_compositions_test.cpp"),
    # the methods of other papers
    ("select/reduce.hpp", "std::log(t.reduce(sum, plus{})) + log_rows", "std::log(t.reduce(sum, plus{}))", "select/select_test.cpp"),
    ("select/reduce.hpp", "x > so_far ? x + std::log1p", "x > so_far ? so_far + std::log1p", "select/select_test.cpp"),
    ("codec/signs.hpp", "y[c] = one * random_sign(SignSeed, c);", "y[c] = one;", "codec/signs_test.cpp"),
    ("codec/signs.hpp", "table[byte * 32 + 16 + int(bits >> 4)]", "table[byte * 32 + int(bits >> 4)]", "codec/signs_test.cpp"),
    ("summary/mapped.hpp", "scores(h, lane) += shares[h];", "scores(h, lane) += shares[0];", "summary/mapped_test.cpp"),
    ("summary/mapped.hpp", "first_lane + int(b)", "int(b)", "summary/mapped_test.cpp"),
    ("summary/mapped.hpp", "t.sync();\n    summary.prepare", "summary.prepare", "emulator/bodies_test.cpp"),
    ("summary/label_channels.hpp", "mine && other < c", "mine && other > c", "summary/mapped_test.cpp"),
    ("summary/principal_axes.hpp", "double(keys(r, c)) - mean[c]", "double(keys(r, c))", "summary/mapped_test.cpp"),
    ("summary/around_mean.hpp", "return x[i] - mean[i];", "return x[i];", "summary/mapped_test.cpp"),
    ("summary/by_largest_channels.hpp", "std::sqrt(all / some)", "all / some", "summary/by_largest_channels_test.cpp"),
    ("summary/by_largest_channels.hpp", "size(h, c) && other < c", "size(h, c) && other <= c", "summary/by_largest_channels_test.cpp"),
    ("core/eigensolver.hpp", "moments[j * n + i] = moments[i * n + j]", "moments[j * n + i] = 0", "summary/mapped_test.cpp"),
    ("scheme/moba.hpp", ".tokens = 2 * BlockTokens", ".tokens = 3 * BlockTokens", "cache/methods_test.cpp"),
    ("scheme/free_kv.hpp", "using reduce = cellar::select::mean_of_softmaxes;", "", "cache/methods_test.cpp"),
    ("scheme/free_kv.hpp", "reuse_ids<1, 2>", "reuse_ids<2, 1>", "cache/methods_test.cpp"),
    ("scheme/omni_kv.hpp", "reuse_ids<Layers>", "reuse_ids<Layers + 1>", "cache/methods_test.cpp"),
    ("scheme/tidal_decode.hpp", ".dense_layers = 2", ".dense_layers = 1", "cache/methods_test.cpp"),
    ("scheme/h_share.hpp", "reuse_ids<Layers, Steps>", "reuse_ids<Layers>", "cache/methods_test.cpp"),
    ("scheme/sparq.hpp", "using remainder = cellar::attention::mean_value;", "", "cache/methods_test.cpp"),
    ("scheme/infini_gen.hpp", "threshold<Alpha>", "top_k", "cache/methods_test.cpp"),
    ("codec/product_codes.hpp", "s += table[part * Points + (p < Points ? p : 0)]", "s += table[p < Points ? p : 0]", "codec/product_codes_test.cpp"),
    ("codec/product_codes.hpp", "sums[Points * n + p] += 1;", "sums[Points * n + p] += 2;", "codec/product_codes_test.cpp"),
    ("scheme/pq_cache.hpp", "using reduce = cellar::select::sum_of_logits;", "", "cache/methods_test.cpp"),
    # what is observed and evicted
    ("operation/observe.hpp", "q - k < queries.reach", "q - k <= queries.reach", "cache/observation_test.cpp"),
    ("operation/observe.hpp", "sum += exponential(s.logits[r * observed_keys + i] - s.states[r].m) / s.states[r].l;", "sum += exponential(s.logits[r * observed_keys + i] - s.states[r].m);", "cache/observation_test.cpp"),
    ("operation/evict.hpp", "bool const counts = *sums.length == before;", "bool const counts = *sums.length >= 0;", "cache/observation_test.cpp"),
    ("operation/evict.hpp", "if (goes) drop(i);", "", "cache/observation_test.cpp"),
    ("operation/evict.hpp", "sums.near[to.near_index(p)] += sums.pending_near[to.near_index(p)];", "", "cache/observation_test.cpp"),
    ("operation/evict.hpp", "sums.kept[i] = sums.kept[count];", "", "cache/observation_test.cpp"),
    ("operation/evict.hpp", "p < step.length; p += t.size()) sums.near[to.near_index(p)] = 0;", "p < before; p += t.size()) sums.near[to.near_index(p)] = 0;", "cache/observation_test.cpp"),
    ("operation/memory.hpp", "sums + map.outliers, pending,", "sums + map.outliers, sums,", "cache/observation_test.cpp"),
    ("operation/evict.hpp", "t.sync();  // before the id is written", "", "cuda/emulated_observing_test.cpp"),
    ("select/most_attended.hpp", "j <= i + Pool / 2", "j < i + Pool / 2", "cache/observation_test.cpp"),
    ("summary/representatives.hpp", "weight[r] > weight[best]", "weight[r] < weight[best]", "cache/observation_test.cpp"),
    ("summary/joint_factors.hpp", "product[i] += basis[i];", "product[i] += 0;", "cache/observation_test.cpp"),
    ("codec/balanced.hpp", "second_moments(\n          queries.rows, n, 1e-4,", "second_moments(\n          queries.rows, n, 1e4,", "cache/observation_test.cpp"),
    ("codec/balanced.hpp", "to[(w + i) * n + c] = float(image[c] / root * longest);", "to[(w + i) * n + c] = float(image[c] * longest);", "codec/balanced_test.cpp"),
    ("codec/centred.hpp", "mean.center(t, r, to);\n          for (i64 c = 0; c < keys.columns(); ++c) to[c] = keys(r, c) - to[c];", "for (i64 c = 0; c < keys.columns(); ++c) to[c] = keys(r, c);", "cache/observation_test.cpp"),
    ("cache/cache.hpp", "observed = std::min<i64>(observed, Scheme::outliers::observed);", "", "cache/observation_test.cpp"),
    ("cuda/append.hpp", "states[head * all + r + i];", "states[r + i];", "cuda/emulated_observing_test.cpp"),
    # samples
    ("summary/hash_tables.hpp", "differ[i] = ~tables_of(w);", "differ[i] = 0;", "summary/hash_tables_test.cpp"),
    ("summary/hash_tables.hpp", "- center.mean[c];", ";", "summary/hash_tables_test.cpp"),
    ("summary/hash_tables.hpp", "factors<D>()[(2 + j) * P + c]", "factors<D>()[2 * P + c]", "summary/hash_tables_test.cpp"),
    ("summary/hash_tables.hpp", "2 * log_all + float(L - 2) * log_not", "2 * log_all", "summary/hash_tables_test.cpp"),
    ("summary/hash_tables.hpp", "(not_all + float(L) * all)", "not_all", "summary/hash_tables_test.cpp"),
    ("summary/hash_tables.hpp", "collisions >= 2", "collisions >= 1", "summary/hash_tables_test.cpp"),
    ("summary/hash_tables.hpp", "(product - row.common) / size", "product / size", "cache/sampling_test.cpp"),
    ("summary/hash_tables.hpp", "std::sqrt(squares) / unit", "std::sqrt(squares)", "summary/hash_tables_test.cpp"),
    ("attention/remainder.hpp", "return -log_chance;", "return 0 * log_chance;", "summary/hash_tables_test.cpp"),
    ("operation/sample.hpp", "i / selected * 32", "0", "cache/sampling_test.cpp"),
    ("operation/sample.hpp", "bits[row / 32 * selected + place]", "bits[place]", "cache/sampling_test.cpp"),
    ("operation/sample.hpp", "number(chosen[place])", "place", "cache/sampling_test.cpp"),
    ("operation/attend.hpp", "samples.has(r, some.places[i]) && variant", "variant", "cache/sampling_test.cpp"),
    ("operation/attend.hpp", "is_sampled<S> || rotates_keys || rotates_values", "rotates_keys || rotates_values", "cache/sampling_test.cpp"),
    ("operation/attend_span.hpp", "samples.has(first_row + r, first + token)", "samples.has(r, token)", "emulator/bodies_test.cpp"),
    ("operation/attend_span.hpp", "all_lengths[which * chunk + token]", "all_lengths[token]", "emulator/bodies_test.cpp"),
    ("cuda/attend.hpp", "to.count, samples + item * this->sizes.sample_words()", "to.count, samples", "cuda/emulated_sampling_test.cpp"),
    ("select/at_least.hpp", "ordered_bits(bound) - 1", "ordered_bits(bound)", "select/select_test.cpp"),
    ("select/at_least.hpp", "if (count > most) return", "if (count > most + 1) return", "select/select_test.cpp"),
    ("select/reduce.hpp", "raise(t, out.data, rows.row(h), out.count, 0.0f)", "raise(t, out.data, rows.row(0), out.count, 0.0f)", "select/select_test.cpp"),
    ("host/attend.hpp", "matrix_view<float const> scores, row_view<logical_block const> chosen) {\n  i64 lost = 0, next = 0;", "matrix_view<float const> scores, row_view<logical_block const> chosen) {\n  i64 lost = 0, next = chosen.count;", "cache/sampling_test.cpp"),
    ("operation/attend.hpp", "attends_rotated<S, typename S::key_codec> ? S::head_dim : S::value_dim", "false ? S::head_dim : S::value_dim", "cache/latent_test.cpp"),
    ("operation/attend.hpp", "total.sums[r * W + c] * scale", "total.sums[r * V + c] * scale", "cache/latent_test.cpp"),
    ("operation/attend.hpp", "in_keys ? chunks[i].key_scales : chunks[i].key_scales + chunk", "chunks[i].key_scales + chunk", "cache/latent_test.cpp"),
    ("operation/memory.hpp", "if (side == 1) side = map_type::value_side;", "", "cache/latent_test.cpp"),
    ("operation/memory.hpp", "+ (side > 1 ? map_type::side_dim(1) : 0)", "", "cache/dsa_test.cpp"),
    ("operation/memory.hpp", "bytes(channels<value_codec>(value_dim))", "bytes(channels<value_codec>())", "cache/latent_test.cpp"),
    ("operation/attend_span.hpp", "int const at = i / V * W + i % V;", "int const at = i;", "cuda/emulated_latent_test.cpp"),
    ("operation/attend_span.hpp", "values + i / pieces * value_stride", "values + i / pieces * stride", "cuda/emulated_latent_test.cpp"),
    ("summary/index_keys.hpp", "maximum{}(products(g, lane), 0.0f)", "products(g, lane)", "cache/dsa_test.cpp"),
    ("summary/index_keys.hpp", "h == 0 ? 0.0f : scores(token, lane)", "scores(token, lane)", "cache/dsa_test.cpp"),
    ("summary/index_keys.hpp", "weights[token * Heads + h]", "weights[h]", "cache/dsa_test.cpp"),
    ("host/attend.hpp", "first = int(item % heads) * each", "first = 0", "cache/dsa_test.cpp"),
    ("cuda/attend.hpp", "head * each + i % each", "i % each", "cuda/emulated_dsa_test.cpp"),
    # clusters, and what stands for those that were not chosen
    ("codec/cluster_codes.hpp", "sizes[p] += 1;", "sizes[p] += 2;", "codec/cluster_codes_test.cpp"),
    ("codec/cluster_codes.hpp", "((p + 1) * c.segments - 1) / c.tokens", "p * c.segments / c.tokens", "codec/cluster_codes_test.cpp"),
    ("codec/cluster_codes.hpp", "s[lane] > best && p + lane >= first", "s[lane] >= best && p + lane >= first", "codec/cluster_codes_test.cpp"),
    ("codec/cluster_codes.hpp", "if (!moves) break;", "if (moves) break;", "codec/cluster_codes_test.cpp"),
    ("codec/cluster_codes.hpp", "float(coordinate(i) / length)", "float(coordinate(i))", "codec/cluster_codes_test.cpp"),
    ("codec/cluster_codes.hpp", "table[p] * learnt.lengths[p] + common", "table[p] * learnt.lengths[p]", "codec/cluster_codes_test.cpp"),
    ("codec/cluster_codes.hpp", "return p < Clusters ? p : 0;", "return p;", "codec/cluster_codes_test.cpp"),
    ("summary/quantized_key.hpp", "coder.at(position + b * tokens)", "coder.at(position)", "codec/cluster_codes_test.cpp"),
    # what was missed, and selections by it
    ("attention/softmax_state.hpp", "mine / (mine + (other.l", "mine / (1 + (other.l", "cache/missed_test.cpp"),
    ("operation/attend.hpp", "attention::share_of(remainder.states[r], total.states[r])", "attention::share_of(total.states[r], remainder.states[r])", "cache/missed_test.cpp"),
    ("operation/attend_span.hpp", "not_chosen.missed[r] = attention::share_of(remainder.states[r], {top, total});", "not_chosen.missed[r] = attention::share_of(remainder.states[r], {top, total + rest_weight * rest.l});", "cuda/emulated_missed_test.cpp"),
    ("operation/remainder.hpp", "row[number(chosen[i])] = -infinity;", "row[number(chosen[i])] = row[number(chosen[i])];", "cache/missed_test.cpp"),
    ("operation/remainder.hpp", "{top, float(S::block_tokens) * sum}", "{top, sum}", "cache/missed_test.cpp"),
    ("operation/remainder.hpp", "if (is_finite(top)) {\n          float const sum", "if (true) {\n          float const sum", "emulator/bodies_test.cpp"),
    ("operation/observe.hpp", "sinks + kept + (step.length > begin ? step.length - begin : 0)", "kept + (step.length > begin ? step.length - begin : 0)", "cache/missed_test.cpp"),
    ("operation/observe.hpp", "s.states[i].m + std::log(s.states[i].l)", "s.states[i].m", "cache/missed_test.cpp"),
    ("operation/observe.hpp", "sums[r + i] =", "sums[i] =", "cache/missed_test.cpp"),
    ("operation/score.hpp", "near_attention{near_sums, float(S::block_tokens)}", "near_attention{near_sums, 1}", "cache/missed_test.cpp"),
    ("select/reduce.hpp", "more + std::log1p(exponential(less - more)) - log_tokens", "more - log_tokens", "select/select_test.cpp"),
    ("select/reduce.hpp", "std::log1p(exponential(less - more)) - log_tokens", "std::log1p(exponential(less - more))", "select/select_test.cpp"),
    ("select/until_missed.hpp", "all - allowed, [&]", "all, [&]", "select/select_test.cpp"),
    ("select/until_missed.hpp", "(last.rest + each - 1) / each", "last.rest / each", "select/select_test.cpp"),
    ("select/until_missed.hpp", "needed > most ? most : least", "least", "select/select_test.cpp"),
    ("select/until_missed.hpp", "score > 0 ? 0.0f : -score", "score > 0 ? 30.0f : -score", "select/select_test.cpp"),
    ("scheme/yakv_guarded.hpp", "cellar::select::until_missed<Missed, Least>", "cellar::select::until_missed<Missed, std::ratio<0>>", "cache/missed_test.cpp"),
    ("operation/remainder.hpp", "float(space.counts[c]) * float(S::block_tokens)", "float(space.counts[c])", "cache/class_remainder_test.cpp"),
    ("operation/remainder.hpp", "x = variant.logit(logit, q_position, from.position(space.blocks[c]));", "x = logit;", "cache/class_remainder_test.cpp"),
    ("operation/remainder.hpp", "if (!has_weight) continue;", "", "cache/class_remainder_test.cpp"),
    ("operation/remainder.hpp", "if (!is_chosen && !is_outlier) f(b);", "if (!is_chosen) f(b);", "cache/class_remainder_test.cpp"),
    ("operation/remainder.hpp", "if (is_last) next[mine] = place + 1;", "if (mine >= 0) next[mine] = place + 1;", "emulator/bodies_test.cpp"),
    ("operation/remainder.hpp", "c > 0 ? next[c - 1] : 0", "0", "cache/class_remainder_test.cpp"),
    ("operation/attend_span.hpp", "(is_by_class ? 1.0f : rest.l)", "rest.l", "emulator/bodies_test.cpp"),
    ("operation/attend.hpp", "remainder.states[r], remainder.sums + r * W, W);", "remainder.states[r], remainder.sums, W);", "cache/class_remainder_test.cpp"),
    ("cuda/append.hpp", "scratch + head * each);\n  }\n};", "scratch);\n  }\n};", "cuda/emulated_clusters_test.cpp"),
    ("scheme/retro_infer.hpp", "using remainder = cellar::attention::mean_value_by_class;", "", "cache/methods_test.cpp"),
    ("scheme/retro_infer.hpp", "using reduce = cellar::select::mean_of_softmaxes;", "", "cache/methods_test.cpp"),
    ("scheme/cluster_kv.hpp", "cluster_codes<Clusters, 80>", "cluster_codes<Clusters, 79>", "cache/methods_test.cpp"),
    ("summary/two_level.hpp", "cellar::detail::score_rounding(D) * std::sqrt(squares)", "0", "summary/two_level_test.cpp"),
    ("summary/two_level.hpp", "tile, g, b % Group == 0", "tile, g, true", "summary/two_level_test.cpp"),
    ("summary/two_level.hpp", "b % Fine::tile_blocks, low, high", "0, low, high", "summary/two_level_test.cpp"),
    ("summary/min_max.hpp", "is_first || b > to_float(*above)", "is_first", "summary/two_level_test.cpp"),
    ("summary/min_max.hpp", "if (is_first || a < to_float(*below)) *below = rounded_down<Scalar>(a);", "if (is_first || a < to_float(*below)) *below = rounded_up<Scalar>(a);", "summary/two_level_test.cpp"),
    ("summary/bounded_key.hpp", "most = distance + slack", "most = distance / 2 + slack", "summary/two_level_test.cpp"),
    ("summary/mapped.hpp", "shifted_high[c] = map.template of_key<D>(high, c);", "shifted_high[c] = high[c];", "summary/two_level_test.cpp"),
    ("summary/mapped.hpp", "if constexpr (is_upper_bound) return", "if constexpr (false) return", "summary/two_level_test.cpp"),
    ("summary/mapped.hpp", "slack + rounding, tile", "slack, tile", "summary/two_level_test.cpp"),
    ("summary/bounded_key.hpp", "rounded_up<bf16>(most)", "rounded_down<bf16>(most)", "summary/two_level_test.cpp"),
    ("summary/collisions.hpp", "before += counts[b * points + order[i]];", "before += counts[b * points + i];", "cache/paris_kv_test.cpp"),
    ("summary/collisions.hpp", "tier == 2 ? 30", "tier == 2 ? 31", "cache/paris_kv_test.cpp"),
    ("codec/sphere_centroids.hpp", "x == y && with < without", "x == y && with > without", "codec/directions_test.cpp"),
    ("codec/direction_codes.hpp", "length / along * unit", "length * unit", "codec/directions_test.cpp"),
    ("operation/score_levels.hpp", "coarse[number(listed[i])] = undefined;  // done with", "", "cache/two_level_test.cpp"),
    ("operation/score_levels.hpp", "mark_outliers(t, from, head, blocks, sizes.result(workspace, rows));", "", "cache/two_level_test.cpp"),
    ("operation/score_levels.hpp", "std::uint32_t(k), [](i64) { return 1u; }, scratch)", "std::uint32_t((k + 1) / 2), [](i64) { return 1u; }, scratch)", "cache/two_level_test.cpp"),
]


def run(command, **options):
    return subprocess.run(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, errors="replace", **options)


def attempt(scratch, number, mutation):
    """One of: killed, SURVIVED, and what is wrong with the mutation itself."""
    file, before, after, source = mutation
    include = scratch / f"include_{number}"
    copytree(ROOT / "include", include)
    target = include / "cellar" / file
    text = target.read_text()
    target.write_text(text.replace(before, after))
    program = scratch / f"test_{number}"
    objects = [scratch / "main.o"] + ([scratch / "emulator.o"] if source.startswith(("emulator/", "cuda/")) else [])
    built = run([CXX, *FLAGS, f"-I{include}", f"-I{ROOT / 'tests'}", ROOT / "tests" / source, *objects, "-o", program])
    if built.returncode:
        return "does not compile: " + built.stdout[:300]
    try:
        return "killed" if run([program, "--abort"], timeout=300).returncode else "SURVIVED"
    except subprocess.TimeoutExpired:
        return "killed"  # it hangs


def main():
    stale = [f"{file}: {text}" for file, text, _, _ in MUTATIONS if (ROOT / "include/cellar" / file).read_text().count(text) != 1]
    if stale:
        sys.exit("These texts do not stand in their files exactly once; let them follow the lines that moved:\n" + "\n".join(stale))
    chosen = [m for m in MUTATIONS if not sys.argv[1:] or any(part in m[0] or part in m[1] for part in sys.argv[1:])]
    with tempfile.TemporaryDirectory() as folder:
        scratch = Path(folder)
        for source, name in (("main.cpp", "main.o"), ("emulator/emulator.cpp", "emulator.o")):
            subprocess.run([CXX, *FLAGS, f"-I{ROOT / 'include'}", f"-I{ROOT / 'tests'}", "-c", ROOT / "tests" / source, "-o", scratch / name], check=True)
        with ThreadPoolExecutor(os.cpu_count()) as pool:
            outcomes = list(pool.map(lambda i: attempt(scratch, i, chosen[i]), range(len(chosen))))
    line = lambda text: " ".join(text.split()).replace("|", "\\|")
    print("| file | broken line | became | test | outcome |\n|---|---|---|---|---|")
    for (file, before, after, source), outcome in zip(chosen, outcomes):
        print(f"| {file} | `{line(before)}` | `{line(after) or 'nothing'}` | {source} | {line(outcome)} |")
    left = sum(o != "killed" for o in outcomes)
    print(f"\n{len(outcomes) - left} of {len(outcomes)} killed.")
    return min(left, 125)


if __name__ == "__main__":
    sys.exit(main())
