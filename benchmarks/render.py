#!/usr/bin/env python3
"""Renders docs/performance.md from the JSON of benchmarks/run.sh.

    benchmarks/render.py FOLDER > docs/performance.md
"""
import json
import pathlib
import re
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
    ("sparse_step", "A sparse step of 2048 tokens, against own dense attention in bf16", "speed_up",
     ["bound", "of_bound", "ms", "score_ms", "select_ms", "fetch_ms", "attend_ms"], []),
]


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
    print("\n## Compile time (-O0)\n\n| program | seconds, median of 7 |\n|---|---|")
    for row in json.loads(path.read_text())["benchmarks"]:
        if row.get("aggregate_name") == "median":
            print(f"| {row['run_name'].split('/')[0]} | {row['real_time'] / 1e3:.2f} |")


def main():
    folder = pathlib.Path(sys.argv[1])
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
    compile_times(folder)


if __name__ == "__main__":
    main()
