"""The paper's third step: what does reading the same text again cost, and does the lead survive it?

From the templates `config.arms.dense` and `config.arms.moe`, at each of `study.activation_rates`:

    the study itself   strict: every arm shares the tokens the dense arm reads once
    parts/unique       no token twice: an MoE reads 1 / R_c times the dense arm's text
    parts/loose        every MoE arm reads its text twice (the paper's Tables 14 and 17)
    parts/epochs_<e>   every MoE arm reads its text e times, for each of `study.epochs`

The second and the third only where `study.reuse_schemes` names them.

N and C are those of the budget in every comparison. Dense reads its text once everywhere and is
trained once; so is an MoE arm that two schemes give the same text (loose and two epochs).
"""

from __future__ import annotations

from collections.abc import Sequence

from ml_collections import ConfigDict

from moe_parity.errors import UserError
from moe_parity.planning.plan import make_plan
from moe_parity.study.comparisons import Comparison, Results, with_arms
from moe_parity.study.methods.activation_rate import sweep_arms

FIELDS = ("seeds", "activation_rates", "compute_multiples", "epochs", "reuse_schemes")


def derive(config: ConfigDict, results: Results) -> dict[str, ConfigDict]:
  """All comparisons; they depend on no result.

  Raises:
    UserError: another scheme than strict in the config, or epochs that cannot be.
  """
  study, budget = config.study, config.budget
  if budget.reuse != "strict" or budget.unique_tokens:
    raise UserError(
      f"budget.reuse={budget.reuse!r} with unique_tokens={budget.unique_tokens}: data_reuse sets"
      " the scheme of each comparison itself; use reuse='strict' and unique_tokens=0"
    )
  epochs = list(study.epochs)
  if epochs != sorted(epochs):
    raise UserError(f"study.epochs={study.epochs} do not rise; give them in rising order")
  arms = sweep_arms(config)
  for arm in arms.values():
    arm.seeds = tuple(study.seeds)
  comparisons = {"": with_arms(config, arms)}
  at_parity = {name: arm for name, arm in arms.items() if arm.compute_multiple == 1}
  for scheme in dict.fromkeys(study.reuse_schemes):
    comparisons[scheme] = with_arms(config, at_parity, reuse=scheme)
  moe = {name: arm for name, arm in arms.items() if arm.kind == "moe"}
  flops = float(make_plan(comparisons[""]).budget["train_flops"])
  for e in epochs:
    spent = {"train_flops": flops, "dense_tokens": 0}
    comparisons[epochs_name(e)] = with_arms(config, moe, reuse="epochs", epochs=float(e), **spent)
  return comparisons


def epochs_name(epochs: int | float) -> str:
  """epochs_4 for 4, epochs_2p5 for 2.5."""
  return f"epochs_{epochs:g}".replace(".", "p")


def pending_notes(config: ConfigDict, comparisons: Sequence[Comparison]) -> list[str]:
  """Nothing: all arms are known from the start."""
  return []
