"""Run folders: which run a folder belongs to, and reading its JSON files."""

import json
import pathlib

from moe_parity import config as configs
from moe_parity import files
from moe_parity.data.fingerprint import check_same_data
from moe_parity.defaults import base
from moe_parity.errors import UserError
from moe_parity.planning.arm_plan import with_later_fields
from moe_parity.planning.mesh_sizes import read_mesh
from moe_parity.stored import read as stored
from moe_parity.training.versions import versions

CONFIG, PLAN, RESULT = "config.json", "plan.json", "result.json"
DATA = "data.json"  # hashes of the run's data, and the versions it was trained with
TOKENIZER = "tokenizer.json"  # of an imported model
SETTINGS = ("data", "model", "optimizer")  # sections that decide a run's numbers beyond its plan


_WAYS_OUT = {  # the others' content is not to be had again
  RESULT: "remove it and run the same command again: the run is scored again from its checkpoint",
  PLAN: "remove it and run the same command again: it is derived from the config",
  CONFIG: "remove it and run the same command again: it is written again",
  "study.json": "remove it and run the same command again: it is written again",
}


def read_json(path: pathlib.Path) -> dict:
  """A file of a run or study folder, one JSON object.

  Raises:
    UserError: it is missing, not what was written (cut short, a flipped bit, an edit by hand), or a
      field of it is of another type or range.
  """
  way_out = _WAYS_OUT.get(path.name, "restore it from a copy or use another --workdir")
  try:
    return stored.read_json(path, way_out)
  except FileNotFoundError:
    raise UserError(f"{path} is missing; {way_out}") from None


def read_result(folder: pathlib.Path) -> dict | None:
  """result.json of a finished run, None before it has finished."""
  return read_json(folder / RESULT) if (folder / RESULT).exists() else None


def claim(
  folder: pathlib.Path,
  config: dict,
  plan: dict,
  fingerprint: dict[str, str],
  *,
  num_devices: int = 1,
  write: bool = True,
) -> None:
  """Makes the folder this run's, or checks that it already is.

  Compared is what decides the run's numbers: its plan, the data (by content, not by path), the
  settings of data, model and optimizer. How often it logs, saves or draws, on which mesh it trains
  and how it is scored at the end may change; an unfinished run takes such changes over. Only where
  experts have a capacity, which is one of each device's tokens, the number of devices may not.

  Args:
    fingerprint: of the token store (`TokenStore.fingerprint`).
    num_devices: of the mesh it trains on.
    write: false in all but the first of several processes, which then only compare.
  Raises:
    UserError: the folder holds a run with other settings, plan or data, or on other devices; lists
      what differs.
  """
  folder.mkdir(parents=True, exist_ok=True)
  is_new = not (folder / PLAN).exists()
  if not is_new:
    _check_same_run(folder, config, plan, fingerprint)
  if (folder / RESULT).exists():
    return
  has_capacity = bool(plan["architecture"]["num_experts"] and _capacity(config))
  if has_capacity and not is_new:
    _check_same_devices(folder, config, num_devices)
  if not write:
    return
  files.write_json(folder / CONFIG, config, seal=True)
  if is_new:
    files.write_json(folder / PLAN, plan, seal=True)
  _note_data(folder, fingerprint, num_devices if has_capacity else 0)


def _check_same_run(folder: pathlib.Path, config: dict, plan: dict, fingerprint: dict) -> None:
  old_plan = read_json(folder / PLAN)
  # A config that is lost is written again; plan, data and checkpoints say whose the folder is.
  old_config = read_json(folder / CONFIG) if (folder / CONFIG).exists() else config
  plan = json.loads(json.dumps(plan))
  changed = configs.differences(with_later_fields(old_plan, plan), plan, "plan.")
  changed += configs.differences(settings(old_config), settings(config))
  if changed:
    more = f" and {len(changed) - 3} more" if len(changed) > 3 else ""
    raise UserError(
      f"{folder} holds another run ({'; '.join(changed[:3])}{more}); use another --workdir, or"
      " remove this one"
    )
  if (folder / DATA).exists():  # runs before November 2026 have none
    stored = read_json(folder / DATA)["fingerprint"]
    check_same_data(stored, fingerprint, str(folder), config["data"]["source"])


def _check_same_devices(folder: pathlib.Path, config: dict, num_devices: int) -> None:
  """
  Raises:
    UserError: an unfinished run of bounded capacity began on another number of devices.
  """
  noted = read_json(folder / DATA) if (folder / DATA).exists() else {}
  before = noted.get("num_devices", 0)
  if not before and (folder / CONFIG).exists():  # of an earlier version
    sizes = read_mesh(read_json(folder / CONFIG)["mesh"])
    before = sizes.num_devices if sizes.is_resolved else 0
  if before and before != num_devices:
    raise UserError(
      f"{folder} holds a run that began with {before} device{'s' * (before > 1)} and mesh"
      f" {read_mesh(config['mesh'])} has {num_devices} here: with model.capacity_factor="
      f"{_capacity(config):g} an expert drops what is beyond its share of one device's tokens, so"
      f" the run would be another; set mesh.data, mesh.fsdp and mesh.expert to {before} in all, or"
      " use another --workdir"
    )


def _capacity(config: dict) -> int | float:
  """model.capacity_factor, 0 in configs from before it was there."""
  return config["model"].get("capacity_factor", 0.0)


def _note_data(folder: pathlib.Path, fingerprint: dict[str, str], num_devices: int) -> None:
  """data.json: the fingerprint, and every set of versions the run was trained with, in order.

  Args:
    num_devices: that decide the run's numbers; 0: it is the same on any.
  """
  history = read_json(folder / DATA)["versions"] if (folder / DATA).exists() else []
  if versions() not in history:
    history = [*history, versions()]
  devices = {"num_devices": num_devices} if num_devices else {}
  noted = {"fingerprint": fingerprint, "versions": history} | devices
  files.write_json(folder / DATA, noted, seal=True)


def settings(config: dict) -> dict:
  """The fields of a config that decide a run's numbers beyond its plan, those that an older config
  lacks at their defaults.

  Where data come from is left out: their content is compared by fingerprint.
  """
  defaults, config = configs.to_json(base()), configs.from_stored(config)
  sections = {name: {**defaults[name], **config.get(name, {})} for name in SETTINGS}
  for name in ("source", "store", "max_bad_records"):
    sections["data"].pop(name, None)
  # Micro-batches change the order of float32 sums.
  micro = config["train"]["micro_batch_sequences"]
  return sections | {"train": {"micro_batch_sequences": micro}}
