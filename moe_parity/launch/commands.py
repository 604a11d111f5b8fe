"""A command as data, and what runs it or, for --dry-run, prints it."""

import argparse
import getpass
import os
import pathlib
import re
import shlex
import shutil
import subprocess
import sys
from collections.abc import Iterator, Mapping, Sequence
from typing import NamedTuple

from moe_parity.errors import UserError

ROOT = pathlib.Path(__file__).resolve().parents[2]  # of the checkout that launches


# Of a study in a bucket: machines come and go, and each would compile anew.
COMPILED = "launch/compiled"


class Command(NamedTuple):
  """One command line.

  Attributes:
    argv: the program and its arguments.
    env: variables set for it alone.
    stdin: text that it reads, "" for none.
  """

  argv: tuple[str, ...]
  env: Mapping[str, str] = {}
  stdin: str = ""

  def shown(self) -> str:
    """The line as a person would type it into a shell."""
    env = [f"{name}={shlex.quote(value)}" for name, value in self.env.items()]
    line = " ".join([*env, shlex.join(self.argv)])
    return f"{line} <<'END'\n{self.stdin.rstrip()}\nEND" if self.stdin else line


def command(*argv: object, env: Mapping[str, str] | None = None, stdin: str = "") -> Command:
  """A command of arguments that may be numbers or paths; empty ones are left out."""
  return Command(tuple(str(part) for part in argv if str(part)), env or {}, stdin)


class Result(NamedTuple):
  """How a command ended: exit code, what it printed, what it complained of."""

  code: int
  out: str
  err: str

  @property
  def why(self) -> str:
    """The line of its complaint that says most: the last one with "error" in it, else the last;
    not those that kubectl writes for its own developers (E1129 20:17:50.4 ...)."""
    lines = [line.strip() for line in (self.err or self.out).splitlines() if line.strip()]
    lines = [line for line in lines if not re.match(r"[IWEF]\d{4} \d\d:", line)]
    errors = [line for line in lines if "error" in line.lower()]
    return (errors or lines or [f"exit code {self.code}"])[-1]


# What gcloud says on several lines where nobody is logged in, and the way out.
LOGIN = {
  "active account selected": "run 'gcloud auth login'",
  "problem refreshing your current auth tokens": "run 'gcloud auth login' again",
}


class CommandError(Exception):
  """A command that had to succeed did not. Carries the command and its result; the message has the
  line without what it reads, which may be a manifest of a hundred lines."""

  def __init__(self, failed: Command, result: Result):
    line = failed._replace(stdin="").shown()
    ways = [way for words, way in LOGIN.items() if words in result.err]
    way_out = f"; {ways[0]}" if ways else ""
    super().__init__(f"{failed.argv[0]} failed: {result.why}{way_out}\n  {line}")
    self.command, self.result = failed, result


class Shell:
  """Runs commands; with `dry_run` it prints those that change something instead."""

  def __init__(self, *, dry_run: bool = False):
    self.dry_run = dry_run

  def run(self, line: Command, *, stream: bool = False) -> Result:
    """Runs a command that changes something; `stream` passes its output on to the terminal.

    Raises:
      CommandError: it failed.
    """
    if self.dry_run:
      print(line.shown(), flush=True)
      return Result(0, "", "")
    result = _run(line, capture=not stream)
    if result.code:
      raise CommandError(line, result)
    return result

  def ask(self, line: Command) -> Result:
    """Runs a command that only reads, also in a dry run; its failure is the caller's to judge."""
    return _run(line)


def _run(line: Command, *, capture: bool = True) -> Result:
  need(line.argv[0])
  done = subprocess.run(
    line.argv,
    env={**os.environ, **line.env},
    input=line.stdin or None,
    stdin=None if line.stdin or not capture else subprocess.DEVNULL,
    capture_output=capture,
    text=True,
    check=False,
  )
  return Result(done.returncode, done.stdout or "", done.stderr or "")


WHERE_FROM = {
  "gcloud": "install the Google Cloud CLI (cloud.google.com/sdk/docs/install)",
  "kubectl": "install kubectl, then 'gcloud container clusters get-credentials CLUSTER'",
  "sbatch": "run this on a login node of a Slurm cluster",
  "nvidia-smi": "install the NVIDIA driver; without a GPU use launch/local.sh",
  "docker": "install Docker, or build the image elsewhere and give --image",
}


def need(program: str) -> None:
  """Raises UserError where a program is not on PATH."""
  if shutil.which(program) is None:
    way_out = WHERE_FROM.get(program, f"install {program}")
    raise UserError(f"{program} is not on PATH; {way_out}")


def moe_parity_command(rest: Sequence[str], *, only: Sequence[str] = ()) -> list[str]:
  """What follows the launcher's own options: the arguments of `moe-parity`.

  A study in a bucket keeps its compiled programs there too, unless the command says where.

  Raises:
    UserError: there is none, it is none of the commands `only`, or it would be refused where it
      runs, which would cost the machine's first minutes.
  """
  words = list(rest[1:] if rest[:1] == ["--"] else rest)
  if not words or words[0].startswith("-"):
    given = shlex.join(words) or "nothing"
    raise UserError(
      f"{given}: no moe-parity command to launch; end with, for example,"
      " -- study --config=configs/demo.py --workdir=runs/demo"
    )
  workdir = option_of(words, "workdir").rstrip("/")
  if words[0] == "train" and "://" in workdir:
    raise UserError(
      f"--workdir={workdir}: train writes into a folder of one machine; in a bucket, train one arm"
      " by study --only=ARM"
    )
  if only and words[0] not in only:
    raise UserError(f"{words[0]}: only {', '.join(only)} can be launched so; use launch/local.sh")
  if words[0] == "study" and "://" in workdir and not has_option(words, "compile-cache"):
    words.append(f"--compile-cache={workdir}/{COMPILED}")
  return words


def cloud_name(text: str, most: int = 40) -> str:
  """A name that requests, labels, machines and Kubernetes objects may have.

  Raises:
    UserError: it cannot be made one, or has more than `most` characters.
  """
  name = re.sub(r"[^a-z0-9]+", "-", text.lower()).strip("-")
  if len(name) > most or not re.fullmatch(r"[a-z][a-z0-9-]*", name):
    raise UserError(
      f"{text!r} cannot name a study; give --name: a letter, then at most {most - 1} of a-z 0-9 -"
    )
  return name


def owner() -> str:
  """The person who launches, as a label of Google Cloud or Kubernetes may have it.

  Raises:
    UserError: this machine does not know the user.
  """
  try:
    name = getpass.getuser()
  except (OSError, KeyError):
    raise UserError(
      "this machine has no name for the user, by which others see whose chips these are; set"
      " LOGNAME=YOU"
    ) from None
  return re.sub(r"[^a-z0-9_-]", "-", name.lower())[:60].strip("-_") or "unknown"


def check_owner(owners: Sequence[str], study: str, action: str) -> None:
  """
  Args:
    owners: of what `action` would change, "" where no label says it.
  Raises:
    UserError: some of it is another person's.
  """
  others = sorted({name or "someone without a label" for name in owners} - {owner()})
  if others:
    raise UserError(
      f"--name={study}: {', '.join(others)} asked for it, not {owner()}; nothing was done."
      f" '{action} --everyone' does it to all of that name"
    )


def option_of(words: Sequence[str], name: str) -> str:
  """The value of `--name=value` or `--name value` in a command, "" where it is not there."""
  for i, word in enumerate(words):
    if word.startswith(f"--{name}="):
      return word.split("=", 1)[1]
    if word == f"--{name}" and i + 1 < len(words):
      return words[i + 1]
  return ""


def has_option(words: Sequence[str], name: str) -> bool:
  """Whether a command has an option."""
  return any(word == f"--{name}" or word.startswith(f"--{name}=") for word in words)


def action_parsers(
  parser: argparse.ArgumentParser, actions: Mapping[str, tuple]
) -> Iterator[argparse.ArgumentParser]:
  """The parser of each action, for the options that all have; then its own options are added.

  Args:
    actions: name -> help, a function that adds its options, the action.
  """
  subs = parser.add_subparsers(dest="action", metavar="ACTION", required=True)
  for name, (help_text, add_options, _) in actions.items():
    sub = subs.add_parser(name, help=help_text, description=help_text, allow_abbrev=False)
    sub.add_argument("--dry-run", action="store_true", default=argparse.SUPPRESS)
    yield sub
    add_options(sub)


def say(text: str) -> None:
  """A line for the person who launches; on stderr, so that stdout is commands and answers."""
  print(text, file=sys.stderr, flush=True)
