#!/usr/bin/env python3
"""Breaks the library one line at a time, and checks that a test notices: the check of the checks. Takes about ten minutes; not part of tests/run.sh.

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
    ("layout/tile_major.hpp", "before < int(p)", "before <= int(p)", "layout/layout_test.cpp"),
    ("layout/token_major.hpp", "+ head * geometry.row_bytes[int(p)]", "", "layout/layout_test.cpp"),
    ("layout/paged.hpp", "+ number(b) % page_blocks", "", "layout/layout_test.cpp"),
    # codec
    ("codec/identity.hpp", "r * to.code_stride + c * code_unit, from_float", "r * to.code_stride, from_float", "codec/identity_test.cpp"),
    ("codec/higgs.hpp", "x(r, c) * random_sign(SignSeed, c) * unit", "x(r, c) * unit", "codec/higgs_test.cpp"),
    ("codec/higgs.hpp", ">> (4 * (sub % 2)) & 15", "& 15", "codec/higgs_test.cpp"),
    ("codec/higgs.hpp", "while (distance[p] != best) ++p;", "while (distance[p] != best) p += 2;", "codec/higgs_test.cpp"),
    ("codec/centred.hpp", "y(r, c) += middle[c]", "y(r, c) -= middle[c]", "codec/centred_test.cpp"),
    ("codec/centred.hpp", "double(position_ + offset)", "double(position_)", "codec/centred_test.cpp"),
    ("codec/centred.hpp", "double(first_position + r) *", "double(r) *", "codec/centred_test.cpp"),
    ("codec/centred.hpp", "mean[c] = to_float(stored);", "mean[c] = s / Tokens;", "codec/centred_test.cpp"),
    # summary: build, prepare, score
    ("summary/mean.hpp", "from_float<Scalar>(s / float(tokens))", "from_float<Scalar>(s)", "summary/summary_test.cpp"),
    ("summary/min_max.hpp", "(2 * c + (x > 0))", "(2 * c + (x < 0))", "summary/summary_test.cpp"),
    ("summary/min_max.hpp", "return to_float(y) >= x ? y : neighbour(y, +1);", "return y;", "summary/summary_test.cpp"),
    ("summary/quantized_key.hpp", "lane = first_lane + b,", "lane = b,", "summary/summary_test.cpp"),
    ("summary/quantized_key.hpp", "-double(lane) * block_tokens", "-double(lane)", "summary/summary_test.cpp"),
    ("summary/quantized_key.hpp", "dot<D>(turned + lane * D, middle)", "dot<D>(turned, middle)", "summary/summary_test.cpp"),
    ("summary/quantized_key.hpp", "row[lane] += share;", "row[lane] += 0;", "summary/summary_test.cpp"),
    # reduce, select
    ("select/reduce.hpp", "row[b] != row[b] ? row[b] - log_sum", "row[b] != row[b] ? row[b]", "select/select_test.cpp"),
    ("select/reduce.hpp", "x > out[b] || out[b] != out[b] ? x : out[b]", "x < out[b] || out[b] != out[b] ? x : out[b]", "select/select_test.cpp"),
    ("select/reduce.hpp", "out[c] = s / float(rows.rows);", "out[c] = s;", "select/select_test.cpp"),
    ("select/top_k.hpp", "(is_equal && e < wanted)", "(is_equal && e <= wanted)", "select/select_test.cpp"),
    ("select/top_k.hpp", "known |= 255u << shift;", "known |= 127u << shift;", "select/select_test.cpp"),
    # the softmax state
    ("attention/softmax_state.hpp", "state.l *= shrink;", "", "attention/softmax_state_test.cpp"),
    ("attention/softmax_state.hpp", "state.l += weight * other.l;", "state.l += other.l;", "attention/softmax_state_test.cpp"),
    ("attention/causal.hpp", "k_position <= q_position", "k_position < q_position", "cache/attend_test.cpp"),
    # score, attend, seal, train
    ("operation/score.hpp", "from.summary(head, from.position(first))", "from.summary(head, from.position(0))", "cache/select_test.cpp"),
    ("operation/score.hpp", "from.tile(first, head)", "from.tile(first, 0)", "cache/select_test.cpp"),
    ("operation/score.hpp", "reduce(t, matrix_view<float const>{queries.data, queries.rows, queries.stride, D}", "reduce(t, matrix_view<float const>{queries.data, 1, queries.stride, D}", "cache/select_test.cpp"),
    ("operation/attend.hpp", "gather_near(0, step.length < from.map.sinks ? step.length : from.map.sinks);", "", "cache/attend_test.cpp"),
    ("operation/attend.hpp", "q_position = first_query + r / group", "q_position = first_query", "cache/attend_test.cpp"),
    ("operation/attend.hpp", "? 1.0f / states[r].l : 0.0f", "? 1.0f : 0.0f", "cache/attend_test.cpp"),
    ("operation/attend.hpp", "if (filled > 0) flush();", "", "cache/attend_test.cpp"),
    ("operation/seal.hpp", "to.value_codec(head, position).encode(t, v,", "to.value_codec(head, position).encode(t, k,", "cache/attend_test.cpp"),
    ("operation/seal.hpp", "position = to.position(first + b);", "position = to.position(b);", "cache/attend_test.cpp"),
    ("operation/seal.hpp", "to.summary(head, to.position(first + b)).build", "to.summary(head, to.position(first)).build", "cache/select_test.cpp"),
    ("operation/seal.hpp", "to.summary(head, 0).train(t, keys, 0, of_summary)", "to.summary(head, 0).train(t, keys, 1, of_summary)", "cache/attend_test.cpp"),
    ("operation/memory.hpp", "(position - map.sinks) % map.tail_rows", "(position - map.sinks) % (map.tail_rows - 1)", "cache/attend_test.cpp"),
    ("operation/memory.hpp", "(head * map_type::tiles_per_page + within) * map.tile()", "head * map_type::tiles_per_page * map.tile()", "cache/select_test.cpp"),
    # host drivers
    ("host/append.hpp", "<= most;", "<= most || to_float(x.row(i, h)[c]) != to_float(x.row(i, h)[c]);", "cache/contract_test.cpp"),
    ("host/append.hpp", "if (p >= far_begin && p < far_end) continue;", "if (p >= far_begin) continue;", "cache/attend_test.cpp"),
    ("host/append.hpp", "step.sealed_before <= step.sealed &&", "", "operation/engine_owned_test.cpp"),
    ("host/attend.hpp", "to_float(q.row(step.first_row + i, kv_head * group + h)[c])", "to_float(q.row(step.first_row + i, h)[c])", "cache/attend_test.cpp"),
    ("host/attend.hpp", "to[i] = logical_block{-1};", ";", "operation/engine_owned_test.cpp"),
    ("host/attend.hpp", "worker * sizes.worker_bytes();\n    std::byte* const scratch", "0;\n    std::byte* const scratch", "cache/attend_test.cpp"),
    ("host/executor.hpp", "f(context, item, worker); });", "f(context, item, 0 * worker); });", "host/executor_test.cpp"),
    ("host/thread_pool.hpp", "if (!failure_) failure_ = std::current_exception();", "", "host/executor_test.cpp"),
    # the cache's bookkeeping
    ("cache/cache.hpp", "std::max(budget_.window, new_tokens)", "budget_.window", "cache/contract_test.cpp"),
    ("cache/cache.hpp", "s.sealed = step.sealed_before;", "", "cache/contract_test.cpp"),
    ("cache/cache.hpp", "guard{*this, s, slot, 0}", "guard{*this, s, slot, 1 << 30}", "cache/contract_test.cpp"),
    ("cache/cache.hpp", "give_pages(s, number(id), 0);", "", "cache/contract_test.cpp"),
    ("cache/cache.hpp", "expects(!is_appended_[std::size_t(layer)]", "expects(true", "cache/contract_test.cpp"),
    # device bodies: barriers, under the emulated block
    ("select/top_k.hpp", "histogram[i] = 0;\n      t.sync();", "histogram[i] = 0;", "emulator/bodies_test.cpp"),
    ("summary/quantized_key.hpp", "        }\n      }\n      t.sync();", "        }\n      }", "emulator/bodies_test.cpp"),
    ("operation/attend.hpp", "{  // attends the tokens gathered so far\n    t.sync();", "{", "emulator/bodies_test.cpp"),
    ("operation/score.hpp", "scratch});\n  t.sync();", "scratch});", "emulator/bodies_test.cpp"),
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
    if text.count(before) != 1:
        return f"the text stands there {text.count(before)} times"
    target.write_text(text.replace(before, after))
    program = scratch / f"test_{number}"
    objects = [scratch / "main.o"] + ([scratch / "emulator.o"] if source.startswith("emulator/") else [])
    built = run([CXX, *FLAGS, f"-I{include}", f"-I{ROOT / 'tests'}", ROOT / "tests" / source, *objects, "-o", program])
    if built.returncode:
        return "does not compile: " + built.stdout[:300]
    try:
        return "killed" if run([program, "--abort"], timeout=300).returncode else "SURVIVED"
    except subprocess.TimeoutExpired:
        return "killed"  # it hangs


def main():
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
