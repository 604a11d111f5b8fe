"""`python -m moe_parity.launch LAUNCHER ...`, which launch/*.sh call."""

import argparse
import importlib
import math
import os
import sys
from collections.abc import Sequence

from moe_parity.errors import UserError
from moe_parity.launch.commands import CommandError, say
from moe_parity.launch.exit_codes import FAILED, MEND_INPUT

LAUNCHERS = ("gpu", "tpu", "slurm", "gke", "supervise")


def main(argv: Sequence[str] | None = None) -> int:
  """Runs one launcher; its exit status. 2 mend the input, 1 a command of the engine failed."""
  argv = list(sys.argv[1:] if argv is None else argv)
  if not argv or argv[0] not in LAUNCHERS:
    say(f"error: {argv[:1]} is no launcher; use one of {', '.join(LAUNCHERS)}")
    return MEND_INPUT
  module = importlib.import_module(f"moe_parity.launch.{argv[0]}")
  try:
    args = parser_of(argv[0], module).parse_args(argv[1:])
    check_numbers(args)
    return module.run(args)
  except UserError as error:
    say(f"error: {error}")
    return MEND_INPUT
  except CommandError as error:
    say(f"error: {error}")
    return FAILED
  except KeyboardInterrupt:
    return 130
  except BrokenPipeError:  # whoever read this (head, less) has enough; the rest goes nowhere
    os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
    return 141


def check_numbers(args: argparse.Namespace) -> None:
  """
  Raises:
    UserError: an option's number is negative, infinite or none, which no option takes.
  """
  for name, value in vars(args).items():
    if isinstance(value, int | float) and not 0 <= value < math.inf:
      raise UserError(f"--{name.replace('_', '-')}={value:g}: give a number of at least 0")


class OneLine(argparse.ArgumentParser):
  """argparse, but an error is one line and not the usage in front of it."""

  def error(self, message: str):
    """
    Raises:
      UserError: always.
    """
    raise UserError(f"{message}; see {self.prog} --help")


def parser_of(name: str, module) -> argparse.ArgumentParser:
  """The parser of a launcher: --help with its example, --dry-run, and its own options."""
  is_script = name != "supervise"
  parser = OneLine(
    f"launch/{name}.sh" if is_script else f"python -m moe_parity.launch {name}",
    description=f"{module.HELP}\n\nexample:\n  {module.EXAMPLE}",
    formatter_class=argparse.RawDescriptionHelpFormatter,
    allow_abbrev=False,
  )
  parser.add_argument("--dry-run", action="store_true", help="print the commands, change nothing")
  module.arguments(parser)
  return parser


if __name__ == "__main__":
  sys.exit(main())
