"""Verdicts on held-out chats from scores that are made up."""

import math

import numpy as np

from moe_parity.study.analysis import chats, seed_noise
from moe_parity.study.analysis.chats import TunedRun

NUM_CHATS = 60


def runs(lead, seeds=(0, 1, 2), seed=0, noise=0.01):
  """A dense and two MoE arms on the same chats; the first MoE arm pays `lead` bits less a
  character."""
  rng = np.random.default_rng(seed)
  chars = rng.integers(5, 80, NUM_CHATS)
  hard = 2 + rng.gamma(2.0, 0.5, NUM_CHATS)  # what a chat costs, whoever answers
  found = []
  for name, kind, less in (("dense", "dense", 0), ("moe_1", "moe", lead), ("moe_2", "moe", 0)):
    for s in seeds:
      bits = hard - less + noise * rng.normal() + 0.05 * rng.normal(size=NUM_CHATS)
      nats = bits * chars * math.log(2)
      rows = [
        {"digest": str(i), "nats": float(n), "num_tokens": 9, "num_chars": int(c)}
        for i, (n, c) in enumerate(zip(nats, chars, strict=True))
      ]
      score = {"nats": float(nats.sum()), "num_chars": int(chars.sum()), "examples": rows}
      found.append(TunedRun(name, kind, "arm", s, score))
  return found


def verdicts(found):
  return {row["name"]: row["verdict"] for row in chats.compare(found)["comparisons"]}


def test_a_lead_on_chats_is_seen_and_no_lead_is_not():
  told = chats.compare(runs(0.3))
  assert told["baseline"] == "dense" and told["num_chats"] == NUM_CHATS
  first, second = told["comparisons"]
  assert (first["verdict"], second["verdict"]) == ("MoE better", "not distinguishable")
  assert first["simultaneous"][0] < -0.3 < first["simultaneous"][1] < 0
  assert verdicts(runs(-0.3))["moe_1"] == "dense better"


def test_what_seeds_do_to_dense_alone_counts(monkeypatch):
  told, fit = [], seed_noise.fit
  monkeypatch.setattr(seed_noise, "fit", lambda *args: told.append(args[3]) or fit(*args))
  chats.compare(runs(0.3))
  assert [is_dense_A.tolist() for is_dense_A in told] == [[True, False, False]]


def test_arms_are_paired_chat_by_chat():
  """Chats differ by far more than arms do, which the difference does not feel."""
  told = chats.compare(runs(0.1))
  own = told["arms"][0]["interval"]
  (low, high) = told["comparisons"][0]["interval"]
  assert high - low < 0.5 * (own[1] - own[0])


def test_the_difference_is_of_sums_over_all_chats():
  found = runs(0.2, seeds=(0,))
  value = {run.name: run.score["nats"] / math.log(2) / run.score["num_chars"] for run in found}
  for row in chats.compare(found)["comparisons"]:
    assert abs(row["difference"] - (value[row["name"]] - value["dense"])) < 1e-12


def test_one_seed_on_chats_gives_no_verdict():
  assert set(verdicts(runs(0.3, seeds=(0,))).values()) == {"one seed"}


def test_a_lead_on_chats_is_hardly_ever_made_up():
  wrong = sum(
    any(v != "not distinguishable" for v in verdicts(runs(0.0, seed=s, noise=0.05)).values())
    for s in range(20)
  )
  assert wrong <= 3


def test_arms_on_other_chats_are_not_compared():
  found = runs(0.3)
  found[-1].score["examples"][0]["digest"] = "another"
  assert chats.compare(found)["comparisons"] == [] == chats.compare([])["comparisons"]


def test_moe_is_compared_with_the_better_of_two_dense_arms():
  found = runs(0.3)
  for run in [run for run in found if run.name == "dense"]:
    rows = [row | {"nats": 0.9 * row["nats"]} for row in run.score["examples"]]
    score = run.score | {"nats": 0.9 * run.score["nats"], "examples": rows}
    found.append(TunedRun("dense_b", "dense", "arm", run.seed, score))
  assert chats.compare(found)["baseline"] == "dense_b"
