"""Which remat and micro-batch a card has room for, found by compiling.

A step's work in forward passes: 1 forward, 2 backward, what `remat` computes again, and, for
experts with a balance loss and more than one micro-batch, a pass for the batch's loads
(`training/step.py`). Candidates are ordered by that, larger micro-batches first. Planned bytes say
which to compile first; every compiled program corrects them for its policy, so that few compiles
settle it.
"""

import dataclasses
from collections.abc import Callable

from ml_collections import ConfigDict

from moe_parity.aot.compile_gpu import compile_for_gpu, is_fused
from moe_parity.errors import UserError
from moe_parity.planning.arm_plan import ArmPlan
from moe_parity.planning.gpu_cards import Host
from moe_parity.planning.memory import planned_memory
from moe_parity.planning.mesh_sizes import MeshSizes
from moe_parity.training.build import model_options

# What a policy computes again, in forward passes: all of a layer; what is between its products.
RECOMPUTED = {"none": 0.0, "dots": 0.2, "layer": 1.0}


@dataclasses.dataclass(frozen=True)
class Setting:
  """A remat policy and a micro-batch.

  Attributes:
    work: of a step, in forward passes. planned: bytes of a card.
  """

  remat: str
  micro_batch: int
  work: float
  planned: int

  @property
  def order(self) -> tuple[float, int]:
    """Least work first, then the largest micro-batch."""
    return self.work, -self.micro_batch


def settings(config: ConfigDict, plan: ArmPlan, host: Host, sizes: MeshSizes) -> list[Setting]:
  """Every policy with every micro-batch that divides the batch and the cards, best first.

  Raises:
    UserError: a batch that the cards do not divide.
  """
  batch = plan.batch_sequences
  micros = [n for n in range(host.num_devices, batch + 1, host.num_devices) if batch % n == 0]
  if not micros:
    raise UserError(
      f"a batch of {batch} sequences cannot be cut for {host.num_devices} cards; set"
      f" --config.budget.batch_multiple={host.num_devices}"
    )
  choice = model_options(config).attention_choice(
    host.card.device, plan.seq_len, plan.architecture.d_head
  )
  found = []
  for micro in micros:
    has_loads = plan.architecture.is_moe and config.model.balance_weight and micro < batch
    for remat, recomputed in RECOMPUTED.items():
      changed = with_setting(config, remat, micro)
      planned = planned_memory(changed, plan, sizes, is_fused(choice)).total
      found.append(Setting(remat, micro, 3 + recomputed + bool(has_loads), planned))
  return sorted(found, key=lambda setting: setting.order)


def with_setting(config: ConfigDict, remat: str, micro_batch: int) -> ConfigDict:
  """The config with a policy and a micro-batch."""
  config = ConfigDict(config.to_dict())
  config.model.remat = remat
  config.train.micro_batch_sequences = micro_batch
  return config


def search(
  config: ConfigDict,
  plan: ArmPlan,
  host: Host,
  sizes: MeshSizes,
  most: int,
  progress: Callable[[Setting], None] = lambda setting: None,
) -> list[dict]:
  """Compiles up to `most` settings; their reports, in the order they were compiled.

  The best is the first, by `Setting.order`, whose program fits (`best_of`).
  """
  left, usable = settings(config, plan, host, sizes), host.card.usable_bytes
  correction, reports = dict.fromkeys(RECOMPUTED, 1.0), []
  while len(reports) < most:
    hopeful = [s for s in left if s.planned * correction[s.remat] <= usable]
    if not hopeful:
      break
    setting = hopeful[0]
    progress(setting)
    changed = with_setting(config, setting.remat, setting.micro_batch)
    report = compile_for_gpu(changed, plan, host, sizes)
    reports.append(report | {"work": setting.work})
    correction[setting.remat] = report["memory"]["total"] / setting.planned
    if report["fits"]:  # only a better one is of interest now
      left = [s for s in left if s.order < setting.order]
    else:
      left = [s for s in left if s.remat != setting.remat or s.micro_batch < setting.micro_batch]
  return reports


def best_of(reports: list[dict]) -> dict | None:
  """The report of least work, then of the largest micro-batch, that fits; None if none does."""
  fitting = [report for report in reports if report["fits"]]
  return min(fitting, key=lambda r: (r["work"], -r["micro_batch_sequences"]), default=None)
