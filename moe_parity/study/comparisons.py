"""The comparisons a study consists of, at one budget each, derived from the config and from the
results so far.

Most studies are one comparison: the arms of the config, in the study folder itself. The paper's
steps (`config.study.method`) derive their arms from two templates, `config.arms.dense` and
`config.arms.moe`, in stages: what a stage trains depends on the results of the stages before it and
on nothing else. So deriving again, after a kill or by another worker, gives the same arms. With
`study.learning_rate_grid` every arm is tuned before it is compared (`tuning`). Further comparisons
(another N, fixed data, another reuse scheme) have study folders of their own under `parts/`; a run
that two comparisons share is trained once, in the folder of the first.
"""

import dataclasses
import functools
import json
import math
import os
import pathlib
from collections.abc import Mapping
from typing import Any

from ml_collections import ConfigDict

from moe_parity.errors import UserError
from moe_parity.planning.arm_plan import ArmPlan, ComparisonPlan
from moe_parity.planning.config_rules import check_config
from moe_parity.planning.plan import make_plan
from moe_parity.stored.study_files import NOT_FINITE
from moe_parity.study import tuning
from moe_parity.study.methods.method import check_study_fields, method_of
from moe_parity.study.reading import COMPARISONS_FOLDER
from moe_parity.study.workers.leases import FAILED, Leases
from moe_parity.training import run_folder

RESULT = "result.json"
# Of a plan, all that decides what a run computes; the rest is its name and how it is compared.
_IDENTITY = (
  "architecture seed convention num_tokens num_unique_tokens seq_len batch_sequences num_steps"
  " peak_learning_rate final_learning_rate warmup_steps gates routed_scale mixture"
).split()


@dataclasses.dataclass(frozen=True)
class Comparison:
  """One comparison: a complete config, its plan, and where its runs are.

  Attributes:
    name: "" for the study folder itself, else the folder under parts/.
    runs: run folder of each arm of the plan, relative to the study folder.
  """

  name: str
  config: ConfigDict
  plan: ComparisonPlan
  runs: tuple[str, ...]

  @property
  def folder(self) -> str:
    """Relative to the study folder."""
    return f"{COMPARISONS_FOLDER}/{self.name}" if self.name else "."


class Results:
  """What is known of a study's runs by now.

  Args:
    folder: of the study, or None before there is one.
    leases: record which runs diverged.
  """

  def __init__(self, folder: pathlib.Path | None, leases: Leases | None = None):
    self._folder, self._leases = folder, leases

  def get(self, name: str, seed: int, comparison: str = "") -> dict | None:
    """result.json of an arm that the comparison trained itself, None while it is not finished."""
    return self.of_run(run_folder_of(name, seed, comparison))

  @property
  def is_on_paper(self) -> bool:
    """Whether there is no study folder: nothing is known, and nothing will be by asking again."""
    return self._folder is None

  def of_run(self, run: str) -> dict | None:
    """The same by the run's folder, relative to the study folder."""
    if self._folder is None:
      return None
    path = self._folder / run / RESULT
    return run_folder.read_json(path) if path.exists() else None

  def bpc(self, name: str, seed: int, comparison: str = "") -> float | None:
    """Validation bits per character, None while not finished, infinity where the run diverged."""
    return self.bpc_of_run(run_folder_of(name, seed, comparison))

  def bpc_of_run(self, run: str) -> float | None:
    """The same by the run's folder, relative to the study folder."""
    result = self.of_run(run)
    if result is not None:
      value = result["validation"]["bpc"]
      return value if math.isfinite(value) else math.inf
    if self._leases is not None:
      record = self._leases.get(run)
      if record.get("state") == FAILED and record.get("kind") == NOT_FINITE:
        return math.inf
    return None


def run_folder_of(name: str, seed: int, comparison: str = "") -> str:
  """Run folder of an arm, relative to the study folder."""
  folder = f"{COMPARISONS_FOLDER}/{comparison}/" if comparison else ""
  return f"{folder}runs/{name}-s{seed}"


def derive(config: ConfigDict, results: Results) -> dict[str, ConfigDict]:
  """The config of each comparison, with all arms that can be known by now; "" comes first."""
  method = method_of(config)
  return {"": config} if method is None else method.derive(config, results)


def plan_comparisons(
  config: ConfigDict,
  results: Results,
  *,
  available_tokens: int | None = None,
  available_by_domain: Mapping[str, int] | None = None,
  vocab_size: int = 0,
) -> list[Comparison]:
  """Plans every comparison; what is known of the data is that of `make_plan`.

  Raises:
    UserError: as of `make_plan`, naming the comparison.
  """
  check_config(config)
  comparisons, taken = [], {}
  planned = functools.partial(
    make_plan,
    available_tokens=available_tokens,
    available_by_domain=available_by_domain,
    vocab_size=vocab_size,
  )
  grid = tuning.read_grid(config)
  check_study_fields(config)
  first = derive(config, Results(None)) if grid.rates else {}
  for name, own_config in derive(config, results).items():
    try:
      if grid.rates and results.is_on_paper:
        tuning.check_seeds(grid, own_config)
      elif grid.rates:
        scores_of = _scores(own_config, results, name, taken, planned)
        arms = tuning.tuned_arms(grid, own_config, first[name].arms, scores_of)
        own_config = with_arms(own_config, arms)
      plan = planned(own_config)
    except UserError as error:
      raise UserError(f"comparison {name!r}: {error}" if name else str(error)) from None
    runs = tuple(
      taken.setdefault(identity(arm), run_folder_of(arm.name, arm.seed, name)) for arm in plan.arms
    )
    comparisons.append(Comparison(name, own_config, plan, runs))
  return comparisons


def _scores(config: ConfigDict, results: Results, comparison: str, taken: dict[str, str], planned):
  """What `tuning.tuned_arms` asks with: mean BPC of each of some tries of a comparison.

  Args:
    taken: run folders by identity, of the comparisons before. planned: `make_plan` with the data.
  """

  def scores_of(tries: dict[str, ConfigDict]) -> dict[str, float | None]:
    by_name: dict[str, list] = {}
    for arm in planned(with_arms(config, tries)).arms:
      run = taken.get(identity(arm), run_folder_of(arm.name, arm.seed, comparison))
      by_name.setdefault(arm.name, []).append(results.bpc_of_run(run))
    return {name: tuning.mean_score(scores) for name, scores in by_name.items()}

  return scores_of


def run_seen_from(comparison: Comparison, run: str) -> str:
  """The path of a run folder as the comparison's own study.json states it."""
  return os.path.relpath(run, comparison.folder)


def template(config: ConfigDict, kind: str) -> dict[str, Any]:
  """The fields of the template arm of a kind, without its kind.

  Raises:
    UserError: the config's arms are not the two templates that methods derive from.
  """
  arms = config.arms
  if sorted(arms) != ["dense", "moe"] or any(arms[k].kind != k for k in ("dense", "moe")):
    raise UserError(
      f"study.method={config.study.method!r} derives its arms from config.arms.dense and"
      f" config.arms.moe; this config has {', '.join(arms) or 'none'}"
    )
  fields = {name: value for name, value in arms[kind].items() if name != "kind"}
  for name in ("seeds", "role"):
    if fields.pop(name):
      raise UserError(f"arms.{kind}.{name} is set in a template; use study.seeds, and no role")
  return fields


def with_arms(config: ConfigDict, arms: dict[str, ConfigDict], **budget: Any) -> ConfigDict:
  """A copy of a config with other arms and some other fields of its budget."""
  copy = ConfigDict(config.to_dict())
  copy.arms = ConfigDict(arms)
  for name, value in budget.items():
    copy.budget[name] = value
  return copy.lock()


def identity(arm: ArmPlan) -> str:
  """The same for two runs that would compute the same, whatever they are called."""
  values = arm.to_dict()
  return json.dumps([values[name] for name in _IDENTITY], sort_keys=True)
