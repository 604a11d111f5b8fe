#!/usr/bin/env bash
# Makes .venv for this checkout (once) and passes its arguments to `moe-parity`.
#
#   bash launch/local.sh demo
#   bash launch/local.sh test
#   bash launch/local.sh plan --help          # the help of a command; `--help` alone is this text
#   bash launch/local.sh --setup              # only makes the environment
#   bash launch/local.sh --dry-run demo       # prints the commands and runs none
#
# The environment is made by uv where it is installed, else by venv. Where the machine's Python is
# too old, uv is installed next to the environment and fetches the Python of .python-version.
# EXTRA=gpu, EXTRA=gpu-cuda12 or EXTRA=tpu installs JAX for that accelerator.
set -euo pipefail
root=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)
# shellcheck source=launch/common.sh
. "$root/launch/common.sh"
extras="test${EXTRA:+,$EXTRA}"
wanted=$(cat "$root/.python-version")
dry="" setup=""
while [ $# -gt 0 ]; do
  case $1 in
    --help | -h) usage "${BASH_SOURCE[0]}" ;;
    --dry-run) dry=1 ;;
    --setup) setup=1 ;;
    -*)
      echo "error: $1 is no option of local.sh; options of moe-parity stand behind its command" >&2
      exit 2
      ;;
    *) break ;;
  esac
  shift
done

# Prints a command, or runs it.
run() {
  if [ -n "$dry" ]; then
    quoted "$@"
  else
    "$@"
  fi
}

# Sets `uv`: an old Python cannot run moe_parity, but it can install uv, which brings a newer one.
uv_through_an_old_python() {
  local old
  old=$(command -v python3 || command -v python || true)
  if [ -n "$old" ]; then
    uv=.venv/uv/bin/uv
    # Debian's and Ubuntu's Python often has pip and no venv, or venv and no pip.
    run "$old" -m pip install --quiet --disable-pip-version-check --target .venv/uv uv && return
    run "$old" -m venv .venv/uv &&
      run .venv/uv/bin/python -m pip install --quiet --disable-pip-version-check uv && return
  fi
  echo "error: no Python >= $wanted with venv, and no uv; install uv with" \
    "'curl -LsSf https://astral.sh/uv/install.sh | sh', then run this again" >&2
  exit 2
}

make_environment() {
  local uv="" interpreter=""
  if command -v uv >/dev/null 2>&1; then
    uv=uv
  else
    interpreter=$(python_at_least "$wanted" venv,ensurepip)
    [ -n "$interpreter" ] || uv_through_an_old_python
  fi
  echo "setting up $root/.venv with ${interpreter:-$uv} (a minute or two)" >&2
  if [ -n "$uv" ]; then
    run "$uv" venv --quiet --allow-existing --python "$wanted" .venv
    run "$uv" pip install --quiet --python .venv/bin/python -c constraints.txt -e ".[$extras]"
  else
    run "$interpreter" -m venv .venv
    run .venv/bin/python -m pip install --quiet --disable-pip-version-check \
      -c constraints.txt -e ".[$extras]"
  fi
}

# The environment is made again when what it is made from changes.
stamp=$(cat "$root/pyproject.toml" "$root/constraints.txt" "$root/.python-version" | cksum)
stamp="$stamp $extras"
is_current() { [ "$(cat "$root/.venv/stamp" 2>/dev/null || true)" = "$stamp" ]; }
if ! is_current; then
  here=$PWD
  cd "$root"
  if [ -n "$dry" ]; then
    make_environment
  else
    mkdir -p .venv
    # Several workers may start at once on one checkout: one makes the environment, the rest wait.
    exec 9>.venv/lock
    if command -v flock >/dev/null 2>&1; then flock 9; fi
    if ! is_current; then
      make_environment
      echo "$stamp" >.venv/stamp
    fi
    exec 9>&-
  fi
  cd "$here"
fi
[ -z "$setup" ] || exit 0
# Huge pages for the C library's heap: fewer page faults in CPU training. Read at process start only.
export GLIBC_TUNABLES="${GLIBC_TUNABLES:-glibc.malloc.hugetlb=1}"
[ -n "$dry" ] || exec "$root/.venv/bin/moe-parity" "$@"
quoted "$root/.venv/bin/moe-parity" "$@"
