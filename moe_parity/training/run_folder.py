"""A run is a folder: whose it is, and how files get into it whole or not at all."""

import json
import os
import pathlib
import secrets

from moe_parity import config as configs
from moe_parity.errors import UserError
from moe_parity.planning.arm_plan import with_later_fields

CONFIG, PLAN, RESULT = "config.json", "plan.json", "result.json"


def replace(path: pathlib.Path, content: bytes) -> None:
  """Puts `content` at `path`: a reader, or a kill at any moment, sees the old file or the new.

  Workers of a study write the same files, so each writes under a name of its own first.
  """
  temporary = path.with_name(f"{path.name}.{secrets.token_hex(4)}.tmp")
  with open(temporary, "wb") as file:
    file.write(content)
    file.flush()
    os.fsync(file.fileno())
  os.replace(temporary, path)


def write_json(path: pathlib.Path, value: object) -> None:
  """`replace` with JSON."""
  replace(path, (json.dumps(value, indent=2) + "\n").encode())


def read_json(path: pathlib.Path):
  """
  Raises:
    UserError: the file is not JSON (cut short or edited by hand).
  """
  try:
    return json.loads(path.read_text(encoding="utf-8"))
  except (json.JSONDecodeError, UnicodeDecodeError) as error:
    raise UserError(f"{path} is not JSON ({error}); restore it or use another --workdir") from None


def read_result(folder: pathlib.Path) -> dict | None:
  """result.json of a finished run, None while there is none."""
  return read_json(folder / RESULT) if (folder / RESULT).exists() else None


def claim(folder: pathlib.Path, config: dict, plan: dict, *, write: bool = True) -> None:
  """Makes the folder this run's, or finds that it already is.

  Only what changes the run's numbers is compared: how often it logs, saves or draws, and on which
  mesh, may change.

  Args:
    write: false in all but the first of several processes, which then only compare.
  Raises:
    UserError: the folder holds a run with another config or plan; lists what differs.
  """
  folder.mkdir(parents=True, exist_ok=True)
  if not (folder / PLAN).exists():
    if not write:
      return
    write_json(folder / CONFIG, config)
    write_json(folder / PLAN, plan)
    return
  old_plan, old_config = read_json(folder / PLAN), read_json(folder / CONFIG)
  plan = json.loads(json.dumps(plan))
  changed = configs.differences(with_later_fields(old_plan, plan), plan, "plan.")
  changed += configs.differences(_numbers(old_config), _numbers(config))
  if changed:
    more = f" and {len(changed) - 3} more" if len(changed) > 3 else ""
    raise UserError(
      f"{folder} holds another run ({'; '.join(changed[:3])}{more}); use another --workdir, or"
      " remove this one"
    )


def _numbers(config: dict) -> dict:
  """The fields that decide a run's numbers beyond its plan."""
  kept = {name: dict(config[name]) for name in ("data", "model", "optimizer", "evaluation")}
  kept["evaluation"].pop("routing_tokens", None)  # how much is looked at, of what is there anyway
  return kept | {"micro_batch_sequences": config["train"]["micro_batch_sequences"]}
