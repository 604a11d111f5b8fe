"""Reads a config file, applies the command line's overrides, checks and locks the result."""

import ast
import contextlib
import copy
import json
import pathlib
import re
import runpy
import sys
import sysconfig
import traceback
from collections.abc import Sequence

from absl import flags
from ml_collections import ConfigDict, config_flags

from moe_parity.errors import UserError, suggest
from moe_parity.fields.check import as_given, row_of
from moe_parity.fields.choices import NORM_EPSILON, ROPE_BASE

# Former names of fields, and of a field's values. A config or command line that uses one is refused
# with the new name; configs stored in run folders are translated (`from_stored`).
RENAMED_FIELDS = {
  "budget.shared": "budget.held_fixed",
  "mesh.exchange": "mesh.token_dispatch",
  "model.streams": "model.num_batch_splits",
}
RENAMED_VALUES = {
  "mesh.token_dispatch": {
    "padded": "all_to_all",
    "merged": "ragged_all_to_all_dedup",
    "ragged": "ragged_all_to_all",
    "gathered": "all_gather",
  }
}


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


def shipped(name: str) -> pathlib.Path:
  """A config that comes with the package, by its path in the checkout (`configs/demo.py`).

  Returns:
    where it is: in the checkout, or where a wheel installed it; `name` itself if in neither.
  """
  installed = pathlib.Path(sysconfig.get_path("data")) / "share" / "moe_parity"
  for root in (pathlib.Path(__file__).resolve().parents[1], installed):
    if (root / name).is_file():
      return root / name
  return pathlib.Path(name)


def load(config: str, overrides: Sequence[str] = ()) -> ConfigDict:
  """Loads a config file and applies overrides; the result is locked.

  Args:
    config: `path/to/file.py` or `path/to/file.py:arg`; a file that is not there may be one that
      comes with the package (`shipped`).
    overrides: `--config.field=value` arguments.
  Raises:
    UserError: no such file, an unknown key (the nearest is suggested), a value of another type.
  """
  name, _, arg = config.partition(":")
  path = pathlib.Path(name)
  if not path.is_file():
    path = shipped(name)
  if not path.is_file():
    hint = suggest(str(path), map(str, path.parent.glob("*.py")))
    raise UserError(f"--config={path}: no such file{hint}")
  root = str(path.resolve().parent.parent)
  sys.path.insert(0, root)  # so that a config may import others: `from configs import x`
  try:
    result = _made_by(path, arg or None)
  finally:
    sys.path.remove(root)
  _refuse_former_names(result, overrides)
  _refuse_what_is_no_field(result, overrides)
  overrides = [_as_count(override) for override in overrides]
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
    raise UserError(f"unknown config key {_unknown_key(error)}") from None
  except (flags.Error, TypeError, ValueError) as error:  # absl's base class: no value at all
    raise UserError(f"config override: {_one_line(error)}{_way_out(error, overrides)}") from None
  if rest:
    raise UserError(f"unexpected argument {rest[0]!r}; fields are set by --config.name=value")
  _refuse_former_names(result)
  return result.lock()


def _made_by(path: pathlib.Path, arg: str | None) -> ConfigDict:
  """What a config file's get_config returns.

  Raises:
    UserError: it has none, returns no config, or fails; names the line.
  """
  try:
    get_config = runpy.run_path(str(path)).get("get_config")
    if not callable(get_config):
      raise UserError(f"--config={path} has no function get_config(arg); see configs/demo.py")
    result = get_config(arg)
  except UserError:
    raise
  except Exception as error:
    frames = traceback.extract_tb(error.__traceback__)
    lines = [frame.lineno for frame in frames if frame.filename == str(path)]
    line = lines[-1] if lines else getattr(error, "lineno", None)
    where = f"--config={path}" + (f", line {line}" if line else "")
    raise UserError(f"{where}: {type(error).__name__}: {_one_line(error)}; mend the file") from None
  if not isinstance(result, ConfigDict):
    raise UserError(
      f"--config={path}: get_config returns {type(result).__name__}, not a config; begin with"
      " moe_parity.defaults.base()"
    )
  return result


def _refuse_what_is_no_field(config: ConfigDict, overrides: Sequence[str]) -> None:
  """
  Raises:
    UserError: an override of an arm that is not there, without the name of a field, or of a section
      or arm as a whole other than by a dictionary.
  """
  for override in overrides:
    name, _, text = override.partition("=")
    path = name.removeprefix("--config.")
    if path == name or text.lstrip().startswith("{"):
      continue
    section, _, arm = path.partition(".")
    arm = arm.partition(".")[0]
    if section == "arms" and arm and arm not in config.arms:
      hint = suggest(arm, config.arms)
      raise UserError(f"{name}: the config's arms are {', '.join(sorted(config.arms))}{hint}")
    value = config
    for part in path.split("."):
      value = value.get(part) if isinstance(value, ConfigDict) else None
    if not path or isinstance(value, ConfigDict):
      field = next(iter(value), "FIELD") if value else "seed"
      example = f"--config.{path}.{field}=VALUE" if path else f"--config.{field}=VALUE"
      raise UserError(f"{override} names no field; set one, for example {example}")


def _as_count(override: str) -> str:
  """An override of a whole number that is written 2e9, as its digits; any other as it is."""
  name, equals, text = override.partition("=")
  row = row_of(name.removeprefix("--config."))
  with contextlib.suppress(ValueError, OverflowError):
    if equals and row is not None and not text.strip().lstrip("+-").isdigit():
      value = as_given(row, float(text))
      return f"{name}={value}" if isinstance(value, int) else override
  return override


def _way_out(error: Exception, overrides: Sequence[str]) -> str:
  """What the field may hold whose override failed; "" where that is not known."""
  for override in overrides:
    path = override.removeprefix("--config.").partition("=")[0]
    row = row_of(path)
    if row is not None and path in str(error):
      return f"; give {row.kind.words()}"
  return "; write --config.name=value"


def _refuse_former_names(config: ConfigDict, overrides: Sequence[str] = ()) -> None:
  """
  Raises:
    UserError: a field, or a value of one, by its former name.
  """
  given = [override.removeprefix("--config.").partition("=")[0] for override in overrides]
  for old, new in RENAMED_FIELDS.items():
    section, _, name = old.partition(".")
    if old in given or (section in config and name in config[section]):
      raise UserError(f"config field {old} is now called {new}")
  for field, names in RENAMED_VALUES.items():
    section, _, name = field.partition(".")
    value = config[section].get(name) if section in config else None
    if value in names:
      raise UserError(f"config.{field}={value!r} is now called {names[value]!r}")


# Fields that runs read and that configs of before December 2026 lack.
NEWER_FIELDS = {
  "evaluation.tuning_share": 0.0,
  "train.device_watts": 0.0,
  "optimizer.warmup_share": 0.0,
  "model.rope_base": ROPE_BASE,
  "model.norm_epsilon": NORM_EPSILON,
}


def from_stored(config: dict) -> dict:
  """A stored config (`to_json`), with fields and values of former names under their new ones, and
  fields that are newer than it at their defaults."""
  config = copy.deepcopy(config)
  config.setdefault("mesh", {}).setdefault("token_dispatch", "")
  for field, value in NEWER_FIELDS.items():
    section, _, name = field.partition(".")
    if section in config:
      config[section].setdefault(name, value)
  for old, new in RENAMED_FIELDS.items():
    section, _, name = old.partition(".")
    if name in config.get(section, {}):
      config[section][new.partition(".")[2]] = config[section].pop(name)
  for field, names in RENAMED_VALUES.items():
    section, _, name = field.partition(".")
    value = config[section][name]
    config[section][name] = names.get(value, value)
  return config


def _unknown_key(error: Exception) -> str:
  """The key that a config has not, and the nearest one or where all are listed."""
  text = _one_line(error)
  if match := re.fullmatch(r"'(.+?)' Did you mean \"(.+?)\" instead of .*", text):
    return f"{match[1]!r}; did you mean {match[2]!r}?"
  return f"{text}; docs/config.md lists every field"


def _one_line(error: Exception) -> str:
  text = str(error.args[0] if error.args else error)
  # absl prints the arguments of an error about a word for True or False, as a tuple
  text = re.sub(r"\('Non-boolean argument to boolean flag', '(.*)'\)", r"\1 is not one", text)
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
