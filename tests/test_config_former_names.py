"""Former names of config fields and values: refused when given, translated when stored."""

import json
import pathlib

import pytest

from moe_parity import config, defaults
from moe_parity.errors import UserError
from moe_parity.planning.config_rules import check_config

DEMO = f"{pathlib.Path(__file__).parents[1]}/configs/demo.py:tiny"
STORED = pathlib.Path(__file__).parent / "golden" / "run_before_token_dispatch" / "config.json"


@pytest.mark.parametrize(
  ("override", "words"),
  [
    ("mesh.exchange=ragged", "mesh.exchange is now called mesh.token_dispatch"),
    ("budget.shared=tokens", "budget.shared is now called budget.held_fixed"),
    ("model.streams=2", "model.streams is now called model.num_batch_splits"),
    ("mesh.token_dispatch=merged", "'merged' is now called 'ragged_all_to_all_dedup'"),
    ("mesh.token_dispatch=padded", "'padded' is now called 'all_to_all'"),
  ],
)
def test_a_former_name_is_refused_with_the_new_one(override, words):
  with pytest.raises(UserError, match=words):
    config.load(DEMO, [f"--config.{override}"])


def test_a_config_file_that_sets_a_former_field_is_refused(tmp_path):
  file = tmp_path / "configs" / "old.py"
  file.parent.mkdir()
  lines = (
    "from moe_parity import defaults",
    "def get_config(arg=None):",
    "  config = defaults.base()",
    "  config.mesh.exchange = 'ragged'",
    "  return config",
  )
  file.write_text("\n".join(lines))
  with pytest.raises(UserError, match=r"mesh\.exchange is now called mesh\.token_dispatch"):
    config.load(str(file))


def test_a_config_stored_before_has_the_new_names():
  stored = json.loads(STORED.read_text())
  assert stored["mesh"]["exchange"] == "ragged"
  now = config.from_stored(stored)
  assert config.from_stored(now) == now
  assert now["mesh"] == {"data": 1, "fsdp": 2, "expert": 4, "token_dispatch": "ragged_all_to_all"}
  assert now["budget"].pop("held_fixed") == stored["budget"].pop("shared") == "compute"
  for field in config.NEWER_FIELDS:
    section, _, name = field.partition(".")
    del now[section][name]
  same = stored.keys() - {"mesh"}
  assert {name: now[name] for name in same} == {name: stored[name] for name in same}


def test_a_config_older_than_the_mesh_takes_the_platforms_own():
  stored = json.loads(STORED.read_text())
  del stored["mesh"]
  assert config.from_stored(stored)["mesh"]["token_dispatch"] == ""


def test_a_config_stored_before_takes_newer_fields_as_defaults():
  stored = json.loads(STORED.read_text())
  assert "tuning_share" not in stored["evaluation"] and "device_watts" not in stored["train"]
  read = config.from_stored(stored)
  assert read["evaluation"]["tuning_share"] == 0.0 and read["train"]["device_watts"] == 0.0
  assert read["model"]["rope_base"] == 10_000.0 and read["model"]["norm_epsilon"] == 1e-6


def test_an_old_config_can_be_trained_with_again():
  stored = config.from_stored(json.loads(STORED.read_text()))
  assert "save_minutes" not in stored["train"] and "finetuning" not in stored
  again = defaults.completed(stored)
  check_config(again)
  assert again.train.save_minutes == defaults.base().train.save_minutes
  assert again.finetuning == defaults.base().finetuning
  for name, section in stored.items():
    kept = again[name].to_dict() if isinstance(section, dict) else again[name]
    assert section == ({key: kept[key] for key in section} if isinstance(section, dict) else kept)
