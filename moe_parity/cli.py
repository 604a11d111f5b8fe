"""The `moe-parity` command: picks the command, and turns its errors into one line and a status."""

import argparse
import gc
import importlib
import os
import shlex
import signal
import sys
from collections.abc import Sequence

from moe_parity.aot import libtpu
from moe_parity.command_line import OneLineParser
from moe_parity.errors import Stopped, UserError, disk_is_full
from moe_parity.launch.exit_codes import START_AGAIN

COMMANDS = (  # each a file of moe_parity/commands
  *("plan", "account", "train", "study", "report", "evaluate", "generate", "sft"),
  *("downstream", "export", "import", "prepare", "data", "predict", "compile", "bench"),
  *("demo", "doctor", "test"),
)

ABOUT = """\
Dense or Mixture-of-Experts? At equal total parameters N, equal training compute C and equal unique
data (arXiv 2506.12119), which wins, and at which activation rate N_a / N?

  moe-parity demo                                            the whole question, small, on this CPU
  moe-parity plan    --config=configs/paper_7b.py            what every arm would cost, in a second
  moe-parity compile --config=configs/single_gpu.py:gib=40 --arm=dense --topology=v5e-8   a TPU step
  moe-parity study   --config=configs/demo.py --workdir=runs/mine      train, certify, compare
  moe-parity report runs/mine                                one HTML page

Any field of a config can be set on the command line: --config.budget.dense_tokens=2000000
"""


INTERRUPTED = 130  # as a shell calls a process that Ctrl-C ended


def main(argv: Sequence[str] | None = None) -> int:
  """Runs one command; the exit status.

  0 done (of a study: what is left is with live workers), 1 it ran and the answer is no, 2 mend the
  input, 75 stopped with a checkpoint: start it again, 130 stopped by Ctrl-C.
  """
  # Imports and tracing make many objects and little garbage: looking for it at every 700th object,
  # as Python does, is a twentieth of the time to a first loss.
  gc.set_threshold(50_000)
  libtpu.silence_probe()
  argv = list(sys.argv[1:] if argv is None else argv)
  try:
    parser = _parser()
    args, overrides = parser.parse_known_args(argv)
    if args.subcommand is None:
      parser.print_help()
      return 2
    args.overrides, args.command = overrides, "moe-parity " + shlex.join(argv)
    if overrides and not (hasattr(args, "config") or hasattr(args, "pytest")):
      raise UserError(
        f"unexpected argument {overrides[0]!r}; see moe-parity {args.subcommand} --help"
      )
    status = args.run(args)
    sys.stdout.flush()
    return status
  except (
    BrokenPipeError
  ):  # whoever read this (head, less) has enough; what is buffered goes nowhere
    os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
    return 141  # as a shell calls it
  except UserError as error:
    print(f"error: {_printed(str(error))}", file=sys.stderr)
  except Stopped as error:
    print(f"\n{error}; the same command resumes", file=sys.stderr)
    return error.code
  except KeyboardInterrupt:
    print(
      "\nstopped; run the same command again to resume from the last checkpoint", file=sys.stderr
    )
    return INTERRUPTED
  except Exception as error:
    if isinstance(error, OSError) and error.filename is not None and not disk_is_full(error):
      print(f"error: {_place_problem(error)}", file=sys.stderr)
      return 2
    if not disk_is_full(error):
      raise
    print(
      "error: the disk is full; nothing finished is lost. Free some space (train.keep_checkpoints"
      " sets how many checkpoints stay), then run the same command again",
      file=sys.stderr,
    )
  return 2


def _printed(text: str) -> str:
  """The text in one line: a name in it may hold a newline, or what a terminal obeys."""
  return "".join(c if c.isprintable() else ascii(c)[1:-1] for c in text)


def _place_problem(error: OSError) -> str:
  """What is wrong with a file or folder that could not be read or written."""
  name = str(error.filename2 or error.filename)  # of a rename: where to
  return (
    f"{_printed(name)}: {error.strerror or error}; choose another place, or change its permissions"
  )


def _parser() -> OneLineParser:
  raw = argparse.RawDescriptionHelpFormatter
  parser = OneLineParser("moe-parity", description=ABOUT, formatter_class=raw)
  subparsers = parser.add_subparsers(dest="subcommand", metavar="COMMAND")
  for name in COMMANDS:
    module = importlib.import_module(f"moe_parity.commands.{name}")
    about = getattr(module, "ABOUT", module.HELP)
    sub = subparsers.add_parser(
      name, help=module.HELP, description=about, formatter_class=raw, allow_abbrev=False
    )
    module.arguments(sub)
    sub.set_defaults(run=module.run)
  return parser


def program() -> None:
  """The command `moe-parity`: `main`, then the end of the process.

  One that was stopped ends at once: threads of libraries that were stopped in their midst (a
  compilation, a read ahead) may abort the interpreter's own way out, and the exit code with it.
  """
  for number in (signal.SIGTERM, signal.SIGUSR1):  # until a run hears them: nothing is to be saved
    signal.signal(number, lambda number, frame: os._exit(START_AGAIN))
  status = main()
  if status in (START_AGAIN, INTERRUPTED):
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(status)
  sys.exit(status)


if __name__ == "__main__":
  program()
