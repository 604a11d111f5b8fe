"""Writes study folders as training leaves them, with a known answer: for tests, never a result.

The truth: bpc(r) = floor + curvature * log(r / optimum)^2 for MoE arms, `dense_bpc` for dense,
`reference_bpc` for dense at twice the compute, plus `seed_sd` between seeds and document noise.
"""

import dataclasses
import json
import math
import pathlib

import numpy as np

DOMAINS = {"novels": 24, "bible": 11, "lexicon": 4, "math": 7}
NUM_PARAMS, TRAIN_FLOPS, SEQ_LEN = 1_200_000, 3.0e13, 256
BUDGET = {
  "num_params": NUM_PARAMS, "train_flops": TRAIN_FLOPS, "num_unique_tokens": 3_000_000,
  "seq_len": SEQ_LEN, "reuse": "strict",
}  # fmt: skip


@dataclasses.dataclass(frozen=True)
class Fake:
  """What to write. Arms are named dense, dense_2c and moe_<r_a in percent>."""

  rates: tuple[float, ...] = (0.1, 0.17, 0.26, 0.38, 0.55)
  seeds: tuple[int, ...] = (0,)
  optimum: float = 0.25
  floor: float = 1.90
  curvature: float = 0.05
  dense_bpc: float = 1.95
  reference_bpc: float | None = 1.91
  controls: dict[str, tuple[int, float]] = dataclasses.field(default_factory=dict)  # N, BPC
  ablation_cost: float | None = None  # BPC that an MoE arm loses without its routed experts
  seed_sd: float = 0.0
  document_sd: float = 0.02
  passed: bool | None = True
  statuses: dict = dataclasses.field(default_factory=dict)
  telemetry: bool = True
  num_steps: int = 300
  random: int = 7


def truth(fake: Fake, rate: float) -> float:
  return fake.floor + fake.curvature * math.log(rate / fake.optimum) ** 2


def documents(rng: np.random.Generator) -> tuple[np.ndarray, np.ndarray]:
  """Domains and character counts of the validation documents."""
  domains = np.repeat(list(DOMAINS), list(DOMAINS.values()))
  return domains, np.round(np.exp(rng.normal(9.0, 0.7, len(domains)))) + 200


def write_study(folder: pathlib.Path, fake: Fake = Fake()) -> pathlib.Path:  # noqa: B008
  rng = np.random.default_rng(fake.random)
  folder = pathlib.Path(folder)
  domains, chars = documents(rng)
  hardness = rng.normal(0, 0.3, len(domains))
  arms = [("dense", "dense", "arm", 1.0, fake.dense_bpc)]
  arms += [(f"moe_{100 * r:.0f}", "moe", "arm", r, truth(fake, r)) for r in fake.rates]
  if fake.reference_bpc is not None:
    arms.append(("dense_2c", "dense", "reference", 1.0, fake.reference_bpc))
  arms += [(name, "dense", "control", 1.0, bpc) for name, (_, bpc) in fake.controls.items()]
  entries, plans = [], []
  for name, kind, role, rate, bpc in arms:
    for seed in fake.seeds:
      plan = arm_plan(name, kind, role, seed, rate, fake.num_steps)
      if role == "control":
        plan["num_params"] = fake.controls[name][0]
      status = fake.statuses.get((name, seed), fake.statuses.get(name, "done"))
      path = folder / "runs" / f"{name}-s{seed}"
      plans.append(plan)
      error = "ValueError: loss is nan at step 120 <b>" if status == "failed" else ""
      entry = {"name": name, "seed": seed, "status": status, "error": error}
      entries.append(entry | {"folder": f"runs/{name}-s{seed}"})
      offset = rng.normal(0, fake.seed_sd) if fake.seed_sd else 0.0
      noise = rng.normal(0, fake.document_sd, len(domains))
      if status == "pending":
        continue
      dump(path / "plan.json", plan)
      if fake.telemetry:
        write_telemetry(path, plan, bpc + offset, rng, torn=status == "running")
      if status != "done":
        continue
      write_result(path, plan, domains, chars, bpc + offset + hardness + noise)
      if kind == "moe":
        add_layers(path, plan["architecture"]["num_layers"] - 1)
      if kind == "moe" and fake.ablation_cost is not None:
        add_ablation(path, fake.ablation_cost)
      if fake.passed is not None:
        dump(path / "certificate.json", certificate(name, fake.passed) | {"arm": name})
  dump(folder / "study.json", study_info(entries))
  dump(folder / "plan.json", {"budget": BUDGET, "arms": plans})
  if fake.passed is not None:
    dump(folder / "certificate.json", certificate("all arms", fake.passed))
  return folder


def study_info(entries: list[dict]) -> dict:
  return {
    "name": "fake <study> & co",
    "created": "2026-11-22T04:00:00+00:00",
    "config": {"name": "fake", "seed": 0, "budget": {"num_params": NUM_PARAMS}},
    "data": {"train_sha256": "7c02a79b" * 8, "validation_sha256": "661d6c0c" * 8},
    "versions": {"moe_parity": "0.1.0", "jax": "0.12.0", "python": "3.12.1"},
    "command": "moe-parity study --config=configs/demo.py --workdir=runs/demo",
    "arms": entries,
  }


def arm_plan(name: str, kind: str, role: str, seed: int, rate: float, num_steps: int) -> dict:
  multiple = 2.0 if role == "reference" else 1.0
  flops_per_token = 6.0 * rate * NUM_PARAMS * 1.2
  tokens = int(multiple * TRAIN_FLOPS / flops_per_token)
  moe = kind == "moe"
  return {
    "name": name, "kind": kind, "role": role, "seed": seed,
    "architecture": {
      "num_layers": 4, "d_model": 128, "num_heads": 4, "d_head": 32, "num_kv_heads": 4,
      "layout": "1dense" if moe else "dense", "d_ffn": 352, "num_experts": 24 if moe else 0,
      "experts_per_token": max(1, round(24 * rate)) if moe else 0, "d_expert": 64 if moe else 0,
      "d_shared": 0, "vocab_size": 272,
    },
    "convention": "paper", "num_params": NUM_PARAMS, "num_active_params": int(rate * NUM_PARAMS),
    "activation_rate": rate, "forward_flops_per_token": flops_per_token / 3,
    "train_flops_per_token": flops_per_token, "train_flops": tokens * flops_per_token,
    "num_tokens": tokens, "num_unique_tokens": 3_000_000, "epochs": tokens / 3_000_000,
    "seq_len": SEQ_LEN, "batch_sequences": 16, "num_steps": num_steps,
    "peak_learning_rate": 3e-3, "final_learning_rate": 1e-5, "warmup_steps": 30,
    "compute_multiple": multiple, "residual_params_pct": 0.12, "residual_flops_pct": -0.03,
    "residual_unique_pct": 0.0, "exact_num_params": NUM_PARAMS + 70_000,
  }  # fmt: skip


def write_result(
  path: pathlib.Path, plan: dict, domains: np.ndarray, chars: np.ndarray, bpc_N: np.ndarray
) -> None:
  """result.json from the bits per character of every document; all ASCII, a token is a byte."""
  nats = bpc_N * math.log(2) * chars
  rows = [
    {"domain": str(d), "source": f"{d}-{i}", "nats": float(n), "num_tokens": int(c),
     "num_bytes": int(c), "num_chars": int(c)}
    for i, (d, c, n) in enumerate(zip(domains, chars, nats, strict=True))
  ]  # fmt: skip
  by_domain = {}
  for domain in DOMAINS:
    members = domains == domain
    bits = float(nats[members].sum() / chars[members].sum() / math.log(2))
    count = int(chars[members].sum())
    by_domain[domain] = {"bpc": bits, "bpb": bits, "nats": float(nats[members].sum()),
      "num_tokens": count, "num_bytes": count, "num_chars": count,
      "num_documents": int(members.sum())}  # fmt: skip
  bits = float(nats.sum() / chars.sum() / math.log(2))
  macro = float(np.mean([d["bpc"] for d in by_domain.values()]))
  total = int(chars.sum())
  dump(path / "result.json", {
    "name": plan["name"], "kind": plan["kind"], "role": plan["role"], "seed": plan["seed"],
    "finished_step": plan["num_steps"], "seconds": 61.5, "train_cross_entropy": bits * math.log(2),
    "validation": {"mode": "document", "seq_len": SEQ_LEN, "stride": SEQ_LEN, "bpc": bits,
      "bpb": bits, "cross_entropy": bits * math.log(2), "num_tokens": total, "num_bytes": total,
      "num_chars": total, "num_documents": len(domains), "by_domain": by_domain,
      "macro_bpc": macro, "macro_bpb": macro, "documents": rows},
  })  # fmt: skip


def add_layers(path: pathlib.Path, moe_layers: int) -> None:
  """What the probe of a finished run writes, another number for every layer and kind."""
  result = json.loads((path / "result.json").read_text())
  kinds = {"gate_sum": 0.1, "routed_rms": 0.04, "shared_rms": 0.2, "residual_rms": 1.5}
  layers = {kind: [size * (1 + i) for i in range(moe_layers)] for kind, size in kinds.items()}
  dump(path / "result.json", result | {"layers": layers})


def add_ablation(path: pathlib.Path, cost: float) -> None:
  result = json.loads((path / "result.json").read_text())
  scores = {"bpc": result["validation"]["bpc"] + cost, "bpb": 0.0, "cross_entropy": 0.0}
  dump(path / "result.json", result | {"ablations": {"routed_removed": scores}})


def write_telemetry(
  path: pathlib.Path, plan: dict, bpc: float, rng: np.random.Generator, torn: bool = False
) -> None:
  """metrics.jsonl and routing.npz; `torn` ends in the middle of a line, as a kill would."""
  moe = plan["kind"] == "moe"
  shape = plan["architecture"]
  moe_layers = shape["num_layers"] - 1 if moe else 0
  num_steps = plan["num_steps"] // 2 if torn else plan["num_steps"]
  lines = []
  for step in range(1, num_steps + 1, 3):
    seen = step * plan["num_tokens"] // plan["num_steps"]
    loss = bpc * math.log(2) + 3.5 * math.exp(-step / 30) + 0.02 * rng.normal()
    fade = math.exp(-step / 80)
    lines.append({
      "kind": "train", "step": step, "num_tokens": seen, "loss": loss + 0.01,
      "cross_entropy": loss, "balance_loss": 1.0 + fade, "z_loss": 0.0, "gradient_norm": 0.7,
      "learning_rate": 3e-3, "tokens_per_second": 1e5, "flops_per_second": 1e11,
      "peak_share": 0.5, "seconds": 0.2 * step,
      "max_vio": [0.15 + (1 + i) * fade for i in range(moe_layers)],
      "router_entropy": [math.log(24) * (1 - 0.3 * fade) - 0.2 * i for i in range(moe_layers)],
      "dead_experts": [int(6 * fade) for _ in range(moe_layers)],
      "drop_share": [0.0] * moe_layers,
      "gate_sum": [0.1 + 0.02 * i + 0.3 * fade for i in range(moe_layers)],
    })  # fmt: skip
    if step % 30 == 1:
      lines.append({"kind": "validation", "step": step, "num_tokens": seen,
        "cross_entropy": loss + 0.05, "bpc": (loss + 0.05) / math.log(2),
        "bpb": (loss + 0.05) / math.log(2)})  # fmt: skip
  text = "".join(json.dumps(line) + "\n" for line in lines)
  path.mkdir(parents=True, exist_ok=True)
  (path / "metrics.jsonl").write_text(text[:-40] if torn else text)
  if moe:
    steps = np.arange(1, num_steps + 1, 15)
    raw = np.exp(rng.normal(0, 0.5, (len(steps), moe_layers, shape["num_experts"])))
    loads = (raw / raw.sum(-1, keepdims=True)).astype(np.float32)
    np.savez(path / "routing.npz", steps=steps, num_tokens=steps * 1000, loads=loads)


def certificate(name: str, passed: bool) -> dict:
  measured = NUM_PARAMS if passed else int(1.04 * NUM_PARAMS)
  return {
    "passed": passed, "tolerances": {"num_params_pct": 0.3, "train_flops_pct": 0.5},
    "checks": [
      {"name": f"num_params of {name}", "planned": NUM_PARAMS, "measured": measured,
       "difference_pct": 100 * (measured / NUM_PARAMS - 1), "passed": passed,
       "how": "sizes of the arrays in the last checkpoint"},
      {"name": f"train_flops of {name}", "planned": TRAIN_FLOPS, "measured": TRAIN_FLOPS * 1.0002,
       "difference_pct": 0.02, "passed": True, "how": "tokens in the ledger times M"},
    ],
  }  # fmt: skip


def dump(path: pathlib.Path, value: dict) -> None:
  path.parent.mkdir(parents=True, exist_ok=True)
  path.write_text(json.dumps(value, indent=1))
