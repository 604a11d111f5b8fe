"""Does metrics.jsonl hold what its run logged, and do its lines agree with each other?

Steps, tokens and learning rates are those of the plan; the training loss of result.json is that of
the last lines; and a score of held-out text in training is the quotient of the sums in its line.
"""

import math
import pathlib
from collections.abc import Iterator, Sequence

from moe_parity.study.evidence import SUM_TOLERANCE, line
from moe_parity.training.metrics import METRICS, SCORED_UNITS, final_cross_entropy, read_metrics


def metrics_checks(
  plan: dict, result: dict, folder: pathlib.Path, log_every: int
) -> Iterator[dict]:
  """Lines of a run's certificate; raises what a damaged file raises."""
  lines = read_metrics(folder)
  yield _tokens_check(plan, lines)
  yield _validations_check([entry for entry in lines if entry["kind"] == "validation"])
  losses = final_cross_entropy(folder, plan["num_steps"]), result.get("train_cross_entropy")
  same = None not in losses and math.isclose(*losses, rel_tol=SUM_TOLERANCE)
  same |= losses == (None, None)  # its last lines are lost
  yield line("metrics: training loss", *losses, same, f"{METRICS}, result.json")
  entries = [entry for entry in lines if entry["kind"] == "train"]
  steps = [entry["step"] for entry in entries]
  last = plan["num_steps"]
  due = {step for step in range(1, last + 1) if step == last or step % log_every == 0}
  missing = sorted(due - set(steps))
  words = f"{len(missing)} missing, the first is step {missing[0]}" if missing else "all"
  yield line("metrics: logged steps", "all", words, not missing, METRICS)
  yield line("metrics: steps in order", True, steps == sorted(set(steps)),
             steps == sorted(set(steps)), METRICS)  # fmt: skip
  logged = [entry for entry in entries if entry.get("learning_rate") is not None]
  wrong = [
    f"step {entry['step']}: {entry['learning_rate']:.6g}, by the plan {rate:.6g}"
    for entry in logged
    if not math.isclose(entry["learning_rate"], rate := _learning_rate(plan, entry["step"]),
                        rel_tol=1e-3, abs_tol=1e-6 * plan["peak_learning_rate"])
  ]  # fmt: skip
  yield line("metrics: learning rates", "those of the plan", "; ".join(wrong[:2]) or
             "those of the plan", not wrong, METRICS)  # fmt: skip


def _tokens_check(plan: dict, lines: Sequence[dict]) -> dict:
  of_step = plan["batch_sequences"] * plan["seq_len"]
  wrong = [
    f"step {entry['step']}: {entry['num_tokens']}, by the plan {entry['step'] * of_step}"
    for entry in lines
    if entry.get("num_tokens", entry["step"] * of_step) != entry["step"] * of_step
  ]
  words = "; ".join(wrong[:2]) or "those of the plan"
  return line("metrics: tokens", "those of the plan", words, not wrong, METRICS)


def _validations_check(lines: Sequence[dict]) -> dict:
  """Scores of held-out text in training: the quotients of the sums that each line holds."""
  wrong, older = [], 0
  for entry in lines:
    if "nats" not in entry:
      older += 1
      continue
    tokens, num_bytes, chars = (entry[f"scored_{unit}"] for unit in SCORED_UNITS)
    bits = entry["nats"] / math.log(2)
    expected = {"cross_entropy": entry["nats"] / tokens, "bpb": bits / num_bytes,
                "bpc": bits / chars}  # fmt: skip
    wrong += [
      f"step {entry['step']}: {name} {entry[name]:.6g}, by its nats {value:.6g}"
      for name, value in expected.items()
      if not math.isclose(entry[name], value, rel_tol=SUM_TOLERANCE)
    ]
  unchecked = f"{older} of {len(lines)} lines are of an earlier version, without sums: not checked"
  words = "; ".join(wrong[:2]) or (unchecked if older else "quotients of their sums")
  name = "metrics: validation scores"
  return line(name, "quotients of their sums", words, not wrong, METRICS)


def _learning_rate(plan: dict, step: int) -> float:
  """Of step 1, 2, ...: a linear rise over the warm-up, then half a cosine."""
  warmup = max(1, plan["warmup_steps"])
  peak, final, taken = plan["peak_learning_rate"], plan["final_learning_rate"], step - 1
  if taken < warmup:
    first = peak / warmup
    return peak + (first - peak) * (1 - min(taken, max(1, warmup - 1)) / max(1, warmup - 1))
  falling = max(1, plan["num_steps"] - warmup)
  cosine = 0.5 * (1 + math.cos(math.pi * min(taken - warmup, falling) / falling))
  return (peak - final) * cosine + final
