"""Whether a study's plan is the one on disk, or that with arms of a later stage."""

import pathlib

from moe_parity import config as configs
from moe_parity.errors import UserError
from moe_parity.planning.arm_plan import ComparisonPlan, budget_of, with_later_fields
from moe_parity.training import run_folder


def has_grown(path: pathlib.Path, plan: ComparisonPlan, staged: bool) -> bool:
  """Whether a plan holds more arms than the one on disk, of a staged study.

  Another worker may be a stage ahead, so the one on disk may also hold more.

  Raises:
    UserError: they differ in anything else, or the one on disk is no plan.
  """
  old, new = run_folder.read_json(path), plan.to_dict()
  new.pop("notes")  # words about the plan, which a later version may choose otherwise
  old.pop("notes", None)
  old["budget"] = budget_of(old)
  grown = len(new["arms"]) > len(old["arms"])
  new_arms = {(arm["name"], arm["seed"]): arm for arm in new["arms"]}
  old["arms"] = [
    with_later_fields(arm, new_arms.get((arm["name"], arm["seed"]), {})) for arm in old["arms"]
  ]
  old, new = _by_arm(old), _by_arm(new)
  if staged:
    fewer, more = sorted((old["arms"], new["arms"]), key=len)
    if fewer.keys() <= more.keys():
      for plan_ in (old, new):
        plan_["arms"] = {key: plan_["arms"][key] for key in fewer}
  changed = configs.differences(old, new)
  if changed:
    more = f" and {len(changed) - 3} more" if len(changed) > 3 else ""
    raise UserError(
      f"{path.parent} holds another study ({'; '.join(changed[:3])}{more}); use another --workdir,"
      " or remove this one"
    )
  return grown


def _by_arm(plan: dict) -> dict:
  return plan | {"arms": {f"{arm['name']}-s{arm['seed']}": arm for arm in plan["arms"]}}
