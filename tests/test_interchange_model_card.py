"""The card of an export: what it says of a run's files, and what it does not of the machine."""

import json

import pytest

from moe_parity.config import to_json
from moe_parity.defaults import base
from moe_parity.interchange.model_card import model_card
from tests.helpers import fake_study


def card_of(folder, data, measured="7"):
  config = base()
  for name, value in data.items():
    config.data[name] = value
  plan = fake_study.arm_plan("dense", "dense", "arm", 0, 1.0, num_steps=5)
  row = {"name": "num_tokens", "planned": 7, "measured": measured, "passed": measured == "7"}
  fake_study.dump(folder / "config.json", to_json(config))
  fake_study.dump(folder / "plan.json", plan)
  fake_study.dump(folder / "certificate.json", {"passed": row["passed"], "checks": [row]})
  return model_card(folder, "llama", None)


@pytest.mark.parametrize(
  ("given", "shown"),
  [
    ({"tokenizer": "/home/ada/my files/tok.json"}, "tok.json"),
    ({"tokenizer": "~/tok.json"}, "tok.json"),
    ({"tokenizer": "gs://secret/ada/tok.json"}, "tok.json"),
    ({"tokenizer": "bpe:8192"}, "bpe:8192"),
    ({"held_out": "source:/home/ada/val.jsonl"}, "source:val.jsonl"),
    ({"held_out": "source:en=text:/home/ada/en/,b=gs://ada/b.txt"}, "source:en=text:en/,b=b.txt"),
    ({"held_out": "works:Either/Or"}, "works:Either/Or"),
    ({"source": "/home/ada/text", "store": "/home/ada/store"}, None),
  ],
)  # fmt: skip
def test_of_files_elsewhere_the_names_alone_are_shown(tmp_path, given, shown):
  card = card_of(tmp_path, given)
  stated = json.loads(card.split("```json\n")[1].split("\n```")[0])["data"]
  for name in given:
    assert stated.get(name) == shown
  assert "ada" not in card and str(tmp_path) not in card


def test_an_error_in_a_certificate_names_no_folder(tmp_path):
  error = "/home/ada/runs/a-s0/ledger.npz: cannot be read ('/home/ada/x'), 1/2 of it; delete it"
  card = card_of(tmp_path, {}, measured=error)
  assert "| ledger.npz: cannot be read ('x'), 1/2 of it; delete it | **no** |" in card
