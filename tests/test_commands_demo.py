"""`moe-parity demo`: which config it trains, and that the one for a GPU suits a GPU."""

import pytest

from moe_parity import config as configs
from moe_parity.cli import main
from moe_parity.commands import demo
from moe_parity.planning.attention_choice import Device
from moe_parity.planning.gpu_cards import CARDS
from moe_parity.planning.memory import planned_memory
from moe_parity.planning.plan import make_plan
from moe_parity.training.build import model_options


@pytest.mark.parametrize(
  "words, folder, name", [((), "demo", "demo"), (("--size=gpu",), "demo_gpu", "demo_gpu")]
)
def test_the_size_decides_config_and_folder(monkeypatch, capsys, words, folder, name):
  asked = []

  def run_and_judge(args, config, store, _):
    asked.append((config.name, str(args.workdir)))
    return 0

  monkeypatch.setattr(demo, "run_and_judge", run_and_judge)
  assert main(["demo", *words]) == 0
  assert asked == [(name, f"runs/{folder}")]


def test_the_demo_for_a_gpu_is_larger_and_fits_every_card():
  cpu, gpu = (configs.load("configs/demo.py" + size) for size in ("", ":gpu"))
  assert gpu.budget.num_params > 5 * cpu.budget.num_params
  assert gpu.budget.dense_tokens > 5 * cpu.budget.dense_tokens
  assert gpu.model.dtype == "bfloat16"
  smallest = min(card.usable_bytes for card in CARDS.values())
  for arm in make_plan(gpu).arms:
    heads = arm.seq_len, arm.architecture.d_head
    for capability in (8.0, 8.9, 9.0):
      choice = model_options(gpu).attention_choice(Device("gpu", capability), *heads)
      assert choice.implementation == "cudnn", arm.name
    assert planned_memory(gpu, arm).total < smallest
