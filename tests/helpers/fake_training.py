"""A study whose training is a sleep: what a runner does is seen without a model. For tests only.

Results are a pure function of the arm and its seed, so a study that was killed and resumed can be
compared with one that never was.
"""

import atexit
import functools
import hashlib
import json
import math
import os
import pathlib
import shutil
import tempfile
import time

from moe_parity import files
from moe_parity.defaults import base, dense_arm, moe_arm
from moe_parity.planning.finetuning_plan import FinetuningPlan
from moe_parity.study.folder import StudyFolder
from moe_parity.study.workers.runner import RunActions
from moe_parity.training import run_folder
from tests.helpers import small_store

LOG = "started.log"


def config(rates=(0.2, 0.3, 0.4, 0.5)):
  made = base()
  made.name = "fake"
  made.budget.num_params, made.budget.dense_tokens, made.budget.seq_len = 100_000, 20_000, 64
  made.arms.dense = dense_arm(d_head=16)
  for rate in rates:
    made.arms[f"moe_{round(100 * rate)}"] = moe_arm(
      rate, num_layers=2, d_model=32, d_head=16, multiple_of=4
    )
  return made.lock()


def sweep_config(method, rates, dense_tokens, /, **study):
  """A study by one of the paper's steps: a dense arm and an MoE that takes any of the rates."""
  made = base()
  made.name = method
  made.budget.num_params, made.budget.dense_tokens, made.budget.seq_len = 100_000, dense_tokens, 64
  made.arms.dense = dense_arm(d_head=16)
  made.arms.moe = moe_arm(num_layers=2, d_model=32, d_head=16, multiple_of=4)
  made.study.method, made.study.activation_rates = method, rates
  for name, value in study.items():
    made.study[name] = value
  return made.lock()


@functools.cache
def store():
  """A store larger than any budget of the tests, made once a process."""
  folder = pathlib.Path(tempfile.mkdtemp())
  atexit.register(shutil.rmtree, folder, ignore_errors=True)
  return small_store.small_store(folder, count=900)


def open_study(folder, made=None, **kwargs) -> StudyFolder:
  return StudyFolder(made or config(), store(), pathlib.Path(folder), **kwargs)


def bpc_of(arm) -> float:
  """The default truth: best at r_a = 0.3, dense at 2.1, a seed moves it by up to 0.001."""
  seed = int(hashlib.sha256(f"{arm.name} {arm.seed}".encode()).hexdigest()[:8], 16) / 16**8
  level = 2.1 if arm.kind == "dense" else 2.0 + 0.1 * math.log(arm.activation_rate / 0.3) ** 2
  return level / arm.compute_multiple**0.05 + 0.002 * (seed - 0.5)


def result(arm, bpc: float, documents: int = 6) -> dict:
  """result.json of an arm: every document has the same bits per character."""
  nats = bpc * math.log(2)
  rows = [
    {"domain": "a", "source": str(i), "nats": nats * 100, "num_tokens": 50, "num_bytes": 100,
     "num_chars": 100} for i in range(documents)
  ]  # fmt: skip
  total = {"num_tokens": 50 * documents, "num_bytes": 100 * documents, "num_chars": 100 * documents}
  return {
    "name": arm.name, "kind": arm.kind, "role": arm.role, "seed": arm.seed,
    "finished_step": arm.num_steps, "seconds": 2.0, "compile_seconds": 1.0,
    "train_cross_entropy": nats,
    "validation": {"mode": "document", "seq_len": arm.seq_len, "stride": 0, "bpc": bpc, "bpb": bpc,
      "cross_entropy": nats * 2, "num_documents": documents, **total, "by_domain": {},
      "macro_bpc": bpc, "macro_bpb": bpc, "documents": rows},
  }  # fmt: skip


def actions(*, seconds=0.0, truth=bpc_of, failing=(), hanging=()) -> RunActions:
  """Trains by sleeping; logs who started what in the study's folder."""

  def train(config, arm, store, folder, on_log, log, control):
    folder.mkdir(parents=True, exist_ok=True)
    files.write_json(folder / "plan.json", arm.to_dict())
    files.write_json(folder / "config.json", json.loads(config.to_json()))
    root = folder.parent.parent
    root = root.parent.parent if root.parent.name == "parts" else root
    with open(root / LOG, "a") as log:
      log.write(f"{os.getpid()} {arm.name} {arm.seed}\n")
    if arm.name in failing:
      raise RuntimeError(f"{arm.name} broke")
    time.sleep(3600 if arm.name in hanging else seconds)
    content = result(arm, truth(arm))
    if isinstance(arm, FinetuningPlan):
      score = {"cross_entropy": truth(arm), "bpc": truth(arm), "examples": []}
      content["finetuning"] = {"validation": score, "before": score}
    files.write_json(folder / "result.json", content)

  def certify(folder):
    plan = run_folder.read_json(folder / "plan.json")
    names = ("num_params", "train_flops", "num_tokens", "num_unique_tokens")
    ledger = {"sha256": "0" * 8, "order": {"seed": 0}}
    content = {"passed": True, "checks": [], "ledger": ledger, "unique_windows_sha256": "0" * 8}
    measured = {"measured": {name: plan[name] for name in names}}
    measured["files"] = {f"checkpoints/{plan['num_steps']}": f"hash of {plan['name']}"}
    if stated := plan.get("finetuning"):
      ledger["num_tokens"] = plan["num_tokens"]
      for name in ("num_examples", "num_scored_tokens"):
        ledger[name] = stated[name] * round(plan["epochs"])
    files.write_json(folder / "certificate.json", content | measured)

  return RunActions(train, certify, lambda folder: None)


def started(folder) -> list[tuple[int, str, int]]:
  """(pid, arm, seed) of each training that was begun, in order."""
  path = pathlib.Path(folder) / LOG
  lines = path.read_text().splitlines() if path.exists() else []
  return [(int(pid), name, int(seed)) for pid, name, seed in map(str.split, lines)]


def ran(folder) -> list[tuple[str, int]]:
  """(arm, seed) of each training that was begun, in order."""
  return [(name, seed) for _, name, seed in started(folder)]
