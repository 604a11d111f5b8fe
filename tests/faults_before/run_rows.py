"""Inputs of the rows on runs: checkpoints, metrics, leases, workers."""

import json
import pathlib
import signal
import subprocess
import time

from tests.faults_before.code import (
  ACCEPTED,
  BUDGET,
  HELD,
  LOST,
  MISLEADING,
  TRACEBACK,
  WRONG,
  Code,
  verdict,
)
from tests.helpers.workers import world


def changed_text_resume(code: Code):
  folder = code.unfinished("changed")
  return _with_reversed(code, "corpus.jsonl", lambda: verdict(code.train(folder), WRONG))


def changed_text_scored(code: Code):
  folder = code.finished("scored")
  before = code.cli("evaluate", str(folder)).last
  done = _with_reversed(code, "val.jsonl", lambda: code.cli("evaluate", str(folder)))
  if done.code == 0 and done.last != before:
    return WRONG, f"{before.split(' bits')[0]}, then {done.last.split(' bits')[0]}"
  return verdict(done, HELD)


def _with_reversed(code: Code, name: str, act):
  """Text of equal length in its place, for a moment."""
  path = code.box / name
  before = path.read_text()
  texts = [json.loads(line)["text"][::-1] for line in before.splitlines()]
  path.write_text("".join(json.dumps({"text": text}) + "\n" for text in texts))
  try:
    return act()
  finally:
    path.write_text(before)


def learned_nothing(code: Code):
  return verdict(code.cli("plan", code.tiny, "--config.optimizer.clip_norm=-1"))


def flipped_checkpoint(code: Code):
  folder = code.finished("flipped")
  newest = max((folder / "checkpoints").iterdir(), key=lambda path: int(path.name))
  for path in newest.rglob("*"):
    if path.parent.name == "d" and path.stat().st_size > 4096:  # arrays
      content = bytearray(path.read_bytes())
      content[len(content) // 2] ^= 0x10
      path.write_bytes(content)
  done = code.cli("evaluate", str(folder))
  if done.code == 0:
    return WRONG, f"scored with a bit of each file of arrays flipped: {done.last.split(' bits')[0]}"
  return verdict(done, HELD)


def lost_metrics(code: Code):
  folder = code.unfinished("lost")
  (folder / "metrics.jsonl").unlink()
  done = code.train(folder)
  kept = len((folder / "metrics.jsonl").read_text().splitlines())
  whole = len((code.box / "base/metrics.jsonl").read_text().splitlines())
  if done.code == 0 and kept < whole and "certificate passed" in done.output:
    return WRONG, f"{kept} of {whole} lines, certificate passed"
  return verdict(done, HELD)


def loss_by_kills(code: Code):
  folder = code.unfinished("killed")
  done = code.train(folder)
  losses = [
    json.loads((place / "result.json").read_text())["train_cross_entropy"]
    for place in (code.box / "base", folder)
    if (place / "result.json").is_file()
  ]
  return (WRONG, f"{losses[0]} or {losses[1]}") if len(set(losses)) == 2 else verdict(done, HELD)


def arm_decides(code: Code):
  code.finished("raw")
  folder = code.box / "normalized"
  done = code.train(folder, "--config.arms.moe_20.gates=normalized")
  losses = []
  for place in (code.box / "base", folder):
    lines = (place / "metrics.jsonl").read_text().splitlines()
    losses.append([json.loads(line)["cross_entropy"] for line in lines])
  plan = json.loads((folder / "plan.json").read_text())
  if plan.get("gates") == "normalized" and losses[0] == losses[1]:
    return WRONG, "planned normalized, trained raw"
  return verdict(done, HELD)


def sigterm(code: Code):
  words = "train", code.tiny, "--arm=moe_20", "--workdir=term", "--config.train.log_every=1"
  with code.running(*words, until="term/metrics.jsonl") as process:
    time.sleep(2)
    process.send_signal(signal.SIGTERM)
    done = code.end(process)
  steps = [path.name for path in (code.box / "term/checkpoints").glob("[0-9]*")]
  return (HELD, done.last) if done.code == 75 and steps else (
    LOST, f"exit code {done.code}, {len(steps)} checkpoints")  # fmt: skip


CLAIM = """
import os, sys, time
from moe_parity.study.claims import Claims
shift, seconds = float(sys.argv[1]), float(sys.argv[2])
clock = time.time
time.time = lambda: clock() + shift
claim = Claims("claims").take("runs/a")
print(claim.took_over if claim else "waits", flush=True)
time.sleep(seconds)
"""


def live_declared_gone(code: Code):
  """Two PID namespaces of one host name."""
  return _second_claim(code, ["unshare", "--pid", "--fork", "--mount-proc", "--kill-child"], "0")


def clocks(code: Code):
  return _second_claim(code, [], "301")


def _second_claim(code: Code, before: list[str], shift: str):
  outputs = []
  for number, words in enumerate((("0", "600"), (shift, "0"))):
    process = code.start("-c", _RUN, json.dumps([*before]), CLAIM, *words)
    if number == 0:
      outputs.append(process.stdout.readline())
      first = process
    else:
      outputs.append(code.end(process).last)
  first.kill()
  said = outputs[-1].strip()
  return (HELD, said) if said == "waits" else (WRONG, said or "takes a live worker's run")


_RUN = """
import json, os, sys
words = json.loads(sys.argv[1]) + [sys.executable, "-c", *sys.argv[2:]]
os.execvp(words[0], words)
"""


def two_trains(code: Code):
  words = "train", code.tiny, "--arm=moe_20", "--workdir=both", "--config.train.log_every=1"
  with code.running(*words, until="both/metrics.jsonl") as first:
    second = code.start("-m", "moe_parity.cli", *words)
    time.sleep(1)
    stuck = time.monotonic() + 120
    while second.poll() is None and time.monotonic() < stuck:
      time.sleep(0.5)
    if second.poll() is None:
      second.kill(), code.end(second), first.kill(), code.end(first)
      return ACCEPTED, "the second trains too"
    return verdict(code.end(second))


def evaluation_typo(code: Code):
  code.finished("typo_base")
  folder = code.box / "typo"
  done = code.train(folder, "--config.evaluation.mode=doc")
  trained = (folder / "metrics.jsonl").is_file()
  return (LOST, f"after the last step: {done.last}") if trained else verdict(done)


def lost_process(code: Code):
  words = ["study", f"--config={code.folder}/configs/demo.py:tiny", "--only=moe_20",
           "--workdir=pair", "--config.mesh.data=2",
           "--config.budget.batch_multiple=2"]  # fmt: skip
  first, second = (code.start("-m", "moe_parity.cli", *words, *place) for place in world(2))
  while not list(code.box.glob("pair/runs/*/metrics.jsonl")) and first.poll() is None:
    time.sleep(0.5)
  time.sleep(3)
  second.kill(), code.end(second)
  since = time.monotonic()
  while first.poll() is None and time.monotonic() - since < 300:
    time.sleep(0.5)
  seconds = time.monotonic() - since
  first.kill()
  done = code.end(first)
  said = f"exit code {done.code} after {seconds:.0f} s"
  return (HELD, said) if done.code == 75 and seconds < 30 else (LOST, said)


RACE = """
import multiprocessing, pathlib
from moe_parity.report import page
def write(number):
  for _ in range(3000):
    page._write(pathlib.Path("raced.html"), b"x" * 100)
if __name__ == "__main__":
  with multiprocessing.get_context("fork").Pool(4) as pool:
    pool.map(write, range(4))
"""


def temporary_race(code: Code):
  return verdict(code.python(RACE), HELD)


def shapes(code: Code):
  folder = code.finished("shapes")
  value = json.loads((folder / "result.json").read_text())
  value["validation"]["documents"] = 3
  (folder / "result.json").write_text(json.dumps(value))
  return verdict(code.cli("report", str(folder)))


def one_name_twice(code: Code):
  folder = code.finished("twice_run")
  text = (folder / "result.json").read_text().rstrip().removesuffix("}")
  (folder / "result.json").write_text(text + ', "train_cross_entropy": 0.001}')
  return verdict(code.cli("report", str(folder)))


def lost_lines(code: Code):
  folder = code.unfinished("nul")
  lines = (folder / "metrics.jsonl").read_text().splitlines(keepends=True)
  lines[1] = '{"kind": "train", "st' + "\0" * 40 + "\n"
  (folder / "metrics.jsonl").write_text("".join(lines))
  return verdict(code.train(folder), HELD)


def places(code: Code):
  (code.box / "file").write_text("x")
  done = code.cli("train", code.tiny, "--arm=moe_20", *BUDGET, "--workdir=file")
  return verdict(done)


def config_numbers(code: Code):
  return verdict(code.cli("plan", code.tiny, "--config.data.max_epochs=nan"))


def one_damaged_run(code: Code):
  words = "study", code.tiny, "--only=moe_20", "--workdir=damaged", *BUDGET
  assert code.cli(*words).code in (0, 1)
  for path in (code.box / "damaged").glob("runs/moe_20-s0/checkpoints/*/*"):
    if path.is_dir():
      subprocess.run(["rm", "-r", path], check=True)
  (code.box / "damaged/runs/moe_20-s0/certificate.json").unlink()
  done = code.cli(*words)
  return verdict(done, HELD)


def short_validation(code: Code):
  code.write("short.jsonl", ["four words of text"])
  code.finished("short_base")
  folder = code.box / "short"
  held_out = f"--config.data.held_out=source:{code.box / 'short.jsonl'}"
  done = code.train(folder, held_out, "--config.train.eval_every=50")
  if (folder / "metrics.jsonl").is_file() and done.code:
    what, said = verdict(done)
    return (TRACEBACK if what == TRACEBACK else LOST), f"after training: {said}"
  return verdict(done, HELD)


def folder_names(code: Code):
  done = code.python("""
import os
from moe_parity.study.claims import Claims
os.makedirs("a#b%41")
Claims("a#b%41").take("runs/a")
print(len(os.listdir("a#b%41")), flush=True)
os._exit(0)
""")
  if "UserError" in done.last:
    return MISLEADING, done.last
  return (WRONG, "its claims are elsewhere") if done.last == "0" else verdict(done, HELD)


def markup(code: Code):
  done = code.python("""
import pathlib
from tests.fake_study import write_study
write_study("marked")
write_study(pathlib.Path("marked/parts/<img src=x onerror=alert(1)>"))
""")
  assert done.code == 0, done.output
  done = code.cli("report", "marked")
  pages = list(code.box.glob("marked/report/*.html"))
  raw = any("<img src=x onerror" in page.read_text() for page in pages)
  return (WRONG, "stands raw in the page") if raw else verdict(done, HELD)


def fetches(code: Code):
  folder = code.finished("stranger")
  value = json.loads((folder / "config.json").read_text())
  value["data"]["source"] = str(code.box / code.write("theirs.jsonl"))
  (folder / "config.json").write_text(json.dumps(value))
  before = _stores(code)
  done = code.cli("evaluate", str(folder))
  made = _stores(code) - before
  return (ACCEPTED, f"{len(made)} new store") if made else verdict(done, HELD)


def _stores(code: Code) -> set[pathlib.Path]:
  return set((code.box / "cache").rglob("manifest.json"))


def unpickled(code: Code):
  done = code.python("""
import os, pickle
from moe_parity.study import followers
class Payload:
  def __reduce__(self):
    return os.mkdir, ("unpickled",)
followers.hosts.tell = lambda _: pickle.dumps(Payload())
followers.follow(None)
""")
  ran = (code.box / "unpickled").is_dir()
  return (ACCEPTED, "a message ran a function of its choice") if ran else verdict(done, HELD)
