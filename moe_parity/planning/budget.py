"""A config's budget and arms, read and checked: what was decided, before anything is derived."""

from __future__ import annotations

import dataclasses
from typing import Any

from moe_parity.errors import UserError
from moe_parity.fields.check import check_kind, check_values, items, section_values
from moe_parity.fields.table import ARM_NAME
from moe_parity.planning.accounting import cost_of
from moe_parity.planning.architecture import Architecture, layer_pattern
from moe_parity.planning.solver import solve
from moe_parity.planning.targets import ShapeTargets, Targets

CONTROL_TOLERANCE = 0.02  # of a control's N: a small model has few shapes
_OPEN = ("shared_expert", "multiple_of")  # of a shape's targets, those that decide nothing alone


@dataclasses.dataclass(frozen=True)
class Budget:
  """What every arm shares. 0 means "not given".

  Attributes:
    num_params: N. train_flops: C, FLOPs; dense_tokens: tokens of the dense arm. One of the two
      gives the other. unique_tokens: D^; 0 lets `reuse` decide. seq_len: S.
    reuse: unique (no token twice), strict (all arms share the dense arm's tokens), loose (MoE arms
      two epochs, the dense arm one), epochs (every arm `epochs` epochs).
    params_tolerance, flops_tolerance: largest share an arm may differ from N; from C and D^.
    batch_multiple: batches the plan derives are multiples of this many sequences.
    held_fixed: what is the same in all arms besides N: "compute" (C, and tokens follow) or "tokens"
      (the dense arm's D, and compute follows: the paper's sweeps at fixed data, not at parity).
  """

  num_params: int
  train_flops: float | int = 0
  dense_tokens: int = 0
  unique_tokens: int = 0
  seq_len: int = 0
  reuse: str = "strict"
  epochs: float | int = 1.0
  convention: str = "paper"
  params_tolerance: float | int = 0.003
  flops_tolerance: float | int = 0.005
  batch_multiple: int = 1
  held_fixed: str = "compute"

  def __post_init__(self) -> None:
    check_values("budget", vars(self), "budget")
    if self.held_fixed == "tokens" and not self.dense_tokens:
      raise UserError(
        "budget.held_fixed='tokens' and budget.dense_tokens=0; give the tokens that every arm sees"
      )
    if not self.train_flops and not self.dense_tokens:
      raise UserError("budget.train_flops=0 and budget.dense_tokens=0; give one of them")
    if self.unique_tokens and self.reuse in ("loose", "epochs"):
      raise UserError(
        f"budget.unique_tokens={self.unique_tokens} with reuse={self.reuse!r}, which "
        f"fixes the epochs instead; set it to 0 or use reuse='strict'"
      )
    if self.epochs != 1 and self.reuse != "epochs":
      raise UserError(
        f"budget.epochs={self.epochs:g} with reuse={self.reuse!r}, which decides the epochs itself;"
        " leave it at 1, or use reuse='epochs'"
      )
    if 0 < self.unique_tokens < self.seq_len:
      raise UserError(
        f"budget.unique_tokens={self.unique_tokens} is below one window of "
        f"seq_len={self.seq_len}; give more"
      )


@dataclasses.dataclass(frozen=True)
class ArmSpec(ShapeTargets):
  """One arm as decided.

  Attributes:
    layout: as of an architecture; "" is dense, or 1dense in an MoE.
    gates: raw | normalized (divided by the sum of the chosen ones); "" is the config's model.
    routed_scale: as of `ModelOptions`; "" is the config's model.
    role: "check" keeps an arm at parity out of the comparison: the same shape tried with another
      learning rate or batch; "tuning" is a try that decides the learning rate of the arm, reference
      or control that it `tunes`. "" is an arm, a reference where compute_multiple is not 1, or a
      control where one of the next two is set.
    params_multiple: N of a dense control, times the budget's: a smaller model at equal C and data.
    active_of: name of an MoE arm: a dense control of its depth, width and heads whose N is its N_a.
  """

  name: str
  kind: str
  layout: str = ""
  compute_multiple: float | int = 1.0
  seeds: tuple[int, ...] = ()
  num_steps: int = 0
  batch_sequences: int = 0
  peak_learning_rate: float | int = 0.0
  learning_rate_multiplier: float | int = 1.0
  gates: str = ""
  routed_scale: str = ""
  role: str = ""
  params_multiple: float | int = 1.0
  active_of: str = ""
  tunes: str = ""

  def __post_init__(self) -> None:
    check_kind("the name of an arm", self.name, ARM_NAME)
    check_values("arms.*", vars(self), f"arms.{self.name}")
    self._check_dense()
    if (self.role == "tuning") != bool(self.tunes):
      raise UserError(
        f"arm {self.name!r}: role={self.role!r} with tunes={self.tunes!r}; tries of a learning rate"
        " have both, others neither"
      )
    if self.is_control:
      self._check_control()

  def _check_dense(self) -> None:
    if self.gates and self.kind == "dense":
      raise UserError(f"arm {self.name!r}: gates={self.gates!r} in a dense arm; leave it out")
    if self.routed_scale and self.kind == "dense":
      raise UserError(
        f"arm {self.name!r}: routed_scale={self.routed_scale!r} in a dense arm; leave it out"
      )

  def _check_control(self) -> None:
    what = (
      f"arm {self.name!r}: active_of={self.active_of!r}, params_multiple={self.params_multiple}"
    )
    if self.kind != "dense":
      raise UserError(f"{what} in an MoE arm; controls are dense models: use kind='dense'")
    if self.active_of and self.params_multiple != 1:
      raise UserError(f"{what}: both decide N; give one of them")
    if self.compute_multiple != 1 or self.role not in ("", "tuning"):
      raise UserError(
        f"{what} with compute_multiple={self.compute_multiple} and role={self.role!r}: a control"
        " spends the budget's C and has that role by itself; leave both out"
      )
    shape = [
      field.name
      for field in dataclasses.fields(ShapeTargets)
      if field.name not in _OPEN and getattr(self, field.name)
    ]
    if self.active_of and shape:
      raise UserError(
        f"{what} with {', '.join(shape)}: the MoE arm decides the shape; leave it out"
      )

  @property
  def is_control(self) -> bool:
    """Whether the arm is a dense model of another N at the budget's C and data: it shows what a
    lead owes to being smaller or cheaper a token rather than to experts."""
    return bool(self.active_of) or self.params_multiple != 1

  @property
  def is_at_parity(self) -> bool:
    """Whether the arm has the budget's N and C."""
    return not (self.is_reference or self.is_control)

  @property
  def is_reference(self) -> bool:
    """Whether the arm spends another compute than the budget, for comparison only."""
    return self.compute_multiple != 1

  def architecture(self, budget: Budget, vocab_size: int) -> Architecture:
    """The shape: as given where it is complete, else solved for the budget's N.

    Raises:
      UserError: naming the arm.
    """
    try:
      targets = Targets(
        num_params=round(budget.num_params * self.params_multiple),
        convention=budget.convention,
        vocab_size=vocab_size,
        params_tolerance=max(
          float(budget.params_tolerance), CONTROL_TOLERANCE if self.is_control else 0.0
        ),
        kind=self.kind,
        layout=self._layout,
        **{field.name: getattr(self, field.name) for field in dataclasses.fields(ShapeTargets)},
      )
      given = self._complete(vocab_size)
      if given is None:
        return solve(targets)
      self.check_ratios(given)
      if self.is_control:  # N of arms at parity is checked for all of them together, in the plan
        self._check_control_size(given, targets)
      return given
    except UserError as error:
      raise UserError(f"arm {self.name!r}: {error}") from None

  @property
  def _layout(self) -> str:
    return self.layout or ("dense" if self.kind == "dense" else "1dense")

  def _complete(self, vocab_size: int) -> Architecture | None:
    """The architecture if every field of it is given."""
    letters = set(self._layout) <= {"D", "M"}
    num_layers = self.num_layers or (len(self._layout) if letters else 0)
    needed = [num_layers, self.d_model, self.num_heads or self.d_head]
    if self.kind == "moe":
      needed += [self.num_experts, self.experts_per_token, self.d_expert]
    if not all(needed) or (self.kind == "dense") != (self._layout == "dense"):
      return None
    if not self.d_ffn and not all(layer_pattern(self._layout, num_layers)):
      return None
    num_heads, d_head = self.num_heads, self.d_head
    if not (num_heads and d_head):
      if self.d_model % (num_heads or d_head):
        raise UserError(
          f"d_model={self.d_model} is not a multiple of {num_heads or d_head}; give "
          f"both num_heads and d_head"
        )
      num_heads, d_head = (num_heads or self.d_model // d_head, d_head or self.d_model // num_heads)
    shared = self.d_shared
    if self.kind == "moe" and self.shared_expert and not shared:
      shared = self.experts_per_token * self.d_expert
    return Architecture(
      num_layers,
      self.d_model,
      num_heads,
      d_head,
      self.num_kv_heads,
      self._layout,
      self.d_ffn,
      self.num_experts,
      self.experts_per_token,
      self.d_expert,
      shared,
      vocab_size,
    )

  def _check_control_size(self, given: Architecture, targets: Targets) -> None:
    """Refuses a control whose shape is given in full and has another N than its params_multiple."""
    has = cost_of(given, 1, targets.convention).num_params
    off = has / targets.num_params - 1
    if abs(off) > targets.params_tolerance:
      raise UserError(
        f"params_multiple={self.params_multiple:g} asks for {targets.num_params:,} parameters and"
        f" the given shape has {has:,} ({100 * off:+.2f} %, over {100 * targets.params_tolerance:g}"
        " %); leave a field of the shape open, or change params_multiple"
      )


def read_budget(section: Any) -> Budget:
  """The budget of a config: a mapping or anything with attributes; unknown names are refused."""
  fields = section_values(section, "budget")
  if "num_params" not in fields:
    raise UserError("budget.num_params is missing; give the parameters that every arm shares")
  return Budget(**fields)


def read_arms(section: Any, default_seed: int) -> list[ArmSpec]:
  """The arms of a config in its order; an arm without seeds runs with the config's."""
  arms = []
  for name, value in items(section, "arms"):
    check_kind("the name of an arm", name, ARM_NAME)
    fields = section_values(value, "arms.*", f"arms.{name}")
    if "kind" not in fields:
      raise UserError(f"arm {name!r} has no kind; use kind='dense' or kind='moe'")
    fields["seeds"] = tuple(fields.get("seeds") or ()) or (default_seed,)
    arms.append(ArmSpec(name=name, **fields))
  if not arms:
    raise UserError("the config has no arms; add config.arms.<name>")
  return arms
