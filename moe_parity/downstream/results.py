"""Results on disk: a task's scores in its run's folder, found again by what decides them.

RUN/downstream/<task>-<key>.json holds scores, .npz the values of every item, .part.npz the nats of
an examination that was interrupted. The key hashes the checkpoint's content, the items, the
tokenizer and every setting that changes a number, so another checkpoint never meets old scores.
"""

import dataclasses
import hashlib
import json
import pathlib
import re
from collections.abc import Collection

import numpy as np

from moe_parity import files
from moe_parity.data.checked_npz import read_arrays
from moe_parity.downstream import intervals, metrics
from moe_parity.downstream.metrics import LOWER_IS_BETTER
from moe_parity.downstream.request_nats import RequestNats, empty
from moe_parity.errors import UserError
from moe_parity.fields.kinds import show
from moe_parity.stored import read as stored
from moe_parity.stored.analysis_file import TASK_RESULT

FOLDER = "downstream"
OVERLAPS = "contamination-"  # how the names of files of another kind there begin
EXAMINED = "examined.json"  # and one that says what was asked of the run
VERSION = 2  # of how items are scored; part of every key


@dataclasses.dataclass(frozen=True)
class Values:
  """What each item scored.

  Attributes:
    names: of the items.
    by_metric: metric -> value of every item.
    weights: metric -> weight of every item, for metrics that weigh them (bits per byte of lm-eval).
  """

  names: tuple[str, ...]
  by_metric: dict[str, np.ndarray]
  weights: dict[str, np.ndarray] = dataclasses.field(default_factory=dict)


class ResultFile:
  """Where the result of one task with one key is."""

  def __init__(self, run: pathlib.Path, task: str, key: dict):
    self.key = {"version": VERSION, **key}
    text = json.dumps(self.key, sort_keys=True, ensure_ascii=True)
    name = re.sub(r"[^\w.-]+", "_", task)[:80]
    self._stem = run / FOLDER / f"{name}-{hashlib.sha256(text.encode()).hexdigest()[:12]}"

  @property
  def json(self) -> pathlib.Path:
    return self._with(".json")

  def _with(self, suffix: str) -> pathlib.Path:
    return self._stem.with_name(self._stem.name + suffix)

  @property
  def values(self) -> pathlib.Path:
    """Where the items' values are."""
    return self._with(".npz")

  def read(self) -> dict | None:
    """The result, None where it is not there whole."""
    if not self._with(".npz").is_file() or not self.json.is_file():
      return None
    return read_result(self.json)

  def write(self, result: dict, values: Values) -> dict:
    """Writes the values, then the result; returns it as `read` will give it."""
    self.json.parent.mkdir(parents=True, exist_ok=True)
    arrays = {f"value/{name}": value for name, value in values.by_metric.items()}
    arrays |= {f"weight/{name}": value for name, value in values.weights.items()}
    files.write_npz(self._with(".npz"), names=np.array(values.names, str), **arrays)
    result = result | {"key": self.key, "values": self._with(".npz").name}
    files.write_json(self.json, result, seal=True)
    self._with(".part.npz").unlink(missing_ok=True)
    return read_result(self.json)

  def write_part(self, scores: RequestNats) -> None:
    """Saves what is computed of an unfinished task."""
    self.json.parent.mkdir(parents=True, exist_ok=True)
    files.write_npz(self._with(".part.npz"), compressed=False, **scores._asdict())

  def read_part(self, number: int) -> RequestNats:
    """What an interrupted examination had computed of `number` requests; nothing where it is
    damaged: it is computed anew."""
    try:
      arrays = read_arrays(self._with(".part.npz"), RequestNats._fields, "")
    except (FileNotFoundError, UserError):
      return empty(number)
    scores = RequestNats(**arrays)
    return scores if len(scores.nats) == number else empty(number)


def read_values(path: pathlib.Path) -> Values:
  """The values of a result's items.

  Raises:
    UserError: the file is damaged.
  """
  arrays = read_arrays(path, None, "remove it and run `moe-parity downstream` again")

  def those(kind: str) -> dict[str, np.ndarray]:
    return {n.partition("/")[2]: a for n, a in arrays.items() if n.startswith(f"{kind}/")}

  return Values(tuple(arrays["names"].tolist()), those("value"), those("weight"))


def scores_of(
  values: Values,
  chance: dict[str, float | None],
  lower_is_better: Collection[str] = LOWER_IS_BETTER,
) -> dict[str, dict]:
  """Metric -> value, its bootstrap interval over items, chance level and what the two say, and
  whether it is a share of right answers; only such a one is held against chance."""
  found = {}
  for name, value_N in values.by_metric.items():
    weight_N, higher = values.weights.get(name), name not in lower_is_better
    is_share = higher and metrics.is_share(name, value_N)
    interval = intervals.bootstrap(value_N, weight_N, is_share=is_share)
    level = chance.get(name) if is_share else None
    found[name] = {
      "value": intervals.mean(value_N, weight_N),
      "interval": interval,
      "higher_is_better": higher,
      "is_share": is_share,
      "chance": level,
      "against_chance": intervals.against(interval, level),
    }
  return found


def score_at_once(value: float, interval: list[float] | None, higher_is_better: bool) -> dict:
  """A score that is made of all items at once, as `scores_of` has those of items."""
  return {
    "value": value,
    "interval": interval,
    "higher_is_better": higher_is_better,
    "is_share": False,
    "chance": None,
    "against_chance": "",
  }


def read_all(run: pathlib.Path) -> list[dict]:
  """Every finished result of a run's folder, by name; `path` is where its values are.

  Raises:
    UserError: a damaged one.
  """
  found = []
  for path in sorted((run / FOLDER).glob("*.json")):
    if path.name.startswith(OVERLAPS) or path.name == EXAMINED:
      continue
    result = read_result(path)
    values = path.parent / result["values"]
    if values.is_file():
      found.append(result | {"path": values})
  return found


def read_result(path: pathlib.Path) -> dict:
  """The result of a task.

  Raises:
    UserError: it is damaged, or its values are not next to it.
  """
  way_out = "remove it and run `moe-parity downstream` again"
  result = files.read_json(path, way_out)
  stored.check(result, TASK_RESULT, path, way_out)
  problem = "" if result["values"] == f"{path.stem}.npz" else f"values is {show(result['values'])}"
  if result["metric"] not in result["scores"]:
    problem = f"scores has no {show(result['metric'])}"
  if problem:
    raise UserError(f"{path} is damaged ({problem}); {way_out}")
  return result
