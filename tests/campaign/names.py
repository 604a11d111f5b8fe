"""Folders and workers with names that mean something to a shell, a URL, a pattern or a page."""

import pathlib
import random
import shutil

from tests.campaign import runs
from tests.campaign.outcomes import Injection, command, judge

NAMES = (
  "a b", "%41", "a#b", "a?b", "a&b=c", "ünïcode", "文本", "a'b\"c", "<b>run</b>", "[x]*",
  "$(touch x)", "`x`", "-rf", "--workdir", "~", "a,b", "a;b", "a\\b", "x" * 180, "run.json",
  "\N{FAMILY}", "a\tb", "..data", "damaged-3", "tensorboard", "checkpoints", "NaN", "1e5",
)  # fmt: skip


class HostileNames:
  """Finished and unfinished runs in folders of strange names, by workers of strange names."""

  def __init__(self, study: pathlib.Path, unfinished: pathlib.Path, files, scratch: pathlib.Path):
    self.study, self.unfinished, self.files, self.scratch = study, unfinished, files, scratch
    self.number = 0

  def inject(self, rng: random.Random) -> Injection:
    self.number += 1
    name, what = rng.choice(NAMES), rng.choice(["train", "study", "worker"])
    place = self.scratch / f"names_{self.number}"
    if what == "study":
      folder = runs.copy(self.study, place / name)
      done = self.files._report(folder)
      outcome, note = judge(done, lambda: self.files._same_report(folder, done.text), [name])
    else:
      folder = place / (name if what == "train" else "run")
      folder.parent.mkdir(parents=True)
      run = runs.copy(self.unfinished / "runs/dense-s0", folder)
      words = runs.train_command(run, "dense")
      done = command(*words, *([f"--worker={name}"] if what == "worker" else []))
      expected = self.files.expected["dense"]
      outcome, note = judge(done, lambda: runs.same_run(run, expected), [name])
    escaped = sorted(p.name for p in place.iterdir()) if place.exists() else []
    if len(escaped) > 1:
      outcome, note = "silently wrong", f"wrote beside its folder: {escaped}"
    shutil.rmtree(place)
    return Injection("hostile names", f"of a {what}", repr(name), outcome, note)
