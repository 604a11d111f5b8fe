"""The paper's first step: a greedy search for the backbone, one selection fed into the next.

From the templates `config.arms.moe`, whose activation_rate every arm keeps, and `.dense`:

    layout        full, interleave, 1dense, each with and without shared expert
    gates         raw, or divided by the sum of the chosen ones
    granularity   top-K: more and narrower experts at constant K x D_e
    shape         zeta = d / L and mu = (D_se + E D_e) / d
    scale         the sum of the routed experts as it is, times E/K, or times a learned number
    dense_aspect  the dense arm's d / L, and then
    dense_ffn     its d_ffn / d: the baseline is searched by the same rule

Every arm has the budget's N and C and the same unique data. A stage begins with the current option
and trains each other one; `selection.RULE` says which is taken. Its arms follow from the results of
the stages before and from nothing else. What no shape can meet is left out, and said.
"""

from __future__ import annotations

import contextlib
import dataclasses
import re
from collections.abc import Iterator, Sequence
from typing import Any

from ml_collections import ConfigDict

from moe_parity.defaults import dense_arm, moe_arm
from moe_parity.errors import UserError
from moe_parity.fields.choices import LEARNED, PER_CHOICE
from moe_parity.planning.architecture import Architecture
from moe_parity.planning.arm_plan import ArmPlan
from moe_parity.planning.plan import make_plan
from moe_parity.planning.routed_scale import constant_scale
from moe_parity.planning.targets import OF_DENSE_LAYERS
from moe_parity.study.comparisons import Comparison, Results, identity, template, with_arms
from moe_parity.study.methods.selection import Selection, select

FIELDS = ("seeds", "layouts", "gates", "granularities", "aspect_ratios", "total_ffn_ratios",
          "routed_scales", "dense_aspect_ratios", "dense_ffn_ratios")  # fmt: skip
SIDES = {
  "moe": ("layout", "gates", "granularity", "shape", "scale"),
  "dense": ("dense_aspect", "dense_ffn"),
}


@dataclasses.dataclass(frozen=True)
class Option:
  """One way to build the arm of a stage: its label in tables, its arm, its fields."""

  label: str
  arm: str
  fields: dict[str, Any]


@dataclasses.dataclass(frozen=True)
class SearchStage:
  """A stage as far as it is known; the first option is the one in place.

  Attributes:
    selection: None until every option has its runs.
    skipped: (label, why) of options that no shape meets.
  """

  name: str
  kind: str
  options: tuple[Option, ...]
  skipped: tuple[tuple[str, str], ...]
  selection: Selection | None


def derive(config: ConfigDict, results: Results) -> dict[str, ConfigDict]:
  """One comparison: the arms of every stage that is known by now.

  Raises:
    UserError: the config lacks what a search needs, or arms would differ in unique data.
  """
  config = with_text(config)
  all_stages = stages(config, results)
  fields: dict[str, tuple[str, dict]] = {}
  for stage in all_stages:
    for option in stage.options:
      fields.setdefault(option.arm, (stage.kind, option.fields))
  seeds = tuple(config.study.seeds)
  arms = {name: _arm(kind, of_arm | {"seeds": seeds}) for name, (kind, of_arm) in fields.items()}
  return {"": with_arms(config, arms)}


def stages(config: ConfigDict, results: Results) -> list[SearchStage]:
  """The stages of both sides, up to and with the first of each that is not complete."""
  config = with_text(config)
  moe, dense = template(config, "moe"), template(config, "dense")
  if not moe["activation_rate"]:
    raise UserError("arms.moe.activation_rate=0; give the rate that every MoE arm keeps")
  normalized = config.model.normalize_gates
  moe["gates"] = moe["gates"] or ("normalized" if normalized else "raw")
  all_stages = []
  for kind, fields in (("dense", dense), ("moe", moe)):
    all_stages += _side(config, results, kind, fields)
  return all_stages


def with_text(config: ConfigDict) -> ConfigDict:
  """The config with its unique tokens decided: as many as the dense arm that reads fewest.

  Wider and deeper dense arms cost more a token and see fewer. Which of them will be trained depends
  on results, and the text that all arms share must not.

  Raises:
    UserError: a reuse scheme under which arms differ in unique data.
  """
  if config.budget.reuse != "strict":
    raise UserError(
      f"budget.reuse={config.budget.reuse!r}: an architecture search compares arms on the same"
      " unique data; use 'strict'"
    )
  if config.budget.unique_tokens:
    return config
  dense = template(config, "dense")
  possible = [dense, *(fields for _, fields in _options(config, "dense_aspect", dense))]
  fewest = []
  for place in possible:
    for fields in [place, *(fields for _, fields in _options(config, "dense_ffn", place))]:
      with contextlib.suppress(UserError):  # what no shape meets is said where it is an option
        fewest.append(plan_of(config, "dense", fields).num_tokens)
  if not fewest:
    plan_of(config, "dense", dense)  # raises
  return with_arms(config, dict(config.arms), unique_tokens=min(fewest))


def pending_notes(config: ConfigDict, comparisons: Sequence[Comparison]) -> list[str]:
  """What later stages may add, in words."""
  study = config.study
  most = {
    "layout": len(study.layouts), "gates": 2, "granularity": len(study.granularities),
    "shape": len(study.aspect_ratios) * max(len(study.total_ffn_ratios), 1),
    "scale": len(study.routed_scales),
    "dense_aspect": len(study.dense_aspect_ratios), "dense_ffn": len(study.dense_ffn_ratios),
  }  # fmt: skip
  runs = {kind: len(study.seeds) * (1 + sum(most[name] for name in names))
          for kind, names in SIDES.items()}  # fmt: skip
  return [
    f"stages follow each other: at most {runs['moe']} MoE and {runs['dense']} dense runs in all,"
    f" each of {comparisons[0].plan.budget['train_flops']:.4g} FLOPs"
  ]


def _side(config: ConfigDict, results: Results, kind: str, fields: dict) -> Iterator[SearchStage]:
  """The stages of one side, each from the selection before."""
  place = Option("", "dense" if kind == "dense" else _named(kind, "start"), fields)
  trained = {identity(plan_of(config, kind, fields)): place}
  for name in SIDES[kind]:
    label = _label(config, name, place.fields, _shape(config, place.fields, kind))
    options, skipped = [dataclasses.replace(place, label=label)], []
    for label, changed in _options(config, name, place.fields):
      try:
        same = identity(_plan(config, kind, changed))
      except UserError as error:
        skipped.append((label, str(error).removeprefix("arm 'option': ")))
        continue
      earlier = trained.setdefault(same, Option(label, _named(name, label), changed))
      if earlier.arm not in [option.arm for option in options]:
        options.append(dataclasses.replace(earlier, label=label))
    if len(options) == 1 and not skipped:
      if name != SIDES[kind][0]:
        continue  # nothing asked of this stage; the first trains the arm in place all the same
    selection = _selection(results, options, config.study.seeds)
    yield SearchStage(name, kind, tuple(options), tuple(skipped), selection)
    if selection is None:
      return
    place = options[selection.chosen]


def _selection(results: Results, options: list[Option], seeds: Sequence[int]) -> Selection | None:
  if any(results.bpc(option.arm, seed) is None for option in options for seed in seeds):
    return None
  return select([[results.get(option.arm, seed) for seed in seeds] for option in options])


def _options(config: ConfigDict, stage: str, place: dict) -> Iterator[tuple[str, dict]]:
  """(label, fields) of a stage's options other than the current one."""
  options = {
    "layout": _layouts,
    "gates": _gates,
    "granularity": _granularities,
    "shape": _shapes,
    "scale": _scales,
    "dense_aspect": _dense_aspects,
    "dense_ffn": _dense_ffns,
  }
  return options[stage](config, place)


def _layouts(config: ConfigDict, place: dict) -> Iterator[tuple[str, dict]]:
  for text in config.study.layouts:
    layout, _, shared = text.partition("+")
    changed = place | {"layout": layout, "shared_expert": bool(shared), "d_shared": 0}
    if layout == "full":
      changed |= dict.fromkeys(OF_DENSE_LAYERS, 0)
    yield _layout_label(changed), changed


def _gates(config: ConfigDict, place: dict) -> Iterator[tuple[str, dict]]:
  for gates in ("raw", "normalized") if config.study.gates else ():
    yield gates, place | {"gates": gates}


def _granularities(config: ConfigDict, place: dict) -> Iterator[tuple[str, dict]]:
  shape = _shape(config, place)
  for multiple in (m for m in config.study.granularities if m != 1):
    chosen = shape.experts_per_token * multiple
    yield f"K {chosen:g}", place | {
      "num_layers": shape.num_layers, "d_model": shape.d_model, "num_experts": 0,
      "experts_per_token": chosen, "granularity": 0.0,
      "d_expert": shape.experts_per_token * shape.d_expert / chosen,
      "d_shared": shape.d_shared,
    }  # fmt: skip


def _shapes(config: ConfigDict, place: dict) -> Iterator[tuple[str, dict]]:
  shape = _shape(config, place)
  free = dict.fromkeys(("num_layers", "d_model", "num_heads", "num_experts", "d_shared"), 0)
  free |= {"d_head": place["d_head"] or shape.d_head}
  free |= dict.fromkeys(("experts_per_token", "d_expert", "d_ffn"), 0)
  for zeta in config.study.aspect_ratios:
    for mu in config.study.total_ffn_ratios or (0.0,):
      label = f"zeta {zeta:g}" + (f" mu {mu:g}" if mu else "")
      yield label, place | free | {"aspect_ratio": zeta, "total_ffn_ratio": mu}


def _scales(config: ConfigDict, place: dict) -> Iterator[tuple[str, dict]]:
  for scale in config.study.routed_scales:
    if _scale_label(scale) != _scale_label(_scale_of(config, place)):
      yield _scale_label(scale), place | {"routed_scale": scale or "1"}


def _scale_of(config: ConfigDict, fields: dict) -> str:
  return fields["routed_scale"] or config.model.routed_scale


def _scale_label(scale: str) -> str:
  if scale in (PER_CHOICE, LEARNED):
    return f"times {'a learned number' if scale == LEARNED else scale}"
  return f"times {constant_scale(scale):g}"


_FREE_DENSE = dict.fromkeys(("num_layers", "d_model", "num_heads", "d_ffn"), 0)


def _dense_aspects(config: ConfigDict, place: dict) -> Iterator[tuple[str, dict]]:
  for zeta in config.study.dense_aspect_ratios:
    yield f"zeta {zeta:g}", place | _FREE_DENSE | {"aspect_ratio": zeta}


def _dense_ffns(config: ConfigDict, place: dict) -> Iterator[tuple[str, dict]]:
  for alpha in config.study.dense_ffn_ratios:
    try:
      shape = _shape(config, place, "dense")
    except UserError:
      return  # this place has no shape itself, which is reported where it is an option
    ratios = {"aspect_ratio": place["aspect_ratio"] or shape.aspect_ratio, "ffn_ratio": alpha}
    yield f"alpha {alpha:g}", place | _FREE_DENSE | ratios


def _plan(config: ConfigDict, kind: str, fields: dict) -> ArmPlan:
  """`plan_of` an option.

  Raises:
    UserError: why there is no such arm at parity.
  """
  if kind == "moe":
    for name in ("experts_per_token", "d_expert"):
      if fields[name] != int(fields[name]):
        raise UserError(f"{name} would be {fields[name]:g}, which is no whole number")
  plan = plan_of(config, kind, fields)
  if plan.gates == "normalized" and plan.architecture.experts_per_token == 1:
    raise UserError("one normalized gate is always 1, so the router would learn nothing")
  if plan.gates == "normalized" and plan.routed_scale == PER_CHOICE:
    raise UserError("normalized gates sum to 1, which E/K is there to bring raw gates to")
  return plan


def plan_of(config: ConfigDict, kind: str, fields: dict) -> ArmPlan:
  """The plan of one arm alongside the dense one that sets C."""
  arms = {"dense": _arm("dense", template(config, "dense"))}
  if kind == "moe":
    arms["option"] = _arm("moe", fields)
  else:
    arms["option"] = _arm("dense", fields)
  return next(arm for arm in make_plan(with_arms(config, arms)).arms if arm.name == "option")


def _shape(config: ConfigDict, fields: dict, kind: str = "moe") -> Architecture:
  return plan_of(config, kind, fields).architecture


def _arm(kind: str, fields: dict) -> ConfigDict:
  whole = {name: int(fields[name]) for name in ("experts_per_token", "d_expert")}
  fields = fields | whole
  if kind == "dense":
    return dense_arm(**{name: value for name, value in fields.items() if name != "layout"})
  return moe_arm(**fields)


def _label(config: ConfigDict, stage: str, fields: dict, shape: Architecture) -> str:
  """What the option in place is called among the options of a stage."""
  return {
    "layout": _layout_label(fields),
    "gates": fields["gates"],
    "granularity": f"K {shape.experts_per_token}",
    "shape": f"zeta {shape.aspect_ratio:.3g} mu {shape.total_ffn_ratio:.3g}",
    "scale": _scale_label(_scale_of(config, fields)),
    "dense_aspect": f"zeta {shape.aspect_ratio:.3g}",
    "dense_ffn": f"alpha {shape.ffn_ratio:.3g}",
  }[stage]


def _layout_label(fields: dict) -> str:
  return fields["layout"] + ("+SE" if fields["shared_expert"] else "")


def _named(stage: str, label: str) -> str:
  return f"{stage}_" + re.sub(r"[^0-9a-z]+", "_", label.lower().replace(".", "p")).strip("_")
