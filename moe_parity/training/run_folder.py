"""Run folders: which run a folder belongs to, and reading its JSON files."""

import json
import pathlib

from moe_parity import config as configs
from moe_parity import files
from moe_parity.errors import UserError
from moe_parity.planning.arm_plan import with_later_fields

CONFIG, PLAN, RESULT = "config.json", "plan.json", "result.json"


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
  """result.json of a finished run, None before it has finished."""
  return read_json(folder / RESULT) if (folder / RESULT).exists() else None


def claim(folder: pathlib.Path, config: dict, plan: dict, *, write: bool = True) -> None:
  """Makes the folder this run's, or checks that it already is.

  Only what decides the run's numbers is compared: how often it logs, saves or draws, and on which
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
    files.write_json(folder / CONFIG, config)
    files.write_json(folder / PLAN, plan)
    return
  old_plan, old_config = read_json(folder / PLAN), read_json(folder / CONFIG)
  plan = json.loads(json.dumps(plan))
  changed = configs.differences(with_later_fields(old_plan, plan), plan, "plan.")
  changed += configs.differences(_numbers(configs.from_stored(old_config)), _numbers(config))
  if changed:
    more = f" and {len(changed) - 3} more" if len(changed) > 3 else ""
    raise UserError(
      f"{folder} holds another run ({'; '.join(changed[:3])}{more}); use another --workdir, or"
      " remove this one"
    )


def _numbers(config: dict) -> dict:
  """The fields that decide a run's numbers beyond its plan."""
  fields = {name: dict(config[name]) for name in ("data", "model", "optimizer", "evaluation")}
  fields["evaluation"].pop("routing_tokens", None)  # a larger sample of the same routing
  return fields | {"micro_batch_sequences": config["train"]["micro_batch_sequences"]}
