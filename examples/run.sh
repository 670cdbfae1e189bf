#!/usr/bin/env bash
# Installs what is missing (Debian, Ubuntu), builds, gets a model, and runs Text2JSON over all schemes.
#
#   examples/run.sh [--model qwen|smollm|FILE.gguf] [--device cuda] [further options of text2json]
#
# --device cuda builds the program for this machine's GPU too (CUDA Toolkit with cuBLAS), which takes minutes.
# The model is kept in the user's cache folder; with it at hand no network is needed once the packages are installed.
set -euo pipefail
root=$(cd "$(dirname "$0")/.." && pwd)
# shellcheck source=examples/packages.sh
source "$root/examples/packages.sh"

model=qwen
options=()
cuda=OFF
out=(--out "$root/out")
while (($#)); do
  case $1 in
    --model)
      model=${2:?--model needs qwen, smollm or a file}
      shift
      ;;
    --device=*)
      set -- --device "${1#--device=}" "${@:2}"
      continue
      ;;
    --device)
      options+=("$1" "${2:?--device needs host or cuda}")
      [[ $2 != cuda ]] || cuda=ON
      shift
      ;;
    --model=*) model=${1#--model=} ;;
    -h | --help)
      echo "examples/run.sh [--model qwen|smollm|FILE.gguf] [options of text2json, as follows; --out is $root/out]"
      options=(--help)
      model=none
      break
      ;;
    --out | --out=*)
      out=()
      options+=("$1")
      ;;
    *) options+=("$1") ;;
  esac
  shift
done

need_packages g++ cmake ninja-build libpcre2-dev libopenblas-dev nlohmann-json3-dev libcli11-dev gnuplot-nox
choose_compiler
case $model in
  qwen) file=$(get_qwen) || { echo "The model qwen could not be had: going on with smollm." >&2; file=$(get_smollm); } ;;
  smollm) file=$(get_smollm) || { echo "The model smollm could not be had: going on with qwen." >&2; file=$(get_qwen); } ;;
  none) file= ;;
  *)
    file=$model
    [[ -e $file ]] || { echo "There is no model file $file; --model takes qwen, smollm or a GGUF file." >&2; exit 1; }
    ;;
esac

widths="64;128"
[[ $model != qwen && $model != smollm ]] || widths=64  # of their heads; each takes minutes to build
cmake -S "$root" -B "$root/build/examples" -G Ninja -DCMAKE_BUILD_TYPE=Release -DCMAKE_CXX_FLAGS=-march=native -DCELLAR_TESTS=OFF -DCELLAR_BENCHMARKS=OFF \
  -DCELLAR_CUDA=$cuda -DCELLAR_TEXT2JSON_CUDA=$cuda -DCMAKE_CUDA_ARCHITECTURES=native "-DCELLAR_TEXT2JSON_HEAD_DIMS=$widths" >/dev/null
cmake --build "$root/build/examples" --target text2json --parallel "$(jobs_by_memory 2)"
exec "$root/build/examples/examples/text2json" ${file:+--model "$file"} "${out[@]}" "${options[@]}"
