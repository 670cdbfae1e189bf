#!/usr/bin/env bash
# Builds and runs the benchmarks on this machine, and writes their JSON.
#
#   benchmarks/run.sh [--out FOLDER] [--only NAME] [options of Google Benchmark]
#
# FOLDER is build/benchmarks/results unless named; benchmarks/render.py FOLDER docs makes docs/performance.md of it. Ten minutes on two cores; an idle machine is
# needed, and huge pages allowed ("madvise" or "always").
set -euo pipefail
root=$(cd "$(dirname "$0")/.." && pwd)
# shellcheck source=examples/packages.sh
source "$root/examples/packages.sh"

out=$root/build/benchmarks/results
only='*'
while (($#)); do
  case $1 in
    --out) out=${2:?--out needs a folder}; shift 2 ;;
    --only) only=${2:?--only needs the name of a benchmark}; shift 2 ;;
    *) break ;;
  esac
done

need_packages g++ cmake ninja-build libbenchmark-dev
choose_compiler
cmake -S "$root" -B "$root/build/benchmarks" -G Ninja -DCMAKE_BUILD_TYPE=Release -DCMAKE_CXX_FLAGS_RELEASE=-O2 -DCELLAR_TESTS=OFF -DCELLAR_EXAMPLES=OFF >/dev/null
cmake --build "$root/build/benchmarks" --parallel "$(jobs_by_memory 2)"
mkdir -p "$out"
lscpu >"$out/machine.txt"
cat /sys/kernel/mm/transparent_hugepage/enabled >>"$out/machine.txt"
git -C "$root" rev-parse --short HEAD >"$out/commit.txt"
found=0
for program in "$root"/build/benchmarks/benchmarks/benchmark_$only; do
  [[ -f $program && -x $program ]] || continue
  [[ $program == */benchmark_cuda_* ]] && continue  # tests/gpu.sh runs those
  found=1
  name=${program##*/benchmark_}
  "$program" --benchmark_out="$out/$name.json" --benchmark_out_format=json "$@"
done
((found)) || { echo "There is no benchmark $only." >&2; exit 1; }
