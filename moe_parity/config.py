"""Reads a config file, applies the command line's overrides, checks and locks the result."""

import ast
import contextlib
import json
import pathlib
import runpy
import sys
from collections.abc import Sequence

from absl import flags
from ml_collections import ConfigDict, config_flags

from moe_parity.errors import UserError, suggest


def parse_arg(arg: str | None, **defaults) -> ConfigDict:
  """Parses the text after a config file's colon, `name=value,name=value`; a bare name is True.

  Defaults give the names and the types (bool, int, float, str).

  Raises:
    UserError: an unknown name (the nearest is suggested) or a value of another type.
  """
  result = ConfigDict(defaults)
  for part in filter(None, (arg or "").split(",")):
    name, equals, text = part.partition("=")
    if name not in defaults:
      hint = suggest(name, defaults)
      raise UserError(f"config argument {name!r} is not one of {', '.join(defaults)}{hint}")
    kind = type(defaults[name])
    if kind is bool:
      values = {"": True, "true": True, "1": True, "false": False, "0": False}
      text = text.lower()
      if text not in values:
        raise UserError(f"config argument {part!r}: {text!r} is not true or false")
      result[name] = values[text]
      continue
    try:
      result[name] = kind(text)
    except ValueError:
      raise UserError(f"config argument {part!r}: {text!r} is not {kind.__name__}") from None
  return result


def load(config: str, overrides: Sequence[str] = ()) -> ConfigDict:
  """Loads a config file and applies overrides; the result is locked.

  Args:
    config: `path/to/file.py` or `path/to/file.py:arg`.
    overrides: `--config.field=value` arguments.
  Raises:
    UserError: no such file, an unknown key (the nearest is suggested), a value of another type.
  """
  name, _, arg = config.partition(":")
  path = pathlib.Path(name)
  if not path.is_file():
    hint = suggest(str(path), map(str, path.parent.glob("*.py")))
    raise UserError(f"--config={path}: no such file{hint}")
  root = str(path.resolve().parent.parent)
  sys.path.insert(0, root)  # so that a config may import others: `from configs import x`
  try:
    result = runpy.run_path(str(path))["get_config"](arg or None)
  finally:
    sys.path.remove(root)
  if not overrides:
    return result.lock()  # the flags below print the config twice, which is slow for many arms
  argv = ["moe-parity", *overrides]
  values = flags.FlagValues()
  try:
    config_flags.DEFINE_config_dict("config", result, flag_values=values, sys_argv=argv)
    rest = values(argv)[1:]
  except flags.UnrecognizedFlagError as error:
    raise UserError(f"unknown option --{error.flagname}; see --help") from None
  except (AttributeError, KeyError) as error:
    raise UserError(f"unknown config key {_one_line(error)}") from None
  except (flags.IllegalFlagValueError, TypeError, ValueError) as error:
    raise UserError(f"config override: {_one_line(error)}") from None
  if rest:
    raise UserError(f"unexpected argument {rest[0]!r}; fields are set by --config.name=value")
  return result.lock()


def _one_line(error: Exception) -> str:
  text = str(error.args[0] if error.args else error)
  with contextlib.suppress(ValueError, SyntaxError):
    text = str(ast.literal_eval(text))  # a KeyError about a KeyError quotes its message
  return " ".join(text.split())


def to_json(config: ConfigDict) -> dict:
  """Plain nested dict: what `config.json` holds and what two runs are compared by."""
  return json.loads(config.to_json())


def differences(old: dict, new: dict, prefix: str = "") -> list[str]:
  """Differences of two plain configs, one line a field: `name: old -> new`, or `name: only in the
  old one` (or new)."""
  lines = []
  for name in sorted(set(old) | set(new)):
    path = f"{prefix}{name}"
    if name not in new or name not in old:
      lines.append(f"{path}: only in the {'old' if name in old else 'new'} one")
    elif isinstance(old[name], dict) and isinstance(new[name], dict):
      lines += differences(old[name], new[name], f"{path}.")
    elif old[name] != new[name]:
      lines.append(f"{path}: {old[name]} -> {new[name]}")
  return lines
