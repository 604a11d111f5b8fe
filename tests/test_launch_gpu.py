"""launch/gpu.sh: CUDA by the driver, one worker a GPU."""

import json
import pathlib

import pytest

from moe_parity.errors import UserError
from moe_parity.launch import gpu
from moe_parity.launch.__main__ import main
from tests.helpers.fake_programs import Programs

SMI = "print('0, 580.65.06\\n1, 580.65.06\\n3, 580.65.06')\n"
STUDY = ("study", "--config=configs/demo.py", "--workdir=runs/x")


@pytest.fixture
def programs(tmp_path, monkeypatch):
  programs = Programs(tmp_path)
  monkeypatch.setenv("PATH", programs.path)
  monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
  programs.add("nvidia-smi", SMI)
  return programs


@pytest.mark.parametrize(
  ("driver", "extra"),
  [("580.65", "gpu"), ("610.1", "gpu"), ("579.9", "gpu-cuda12"), ("525", "gpu-cuda12")],
)
def test_the_driver_decides_the_cuda(driver, extra):
  assert gpu.extra_for_driver(driver) == extra


def test_a_driver_older_than_any_cuda_of_jax_is_refused():
  with pytest.raises(UserError, match=r"470\.82.*525.*update"):
    gpu.extra_for_driver("470.82.01")


def test_extras_of_gpus_are_extras_of_the_package():
  import tomllib

  root = pathlib.Path(__file__).resolve().parent.parent
  extras = tomllib.loads((root / "pyproject.toml").read_text())["project"]["optional-dependencies"]
  assert {extra for _, extra in gpu.EXTRAS} <= set(extras)


def test_without_workers_one_run_gets_all_gpus(programs, capsys):
  assert main(["gpu", "--dry-run", "bench", "--json"]) == 0
  (line,) = capsys.readouterr().out.splitlines()
  assert line.startswith("EXTRA=gpu bash ") and line.endswith("launch/local.sh bench --json")


def test_the_demo_for_a_gpu_is_an_argument(programs, capsys):
  assert main(["gpu", "--dry-run", "demo", "--size=gpu"]) == 0
  (line,) = capsys.readouterr().out.splitlines()
  assert line.startswith("EXTRA=gpu bash ") and line.endswith("launch/local.sh demo --size=gpu")


def test_all_workers_are_one_a_gpu_each_with_its_share(programs, capsys):
  assert main(["gpu", "--dry-run", "--workers=all", *STUDY]) == 0
  setup, *lines = capsys.readouterr().out.splitlines()
  assert setup.endswith("local.sh --setup")
  assert len(lines) == 3
  for i, (line, device) in enumerate(zip(lines, "013", strict=True), 1):
    assert f"CUDA_VISIBLE_DEVICES={device} " in line and f"--shard={i}/3 " in line
    assert line.endswith(f"-gpu{device}")


def test_visible_devices_are_the_gpus_there_are(programs, capsys, monkeypatch):
  monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "3,MIG-7a")
  assert main(["gpu", "--dry-run", "--workers=all", *STUDY]) == 0
  lines = capsys.readouterr().out.splitlines()[1:]
  assert [
    "CUDA_VISIBLE_DEVICES=" + d in line for d, line in zip(("3", "MIG-7a"), lines, strict=True)
  ]


@pytest.mark.parametrize(
  ("visible", "what"),
  [("1,1", "a GPU twice"), ("0,7", "GPU 7, which is not here"), ("GPU-a,GPU-a", "a GPU twice")],
)
def test_gpus_that_cannot_each_have_a_worker(programs, capsys, monkeypatch, visible, what):
  monkeypatch.setenv("CUDA_VISIBLE_DEVICES", visible)
  assert main(["gpu", "--dry-run", "--workers=all", *STUDY]) == 2
  said = capsys.readouterr().err
  assert f"CUDA_VISIBLE_DEVICES={visible!r} names {what}; give 0,1,3\n" in said


@pytest.mark.parametrize("visible", ["", "-1", "-1,0"])
def test_hidden_gpus_are_no_workers(programs, capsys, monkeypatch, visible):
  """With CUDA_VISIBLE_DEVICES=-1 a worker would train on the CPU."""
  monkeypatch.setenv("CUDA_VISIBLE_DEVICES", visible)
  assert main(["gpu", "--dry-run", "--workers=all", *STUDY]) == 2
  assert f"CUDA_VISIBLE_DEVICES={visible!r} hides every GPU" in capsys.readouterr().err


@pytest.mark.parametrize(
  ("words", "says"),
  [
    (["--workers=4", *STUDY], "offers 3 GPUs"),
    (["--workers=0", *STUDY], "offers 3 GPUs"),
    (["--workers=two", *STUDY], "from 1 to 3, or all"),
    (["--workers=all", "train", "--workdir=a"], "only 'study --workdir=...'"),
    (["--workers=all", "study", "--config=a"], "only 'study --workdir=...'"),
    (["--workers=all", *STUDY, "--shard=1/2"], "--shard"),
    (["--workers=all", *STUDY, "--worker", "me"], "--worker:"),
    ([], "nothing"),
    (["--", "--config=a"], "no moe-parity command"),
  ],
)
def test_what_cannot_be_launched_says_why_before_anything_starts(programs, capsys, words, says):
  assert main(["gpu", *words]) == 2
  assert says in capsys.readouterr().err
  assert programs.calls("bash") == []


def test_no_driver_and_a_broken_driver_have_a_way_out(programs, capsys):
  programs.add("nvidia-smi", "sys.exit('NVIDIA-SMI has failed: error 9')")
  assert main(["gpu", "bench"]) == 2
  assert "error 9" in capsys.readouterr().err
  (programs.folder / "nvidia-smi").unlink()
  assert main(["gpu", "bench"]) == 2
  assert "launch/local.sh" in capsys.readouterr().err


def test_a_worker_that_asks_is_started_again_a_failed_one_not(
  programs, capsys, monkeypatch, tmp_path
):
  # The fake of local.sh: GPU 1 is stopped twice, GPU 3 fails, GPU 0 is done at once.
  body = f"""
gpu = os.environ.get("CUDA_VISIBLE_DEVICES", "")
calls = [json.loads(line)["env"] for line in open({str(programs.log)!r})]
lives = sum(env.get("CUDA_VISIBLE_DEVICES") == gpu for env in calls)
print("life", lives, "of", gpu)
sys.exit({{"1": 75 if lives < 3 else 0, "3": 1}}.get(gpu, 0))
"""
  (programs.folder / "bash").unlink()
  programs.add("bash", body)
  monkeypatch.setattr(
    "moe_parity.launch.supervise.Policy.__new__.__defaults__", (60, 5, 0.01, 0.01)
  )
  words = ("study", "--config=a", f"--workdir={tmp_path}/study")
  assert main(["gpu", "--workers=all", *words]) == 1
  lives = [record["env"].get("CUDA_VISIBLE_DEVICES") for record in programs.records()]
  assert (lives.count("0"), lives.count("1"), lives.count("3")) == (1, 3, 1)
  log = (tmp_path / "study/logs/gpu1.log").read_text()
  assert log.splitlines() == ["life 1 of 1", "life 2 of 1", "life 3 of 1"]
  assert "gpu3: a run or the certificate failed" in capsys.readouterr().err
  setup = json.loads(programs.log.read_text().splitlines()[1])
  assert setup["argv"][-1] == "--setup" and setup["env"] == {"EXTRA": "gpu"}


def test_logs_of_a_study_in_a_bucket_are_on_this_host():
  assert str(gpu.logs_of(["study", "--workdir=gs://b/a"], "")) == "runs/logs"
  assert str(gpu.logs_of(["study", "--workdir", "runs/a"], "")) == "runs/a/logs"
  assert str(gpu.logs_of(["study", "--workdir=runs/a"], "here")) == "here"


def test_setup_alone_makes_the_environment_of_the_driver(programs, capsys):
  assert main(["gpu", "--dry-run", "--setup"]) == 0
  (line,) = capsys.readouterr().out.splitlines()
  assert line.startswith("EXTRA=gpu bash ") and line.endswith("launch/local.sh --setup")
