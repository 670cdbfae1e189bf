#!/usr/bin/env bash
# Everything that only a GPU shows: the tests of tests/cuda on the device, compute-sanitizer over them, and the benchmarks. Ten minutes in all.
#
#   tests/gpu.sh [--out FOLDER] [--built FOLDER] [--only tests|sanitizers|benchmarks]
#
# Where CELLAR_TEST_MODEL_SMOLLM or CELLAR_TEST_MODEL_QWEN names a model file, and the examples' packages are there, Text2JSON is decoded on the device too.
# FOLDER of --out takes logs and JSON (build/gpu/results unless named). --built names a folder that has the programs test_device and benchmark_cuda_* already,
# for a machine that lacks what building needs; else they are built for this machine's device into build/gpu.
set -uo pipefail
root=$(cd "$(dirname "$0")/.." && pwd)

out=$root/build/gpu/results built='' only=''
while (($#)); do
  case $1 in
    --out) out=${2:?--out needs a folder}; shift 2 ;;
    --built) built=${2:?--built needs a folder}; shift 2 ;;
    --only)
      only=${2:?--only needs tests, sanitizers or benchmarks}
      [[ $only == tests || $only == sanitizers || $only == benchmarks ]] || { echo "--only takes tests, sanitizers or benchmarks" >&2; exit 2; }
      shift 2 ;;
    *) echo "usage: tests/gpu.sh [--out FOLDER] [--built FOLDER] [--only tests|sanitizers|benchmarks]" >&2; exit 2 ;;
  esac
done
mkdir -p "$out"
nvidia-smi --query-gpu=name,driver_version,memory.total --format=csv,noheader | tee "$out/device.txt" || { echo "There is no NVIDIA device here." >&2; exit 77; }
git -C "$root" rev-parse --short HEAD >"$out/commit.txt" 2>/dev/null

benchmarks=()
for source in "$root"/benchmarks/cuda_*.cu; do benchmarks+=("$(basename "$source" .cu)"); done
model=${CELLAR_TEST_MODEL_QWEN:-${CELLAR_TEST_MODEL_SMOLLM:-}}
if [[ -z $built ]]; then
  built=$root/build/gpu
  cmake -S "$root" -B "$built" -DCMAKE_BUILD_TYPE=Release -DCELLAR_CUDA=ON -DCMAKE_CUDA_ARCHITECTURES=native \
    -DCELLAR_EXAMPLES=$([[ -n $model ]] && echo ON || echo OFF) ${model:+-DCELLAR_TEXT2JSON_CUDA=ON "-DCELLAR_TEXT2JSON_CUDA_SCHEMES=dense,yakv_centred,quest"} \
    >"$out/configure.log" &&
    cmake --build "$built" --parallel --target test_device $(printf "benchmark_%s " "${benchmarks[@]}") >"$out/build.log" || { tail -30 "$out/build.log"; exit 1; }
  [[ -n $model ]] && { cmake --build "$built" --parallel --target text2json >"$out/build_text2json.log" 2>&1 || echo "text2json is not built: see $out/build_text2json.log"; }
  find "$built" -type f \( -name test_device -o -name 'benchmark_cuda_*' -o -name text2json \) -executable -exec ln -sf {} "$built" \;
fi

failed=0
run() { # NAME SECONDS COMMAND...: to a log of that name. Peers may be missing; what a test ends with is a number of failures
  local name=$1 seconds=$2 start=$SECONDS
  shift 2
  timeout "$seconds" "$@" >"$out/$name.log" 2>&1
  local status=$?
  if ((status == 0)); then
    echo "passed  $name  $((SECONDS - start)) s: $(tail -3 "$out/$name.log" | grep -v '^$' | tail -1)"
  elif [[ $name == peers ]] && ((status == 77)); then
    echo "skipped $name: $(tail -1 "$out/$name.log")"
  else
    echo "FAILED  $name  $((SECONDS - start)) s"
    tail -40 "$out/$name.log"
    failed=1
  fi
}

if [[ -z $only || $only == tests ]]; then
  run tests 180 "$built/test_device" --durations yes
fi
if [[ -n $model && -x $built/text2json && (-z $only || $only == tests) ]]; then
  decode=("$built/text2json" --model "$model" --documents 1 --tokens 1000 --budget 0.125 --schemes yakv_centred,quest)
  run text2json 40 "${decode[@]}" --device cuda --out "$out/text2json"
  run text2json_host 30 "${decode[@]}" --out "$out/text2json_host"
  run text2json_alike 5 python3 - "$out"/text2json{_host,}/report.json <<'END'
import json, sys
host, device = ({s["name"]: s["nll"] for s in json.load(open(path))["schemes"]} for path in sys.argv[1:])
print("nats per token, host:", host, "device:", device)
# Rounding of 16-bit GEMMs and blocks that change places within it move a token's log-probability by a few thousandths.
sys.exit(host.keys() != device.keys() or any(abs(host[name] - device[name]) > 0.02 for name in host))
END
fi
if [[ -z $only || $only == benchmarks ]]; then
  declare -A limits=([cuda_step]=36 [cuda_fetch]=24)  # these fill gigabytes of pinned memory
  for name in "${benchmarks[@]}"; do
    run "$name" "${limits[$name]:-16}" "$built/benchmark_$name" --benchmark_out="$out/$name.json" --benchmark_out_format=json
  done
  run peers 30 python3 "$root/benchmarks/peers/torch_decode.py" "$out/peers.json"
fi
if [[ -z $only || $only == sanitizers ]]; then
  # racecheck takes a minute for a family, the others seconds for all of them.
  small='a block of a device obeys*,on a device as on the host: overlap,on a device as on the host: yakv_variants'
  for tool in memcheck initcheck synccheck; do run "$tool" 100 compute-sanitizer --tool "$tool" --error-exitcode 9 "$built/test_device"; done
  run racecheck 180 compute-sanitizer --tool racecheck --error-exitcode 9 "$built/test_device" "$small"
fi
((failed)) && echo "Something failed; logs are in $out." || echo "All passed; logs are in $out."
exit $failed
