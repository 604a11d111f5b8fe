"""What a campaign injected so far, a line each: one that is stopped resumes where it was."""

import dataclasses
import datetime
import json
import pathlib
import threading

from tests.campaign.outcomes import FAILURES, Injection

Key = tuple[str, int, int]  # option, seed, index


class Journal:
  """Lines of a file; of two lines of one key the later one stands."""

  def __init__(self, path: pathlib.Path):
    self._path, self._lock = path, threading.Lock()
    self.lines: dict[Key, dict] = {}
    for line in path.read_text().splitlines() if path.exists() else ():
      value = json.loads(line)
      self.lines[value["option"], value["seed"], value["index"]] = value

  def __contains__(self, key: Key) -> bool:
    return key in self.lines

  def add(self, key: Key, seconds: float, injections: list[Injection]) -> None:
    """Writes one line: what the fault of this key was, what became of it, and when."""
    value = dict(zip(("option", "seed", "index"), key, strict=True))
    value |= {"seconds": round(seconds, 2), "injections": list(map(dataclasses.asdict, injections))}
    value["at"] = datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds")
    with self._lock, open(self._path, "a") as file:
      file.write(json.dumps(value) + "\n")
      self.lines[key] = value

  def injections(self) -> list[Injection]:
    """All that stand, in the order of their options."""
    return [Injection(**one) for key in sorted(self.lines) for one in self.lines[key]["injections"]]

  def failed(self) -> list[Key]:
    """Keys of the lines with a failure, to be tried again once it is mended."""
    return [
      key
      for key, line in sorted(self.lines.items())
      if any(one["outcome"] in FAILURES for one in line["injections"])
    ]

  def summary(self) -> dict:
    """Seeds, the first and the last day, and the mean seconds of a fault by option."""
    lines = list(self.lines.values())
    spent: dict[str, list[float]] = {}
    for line in lines:
      number = max(len(line["injections"]), 1)
      spent.setdefault(line["option"], []).append(line["seconds"] / number)
    return {
      "seeds": sorted({line["seed"] for line in lines}),
      "from": min((line["at"] for line in lines), default=""),
      "to": max((line["at"] for line in lines), default=""),
      "seconds": {name: round(sum(s) / len(s), 2) for name, s in sorted(spent.items())},
    }
