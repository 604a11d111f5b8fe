"""What became of a run after a fault, and the table of a campaign."""

import collections
import contextlib
import dataclasses
import io
import json
import pathlib
import traceback
from collections.abc import Callable, Iterable

from moe_parity import cli

SURVIVED, NAMED = "survived", "named"
WRONG, TRACEBACK, LOST = "silently wrong", "traceback", "lost run"
OUTCOMES = (SURVIVED, NAMED, WRONG, TRACEBACK, LOST)  # the later ones outweigh
FAILURES = (WRONG, TRACEBACK, LOST)


@dataclasses.dataclass(frozen=True)
class Injection:
  """One fault and what became of it. `group` and `kind` make the rows of the table."""

  group: str
  kind: str
  what: str
  outcome: str
  note: str = ""


@dataclasses.dataclass(frozen=True)
class Done:
  """A command that ended: exit code, all it printed, and the traceback if it raised."""

  code: int
  text: str
  trace: str = ""

  @property
  def words(self) -> str:
    """The output on one line: a console breaks lines where it likes."""
    return " ".join(self.text.split())

  @property
  def is_refusal(self) -> bool:
    """Whether it ended with one line for its user, as it should after a fault."""
    errors = [line for line in self.text.splitlines() if line.startswith("error: ")]
    return self.code in (1, 2) and not self.trace and len(errors) <= 1


def command(*words: str) -> Done:
  """A command of moe-parity in this process."""
  text = io.StringIO()
  with contextlib.redirect_stdout(text), contextlib.redirect_stderr(text):
    try:
      return Done(cli.main([str(word) for word in words]), text.getvalue())
    except SystemExit as error:  # argparse
      return Done(int(error.code or 0), text.getvalue())
    except Exception:  # noqa: BLE001 - what the campaign looks for
      return Done(1, text.getvalue(), traceback.format_exc())


def judge(done: Done, same: Callable[[], bool], names: Iterable[str]) -> tuple[str, str]:
  """(outcome, note) of one command after a fault.

  Args:
    same: whether the results are those of the reference.
    names: any of which the output must hold where the fault shows.
  """
  if done.trace or "Traceback (most recent call last)" in done.text:
    return TRACEBACK, (done.trace or done.text)[-600:]
  is_named = any(name in done.words for name in names)
  if done.code == 0:
    if same():
      return SURVIVED, ""
    return (NAMED if is_named else WRONG), done.words[-300:]
  if done.is_refusal and is_named:
    return NAMED, done.words[-300:]
  return TRACEBACK, f"exit {done.code}, the fault is not named: {done.words[-400:]}"


def worst(*found: tuple[str, str]) -> tuple[str, str]:
  """The (outcome, note) that weighs most."""
  return max(found, key=lambda pair: OUTCOMES.index(pair[0]))


def table(injections: list[Injection]) -> list[dict]:
  """A row a group and kind with the number of each outcome, and the sum."""
  rows: dict[tuple[str, str], collections.Counter] = {}
  for one in injections:
    rows.setdefault((one.group, one.kind), collections.Counter())[one.outcome] += 1
  rows = dict(sorted(rows.items()))
  rows["all", ""] = collections.Counter(one.outcome for one in injections)
  return _rows(rows)


def _rows(rows: dict[tuple[str, str], collections.Counter]) -> list[dict]:
  return [
    {"group": group, "kind": kind, "injected": counts.total()}
    | {outcome: counts[outcome] for outcome in OUTCOMES}
    for (group, kind), counts in rows.items()
  ]


def write(path: pathlib.Path, journal) -> dict:
  """Writes the table of a journal and every failure as JSON; returns the sums."""
  injections = journal.injections()
  rows = table(injections)
  failures = [dataclasses.asdict(one) | {"note": ""} for one in injections  # notes name paths
              if one.outcome in FAILURES]  # fmt: skip
  path.parent.mkdir(parents=True, exist_ok=True)
  value = {**journal.summary(), "rows": rows, "failures": failures}
  path.write_text(json.dumps(value, indent=1) + "\n")
  return rows[-1]
