"""The search for remat and micro-batch, with a compiler that is a formula."""

import itertools

import pytest

from moe_parity.aot import gpu_search
from moe_parity.aot.gpu_search import best_of, search, settings
from moe_parity.config import load
from moe_parity.errors import UserError
from moe_parity.planning.gpu_cards import parse_host
from moe_parity.planning.memory import planned_memory
from moe_parity.planning.mesh_sizes import MeshSizes
from moe_parity.planning.plan import make_plan

GIB = 2**30
FACTORS = {"none": 1.3, "dots": 0.9, "layer": 1.1}  # of true bytes over planned ones


@pytest.fixture(scope="module")
def arms():
  config = load("configs/single_gpu.py", [])
  return config, {arm.name: arm for arm in make_plan(config).arms}


def compiler(monkeypatch, factors, compiled):
  """A compiler whose programs need a factor of the planned bytes."""

  def compile_for_gpu(config, plan, host, sizes):
    remat, micro = config.model.remat, config.train.micro_batch_sequences
    total = int(planned_memory(config, plan, sizes, fused=True).total * factors[remat])
    compiled.append((remat, micro))
    return {
      "remat": remat,
      "micro_batch_sequences": micro,
      "memory": {"total": total},
      "fits": total <= host.card.usable_bytes,
    }

  monkeypatch.setattr(gpu_search, "compile_for_gpu", compile_for_gpu)


@pytest.mark.parametrize("card, name", list(itertools.product(("l4", "h100"), ("dense", "moe_45"))))
def test_the_search_finds_what_trying_everything_finds(monkeypatch, arms, card, name):
  config, plans = arms
  plan, host, compiled = plans[name], parse_host(card), []
  compiler(monkeypatch, FACTORS, compiled)
  best = best_of(search(config, plan, host, MeshSizes(), 9))
  fitting = [
    setting
    for setting in settings(config, plan, host, MeshSizes())
    if int(setting.planned * FACTORS[setting.remat]) <= host.card.usable_bytes
  ]
  expected = min(fitting, key=lambda s: (s.work, -s.micro_batch))
  assert (best["remat"], best["micro_batch_sequences"]) == (expected.remat, expected.micro_batch)
  assert len(compiled) < len(settings(config, plan, host, MeshSizes())) / 2


def test_a_search_compiles_no_more_than_it_may(monkeypatch, arms):
  config, plans = arms
  compiled = []
  compiler(monkeypatch, dict.fromkeys(FACTORS, 1e3), compiled)
  reports = search(config, plans["dense"], parse_host("l4"), MeshSizes(), 2)
  assert len(compiled) == len(reports) == 2 and best_of(reports) is None


def test_one_micro_batch_spares_the_pass_for_loads(arms):
  config, plans = arms
  host = parse_host("h100")
  work = {(s.remat, s.micro_batch): s.work for s in settings(config, plans["moe_20"], host,
                                                             MeshSizes())}  # fmt: skip
  batch = plans["moe_20"].batch_sequences
  assert work["layer", batch] == work["none", batch // 2] == 4 and work["none", batch] == 3
  dense = settings(config, plans["dense"], host, MeshSizes())
  assert {s.work for s in dense if s.remat == "none"} == {3}


def test_micro_batches_divide_the_batch_and_the_cards(arms):
  config, plans = arms
  found = settings(config, plans["dense"], parse_host("h100-8"), MeshSizes(fsdp=8))
  batch = plans["dense"].batch_sequences
  assert {s.micro_batch for s in found} == {n for n in range(8, batch + 1, 8) if batch % n == 0}
  with pytest.raises(UserError, match="budget.batch_multiple=7"):
    settings(config, plans["dense"], parse_host("h100-7"), MeshSizes(fsdp=7))
