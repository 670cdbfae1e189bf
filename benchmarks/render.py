#!/usr/bin/env python3
"""Renders docs/performance.md, and its plot (by gnuplot) beside it, from the JSON of benchmarks/run.sh.

    benchmarks/render.py FOLDER docs
"""
import io
import json
import math
import pathlib
import re
import subprocess
import sys

INTRODUCTION = """# Performance on CPUs

Made by `benchmarks/run.sh` and `benchmarks/render.py`; do not edit.

Every figure is a ratio to a yardstick timed in turns with it in the same process: the median, with its quartiles. Absolute times are for orientation. `of probe` is the
operation's bytes a second over those of a plain read of memory that no cache holds, by as many threads. Where the yardstick's own spread (p90 / p10) exceeds 1.3, it is said.
Shapes: 128 channels a head, 32 query and 8 KV heads, unless a row says otherwise; keys and values are random normal numbers.
"""

# Benchmark, heading, its ratio, further columns, the target of each row by pattern (first match).
TABLES = [
    ("dense_attention", "Dense decode", "of_probe", ["ms", "probe_GB/s"], [("", 0.80)]),
    ("score", "Scoring summaries", "of_probe", ["ms", "probe_GB/s"], [("256 points", 0.20), ("16 points", 0.50), ("", 0.80)]),
    ("top_k", "Exact top-k, against nth_element and sort", "speed_up", ["ms"], [("131072", 7.0)]),
    ("seal", "Sealing a prompt (4096 tokens)", "of_probe", ["readings", "us_a_token"], [("", 0.25)]),
    ("thread_pool", "Runs of short items on the pool, against one thread", "speed_up", ["ms"], []),
    ("sparse_step", "A sparse step of 2048 tokens, against own dense attention in bf16", "speed_up",
     ["bound", "of_bound", "ms", "score_ms", "select_ms", "fetch_ms", "attend_ms"], []),
]


SCALING = """
## As work grows

One layer's step with all threads: 8 query and 2 KV heads and 64k tokens of one sequence, a budget of 2048 tokens, unless the axis says otherwise (batch: 4096 tokens each, a
budget of 512; threads: one KV head). The slope is that of log time against log work between the last two points: 1 is in proportion, 0 is no growth.

* tokens: dense attention is in proportion. A sparse step has a part that is (scores and the choice of blocks) and one that is not (gather and attention to the budget);
  the longer the sequence, the more of the step is the first.
* budget: the other way round. Dense attention has none.
* batch, KV heads: in proportion once there are more (sequence, KV head) pairs than threads; below that, parts of one pair are shared out.
* threads: -1 would be half the time for twice the threads; the memory serves all of them.

![time of a step](scaling.svg)
"""


def number(x):
    return f"{x:.3g}" if abs(x) < 100 else f"{x:.0f}"


def table(folder, name, heading, ratio, columns, targets):
    path = folder / f"{name}.json"
    if not path.exists():
        return
    rows = json.loads(path.read_text())["benchmarks"]
    print(f"\n## {heading}\n")
    heads = ["case", ratio.replace("_", " "), "quartiles"] + (["target"] if targets else []) + [c.replace("_", " ") for c in columns]
    print("| " + " | ".join(heads) + " |\n|" + "---|" * len(heads))
    for row in rows:
        case = row["name"].split("/", 1)[1].replace("/iterations:1/manual_time", "").replace("/", ", ")
        if row.get("error_occurred"):
            print(f"| {case} | {row['error_message']} |" + " |" * (len(heads) - 2))
            continue
        cells = [case, number(row[ratio]), f"{number(row[ratio + '_low'])} to {number(row[ratio + '_high'])}"]
        if targets:
            target = next((t for pattern, t in targets if pattern in case), None)
            cells.append("" if target is None else f"{number(target)}, " + ("met" if row[ratio] >= target else "missed"))
        cells += [number(row[c]) for c in columns]
        if row["yardstick_spread"] > 1.3:
            cells[0] += f" (yardstick's spread {number(row['yardstick_spread'])})"
        print("| " + " | ".join(cells) + " |")


def compile_times(folder):
    path = folder / "compile_time.json"
    if not path.exists():
        return
    print("\n## Compile time (-O0)\n\n| program | seconds, median |\n|---|---|")
    for row in json.loads(path.read_text())["benchmarks"]:
        if row.get("aggregate_name") == "median":
            print(f"| {row['run_name'].split('/')[0]} | {row['real_time'] / 1e3:.2f} |")


def scaling(folder, out):
    path = folder / "scaling.json"
    if not path.exists():
        return
    series = {}
    for row in json.loads(path.read_text())["benchmarks"]:
        if row.get("error_occurred"):
            continue
        _, axis, scheme, value = row["name"].split("/")[:4]
        series.setdefault(axis, {}).setdefault(scheme, []).append((int(value), row))
    print(SCALING)
    print("| axis | scheme | ms at each point | slope at the end | of probe at the end |\n|---|---|---|---|---|")
    for axis, schemes in series.items():
        for scheme, points in schemes.items():
            (x0, a), (x1, b) = points[-2:] if len(points) > 1 else (points[0], points[0])
            slope = math.log(b["ms"] / a["ms"]) / math.log(x1 / x0) if x1 != x0 else math.nan
            times = ", ".join(f"{x}: {number(r['ms'])}" for x, r in points)
            print(f"| {axis.replace('_', ' ')} | {scheme} | {times} | {slope:.2f} | {number(b['of_probe'])} |")
    plots = []
    for axis, schemes in series.items():
        data = "".join(f"${axis}_{s} << EOD\n" + "".join(f"{x} {r['ms']}\n" for x, r in points) + "EOD\n" for s, points in schemes.items())
        lines = ", ".join(f"${axis}_{s} with linespoints title '{s.replace('_', ' ')}'" for s in schemes)
        ticks = ", ".join(f"'{x if x < 1024 else f'{x // 1024}k'}' {x}" for x, _ in next(iter(schemes.values())))
        plots.append(f"{data}set xtics ({ticks})\nset xlabel '{axis.replace('_', ' ')}'\nplot {lines}\n")
    script = f"""set terminal svg size 1200,700 font 'sans,12' background 'white'
set output '{out / "scaling.svg"}'
set logscale xy
set ylabel 'ms a layer'
set key above
set grid
set multiplot layout 2,3
{"".join(plots)}unset multiplot
"""
    subprocess.run(["gnuplot"], input=script, text=True, check=True)


def main():
    folder, out = pathlib.Path(sys.argv[1]), pathlib.Path(sys.argv[2])
    written = io.StringIO()
    sys.stdout = written
    machine = (folder / "machine.txt").read_text()
    found = lambda key: next((m.group(1).strip() for m in re.finditer(rf"^\s*{key}:\s*(.*)$", machine, re.M)), "unknown")
    sample = json.loads(next(p for p in sorted(folder.glob("*.json")) if "vector_level" in p.read_text()).read_text())
    context = sample["context"]
    level = ["portable", "AVX2", "AVX-512"][int(context["vector_level"])]
    huge_pages = machine.rsplit("[", 1)[1].split("]")[0]
    print(INTRODUCTION)
    print(f"Machine: {found('Model name')}, {found('CPU.s.')} cores, L2 {found('L2 cache')}, L3 {found('L3 cache')}; vector level {level}; huge pages "
          f"{huge_pages}; {context['date'][:10]}, commit {(folder / 'commit.txt').read_text().strip()}.")
    for entry in TABLES:
        table(folder, *entry)
    scaling(folder, out)
    compile_times(folder)
    (out / "performance.md").write_text(written.getvalue())


if __name__ == "__main__":
    main()
