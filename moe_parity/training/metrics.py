"""The lines of metrics.jsonl: one a logged step ("train") and one a validation ("validation").

Floats are written with `repr` precision, so two runs can be compared to the last bit.
"""

import math
import pathlib
import statistics

import numpy as np

from moe_parity.errors import UserError
from moe_parity.files import parse_json
from moe_parity.stored.run_files import METRICS_LINE
from moe_parity.stored.shape import mismatch
from moe_parity.training.timer import TrainingTimer

METRICS = "metrics.jsonl"
KINDS = ("train", "validation")
SCORED_UNITS = ("tokens", "bytes", "chars")


def read_metrics(folder: pathlib.Path) -> list[dict]:
  """The lines of metrics.jsonl; a last line cut short by a kill is left out.

  Raises:
    UserError: another line is damaged.
  """
  path = folder / METRICS
  lines, num_broken = parse_metrics(path.read_bytes())
  if num_broken:
    raise UserError(
      f"{path} has {num_broken} damaged lines; restore it, or remove result.json and train again to"
      " restore it from the newest checkpoint"
    )
  return lines


def parse_metrics(content: bytes, last_step: int | float = math.inf) -> tuple[list[dict], int]:
  """The lines of a metrics.jsonl up to a step, and how many others are damaged.

  A last line without its end is what a kill leaves: it is left out and not counted.
  """
  lines, num_broken = [], 0
  for text in content.split(b"\n")[:-1]:
    try:
      line = parse_json(text)
      is_line = not mismatch(line, METRICS_LINE)
    except ValueError:
      is_line = False
    if not is_line:
      num_broken += 1
    elif line["step"] <= last_step:
      lines.append(line)
  return lines, num_broken


def steady_step_seconds(folder: pathlib.Path, tokens_per_step: int) -> float:
  """Median wall time of a step, in seconds, over the intervals between logged steps.

  Compiling, validation and checkpoints are in none of them, and what disturbed a few steps (a
  restart, another program) does not move a median. The first step, which also fills caches and the
  input queue, counts only where no other was logged.

  Args:
    folder: of the run, with its metrics.jsonl.
  """
  lines = [line for line in read_metrics(folder) if line["kind"] == "train"]
  rates = [line["tokens_per_second"] for line in lines[1:] or lines]
  return tokens_per_step / statistics.median(rates)


def routing_health(load_LE: np.ndarray) -> dict[str, list]:
  """Per MoE layer: MaxVio = max load / mean load - 1 (2408.15664), and experts with no token."""
  num_experts = load_LE.shape[-1]
  return {
    "max_vio": [float(row.max() * num_experts - 1) for row in load_LE],
    "dead_experts": [int((row == 0).sum()) for row in load_LE],
  }


def train_line(step: int, scalars: dict, timer: TrainingTimer) -> dict:
  """One "train" line of metrics.jsonl from a finished step's scalars (on the host)."""
  rate = timer.tokens_per_second(step)
  load_LE = scalars.get("load_LE", np.zeros((0, 1)))
  number = lambda name: float(scalars.get(name, 0.0))  # noqa: E731
  return {
    "kind": "train",
    "step": step,
    "num_tokens": step * timer.tokens_per_step,
    "loss": number("loss"),
    "cross_entropy": number("cross_entropy"),
    "balance_loss": number("balance_loss"),
    "z_loss": number("z_loss"),
    "gradient_norm": number("gradient_norm"),
    "learning_rate": number("learning_rate"),
    "tokens_per_second": rate,
    "flops_per_second": rate * timer.flops_per_token,
    "peak_share": rate * timer.flops_per_token / timer.peak_flops_per_second,
    "seconds": timer.seconds,
    **routing_health(load_LE),
    "router_entropy": [float(x) for x in scalars.get("router_entropy_L", ())],
    "drop_share": [float(x) for x in scalars.get("drop_share_L", ())],
    "gate_sum": [float(x) for x in scalars.get("gate_sum_L", ())],
  }


def validation_line(step: int, timer: TrainingTimer, validation: dict) -> dict:
  """One "validation" line of metrics.jsonl: scores, and the sums that they are quotients of, nats
  over tokens, bytes and characters of the text that was scored."""
  return {
    "kind": "validation",
    "step": step,
    "num_tokens": step * timer.tokens_per_step,
    "seconds": timer.seconds,
    **{name: validation[name] for name in ("cross_entropy", "bpc", "bpb", "nats")},
    **{f"scored_{unit}": validation[f"num_{unit}"] for unit in SCORED_UNITS},
  }


def final_cross_entropy(folder: pathlib.Path, num_steps: int) -> float | None:
  """Mean logged training cross-entropy of the last 5 % of the steps, in nats a token; None where
  their lines are lost."""
  tail = [
    line["cross_entropy"]
    for line in read_metrics(folder)
    if line["kind"] == "train" and line["step"] > 0.95 * num_steps and "cross_entropy" in line
  ]
  return float(np.mean(tail)) if tail else None
