"""Says in words what activation_rate.json holds."""

import math


def sentences(value: dict) -> list[str]:
  lines = []
  for sweep in value["sweeps"]:
    if sweep["held"] == "tokens" and sweep["log_log"]:
      lines.append(_fixed_data_sentence(sweep))
  for pair in (value["transfer"] or {"pairs": []})["pairs"]:
    a, b = pair["num_params"]
    low, high = (math.exp(end) for end in pair["interval"])
    lines.append(
      f"From N = {a:,} to {b:,} the best activation rate changes by a factor of"
      f" {math.exp(pair['log_ratio']):.2f} (95 % interval {low:.2f} to {high:.2f}):"
      f" {pair['verdict']}."
    )
  if value["tuning"]:
    lines.append(_tuning_sentence(value["tuning"]))
  runs = value["num_runs"]
  left = sum(len(sweep["not_done"]) for sweep in value["sweeps"])
  state = f"planned so far, {left} of them not done" if left else "done"
  lines.append(f"{runs['moe']} MoE runs and {runs['dense']} dense runs are {state}.")
  return lines


def _fixed_data_sentence(sweep: dict) -> str:
  fit = sweep["log_log"]
  low, high = fit["interval"] or (math.nan, math.nan)
  falls = "falls at every step" if fit["monotone"] else "does not fall at every step"
  return (
    f"At fixed data (N = {sweep['num_params']:,}) the training loss {falls} as r_a rises; as a"
    f" power of r_a its exponent is {fit['slope']:+.4f} (95 % interval {low:+.4f} to {high:+.4f},"
    f" R^2 {fit['r2']:.3f})."
  )


def _tuning_sentence(tuning: dict) -> str:
  gains = [
    f"{side['kind']} gains {side['gain']:.4f} BPC with {side['best']}"
    if side["gain"] > 0 else f"{side['kind']} gains nothing"
    for side in tuning["sides"]
  ]  # fmt: skip
  interval = ""
  if tuning["tuned_interval"]:
    low, high = tuning["tuned_interval"]
    interval = f" (95 % interval {low:+.4f} to {high:+.4f} over all settings tried)"
  return (
    f"Learning rates and batches around the arms' own: {' and '.join(gains)}; MoE minus dense is"
    f" {tuning['difference_at_law']:+.4f} BPC as compared and"
    f" {tuning['difference_tuned']:+.4f}{interval}"
    " with each side at its best."
  )
