#!/usr/bin/env bash
# Installs what is missing (Debian, Ubuntu), builds, and runs all tests: the library's under ASan and UBSan, those with threads under TSan too, and plain those of
# emulated devices, vector levels, the engine, compiling and packaging.
#
#   tests/run.sh [--thorough] [--only plain|address|thread] [further options of ctest]
#
# --thorough runs every test plain, and the emulated blocks of every scheme, not of some, under ASan and UBSan too: over two hours on two cores.
#
# CXX chooses the compiler. CELLAR_TEST_MODEL_SMOLLM, CELLAR_TEST_MODEL_QWEN and CELLAR_TEST_MODEL_GEMMA (gemma-3-270m-q4_k_m.gguf) name model files; without
# them, and without those in the folder where examples/run.sh keeps its own, the tests that need one skip.
set -euo pipefail
root=$(cd "$(dirname "$0")/.." && pwd)

only='' thorough=OFF
if [[ ${1:-} == --thorough ]]; then
  thorough=ON
  shift
fi
if [[ ${1:-} == --only ]]; then
  only=${2:?--only needs plain, address or thread}
  shift 2
fi

# shellcheck source=examples/packages.sh
source "$root/examples/packages.sh"
need_packages g++ cmake ninja-build catch2 libpcre2-dev libopenblas-dev nlohmann-json3-dev libcli11-dev libbenchmark-dev gnuplot-nox clang clang-format clang-tidy g++-aarch64-linux-gnu qemu-user
# What only some distributions have: its tests skip without it.
[[ -n $(apt-cache --quiet=2 search --names-only '^libdlpack-dev$' 2>/dev/null) ]] && need_packages libdlpack-dev
choose_compiler

models=$(model_folder)
[[ -e $models/$smollm_file ]] && export CELLAR_TEST_MODEL_SMOLLM=${CELLAR_TEST_MODEL_SMOLLM:-$models/$smollm_file}
[[ -e $models/$qwen_file ]] && export CELLAR_TEST_MODEL_QWEN=${CELLAR_TEST_MODEL_QWEN:-$models/$qwen_file}
[[ -e $models/$gemma_file ]] && export CELLAR_TEST_MODEL_GEMMA=${CELLAR_TEST_MODEL_GEMMA:-$models/$gemma_file}

# One ctest over all builds, so that one summary ends the run.
builds=$root/build/tests
mkdir -p "$builds"
rm -f "$builds/CTestTestfile.cmake"
add_build() {  # name, options of cmake
  local name=$1
  shift
  [[ -n $only && $only != "$name" ]] && return
  cmake -S "$root" -B "$builds/$name" -G Ninja "$@" >"$builds/$name.log" || { cat "$builds/$name.log"; exit 1; }
  cmake --build "$builds/$name" --parallel "$(jobs_by_memory 4)"
  echo "subdirs($name)" >>"$builds/CTestTestfile.cmake"
}
# What makes a build from nothing shorter. All tests and benchmarks of a device are built where there is one, by tests/gpu.sh.
narrow=(-DCELLAR_TESTS_TOGETHER=ON -DCELLAR_TEXT2JSON_HEAD_DIMS=64 "-DCELLAR_DEVICE_TESTS=codecs;capture" "-DCELLAR_DEVICE_BENCHMARKS=merge;resolve")
optimized=-O0  # at -Og a third more to compile
plain=("-DCELLAR_TEST_FOLDERS=cache;cuda;engine;host;schedules;summary;text2json;tier")
[[ $thorough == ON ]] && plain=() optimized=-Og
cuda=()  # to PTX: the test of every kernel compiles to machine code, for all architectures
command -v "${CUDACXX:-nvcc}" >/dev/null &&
  cuda=(-DCMAKE_CUDA_ARCHITECTURES=90-virtual -DCELLAR_TEXT2JSON_CUDA=ON -DCELLAR_TEXT2JSON_CUDA_SCHEMES=dense,yakv_centred)
add_build plain "${cuda[@]}" -DCMAKE_BUILD_TYPE=Release -DCMAKE_CXX_FLAGS_RELEASE=-O1 -DCELLAR_TESTS_THOROUGH=$thorough "${narrow[@]}" "${plain[@]}"
add_build address "${narrow[@]}" -DCELLAR_TESTS_THOROUGH=$thorough -DCELLAR_TEXT2JSON_SCHEMES=dense,sink_window,quest,yakv_centred,low_rank_keys -DCMAKE_BUILD_TYPE=Debug -DCMAKE_CXX_FLAGS_DEBUG=$optimized -DCELLAR_SANITIZE=address,undefined -DCELLAR_BENCHMARKS=OFF
add_build thread "${narrow[@]}" -DCMAKE_BUILD_TYPE=Debug -DCMAKE_CXX_FLAGS_DEBUG=-Og -DCELLAR_SANITIZE=thread -DCELLAR_BENCHMARKS=OFF -DCELLAR_EXAMPLES=OFF
ctest --test-dir "$builds" --output-on-failure --parallel "$(nproc)" "$@"
