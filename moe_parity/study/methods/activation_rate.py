"""The paper's second step: which activation rate is best, and where does an MoE beat dense?

Derived from the templates `config.arms.dense` and `config.arms.moe`, in stages:

1. MoE arms at each of `study.activation_rates`, dense at C and at multiples of it, all with
   `study.seeds`; dense at C also with `study.more_seeds`;
2. the best rate and its neighbors with `study.more_seeds`, so that seeds go where the answer is;
   if more seeds make another rate the best, its neighbors too;
3. the best MoE arm and dense with other learning rates and batches (`study.learning_rates`,
   `study.batches`), in equal number: is the answer one of tuning?

Further comparisons: `fixed_data`, the same rates at the dense arm's tokens (the paper's Tables 9
and 11), and one for each further N of `study.sizes`, at the same tokens a parameter.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

from ml_collections import ConfigDict

from moe_parity.defaults import dense_arm, moe_arm
from moe_parity.errors import UserError
from moe_parity.planning.arm_plan import ComparisonPlan
from moe_parity.planning.plan import make_plan
from moe_parity.study.comparisons import Comparison, Results, template, with_arms

FIELDS = ("seeds", "more_seeds", "activation_rates", "compute_multiples", "controls",
          "small_multiples", "fixed_data", "sizes", "learning_rates", "batches")  # fmt: skip
FIXED_DATA = "fixed_data"
# What a dense template may say of its shape, which a control of an MoE arm's shape has from there.
_SHAPE = ("num_layers", "d_model", "num_heads", "num_kv_heads", "d_head", "d_ffn")
_RATIOS = ("aspect_ratio", "ffn_ratio", "activation_rate")


def derive(config: ConfigDict, results: Results) -> dict[str, ConfigDict]:
  """The config of each comparison as far as results allow.

  Raises:
    UserError: the config lacks what a sweep needs.
  """
  rates = tuple(config.study.activation_rates)
  if len(rates) < 3 or list(rates) != sorted(set(rates)):
    raise UserError(
      f"study.activation_rates={rates}: a sweep takes at least three different rates, in"
      " rising order"
    )
  if set(config.study.seeds) & set(config.study.more_seeds) or not config.study.seeds:
    raise UserError(
      f"study.seeds={config.study.seeds} and more_seeds={config.study.more_seeds} must be there"
      " and differ; for example (0,) and (1, 2)"
    )
  comparisons = {"": _swept(config, results, "")}
  first = make_plan(with_arms(config, sweep_arms(config)))
  if config.study.fixed_data:
    comparisons[FIXED_DATA] = _fixed_data(config, first)
  for num_params in config.study.sizes:
    name = f"n_{num_params}"
    comparisons[name] = _swept(_resized(config, first, int(num_params)), results, name)
  return comparisons


def pending_notes(config: ConfigDict, comparisons: Sequence[Comparison]) -> list[str]:
  """What later stages will add, in words, for a queue that is printed before they are known."""
  notes = []
  study = config.study
  swept = [comparison for comparison in comparisons if comparison.name != FIXED_DATA]
  if study.more_seeds:
    waiting = sum(not _replicated(comparison.plan, study.more_seeds) for comparison in swept)
    if waiting:
      runs = 3 * len(study.more_seeds) * waiting
      notes.append(f"then {runs} runs more: {len(study.more_seeds)} seeds of the best activation"
                   " rate and its two neighbors")  # fmt: skip
  if note := _controls_note(config, comparisons[0].plan):
    notes.append(note)
  tried = len(study.learning_rates) + len(study.batches)
  if tried and not any(arm.role == "check" for arm in comparisons[0].plan.arms):
    notes.append(
      f"then {2 * tried} runs more: learning rates and batches of the best MoE and dense"
    )
  return notes


def _controls_note(config: ConfigDict, plan: ComparisonPlan) -> str:
  """The controls that wait for the best rate, in words; "" where none do."""
  study = config.study
  if not study.controls or any("dense_active" in (arm.name, arm.tunes) for arm in plan.arms):
    return ""
  multiples = ", ".join(f"{multiple:g}" for multiple in study.small_multiples)
  count = 1 + len(study.small_multiples)
  runs = count * (len(study.seeds) + len(study.more_seeds))
  tries = count * len(study.learning_rate_grid) * len(study.tuning_seeds)
  trained = f"{runs} run{'s' * (runs > 1)} more" + (f" and {tries} tries" if tries else "")
  smaller = f" and with {multiples} times N" if multiples else ""
  return f"then {trained}: dense controls with the N_a of the best MoE arm{smaller}"


def name_of(rate: int | float) -> str:
  """moe_20 for 0.2, moe_8p5 for 0.085."""
  return f"moe_{100 * rate:.6g}".replace(".", "p")


def neighborhood(values: Sequence[int | float]) -> range:
  """Indices of the smallest value and of its neighbors on either side."""
  best = min(range(len(values)), key=values.__getitem__)
  return range(max(best - 1, 0), min(best + 2, len(values)))


def sweep_arms(config: ConfigDict, replicated: Sequence[int | float] = ()) -> dict[str, ConfigDict]:
  """Dense, the sweep and the references; the rates in `replicated` with more seeds."""
  study = config.study
  seeds, all_seeds = tuple(study.seeds), tuple(study.seeds) + tuple(study.more_seeds)
  dense, moe = template(config, "dense"), template(config, "moe")
  arms = {"dense": _made(dense_arm, dense, seeds=all_seeds)}
  for rate in study.activation_rates:
    arms[name_of(rate)] = _made(
      moe_arm, moe, activation_rate=rate, seeds=all_seeds if rate in replicated else seeds
    )
  for multiple in study.compute_multiples:
    name = f"dense_{multiple:g}c".replace(".", "p")
    arms[name] = _made(dense_arm, dense, compute_multiple=multiple, seeds=seeds)
  return arms


def controls(config: ConfigDict, best: str, seeds: Sequence[int]) -> dict[str, ConfigDict]:
  """Dense controls at equal C and data: of the best arm's N_a, and of smaller N.

  Args:
    best: name of the MoE arm whose lead they are to explain.
  """
  study = config.study
  if not study.controls:
    return {}
  dense = template(config, "dense")
  own = dict.fromkeys(_SHAPE, 0) | dict.fromkeys(_RATIOS, 0.0)
  arms = {"dense_active": _made(dense_arm, dense | own, active_of=best, seeds=seeds)}
  for multiple in study.small_multiples:
    name = f"dense_small_{multiple:g}".replace(".", "p")
    arms[name] = _small(config, dense, params_multiple=multiple, seeds=seeds)
  return arms


def _small(config: ConfigDict, dense: dict, **changes) -> ConfigDict:
  """A smaller dense model, as wide for its depth as the dense arm is: a control of worse shape
  would explain too little. Where no shape of its size is, the planner's own preference."""
  free = dense | dict.fromkeys(("num_layers", "d_model", "num_heads", "d_ffn"), 0)
  arms = {"dense": _made(dense_arm, dense)}
  shape = make_plan(with_arms(config, arms)).arms[0].architecture
  alike = _made(dense_arm, free, aspect_ratio=shape.aspect_ratio, **changes)
  try:
    make_plan(with_arms(config, arms | {"small": alike}))
  except UserError:
    return _made(dense_arm, free, **changes)
  return alike


def _made(make, fields: dict, **changes) -> ConfigDict:
  fields = fields | changes
  if make is dense_arm:
    fields = {name: value for name, value in fields.items() if name != "layout"}
  return make(**fields)


def _swept(config: ConfigDict, results: Results, comparison: str) -> ConfigDict:
  """Stages 1 to 3 of one comparison; the checks belong to the main comparison only."""
  rates = config.study.activation_rates
  values = [_mean(results, name_of(rate), config.study.seeds, comparison) for rate in rates]
  replicated = _replicated_rates(config, results, comparison, values)
  arms = sweep_arms(config, replicated)
  if not comparison and None not in values:
    seeds = tuple(config.study.seeds) + (tuple(config.study.more_seeds) if replicated else ())
    final = {rate: _mean(results, name_of(rate), seeds, comparison) for rate in replicated or rates}
    if None not in final.values():
      best = min(final, key=final.__getitem__)
      arms |= controls(config, name_of(best), seeds)
      arms |= _checks(config, arms, name_of(best))
  return with_arms(config, arms)


def _replicated_rates(
  config: ConfigDict, results: Results, comparison: str, values: Sequence[float | None]
) -> list[float]:
  """The rates that get more seeds by what is known: always the best so far and its neighbors.

  Args:
    values: mean BPC of each rate over the first seeds.
  """
  study = config.study
  seeds, found = (*study.seeds, *study.more_seeds), set()
  while study.more_seeds and None not in values:
    wanted = found | set(neighborhood(values))
    if wanted == found:
      break
    found = wanted
    values = [
      _mean(results, name_of(rate), seeds, comparison) if i in found else values[i]
      for i, rate in enumerate(study.activation_rates)
    ]
  return [study.activation_rates[i] for i in sorted(found)]


def _mean(results: Results, name: str, seeds: Sequence[int], comparison: str) -> float | None:
  """Mean BPC over seeds, None until all of them are known."""
  values = [results.bpc(name, seed, comparison) for seed in seeds]
  return None if None in values else sum(values) / len(values)


def _checks(config: ConfigDict, arms: dict[str, ConfigDict], best: str) -> dict[str, ConfigDict]:
  """Both sides with other learning rates and batches, one arm each, with the first seeds."""
  study = config.study
  if not (study.learning_rates or study.batches):
    return {}
  plan = {arm.name: arm for arm in make_plan(with_arms(config, arms)).arms}
  checks = {}
  for name in (best, "dense"):
    same = arms[name].to_dict() | {"role": "check", "seeds": tuple(study.seeds)}
    for multiple in study.learning_rates:
      changed = {"learning_rate_multiplier": same["learning_rate_multiplier"] * multiple}
      checks[f"{name}_lr{multiple:g}".replace(".", "p")] = ConfigDict(same | changed)
    for multiple in study.batches:
      batch = _batch_near(config, plan[name], multiple)
      checks[f"{name}_batch{multiple:g}".replace(".", "p")] = ConfigDict(
        same | {"batch_sequences": batch}
      )
  return checks


def _batch_near(config: ConfigDict, arm, multiple: int | float) -> int:
  """The batch nearest to `multiple` times an arm's whose whole steps spend C within tolerance."""
  sequences = arm.num_tokens / arm.seq_len
  step = config.budget.batch_multiple
  wanted = multiple * arm.batch_sequences
  choices = range(step, int(2 * wanted) + step + 1, step)
  # The arm's own tokens miss C by up to the tolerance already, hence half of it here.
  limit = config.budget.flops_tolerance / 2 - abs(arm.residual_flops_pct) / 100
  good = [b for b in choices if b < sequences
          and abs(round(sequences / b) * b / sequences - 1) <= max(limit, 0)]  # fmt: skip
  good = [b for b in good if b != arm.batch_sequences]
  if not good:
    raise UserError(
      f"study.batches: no batch near {wanted:g} sequences spends the compute of arm"
      f" {arm.name!r} in whole steps; use a larger budget or leave {multiple:g} out"
    )
  return min(good, key=lambda b: abs(math.log(b / wanted)))


def _fixed_data(config: ConfigDict, first: ComparisonPlan) -> ConfigDict:
  """The sweep at the tokens of the dense arm, without references."""
  arms = sweep_arms(config)
  arms = {name: arm for name, arm in arms.items() if arm.compute_multiple == 1}
  arms["dense"].seeds = tuple(config.study.seeds)
  tokens = first.budget["dense_tokens"]
  return with_arms(config, arms, held_fixed="tokens", dense_tokens=tokens, train_flops=0.0)


def _resized(config: ConfigDict, first: ComparisonPlan, num_params: int) -> ConfigDict:
  """The config at another N: tokens a parameter and shape ratios of the main comparison's arms.

  Raises:
    UserError: N is that of the main comparison.
  """
  if num_params == config.budget.num_params:
    raise UserError(
      f"study.sizes names N={num_params:,}, which the main comparison has; leave it out"
    )
  scale = num_params / config.budget.num_params
  shapes = {arm.kind: arm.architecture for arm in first.arms}
  arms = {}
  for kind, make in (("dense", dense_arm), ("moe", moe_arm)):
    fields = template(config, kind)
    for name in ("num_layers", "d_model", "num_heads", "num_kv_heads", "d_ffn"):
      fields[name] = 0
    fields["aspect_ratio"] = float(shapes[kind].d_model / shapes[kind].num_layers)
    fields["d_head"] = fields["d_head"] or shapes[kind].d_head
    arms[kind] = _made(make, fields)
  tokens = round(scale * first.budget["dense_tokens"])
  unique = round(scale * config.budget.unique_tokens)
  return with_arms(
    config, arms, num_params=num_params, dense_tokens=tokens, train_flops=0.0, unique_tokens=unique
  )


def _replicated(plan: ComparisonPlan, more_seeds: Sequence[int]) -> bool:
  return any(arm.kind == "moe" and arm.seed in more_seeds for arm in plan.arms)
