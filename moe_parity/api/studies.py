"""`mp.open_study`: what a study found, from its folder. Loads no JAX."""

import functools
import pathlib
from typing import Any

from moe_parity.api.places import Place
from moe_parity.api.runs import Run
from moe_parity.api.tables import as_table
from moe_parity.errors import UserError
from moe_parity.planning.accounting import cost_of
from moe_parity.planning.architecture import Architecture
from moe_parity.planning.arm_costs import cost_rows
from moe_parity.report import cards, page, tables
from moe_parity.report.figure_style import Drawing
from moe_parity.report.table_formats import count, scientific
from moe_parity.stored import read as stored
from moe_parity.study import reading
from moe_parity.study.analysis import compare

MOODS = {True: "good", False: "bad", None: "open"}
_ARM = ("name", "kind", "role", "seed", "status", "activation_rate", "num_params", "train_flops",
        "num_tokens", "num_unique_tokens", "epochs", "bpc", "bpb", "seconds")  # fmt: skip


class Study:
  """A study folder, finished or not. Everything is read on first use."""

  def __init__(self, place: Place):
    self._place, self.folder = place, place.folder
    self._read = reading.read_study(self.folder)

  @property
  def name(self) -> str:
    return self._read.info.get("name") or self._read.plan.get("name") or self._read.name

  @property
  def plan(self) -> dict[str, Any]:
    """plan.json: name, budget, arms, notes."""
    return self._read.plan

  @property
  def problems(self) -> tuple[str, ...]:
    """Files that could not be read."""
    return self._read.problems

  @functools.cached_property
  def runs(self) -> list[Run]:
    """Every planned run, done or not. A folder of results without runs gives runs without files."""
    return [Run(run, self._place) for run in self._read.runs]

  def run(self, name: str, seed: int = 0) -> Run:
    """
    Raises:
      UserError: no such run.
    """
    for run in self.runs:
      if (run.name, run.seed) == (name, seed):
        return run
    names = ", ".join(f"{run.name} ({run.seed})" for run in self.runs)
    raise UserError(f"study {self.name} has no run {name} of seed {seed}; it has {names}")

  @functools.cached_property
  def analysis(self) -> dict[str, Any]:
    """What analysis.json holds. Analyzed now from the runs, without writing anything; a folder of
    results that came without its runs has the analysis that came with it."""
    path = self.folder / "analysis.json"
    if not self._read.info and path.is_file():
      return stored.read_json(path)
    return compare.analyze(self.folder)

  @property
  def verdict(self) -> str:
    """Who won, in a sentence."""
    return self.analysis["verdict"]["headline"]

  @property
  def winner(self) -> str | None:
    """The arm that won; None where none did, or where a dense control does as well as the best MoE
    arm (`analysis["verdict"]["explained_by"]` names it)."""
    return self.analysis["verdict"]["winner"]

  @property
  def passed(self) -> bool | None:
    """Whether the certificate and those of all runs passed; None while one is missing."""
    return self.analysis["certificate"]["passed"]

  def arms(self) -> Any:
    """One row a run: resources, status, bits per character (BPC) and byte on held-out text."""
    return as_table({key: arm.get(key) for key in _ARM} for arm in self.analysis["arms"])

  def comparisons(self) -> Any:
    """One row an arm and what it is compared with: the difference in BPC (below zero the MoE is
    better), its interval alone (low, high) and for all arms at once (all_low, all_high)."""
    rows = []
    for row in self.analysis["comparisons"] + self.analysis["references"]:
      low, high = row.get("interval") or (None, None)
      all_low, all_high = row.get("simultaneous") or (None, None)
      rows.append({
        "arm": row["name"], "activation_rate": row["activation_rate"],
        "against": row["baseline"], "seeds": row["num_seeds"], "difference": row["difference"],
        "low": low, "high": high, "all_low": all_low, "all_high": all_high,
        "verdict": row["verdict"],
      })  # fmt: skip
    return as_table(rows)

  def certificate(self) -> Any:
    """One row a check: planned against measured, by how much, whether that is allowed, and how it
    was measured. First the study's own, then those of its runs."""
    parts = [("study", self._read.certificate)]
    parts += [(run.label, run.certificate) for run in self._read.runs]
    return as_table(
      {"of": whose} | check for whose, part in parts for check in part.get("checks", [])
    )

  def recount(self) -> Any:
    """One row a run: N and C counted anew from the shape, tokens and sequence length in plan.json,
    and how far each is from the budget in percent. Rests on no certificate."""
    budget = self.plan["budget"]
    return as_table(_recounted(arm, budget) for arm in self.plan.get("arms", []))

  def costs(self) -> Any:
    """One row an arm: C, executed FLOPs, parameters with vocabulary, bytes of weights, each over
    dense, by the plan; and the seconds and the energy of a run, where they were measured."""
    seconds: dict[str, list[float]] = {}
    for arm in self.analysis["arms"]:
      seconds.setdefault(arm["name"], []).extend([arm["seconds"]] if arm["seconds"] else [])
    rows = cost_rows(self.plan.get("arms", []))
    measured = self.analysis.get("resources", {"rows": []})["rows"]
    joules = {row["name"]: row.get("joules") for row in measured}
    for row in rows:
      row["joules a run"] = joules.get(row["arm"])
      seconds_taken = seconds.get(row["arm"])
      row["seconds a run"] = sum(seconds_taken) / len(seconds_taken) if seconds_taken else None
    return as_table(rows)

  def metrics(self) -> Any:
    """Every logged training step of every run, with the run's name and seed."""
    return as_table(
      {"arm": run.name, "seed": run.seed} | line for run in self.runs for line in run.lines("train")
    )

  @functools.cached_property
  def figures(self) -> dict[str, Drawing]:
    """The report's figures by name, those there is data for; a notebook shows one as it is."""
    return page.every_drawing(self.folder, self.analysis)

  def _facts(self) -> list[str]:
    certificate = {True: "passed", False: "did NOT pass", None: "not complete"}[self.passed]
    done = sum(arm["status"] == "done" for arm in self.analysis["arms"])
    budget = self.plan.get("budget", {})
    facts = [f"{done} of {len(self.analysis['arms'])} runs done", f"certificate: {certificate}"]
    if budget:
      facts = [
        f"N = {count(budget['num_params'])}",
        f"C = {scientific(budget['train_flops'])} FLOPs",
        *facts,
      ]
    return facts

  def __repr__(self) -> str:
    return f"Study {self.name}: {', '.join(self._facts())}"

  def _repr_html_(self) -> str:
    shown = tables.comparisons(self.analysis)
    body = f"<p>{cards.words(self.verdict)}</p>{shown.html() if shown.rows else ''}"
    return cards.card(f"Study {self.name}", self._facts(), body, mood=MOODS[self.passed])


def open_study(place: str | pathlib.Path) -> Study:
  """Opens a study to read: a folder, or gs://bucket/name (its small files are copied).

  A folder of results without its runs, such as those under results/, is a study too.

  Raises:
    UserError: the place is out of reach or holds no study.
  """
  location = Place(place)
  if not (location.folder / "study.json").is_file() and "arms" not in _plan_of(location):
    raise UserError(f"{place} holds no study (no study.json, no plan of arms); a run is opened by"
                    " open_run")  # fmt: skip
  return Study(location)


def _plan_of(place: Place) -> dict[str, Any]:
  path = place.folder / "plan.json"
  return stored.read_json(path) if path.is_file() else {}


def _recounted(arm: dict[str, Any], budget: dict[str, Any]) -> dict[str, Any]:
  block = {"attention_block": arm["attention_block"]} if "attention_block" in arm else {}
  shape = Architecture.from_dict(arm["architecture"])
  cost = cost_of(shape, arm["seq_len"], arm["convention"], *block.values())
  flops = cost.train_flops_per_token * arm["num_tokens"]
  target = budget["train_flops"] * arm["compute_multiple"]
  return {
    "arm": arm["name"],
    "seed": arm["seed"],
    "N planned": arm["num_params"],
    "N recounted": cost.num_params,
    "N off %": 100 * (cost.num_params / budget["num_params"] - 1),
    "C planned": arm["train_flops"],
    "C recounted": flops,
    "C off %": 100 * (flops / target - 1),
    "agrees": cost.num_params == arm["num_params"] and flops == arm["train_flops"],
  }
