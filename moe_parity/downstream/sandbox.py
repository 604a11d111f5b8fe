"""Runs a program that a model wrote, in a process of its own with limits.

Limits: seconds, memory, size of files, an empty folder as home, which alone may be written to,
nothing of the environment, no input. Python's audit hooks refuse further processes, sockets and
what changes files elsewhere; where the kernel allows it (Linux, user namespaces) the network is
given up, too. It is a fence against accidents, not against an attacker: what it may read is what
you may read. Run it in a container if you do not trust the model.
"""

import contextlib
import os
import secrets
import signal
import subprocess
import sys
import tempfile

from moe_parity.downstream.tasks import Item

SECONDS = 5
MEMORY_BYTES = 1 << 30
FILE_BYTES = 1 << 20

# Runs in the child before the program: limits first, then the program from standard input.
_GUARD = """
import os, resource, sys
seconds, memory, size = map(int, sys.argv[1:4])
channel, sign, write = int(sys.argv.pop()), sys.argv.pop().encode(), os.write
try:
  os.unshare(os.CLONE_NEWUSER | os.CLONE_NEWNET)
except (AttributeError, OSError):
  pass
for limit, value in (("CPU", seconds), ("AS", memory), ("FSIZE", size), ("CORE", 0), ("NPROC", 0)):
  try:
    resource.setrlimit(getattr(resource, "RLIMIT_" + limit), (value, value))
  except (ValueError, OSError):
    pass
source = sys.stdin.read()
code = compile(source, "program", "exec")
denied = ("subprocess.", "socket.", "ctypes.", "os.fork", "os.exec", "os.posix_spawn", "os.spawn",
          "os.system", "os.kill", "os.putenv", "os.remove", "os.rmdir", "os.rename", "os.link",
          "os.symlink", "os.chmod", "os.chown", "os.truncate", "shutil.", "signal.")
home = os.getcwd() + os.sep
def watch(event, arguments):
  if event.startswith(denied):
    raise PermissionError(event)
  if event == "open" and isinstance(arguments[0], str):
    flags = arguments[2] if isinstance(arguments[2], int) else 0
    writes = flags & (os.O_WRONLY | os.O_RDWR | os.O_CREAT)
    if writes and not os.path.abspath(arguments[0]).startswith(home):
      raise PermissionError(arguments[0])
sys.addaudithook(watch)
exec(code, {"__name__": "__main__"})
write(channel, sign)
"""


def passes(item: Item, text: str, seconds: int = SECONDS) -> bool:
  """Whether the program that an item's text begins or is passes the item's tests."""
  program = text if not item.entry or item.entry in text else item.header + text
  return run(f"{program}\n{item.tests}\n", seconds)


def run(program: str, seconds: int = SECONDS) -> bool:
  """Whether a Python program runs to its last line, in time, without an error.

  One that leaves before (`sys.exit(0)`) has not run the tests behind it: only after its last line
  does the process write a random word to a pipe of its own.
  """
  sign, limits = secrets.token_hex(8), map(str, (seconds, MEMORY_BYTES, FILE_BYTES))
  with tempfile.TemporaryDirectory() as folder, _pipe() as (said, channel):
    process = subprocess.Popen(
      [sys.executable, "-I", "-c", _GUARD, *limits, sign, str(channel)],
      stdin=subprocess.PIPE,
      stdout=subprocess.DEVNULL,
      stderr=subprocess.DEVNULL,
      cwd=folder,
      env={"HOME": folder, "TMPDIR": folder, "PATH": os.defpath},
      start_new_session=True,
      pass_fds=(channel,),
    )
    try:
      process.communicate(program.encode("utf-8", "replace"), timeout=seconds + 2)
    except subprocess.TimeoutExpired:
      pass
    finally:
      with contextlib.suppress(ProcessLookupError):
        os.killpg(process.pid, signal.SIGKILL)  # and whatever it started
      process.wait()
    os.set_blocking(said, False)
    with contextlib.suppress(BlockingIOError):  # nothing was written
      return process.returncode == 0 and os.read(said, len(sign)) == sign.encode()
    return False


@contextlib.contextmanager
def _pipe():
  ends = os.pipe()
  try:
    yield ends
  finally:
    for end in ends:
      os.close(end)
