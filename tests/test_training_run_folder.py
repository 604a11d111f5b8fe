"""Which run a folder belongs to: what decides its numbers, and not what only scores or logs."""

import copy

import pytest

from moe_parity import config as configs
from moe_parity import files
from moe_parity.defaults import base
from moe_parity.errors import UserError
from moe_parity.training import run_folder
from tests.helpers import fake_study

HASHES = ("tokenizer", "train_tokens", "train_documents", "validation_tokens")
DATA = dict.fromkeys((*HASHES, "validation_documents"), "a" * 64)


@pytest.fixture
def run(tmp_path):
  """(folder, config, plan) of a run that began."""
  config = configs.to_json(base())
  plan = fake_study.arm_plan("moe_20", "moe", "arm", 0, 0.2, 30)
  run_folder.claim(tmp_path / "run", config, plan, DATA)
  return tmp_path / "run", config, plan


def changed(config, path, value):
  config = copy.deepcopy(config)
  section, name = path.split(".")
  config[section][name] = value
  return config


@pytest.mark.parametrize("path, value", [
  ("evaluation.mode", "packed"), ("evaluation.max_tokens", 7), ("evaluation.batch_sequences", 3),
  ("evaluation.ablations", []), ("train.log_every", 3), ("train.save_every", 7),
  ("mesh.data", 2), ("data.source", "elsewhere.jsonl"),
])  # fmt: skip
def test_what_only_scores_or_logs_may_be_mended(run, path, value):
  folder, config, plan = run
  other = changed(config, path, value)
  run_folder.claim(folder, other, plan, DATA)
  assert run_folder.read_json(folder / "config.json") == other


@pytest.mark.parametrize("path, value", [
  ("optimizer.weight_decay", 0.2), ("optimizer.clip_norm", 0.0), ("model.position", "rope"),
  ("model.balance_weight", 0.5), ("data.cross_documents", False),
  ("train.micro_batch_sequences", 2),
])  # fmt: skip
def test_what_decides_the_numbers_is_another_run(run, path, value):
  folder, config, plan = run
  before = (folder / "config.json").read_bytes()
  with pytest.raises(UserError, match=f"holds another run .*{path.rpartition('.')[2]}"):
    run_folder.claim(folder, changed(config, path, value), plan, DATA)
  assert (folder / "config.json").read_bytes() == before


def test_a_run_with_a_capacity_stays_on_as_many_devices(tmp_path):
  config = changed(configs.to_json(base()), "model.capacity_factor", 1.25)
  wide, split = (changed(config, f"mesh.{axis}", 2) for axis in ("data", "expert"))
  plan = fake_study.arm_plan("moe_20", "moe", "arm", 0, 0.2, 30)
  dense = fake_study.arm_plan("dense", "dense", "arm", 0, 1.0, 30)
  run_folder.claim(tmp_path / "a", config, plan, DATA)
  before = (tmp_path / "a" / "config.json").read_bytes()
  words = (
    "began with 1 device and mesh data=2 x fsdp=1 x expert=1 has 2 here: with"
    " model.capacity_factor=1.25 .* set mesh.data, mesh.fsdp and mesh.expert to 1 in all"
  )
  with pytest.raises(UserError, match=words):
    run_folder.claim(tmp_path / "a", wide, plan, DATA, num_devices=2)
  assert (tmp_path / "a" / "config.json").read_bytes() == before
  run_folder.claim(tmp_path / "b", wide, plan, DATA, num_devices=2)
  run_folder.claim(tmp_path / "b", split, plan, DATA, num_devices=2)  # cut as it was
  rest = changed(config, "mesh.data", -1)
  run_folder.claim(tmp_path / "b", rest, plan, DATA, num_devices=2)
  with pytest.raises(UserError, match="began with 2 devices .* has 4 here"):
    run_folder.claim(tmp_path / "b", rest, plan, DATA, num_devices=4)
  (tmp_path / "b" / "result.json").write_text("{}")
  run_folder.claim(tmp_path / "b", config, plan, DATA)  # it is finished
  run_folder.claim(tmp_path / "dense", config, dense, DATA)
  run_folder.claim(tmp_path / "dense", wide, dense, DATA, num_devices=2)
  noted = run_folder.read_json(tmp_path / "a" / "data.json")
  del noted["num_devices"]  # as an earlier version wrote it
  files.write_json(tmp_path / "a" / "data.json", noted, seal=True)
  with pytest.raises(UserError, match="began with 1 device"):
    run_folder.claim(tmp_path / "a", wide, plan, DATA, num_devices=2)
  run_folder.claim(tmp_path / "a", config, plan, DATA)


@pytest.mark.parametrize("name", DATA)
def test_changed_data_are_another_run_and_named(run, name):
  folder, config, plan = run
  with pytest.raises(UserError, match="was made with other data .*aaaaaaaaaaaa, now bbbb"):
    run_folder.claim(folder, config, plan, DATA | {name: "b" * 64})


def test_a_lost_config_is_written_again(run):
  folder, config, plan = run
  (folder / "config.json").unlink()
  run_folder.claim(folder, config, plan, DATA)
  assert files.read_json(folder / "config.json") == config
