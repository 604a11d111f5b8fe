"""The runs that a campaign damages: made once, copied for every fault, and compared exactly."""

import contextlib
import functools
import json
import os
import pathlib
import shutil
import zipfile
import zlib

import numpy as np

from tests.campaign.outcomes import command

ROOT = pathlib.Path(__file__).resolve().parents[2]
SMALL = [
  f"--config={ROOT}/configs/demo.py:tiny", "--config.budget.dense_tokens=2560",
  "--config.evaluation.max_tokens=500", "--config.evaluation.ablations=()",
  "--config.evaluation.routing_tokens=300", "--config.train.log_every=3",
  "--config.train.save_every=10", "--config.train.keep_checkpoints=3",
  "--config.train.eval_every=15",
]  # fmt: skip
ARMS = ("dense", "moe_40")
TIMED = {"seconds", "compile_seconds", "step_seconds"}
TIMED |= {"tokens_per_second", "flops_per_second", "peak_share"}


def study_command(folder: pathlib.Path) -> list[str]:
  return ["study", *SMALL, f"--only={','.join(ARMS)}", f"--workdir={folder}"]


def train_command(folder: pathlib.Path, arm: str) -> list[str]:
  return ["train", *SMALL, f"--arm={arm}", f"--workdir={folder}"]


def make_study(folder: pathlib.Path) -> pathlib.Path:
  """A finished study of a dense and an MoE arm."""
  done = command(*study_command(folder))
  assert done.code == 0 and not done.trace, done
  done = command("report", folder)
  assert done.code == 0 and not done.trace, done
  return folder


def unfinish(run: pathlib.Path) -> None:
  """Makes a finished run one that was killed some steps after its last checkpoint but one."""
  for name in ("result.json", "ledger.npz", "specialization.npz", "certificate.json"):
    (run / name).unlink(missing_ok=True)
  newest = max(int(p.name) for p in (run / "checkpoints").iterdir() if p.name.isdigit())
  shutil.rmtree(run / "checkpoints" / str(newest))


def copy(folder: pathlib.Path, to: pathlib.Path) -> pathlib.Path:
  """A copy by hard links; to change a file, replace it (`put`)."""
  return pathlib.Path(shutil.copytree(folder, to, copy_function=os.link))


def put(path: pathlib.Path, content: bytes) -> None:
  """Replaces a file, so that no other copy of it changes; its times stay."""
  before = path.stat()
  path.unlink()
  path.write_bytes(content)
  os.utime(path, ns=(before.st_atime_ns, before.st_mtime_ns))


def outcome_of(run: pathlib.Path, derived: bool = True) -> dict:
  """Everything that a finished run leaves but the times it took.

  Args:
    derived: with events and counts of routing, which other commands read or write again.
  """
  lines = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
  result = json.loads((run / "result.json").read_text())
  arrays = {}
  for name in ("ledger.npz", *(("routing.npz", "specialization.npz") if derived else ())):
    if (run / name).exists():
      with np.load(run / name) as file:
        arrays |= {f"{name}:{key}": file[key].tolist() for key in file.files}
      if meta := arrays.get(f"{name}:meta"):  # it names the place of the token store
        value = json.loads(bytes(meta))
        arrays[f"{name}:meta"] = value | {"data": value["data"] | {"store": ""}}
  return {
    "metrics": [untimed(line) for line in lines],
    "result": untimed(result),
    "arrays": arrays,
    "events": events(run / "tensorboard") if derived else [],
    "passed": json.loads((run / "certificate.json").read_text())["passed"],
  }


def same_run(run: pathlib.Path, expected: dict, derived: bool = True) -> bool:
  """Whether a run ended as the reference did, to the last field."""
  try:
    return outcome_of(run, derived) == expected
  except (OSError, ValueError, KeyError, zipfile.BadZipFile, zlib.error):
    return False


def untimed(value):
  """A JSON value without the times that it tells, at any depth, and hashes of itself."""
  if isinstance(value, list):
    return [untimed(item) for item in value]
  if not isinstance(value, dict):
    return value
  ignored = TIMED | {"content_sha256", "machine"}
  return {name: untimed(item) for name, item in value.items() if name not in ignored}


def events(folder: pathlib.Path) -> list[tuple[int, str]]:
  """(step, tag) of every TensorBoard event, in order of step; doubles stay."""
  from tensorboardX.proto.event_pb2 import Event

  found = []
  for path in sorted(folder.glob("*")):
    data = path.read_bytes()
    while data:
      size = int.from_bytes(data[:8], "little")
      event = Event.FromString(data[12 : 12 + size])
      found += [(event.step, value.tag) for value in event.summary.value]
      data = data[16 + size :]
  return sorted(found)


@contextlib.contextmanager
def quick_programs():
  """Within, a program that was compiled once in this process is used again, JAX is started once,
  a report is its analysis without the drawings, and a silent worker is dead after 2 s, not 300."""
  from moe_parity import startup
  from moe_parity.report import page
  from moe_parity.study.workers import leases
  from moe_parity.training import load_run, loop, setup

  startup.start_jax()
  _read_and_analyze.drawn = page.write_report
  compiled, before = {}, setup._compile

  def compile_once(train_step, state, plan):
    key = json.dumps(plan.to_dict(), sort_keys=True, default=str)
    if key not in compiled:
      compiled[key] = before(train_step, state, plan)
    return compiled[key]

  patches = {
    (setup, "_compile"): compile_once,
    (setup, "make_scorer"): _once(setup.make_scorer),
    (load_run, "make_scorer"): _once(load_run.make_scorer),
    (setup, "measure_peak_flops"): functools.cache(setup.measure_peak_flops),
    (loop, "make_routing_counter"): _once(loop.make_routing_counter),
    (startup, "start_jax"): lambda *a, **k: None,
    (page, "write_report"): _read_and_analyze,
    (leases.Leases, "__init__"): functools.partialmethod(
      leases.Leases.__init__, stale_seconds=2, heartbeat_seconds=0.5
    ),
  }
  old = {place: getattr(*place) for place in patches}
  try:
    for (module, name), value in patches.items():
      setattr(module, name, value)
    yield
  finally:
    for (module, name), value in old.items():
      setattr(module, name, value)


@contextlib.contextmanager
def real_report():
  """Within, a report is drawn, whatever `quick_programs` put in its place."""
  from moe_parity.report import page

  before = page.write_report
  page.write_report = getattr(before, "drawn", before)
  try:
    yield
  finally:
    page.write_report = before


def _read_and_analyze(folder):
  """What a report does but drawing: it reads every file that a figure is made of."""
  from moe_parity.evaluation import specialization
  from moe_parity.study import reading
  from moe_parity.study.analysis import compare

  for run in reading.read_study(folder).runs:
    specialization.load(run.folder)
    reading.read_routing(run.folder)
    reading.read_metrics(run.folder)
  return compare.write_analysis(folder)


def _once(make):
  made = {}

  @functools.wraps(make)
  def once(*args):
    key = repr(args)
    if key not in made:
      made[key] = make(*args)
    return made[key]

  return once
