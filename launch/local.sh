#!/usr/bin/env bash
# Sets up .venv for this checkout (once) and hands its arguments to `moe-parity`:
#   bash launch/local.sh demo      bash launch/local.sh test      bash launch/local.sh plan --help
# EXTRA=gpu or EXTRA=tpu installs JAX for that accelerator. Nothing but the package index is used.
set -euo pipefail
root=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)
extras="test${EXTRA:+,$EXTRA}"
wanted=$(cat "$root/.python-version")

python_of_wanted_version() {
  # The first interpreter of this machine that is at least the wanted version and can make a venv.
  local candidate
  for candidate in "python$wanted" python3.13 python3.14 python3 python; do
    if command -v "$candidate" >/dev/null 2>&1 &&
      "$candidate" -c "import sys, venv, ensurepip
sys.exit(sys.version_info[:2] < tuple(map(int, '$wanted'.split('.'))))" >/dev/null 2>&1; then
      echo "$candidate"
      return
    fi
  done
  # pyenv keeps interpreters that are installed but not selected out of reach of their names.
  for candidate in "${PYENV_ROOT:-$HOME/.pyenv}"/versions/"$wanted"*/bin/python; do
    if [ -x "$candidate" ]; then
      echo "$candidate"
      return
    fi
  done
  echo "error: no Python >= $wanted with venv was found; install one (for example with uv:" \
    "'uv python install $wanted', or your system's python$wanted and python$wanted-venv)" >&2
  exit 2
}

# The environment is made again when what it is made from changes.
stamp=$(cat "$root/pyproject.toml" "$root/constraints.txt" "$root/.python-version" | cksum)
stamp="$stamp $extras"
if [ "$(cat "$root/.venv/stamp" 2>/dev/null || true)" != "$stamp" ]; then
  here=$PWD
  cd "$root"
  if command -v uv >/dev/null 2>&1; then
    echo "setting up $root/.venv with uv" >&2
    uv venv --quiet --allow-existing --python "$wanted" .venv
    uv pip install --quiet --python .venv/bin/python -c constraints.txt -e ".[$extras]"
  else
    interpreter=$(python_of_wanted_version)
    echo "setting up $root/.venv with $interpreter (a minute or two)" >&2
    "$interpreter" -m venv .venv
    .venv/bin/python -m pip install --quiet --disable-pip-version-check \
      -c constraints.txt -e ".[$extras]"
  fi
  echo "$stamp" >.venv/stamp
  cd "$here"
fi
# Huge pages for the C library's heap: fewer page faults in CPU training. Read at process start only.
export GLIBC_TUNABLES="${GLIBC_TUNABLES:-glibc.malloc.hugetlb=1}"
exec "$root/.venv/bin/moe-parity" "$@"
