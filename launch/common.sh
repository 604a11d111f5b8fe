# What the launchers share; sourced, never run.
# shellcheck shell=bash

# Prints the comment at the head of a script, which is its help, and ends.
usage() {
  sed -n '2,/^[^#]/{/^#/!d;s/^# \{0,1\}//;p;}' "$1"
  exit 0
}

# Prints a command as a shell would read it.
quoted() {
  local line
  printf -v line '%q ' "$@"
  echo "${line% }"
}

# The first interpreter of this machine that is at least version $1 and has the modules $2 (a,b).
python_at_least() {
  local candidate
  for candidate in "python$1" python3 python3.14 python3.13 python3.12 python3.11 python3.10 python \
    "${PYENV_ROOT:-${HOME:-/nonexistent}/.pyenv}"/versions/*/bin/python; do
    if command -v "$candidate" >/dev/null 2>&1 && "$candidate" -c "import sys, $2
sys.exit(sys.version_info[:2] < tuple(map(int, '$1'.split('.'))))" >/dev/null 2>&1; then
      echo "$candidate"
      return
    fi
  done
}

# Runs a launcher of moe_parity/launch, which needs the standard library of Python 3.10 and no more.
launcher() {
  local root interpreter
  root=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)
  interpreter=$root/.venv/bin/python
  [ -x "$interpreter" ] || interpreter=$(python_at_least 3.10 json)
  if [ -z "$interpreter" ]; then
    echo "error: the launchers need Python >= 3.10; install one, or run" \
      "'bash launch/local.sh --setup' first" >&2
    exit 2
  fi
  # Not `python -m`, which would take another checkout's launchers if run from there.
  exec "$interpreter" -c '
import runpy, sys
sys.path[0] = sys.argv.pop(1)
runpy.run_module("moe_parity.launch", run_name="__main__", alter_sys=True)
' "$root" "$@"
}
