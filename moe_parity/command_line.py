"""A parser of command lines whose errors are one line: what was typed, the rule, a way out."""

import argparse
import itertools
import re
import sys
from collections.abc import Iterable

from moe_parity.errors import UserError, suggest

CONFIG_FIELD = "--config."  # begins what sets a field of a config, which `config.load` reads
_KINDS = {"int": "a whole number", "float": "a number"}


class OneLineParser(argparse.ArgumentParser):
  """argparse, but where it would print its whole usage and end the process it raises a `UserError`;
  so it does for an option that the command does not have, with the nearest one that it has.

  Attributes:
    passes_on: options of another program's are let through.
  """

  passes_on = False

  def parse_known_args(self, args=None, namespace=None):
    """
    Raises:
      UserError: the command line breaks a rule of this parser, or has an option unknown to it.
    """
    args = sys.argv[1:] if args is None else list(args)
    try:
      namespace, rest = super().parse_known_args(args, namespace)
    except _Refused as refused:
      unknown = self._unknown(args) if "are required" in str(refused) else ""
      raise self._user_error(unknown or _in_words(str(refused))) from None
    # With commands of its own: what follows the name of one is checked by that one's parser.
    own = itertools.takewhile(lambda arg: arg.startswith("-"), args) if self._subparsers else rest
    if unknown := self._unknown(own):
      raise self._user_error(unknown)
    return namespace, rest

  def error(self, message: str):
    raise _Refused(message)

  def _user_error(self, text: str) -> UserError:
    return UserError(text if text.endswith("?") else f"{text}; see {self.prog} --help")

  def _unknown(self, args: Iterable[str]) -> str:
    """What to say of the first option that this parser does not have; "" if it has all."""
    for arg in () if self.passes_on else args:
      name = arg.partition("=")[0]
      is_option = re.match(r"--?[A-Za-z]", name) and not name.startswith(CONFIG_FIELD)
      if is_option and name not in self._option_string_actions:
        return f"unknown option {arg!r}{suggest(name, self._option_string_actions)}"
    return ""


class _Refused(Exception):
  """What argparse has against a command line, in its words."""


def _in_words(message: str) -> str:
  """The same in ours; a message of a form that is not known here stays as it is."""
  if match := re.fullmatch(r"the following arguments are required: (.*)", message):
    return f"{match[1]} {'are' if ', ' in match[1] else 'is'} missing"
  choice = r"argument (\S+): invalid choice: '?(.*?)'? \(choose from (.*)\)"
  if match := re.fullmatch(choice, message):
    choices = match[3].replace("'", "").split(", ")
    return f"{match[1]}={match[2]} is not one of {', '.join(choices)}{suggest(match[2], choices)}"
  if match := re.fullmatch(r"argument (\S+): invalid (int|float) value: '(.*)'", message):
    return f"{match[1]}={match[3]} is not {_KINDS[match[2]]}"
  return message.removeprefix("argument ")
