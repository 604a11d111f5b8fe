"""Writes what the paper's three steps leave in a study folder, with made-up numbers: for tests."""

import json
import math
import pathlib

RATES = (0.1, 0.17, 0.26, 0.38, 0.55)


def write_steps(folder: pathlib.Path) -> pathlib.Path:
  """architecture.json, activation_rate.json and data_reuse.json next to a study's files."""
  for name, content in (
    ("architecture", architecture()),
    ("activation_rate", activation_rate()),
    ("data_reuse", data_reuse()),
  ):
    (folder / f"{name}.json").write_text(json.dumps(content))
  return folder


def option(label: str, loss: float | None, **changes) -> dict:
  shape = {
    "arm": f"arm_{label}", "label": label, "layout": "1dense", "shared_expert": True,
    "gates": "plain", "num_layers": 4, "d_model": 128, "d_ffn": 352, "num_heads": 2, "d_head": 64,
    "num_experts": 24, "experts_per_token": 3, "d_expert": 64, "d_shared": 192,
    "num_params": 1_200_000, "num_active_params": 240_000, "activation_rate": 0.2,
    "forward_flops_per_token": 5.8e5, "train_flops_per_token": 1.74e6, "train_flops": 3e13,
    "num_tokens": 17_241_379, "kappa": 1.2, "aspect_ratio": 32.0, "total_ffn_ratio": 13.5,
    "ffn_ratio": 2.75, "loss": loss, "balance_loss": 1.03, "bpc": None if loss is None else loss,
    "interval": None if loss is None else [loss - 0.01, loss + 0.01], "num_seeds": 2,
    "difference": 0.0, "simultaneous": None, "verdict": "chosen",
  }  # fmt: skip
  return shape | changes


def architecture() -> dict:
  layout = [
    option("1dense+SE", 1.90),
    option("full", 1.93, layout="full", difference=0.03, simultaneous=[0.01, 0.05],
           verdict="worse"),
    option("interleave", 1.91, layout="interleave", difference=0.01, simultaneous=[-0.02, 0.04],
           verdict="not distinguishable"),
    option("1dense", None, bpc=None, difference=None, verdict="not done"),
  ]  # fmt: skip
  ratios = ((12.0, 30.1, 1.95), (25.0, 21.3, 1.91), (41.0, 14.2, 1.89), (90.0, 9.5, 1.93))
  shapes = [
    option(f"zeta {zeta:g}", loss, aspect_ratio=zeta, total_ffn_ratio=mu, difference=loss - 1.89)
    for zeta, mu, loss in ratios
  ]
  dense = [
    option(f"alpha {alpha:g}", loss, ffn_ratio=alpha, total_ffn_ratio=None, num_experts=0)
    for alpha, loss in ((2.0, 1.97), (3.5, 1.96))
  ]
  stages = [
    ("layout", "moe", "Where do MoE layers sit?", layout, "1dense+SE", True),
    ("shape", "moe", "Which width, depth and expert width?", shapes, "zeta 41", False),
    ("dense_ffn", "dense", "Which feed-forward ratio for dense?", dense, "alpha 3.5", False),
  ]
  return {
    "method": "architecture", "level": 0.95, "rule": "lowest BPC; a tie keeps the simpler option",
    "stages": [
      {"name": name, "kind": kind, "question": question, "complete": name != "layout",
       "incumbent": options[0]["label"], "chosen": chosen, "tie": tie, "options": options,
       "skipped": [{"label": "E 7", "why": "no <shape> at this budget"}] if tie else []}
      for name, kind, question, options, chosen, tie in stages
    ],
    "backbone": shapes[2], "dense_backbone": dense[1], "num_arms": {"moe": 8, "dense": 2},
    "num_runs": {"moe": 15, "dense": 4}, "noise": {"sd": 0.004, "df": 9},
    "sentences": ["The search chose one dense layer, shared expert & zeta 41."],
  }  # fmt: skip


def sweep_arm(rate: float, bpc: float | None, kind: str = "moe", **changes) -> dict:
  name = f"moe_{100 * rate:.0f}" if kind == "moe" else "dense"
  arm = {
    "name": name, "kind": kind, "role": "arm", "activation_rate": rate, "num_seeds": 2,
    "bpc": bpc, "interval": bpc and [bpc - 0.006, bpc + 0.006], "seed_sd": 0.003, "loss": bpc,
    "train_flops_per_token": 8.6e6 * rate, "train_flops": 3e13, "num_tokens": int(3.5e6 / rate),
    "num_unique_tokens": 3_500_000, "epochs": 1 / rate, "compute_multiple": 1.0,
  }  # fmt: skip
  return arm | changes


def sweep(num_params: int, optimum: float, held: str) -> dict:
  def value(rate):
    if held == "tokens":
      return 2.0 * rate**-0.03
    return 1.9 + 0.05 * math.log(rate / optimum) ** 2

  arms = [sweep_arm(rate, value(rate)) for rate in RATES]
  arms.append(sweep_arm(1.0, 2.0 if held == "tokens" else 1.95, "dense"))
  if held == "compute":
    arms.append(sweep_arm(1.0, 1.91, "dense", name="dense_2c", role="reference",
                          compute_multiple=2.0))  # fmt: skip
    arms.append(sweep_arm(0.75, None))
  return {
    "part": "" if held == "compute" else "fixed", "held": held, "num_params": num_params,
    "train_flops": 3e13 if held == "compute" else None, "dense_tokens": 3_500_000,
    "reuse": "strict", "arms": arms,
    "optimum": {"activation_rate": optimum, "bpc": 1.9, "interval": [optimum / 1.3, optimum * 1.4],
                "bracketed": True, "open_below": False, "open_above": False, "at_edge": ""}
    if held == "compute" else None,
    "below": [{"baseline": "dense", "compute_multiple": 1.0, "ranges": [[0.1, 0.6]],
               "surely": [[0.15, 0.4]]}] if held == "compute" else [],
    "log_log": {"y": "loss", "slope": -0.03, "interval": [-0.034, -0.026], "r2": 0.99,
                "num_arms": 5, "monotone": True} if held == "tokens" else None,
    "flops_linear": {"slope": 8.6e6, "intercept": 0.0, "r2": 1.0}, "not_done": ["moe_75"],
  }  # fmt: skip


def activation_rate() -> dict:
  sweeps = [sweep(1_200_000, 0.25, "compute"), sweep(4_100_000, 0.21, "compute")]
  sweeps.append(sweep(1_200_000, 0.25, "tokens"))
  tuned = [
    {"name": f"moe_26_lr{m:g}", "learning_rate_multiplier": m, "batch_sequences": 16,
     "peak_learning_rate": 3e-3 * m, "bpc": bpc, "num_seeds": 2}
    for m, bpc in ((0.5, 1.912), (1.0, 1.9), (2.0, 1.897))
  ]  # fmt: skip
  return {
    "method": "activation_rate", "level": 0.95, "sweeps": sweeps,
    "transfer": {
      "sizes": [1_200_000, 4_100_000],
      "optima": [
        {"num_params": 1_200_000, "activation_rate": 0.25, "interval": [0.19, 0.35],
         "bracketed": True},
        {"num_params": 4_100_000, "activation_rate": 0.21, "interval": [0.16, 0.29],
         "bracketed": False},
      ],
      "pairs": [{"num_params": [1_200_000, 4_100_000], "log_ratio": -0.17,
                 "interval": [-0.5, 0.2], "verdict": "not distinguishable"}],
    },
    "tuning": {
      "sides": [{"kind": "moe", "arm": "moe_26", "arms": tuned, "best": "moe_26_lr2",
                 "gain": 0.003, "gain_interval": [-0.004, 0.01]}],
      "difference_at_law": -0.05, "difference_tuned": -0.049, "tuned_interval": [-0.06, -0.04],
      "num_arms": {"moe": 3, "dense": 3},
    },
    "num_runs": {"moe": 20, "dense": 9}, "stages": [],
    "sentences": ["r_a* is 25 % at 1.2M and 21 % at 4.1M: not distinguishable."],
  }  # fmt: skip


def data_reuse() -> dict:
  def scheme(reuse, epochs, shift):
    arms = [sweep_arm(rate, 1.9 + shift + 0.05 * math.log(rate / 0.25) ** 2) for rate in RATES]
    names = ("name", "kind", "role", "activation_rate", "num_tokens", "num_unique_tokens",
             "epochs", "bpc", "num_seeds")  # fmt: skip
    arms = [{name: arm[name] for name in names} for arm in arms]
    for arm in arms:
      arm |= {"cross_entropy": arm["bpc"] * math.log(2)}
      if epochs:
        arm["epochs"] = epochs
    rows = [
      {"name": arm["name"], "activation_rate": arm["activation_rate"], "epochs": arm["epochs"],
       "difference": arm["bpc"] - 1.95, "simultaneous": [arm["bpc"] - 1.96, arm["bpc"] - 1.94],
       "verdict": "MoE better" if arm["bpc"] < 1.94 else "not distinguishable"}
      for arm in arms
    ]  # fmt: skip
    dense = {"name": "dense", "bpc": 1.95}
    return {"part": reuse, "reuse": reuse, "epochs": epochs, "equal_data": reuse == "strict",
            "arms": arms, "baseline": dense, "comparisons": rows}  # fmt: skip

  epochs = [1.0, 2.0, 4.0, 8.0]
  curve = [1.30 + 0.01 * e for e in epochs]
  return {
    "method": "data_reuse", "level": 0.95,
    "schemes": [scheme("strict", None, 0.0), scheme("unique", None, -0.02),
                scheme("epochs", 4.0, 0.01)],
    "law": {
      "name": "Muennighoff", "token_decay_published": 15.39, "token_decay": 11.2,
      "interval": [6.0, 21.0], "exponent": 0.35, "num_runs": 8, "rmse": 0.004,
      "rmse_published": 0.006, "at_edge": False, "open": [False, True], "misfit": False,
      "curves": [{"name": "moe", "activation_rate": rate, "epochs": epochs, "cross_entropy": curve,
                  "cross_entropy_published": [c - 0.005 for c in curve]} for rate in (0.26, 1.0)],
      "points": [{"name": f"e{e:g}", "activation_rate": rate, "epochs": e, "cross_entropy": c}
                 for rate in (0.26, 1.0) for e, c in zip(epochs, curve, strict=True)],
    },
    "costs": [{"name": "moe_26", "part": "loose", "activation_rate": 0.26, "epochs": 2.0,
               "difference": 0.01, "interval": [0.0, 0.02]}],
    "noise": {"sd": None, "df": 0}, "not_done": [],
    "num_runs": {"moe": 24, "dense": 4}, "sentences": ["Strict reuse costs 0.02 BPC."],
  }  # fmt: skip
