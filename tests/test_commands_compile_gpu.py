"""`moe-parity compile` for NVIDIA cards: real compiles of tiny steps, without a device."""

import json

import pytest

from moe_parity.aot import cuda
from moe_parity.cli import main
from moe_parity.errors import UserError

pytestmark = pytest.mark.compile
TINY = ("--config=configs/single_gpu.py:tiny", "--config.model.dtype=bfloat16")


@pytest.fixture(autouse=True)
def _compiler():
  try:
    cuda.require()
  except UserError as missing:
    pytest.skip(str(missing))


def compiled(capsys, *arguments) -> tuple[int, dict]:
  status = main(["compile", *TINY, *arguments, "--json"])
  return status, json.loads(capsys.readouterr().out)


@pytest.mark.parametrize("arm", ["dense", "moe_20"])
def test_a_tiny_step_for_an_h100_takes_cudnn_and_cublas(capsys, arm):
  status, report = compiled(capsys, f"--arm={arm}", "--topology=h100")
  assert status == 0 and report["fits"] and "nothing ran" in report["figures"]
  attention = report["attention"]
  assert attention["chosen"] == "cudnn" and attention["unchecked"] == ""
  layers = 3 if arm == "dense" else 2
  assert attention["cudnn_calls"] >= 2 * layers and attention["score_bytes"] == 0
  assert report["cublas_calls"] > 6 * layers
  memory = report["memory"]
  parts = ("parameters", "optimizer", "batch", "results", "temporaries")
  assert memory["total"] == sum(memory[part] for part in parts) > memory["temporaries"] > 0
  assert report["flops"]["compiled"] > 0.9 * report["flops"]["plan"]
  seconds = sum(row["seconds"] for row in report["kernels"])
  assert report["seconds"]["roofline"] == pytest.approx(seconds)


def test_attention_in_blocks_stores_scores(capsys):
  _, report = compiled(capsys, "--arm=dense", "--topology=h100", "--config.model.attention=blocks")
  attention = report["attention"]
  assert attention["cudnn_calls"] == 0
  assert attention["score_bytes"] >= 2 * 64 * 64  # S x S of one head at the least


def test_an_older_card_has_no_cudnn_attention(capsys):
  arguments = ("--arm=dense", "--topology=t4", "--config.model.dtype=float32")
  _, report = compiled(capsys, *arguments)
  assert report["attention"]["chosen"] == "blocks"
  assert "capability 8.0" in report["attention"]["reason"]


def test_an_expert_axis_of_cards_exchanges_tokens(capsys):
  status, report = compiled(
    capsys, "--arm=moe_20", "--topology=h100-2", "--mesh=expert=2",
    "--config.budget.batch_multiple=2",
  )  # fmt: skip
  assert status == 0 and report["devices"] == 2
  assert report["token_dispatch"] == "all_to_all"  # K is 1: a token goes to one of the two cards
  assert any(row["kind"] == "collectives" for row in report["kernels"])
