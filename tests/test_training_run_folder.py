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
