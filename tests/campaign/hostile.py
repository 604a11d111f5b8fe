"""Names in the files of a stranger: in manifests, plans, results, stages, parts and on buckets.

A name may lead out of its folder or mean something to a shell or a page. Whatever the command makes
of it, nothing is written outside of the folder, and no traceback ends it.
"""

import contextlib
import html.parser
import json
import os
import pathlib
import random
import re
import shutil
from collections.abc import Callable, Iterator

from moe_parity import files
from tests.campaign import runs
from tests.campaign.outcomes import WRONG, Injection, command, judge, worst

MARK = "<img src=x onerror=alert(1)>"
LEADING_OUT = ("../x", "../../x", "../../../../x", "/ABSOLUTE/x", "..", ".", "", "a/../../x",
               "out/x", "out", "a\\..\\x", "x\0y", "..\0", "~/x", "//x",
               "runs/../../x")  # fmt: skip
MEANING = ("<b>x</b>", MARK, "\"'></script><script>alert(1)</script>", "$(touch x)", "`touch x`",
           "; touch x", "%2e%2e/x", "x" * 300, "CON\n", "__class__", "-rf", "--help", "文\u202e本",
           "a,b=c[0]", "NaN", "\x1b[2J")  # fmt: skip

NAMES = re.compile(r"\b(name|folder|files|by_domain|domain|source|snapshot|shards)\b")  # of fields


def leaves(value, here=()) -> Iterator[tuple]:
  """The place of every string of a JSON value, and of every key of a dictionary (key, True)."""
  items = value.items() if isinstance(value, dict) else enumerate(value)
  for key, inner in items:
    if isinstance(value, dict):
      yield (*here, key), True
    if isinstance(inner, str):
      yield (*here, key), False
    elif isinstance(inner, dict | list):
      yield from leaves(inner, (*here, key))


def put(value, place: tuple, is_key: bool, name: str) -> None:
  """Puts a name where a string, or a key, of a JSON value is; a hash of the value fits again."""
  inner = value
  for key in place[:-1]:
    inner = inner[key]
  if is_key:
    inner[name] = inner.pop(place[-1])
  else:
    inner[place[-1]] = name


class Hostile:
  """Puts hostile names into copies of what a finished study and its token store hold.

  Args:
    files: a `FileDamage`, for its study and what is expected of it.
    cache: has the token store of the study.
  """

  def __init__(self, files, cache: pathlib.Path, scratch: pathlib.Path):
    self.files, self.cache, self.scratch, self.number = files, cache, scratch, 0
    self.references: dict[str, str] = {}

  @contextlib.contextmanager
  def _place(self) -> Iterator[pathlib.Path]:
    """An empty folder, deep enough that a few steps up stay inside of what is watched."""
    self.number += 1
    top = self.scratch / f"hostile_{self.number}"
    place = top / "a" / "b" / "c" / "d"
    place.mkdir(parents=True)
    yield place
    shutil.rmtree(top)

  def _watched(
    self, place: pathlib.Path, act: Callable[[], tuple[str, str]], inside: str = r"[^/]+/.*"
  ) -> tuple[str, str]:
    """What `act` gives, unless something came to be where nothing may be written.

    Args:
      inside: what the path of a new file matches, relative to `place`, where it may be.
    """
    top = place.parents[3]

    def outside() -> set[str]:
      found = {str(p) for p in top.rglob("*")} | {f"./{name}" for name in os.listdir(".")}
      return {p for p in found if not re.fullmatch(inside, p.removeprefix(f"{place}/"), re.DOTALL)}

    before = outside()
    outcome, note = act()
    if more := outside() - before:
      return WRONG, f"wrote outside: {sorted(more)}"
    return outcome, note

  def _name(self, rng: random.Random, place: pathlib.Path) -> str:
    name = rng.choice(rng.choice([LEADING_OUT, MEANING]))
    return name.replace("/ABSOLUTE", str(place.parent))

  def store(self, rng: random.Random) -> Injection:
    """A manifest with a hostile name; the store is shown, and planned on."""
    with self._place() as place:
      (source,) = self.cache.glob("builtin-*")
      store = runs.copy(source, place / "store")
      (store / "out").symlink_to(place.parent)
      manifest = json.loads((store / "manifest.json").read_text())
      name = self._name(rng, place)
      where, is_key = rng.choice(sorted(leaves(manifest), key=str))
      if rng.random() < 0.4:  # consistently: a shard, and its files with it
        split = manifest["splits"][rng.choice(["train", "validation"])]
        old, split["shards"][0]["name"] = split["shards"][0]["name"], name
        for ending in (".bin", ".idx"):
          split["files"][name + ending] = split["files"].pop(old + ending)
        what = "a shard and its files"
      else:
        put(manifest, where, is_key, name)
        what = "/".join(map(str, where)) + (" (key)" if is_key else "")
      runs.put(store / "manifest.json", json.dumps(manifest).encode())
      words = ["data", "show", store]
      if rng.random() < 0.5:
        data = [f"--config.data.source={store}", "--config.data.tokenizer=store"]
        words = ["plan", *runs.SMALL, *data]
      expected = self._reference(words[0], source)
      names = [name, "manifest.json", repr(name)[1:-1], where[-1]] if where else [name]

      def act():
        done = command(*words)
        text = done.text.replace(str(store), "STORE")
        return judge(done, lambda: text == expected, map(str, names))

      outcome, note = self._watched(place, act)
      return Injection("hostile names", "in a manifest", f"{what}: {name!r}", outcome, note)

  def _reference(self, verb: str, store: pathlib.Path) -> str:
    if verb not in self.references:
      data = [f"--config.data.source={store}", "--config.data.tokenizer=store"]
      words = ["data", "show", store] if verb == "data" else ["plan", *runs.SMALL, *data]
      done = command(*words)
      assert done.code == 0, done
      self.references[verb] = done.text.replace(str(store), "STORE")
    return self.references[verb]

  def study(self, rng: random.Random) -> Injection:
    """A file of a study with a hostile name, or a part that is named so; then report and study."""
    kind = rng.choice(["in a plan", "in a result", "in a part", "of a part", "in a stage"])
    if kind == "in a stage":
      return self._stage(rng)
    with self._place() as place:
      folder = runs.copy(self.files.study, place / self.files.study.name)
      (folder / "out").symlink_to(place.parent)
      name = self._name(rng, place)
      if kind == "of a part":
        what = self._add_part(folder, rng, name)
      else:
        what = self._rename(folder, rng, kind, name)

      def act():
        names = [name, repr(name)[1:-1], name[:40], *re.findall(r"[\w.]+\.json", what)]
        names += ["is a link"] if "(a link)" in what else []
        reported = self.files._report(folder)
        same = lambda: self.files._same_report(folder, reported.text)  # noqa: E731
        found = [judge(reported, same, filter(None, names))]
        done = command(*runs.study_command(folder))
        whole = lambda: all(  # noqa: E731
          runs.same_run(folder / f"runs/{arm}-s0", self.files.finished_as[arm], False)
          for arm in runs.ARMS
        )
        found.append(judge(done, whole, filter(None, names)))
        return worst(*found)

      outcome, note = self._watched(place, act)
      return Injection("hostile names", kind, f"{what}: {name!r}", outcome, note)

  def _rename(self, folder: pathlib.Path, rng: random.Random, kind: str, name: str) -> str:
    """Puts the name into a JSON file of the study; returns where."""
    if kind == "in a part":
      (folder / "parts").mkdir()
      part = folder / "parts" / "other"
      part.mkdir()
      for path in ("plan.json", "study.json"):
        shutil.copy(folder / path, part / path)
      found = [part / "plan.json", part / "study.json"]
    elif kind == "in a plan":
      found = [folder / "plan.json", folder / "study.json", *folder.glob("runs/*/plan.json")]
    else:
      found = [*folder.glob("runs/*/*.json"), *folder.glob("runs/*/checkpoints/*/hashes.json")]
    path = rng.choice(sorted(found))
    value = json.loads(path.read_text())
    names = [p for p in leaves(value) if NAMES.search(str(p[0]))]
    where, is_key = rng.choice(sorted(names or leaves(value), key=str))
    put(value, where, is_key, name)
    runs.put(path, json.dumps(files.sealed(value) if files.SEAL in value else value).encode())
    return f"{path.relative_to(folder)} {'/'.join(map(str, where))}"

  def _add_part(self, folder: pathlib.Path, rng: random.Random, name: str) -> str:
    """A comparison in a folder of the name, or in one that a link leads out to."""
    (folder / "parts").mkdir()
    usable = name.replace("/", "_").replace("\0", "_")[:200]
    part = folder / "parts" / (usable if usable.strip(".") else "part")
    if is_link := rng.random() < 0.4:
      there = folder.parent.parent / "elsewhere"
      there.mkdir()
      part.symlink_to(there)
    part.mkdir(exist_ok=True)
    for path in ("plan.json", "study.json"):
      shutil.copy(folder / path, part / path)
    return f"parts/{part.name}{' (a link)' if is_link else ''} plan.json"

  def _stage(self, rng: random.Random) -> Injection:
    """What a step of the paper left has a hostile name: its page has no tag of it."""
    from tests.helpers import fake_steps, fake_study

    with self._place() as place:
      folder = place / "study"
      fake_study.write_study(folder, fake_study.Fake(rates=(0.2, 0.3), telemetry=False))
      fake_steps.write_steps(folder)
      name = self._name(rng, place)
      path = folder / f"{rng.choice(['architecture', 'activation_rate', 'data_reuse'])}.json"
      value = json.loads(path.read_text())
      where, is_key = rng.choice([p for p in sorted(leaves(value), key=str) if not p[1]])
      put(value, where, is_key, name)
      path.write_text(json.dumps(value))

      def act():
        done = command("report", folder)
        if done.code:
          return judge(done, lambda: False, [path.name, name, where[-1]])
        text = (folder / "report" / "index.html").read_text()
        if problem := foreign_markup(text):
          return WRONG, problem
        return judge(done, lambda: True, [path.name])

      with runs.real_report():
        outcome, note = self._watched(place, act)
      what = f"{path.name} {'/'.join(map(str, where))}: {name!r}"
      return Injection("hostile names", "in a stage", what, outcome, note)


class _Tags(html.parser.HTMLParser):
  def __init__(self):
    super().__init__()
    self.found: list[str] = []

  def handle_starttag(self, tag, attributes):
    bad = [name for name, value in attributes if name.startswith("on") or value == "x"]
    self.found += [f"{tag} {bad}"] if bad else [tag] if tag == "script" else []


def foreign_markup(page: str) -> str:
  """A tag or an attribute of a page that a name of MEANING brought in; '' for none."""
  reader = _Tags()
  reader.feed(page)
  reader.close()
  if MARK in page or reader.found.count("script") > 1 or set(reader.found) - {"script"}:
    return f"the page has {reader.found}"
  return ""
