# Read by examples/run.sh and tests/run.sh: system packages, and where models are kept.

smollm_file=SmolLM2-135M-Instruct.Q4_1.gguf
qwen_file=qwen2.5-coder-0.5b-instruct-q4_k_m.gguf

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
  ((EUID)) && as_root=(sudo)
  "${as_root[@]}" apt-get update -qq
  DEBIAN_FRONTEND=noninteractive "${as_root[@]}" apt-get install -y -qq --no-install-recommends "${missing[@]}" >/dev/null
}

# As many build jobs as there are cores, but no more than memory allows at $1 GB each.
jobs_by_memory() {
  local gigabytes cores
  gigabytes=$(awk '/MemAvailable/ {print int($2 / 1048576)}' /proc/meminfo)
  cores=$(nproc)
  local jobs=$((gigabytes / $1))
  echo $((jobs < 1 ? 1 : jobs > cores ? cores : jobs))
}
