"""Whether held-out text is long enough for what a run will ask of it, before the run begins."""

from typing import Any

from moe_parity.data.token_store import Split
from moe_parity.errors import UserError
from moe_parity.evaluation.document_parts import part_of
from moe_parity.planning.arm_plan import ArmPlan


def check_run_rows(config: Any, plan: ArmPlan, split: Split) -> None:
  """`check_rows` for all that a run will ask of its held-out text.

  Raises:
    UserError: naming what needs a row that is not there.
  """
  is_validating = 0 < config.train.eval_every < plan.num_steps
  mode, is_moe = config.evaluation.mode, plan.architecture.is_moe
  part_of(split.documents, config.evaluation.tuning_share, config.data.seed, bool(plan.tunes))
  check_rows(split, plan.seq_len, mode, is_validating, is_moe)


def check_rows(
  split: Split, seq_len: int, mode: str, is_validating: bool = False, is_moe: bool = False
) -> None:
  """Refuses a split without one whole row where one will be needed.

  Args:
    mode: of the evaluation at the end. is_validating: whether rows are scored during training.
    is_moe: whether the layers of an MoE will be probed, which reads rows too.
  Raises:
    UserError: naming what needs the row.
  """
  needs = {
    "evaluation.mode='packed'": mode == "packed",
    "train.eval_every": is_validating,
    "the probe of MoE layers": is_moe,
  }
  if any(needs.values()) and not split.num_windows(seq_len):
    asking = next(name for name, needed in needs.items() if needed)
    raise UserError(
      f"the {split.name} split has no row of seq_len={seq_len}, which {asking} needs; hold out more"
      " text (data.held_out), or shorten budget.seq_len"
    )
