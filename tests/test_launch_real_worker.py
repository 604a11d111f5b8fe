"""gpu.sh and tpu_host.sh with the real worker: stopped, started again, whole in the end."""

import json
import os
import pathlib
import shutil
import signal
import subprocess
import sys

import pytest

from tests.helpers.fake_programs import Programs
from tests.helpers.workers import TINY, end, steps, wait_until
from tests.test_launch_tpu_host import Host

ROOT = pathlib.Path(__file__).resolve().parent.parent
pytestmark = pytest.mark.slow
# In place of the environment that launch/local.sh makes: this one.
WORKER = """#!{python}
import os, pathlib, sys
if sys.argv[1] in ("--setup", "doctor"):
  sys.exit()
pathlib.Path({notes!r}).joinpath(str(os.getpid())).write_text(" ".join(sys.argv))
os.chdir({root!r})  # the host's own folder holds the launchers alone
command = [sys.executable, "-m", "moe_parity.cli", *sys.argv[1:]]
os.execve(sys.executable, command, os.environ | {env!r})
"""


def worker(folder):
  """A program that is the real worker, and notes its process number and its words."""
  notes = folder / "lives"
  notes.mkdir()
  env = {"PYTHONPATH": str(ROOT), "JAX_PLATFORMS": "cpu", "JAX_NUM_CPU_DEVICES": "1"}
  env |= {"MOE_PARITY_CACHE": str(folder / "cache")}
  path = folder / "worker"
  path.write_text(WORKER.format(python=sys.executable, notes=str(notes), root=str(ROOT), env=env))
  path.chmod(0o755)
  return path


def lives(folder, word=""):
  """Process numbers of the worker's lives so far whose words hold `word`."""
  return [int(note.name) for note in (folder / "lives").iterdir() if word in note.read_text()]


def test_a_gpu_worker_that_is_stopped_is_started_again_and_ends(tmp_path):
  """Two GPUs that nvidia-smi names, two workers, one study."""
  shutil.copytree(ROOT / "launch", tmp_path / "launch")
  shutil.copytree(ROOT / "moe_parity/launch", tmp_path / "moe_parity/launch")
  for name in ("__init__.py", "errors.py"):
    shutil.copy(ROOT / "moe_parity" / name, tmp_path / "moe_parity" / name)
  (tmp_path / "launch/local.sh").write_text(f'exec {worker(tmp_path)} "$@"\n')
  programs = Programs(tmp_path)
  programs.write("python3", f'#!/bin/sh\nexec {sys.executable} "$@"\n')
  programs.add("nvidia-smi", "print('0, 580.65.06\\n1, 580.65.06')")
  study = tmp_path / "study"
  words = ["--workers=all", "study", *TINY, "--only=dense,moe_40", f"--workdir={study}"]
  script = subprocess.Popen(
    ["bash", tmp_path / "launch/gpu.sh", *words], env=os.environ | {"PATH": programs.path},
    stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True,
  )  # fmt: skip
  wait_until(lambda: len(steps(study / "runs/moe_40-s0")) > 3, script)
  (second,) = lives(tmp_path, "--shard=2/2")
  os.kill(second, signal.SIGTERM)
  code, output = end(script)
  assert code == 0, output
  assert "stopped with a checkpoint; start it again; started again in 5 s" in output
  assert len(lives(tmp_path, "--shard=2/2")) == 2
  # One that looks while the stopped run is nobody's may end with 75 as well, and is started again.
  assert len(lives(tmp_path, "--shard=1/2")) in (1, 2)
  for run in ("dense-s0", "moe_40-s0"):
    logged = steps(study / "runs" / run)
    assert logged == list(range(1, logged[-1] + 1))
    assert json.loads((study / "runs" / run / "certificate.json").read_text())["passed"]


def test_a_host_of_a_slice_starts_a_stopped_worker_again(tmp_path):
  """tpu_host.sh on one host, as its unit runs it."""
  host, study = Host(tmp_path / "host"), tmp_path / "study"
  shutil.copy(worker(tmp_path), host.programs.folder / "moe-parity")
  words = ["study", *TINY, "--only=dense", f"--workdir={study}"]
  host.set(hosts="1", command=" ".join(words))
  assert host.run().returncode == 0, host.log()
  unit = host.start("work")
  wait_until(lambda: len(steps(study / "runs/dense-s0")) > 3, unit)
  (first,) = lives(tmp_path, "--worker=s-1.us-east5-b")
  os.kill(first, signal.SIGTERM)
  code, output = end(unit)
  assert code == 0, output + host.log()
  assert len(lives(tmp_path, "--worker=s-1.us-east5-b")) == 2
  logged = steps(study / "runs/dense-s0")
  assert logged == list(range(1, logged[-1] + 1)) and (study / "report/index.html").exists()
