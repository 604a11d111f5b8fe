"""A checkout of another version: its command and its modules, in processes of their own."""

import contextlib
import dataclasses
import json
import os
import pathlib
import random
import re
import resource
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator

WORDS = "river stone lamp under winter garden quiet engine paper cloud music seven orange".split()
BUDGET = ("--config.budget.dense_tokens=12000", "--config.train.log_every=10")
TRACEBACK, WRONG, ACCEPTED = "traceback", "silently wrong", "accepted"
HANGS, LOST, MISLEADING, HELD = "hangs", "run lost", "misleading error", "held"
NOT_RUN = "not run"


@dataclasses.dataclass(frozen=True)
class Done:
  """A process that ended: its exit code, negative for a signal, and what it printed."""

  code: int
  output: str
  last: str


class Code:
  """A checkout in a folder, with a scratch folder to run it in."""

  def __init__(self, folder: pathlib.Path, scratch: pathlib.Path):
    self.folder, self.box = folder.resolve(), scratch.resolve()
    self.box.mkdir(parents=True, exist_ok=True)
    self.tiny = f"--config={self.folder}/configs/demo.py:tiny"
    self._base: pathlib.Path | None = None

  def start(self, *words: str, cpu_seconds: int = 0) -> subprocess.Popen:
    """Python with these words, in the scratch folder."""
    environment = os.environ | {
      "PYTHONPATH": str(self.folder), "MOE_PARITY_CACHE": str(self.box / "cache"),
      "JAX_PLATFORMS": "cpu", "PYTHONDONTWRITEBYTECODE": "1",
    }  # fmt: skip

    def limit() -> None:
      if cpu_seconds:
        resource.setrlimit(resource.RLIMIT_CPU, (cpu_seconds, cpu_seconds))

    return subprocess.Popen(
      [sys.executable, *words], cwd=self.box, env=environment, text=True, errors="replace",
      stdout=subprocess.PIPE, stderr=subprocess.STDOUT, preexec_fn=limit,
    )  # fmt: skip

  def end(self, process: subprocess.Popen) -> Done:
    """What became of a process."""
    output, _ = process.communicate()
    lines = [line for line in output.splitlines() if line.strip()]
    last = lines[-1] if lines else ""
    for place in (str(self.box), str(self.folder), socket.gethostname()):
      last = last.replace(place, "")
    return Done(process.returncode, output, " ".join(last.split())[:160])

  def cli(self, *words: str, cpu_seconds: int = 0) -> Done:
    """The command `moe-parity`."""
    return self.end(self.start("-m", "moe_parity.cli", *words, cpu_seconds=cpu_seconds))

  def python(self, program: str, *words: str) -> Done:
    """A program that uses the checkout's modules."""
    return self.end(self.start("-c", program, *words))

  def write(self, name: str, texts: list | None = None, **fields: list) -> str:
    """JSON lines in the scratch folder: 120 short documents, or these."""
    path = self.box / name
    path.parent.mkdir(parents=True, exist_ok=True)
    texts = documents(name) if texts is None else texts
    rows = [
      {"text": text} | {key: values[i % len(values)] for key, values in fields.items()}
      for i, text in enumerate(texts)
    ]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return name

  def prepare(self, *words: str, store: str, **kwargs) -> Done:
    """`moe-parity prepare`, a tenth held out."""
    return self.cli("prepare", "--held-out=hash:0.1", f"--store={store}", *words, **kwargs)

  def manifest(self, store: str) -> dict:
    """What a store says of itself; {} where there is none."""
    path = self.box / store / "manifest.json"
    return json.loads(path.read_text()) if path.is_file() else {}

  def num_documents(self, store: str) -> int:
    """Documents of both splits."""
    splits = self.manifest(store).get("splits", {})
    return sum(split["num_documents"] for split in splits.values())

  @property
  def data(self) -> tuple[str, ...]:
    """Options that name the text of the finished run."""
    source, held_out = self.box / "corpus.jsonl", self.box / "val.jsonl"
    return f"--config.data.source={source}", f"--config.data.held_out=source:{held_out}"

  def finished(self, name: str) -> pathlib.Path:
    """A copy of a short run whose last but one checkpoint is two steps before its end."""
    if self._base is None:
      self._base = self.box / "base"
      is_made = (self._base / "result.json").is_file()
      if not is_made:
        self.write("corpus.jsonl"), self.write("val.jsonl")
      plan = self.cli("plan", self.tiny, *BUDGET, *self.data, "--json")
      steps = re.findall(r'"name": "moe_20".*?"num_steps": (\d+)', plan.output, re.DOTALL)
      save = f"--config.train.save_every={int(steps[0]) - 2}"
      self._train = self.tiny, "--arm=moe_20", *BUDGET, save
      done = None if is_made else self.train(self._base)
      assert done is None or done.code == 0, done.output
    subprocess.run(["cp", "-r", self._base, self.box / name], check=True)
    return self.box / name

  def train(self, folder: pathlib.Path, *words: str) -> Done:
    """The run's command, in a folder."""
    return self.cli("train", *self._train, *self.data, f"--workdir={folder}", *words)

  def unfinished(self, name: str) -> pathlib.Path:
    """A copy that a kill left two steps before its end."""
    folder = self.finished(name)
    newest = max((folder / "checkpoints").iterdir(), key=lambda path: int(path.name))
    subprocess.run(["rm", "-r", newest], check=True)
    for side in ("result.json", "certificate.json"):
      (folder / side).unlink(missing_ok=True)
    return folder

  @contextlib.contextmanager
  def running(self, *words: str, until: str) -> Iterator[subprocess.Popen]:
    """A command that has printed a text, or written a file of that name."""
    process = self.start("-m", "moe_parity.cli", *words)
    try:
      while process.poll() is None and not list(self.box.glob(until)):
        time.sleep(0.2)
      yield process
    finally:
      with contextlib.suppress(ProcessLookupError):
        process.send_signal(signal.SIGKILL)


def documents(mark: str, count: int = 120) -> list[str]:
  """Short texts, others for every mark."""
  found = []
  for number in range(count):
    rng = random.Random(f"{mark}{number}")
    found.append(" ".join(rng.choice(WORDS) for _ in range(60)) + f" {mark}{number}.")
  return found


def verdict(done: Done, what: str = ACCEPTED) -> tuple[str, str]:
  """(verdict, last line) of a command that had to refuse: `what` if it did not."""
  if "Traceback (most recent call last)" in done.output:
    return TRACEBACK, done.last
  return (what, done.last) if done.code == 0 else (HELD, done.last)
