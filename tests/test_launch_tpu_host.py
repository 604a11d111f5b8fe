"""launch/tpu_host.sh, run for real on a machine whose cloud, systemd and chips are fakes."""

import json
import pathlib
import subprocess
import sys
import tarfile
import time

import pytest

from tests.helpers.fake_gcloud import Cloud
from tests.helpers.fake_programs import Programs

ROOT = pathlib.Path(__file__).resolve().parent.parent
CURL = """
attributes = json.load(open({file!r}))
name = sys.argv[-1].split("/attributes/")[1]
if name not in attributes:
  sys.exit(22)
print(attributes[name])
"""
UV = """
if "venv" in sys.argv:
  os.makedirs(sys.argv[-1] + "/bin", exist_ok=True)
  os.symlink({python!r}, sys.argv[-1] + "/bin/python")
  os.symlink({worker!r}, sys.argv[-1] + "/bin/moe-parity")
"""


class Host:
  """One host of a slice named s-1."""

  def __init__(self, folder):
    self.folder, self.home = folder, folder / "home"
    self.programs = Programs(folder)
    code = folder / "code.tar.gz"
    with tarfile.open(code, "w:gz") as file:
      for name in ("launch", "pyproject.toml", "constraints.txt", ".python-version"):
        file.add(ROOT / name, name)
      for name in ("moe_parity/launch", "moe_parity/errors.py", "moe_parity/__init__.py"):
        file.add(ROOT / name, name)
    self.cloud = Cloud(self.programs, code=str(code))
    self.cloud.change(queued={"s-1": {"labels": {}, "moves": ["ACTIVE"]}})
    for name in ("systemctl", "systemd-run", "fuser", "shutdown"):
      self.programs.add(name)
    self.worker("sys.exit(0)")
    python, worker = sys.executable, str(self.programs.folder / "moe-parity")
    self.programs.add("uv", UV.format(python=python, worker=worker))
    self.attributes = {
      "startup-script": (ROOT / "launch/tpu_host.sh").read_text(),
      "agent-worker-number": "0",
    }
    given = {"name": "s-1", "api": "tpu", "project": "p", "zone": "us-east5-b", "hours": "2.5"}
    given |= {"hosts": "4", "commit": "c0ffee", "code": "gs://b/a/code.tar.gz"}
    given |= {
      "logs": "gs://b/a/logs/s-1",
      "workdir": "gs://b/a",
      "expires": str(int(time.time()) + 99999),
    }
    self.set(**given, command="study --config=c.py '--only=a b' --workdir=gs://b/a")
    (folder / "dev/vfio").mkdir(parents=True)
    (folder / "dev/vfio/0").touch()

  def set(self, **settings):
    self.attributes |= {f"moe-parity-{name}": value for name, value in settings.items()}

  def worker(self, body):
    """What the worker does; `lives` says which life it is."""
    log = str(self.programs.log)
    self.programs.add("moe-parity", f"lives = open({log!r}).read().count('[\"moe-parity')\n{body}")

  def start(self, *words, **env):
    """The script as a process; what it prints comes with its errors."""
    (self.folder / "attributes.json").write_text(json.dumps(self.attributes))
    self.programs.add("curl", CURL.format(file=str(self.folder / "attributes.json")))
    return subprocess.Popen(
      ["bash", ROOT / "launch/tpu_host.sh", *words],
      env={
        "PATH": self.programs.path,
        "MOE_PARITY_HOME": str(self.home),
        "MOE_PARITY_DEV": str(self.folder / "dev"),
        "MOE_PARITY_LAST_WORDS": "0",
        "MOE_PARITY_RETRY": "0",
        **env,
      },
      stdout=subprocess.PIPE,
      stderr=subprocess.STDOUT,
      text=True,
    )

  def run(self, *words, **env):
    with self.start(*words, **env) as process:
      printed = process.communicate(timeout=60)[0]
    return subprocess.CompletedProcess(process.args, process.returncode, printed)

  def log(self):
    return (self.home / "log").read_text()

  def units(self):
    """What systemd was told to run: unit -> words."""
    calls = self.programs.calls("systemd-run")
    return {next(w for w in call if w.startswith("--unit="))[7:]: call for call in calls}

  @property
  def gave_back(self):
    return self.cloud.nothing_left


@pytest.fixture
def host(tmp_path):
  return Host(tmp_path)


def test_a_boot_sets_all_up_and_starts_the_worker(host):
  done = host.run()
  assert done.returncode == 0, done.stdout + host.log()
  units = host.units()
  assert list(units) == ["moe-parity-expiry", "moe-parity-logs", "moe-parity"]
  assert units["moe-parity"][-2:] == [f"{host.home}/tpu_host.sh", "work"]
  (on,) = [w for w in units["moe-parity-expiry"] if w.startswith("--on-active=")]
  assert 8990 <= int(on[12:-1]) <= 9000
  assert host.programs.calls("fuser") == [["fuser", "-k", f"{host.folder}/dev/vfio/0"]]
  assert host.programs.calls("uv")[1][-1] == ".[test,tpu]"
  (doctor,) = host.programs.calls("moe-parity")
  assert doctor[1:] == ["doctor", "--skip-devices", "--workdir=gs://b/a"]
  assert not host.gave_back


def test_a_host_that_the_doctor_refuses_gives_the_slice_back(host):
  host.worker("print('place  MEND  gs://b/a: 403'); sys.exit(2)")
  assert host.run().returncode != 0
  assert host.gave_back and "gs://b/a: 403" in host.log() and "moe-parity" not in host.units()


def test_the_worker_gets_its_name_its_world_and_its_words(host):
  host.run()
  assert host.run("work").returncode == 0
  call = host.programs.calls("moe-parity")[-1]
  assert call == [
    *("moe-parity", "study", "--config=c.py", "--only=a b", "--workdir=gs://b/a"),
    *("--coordinator=auto", "--worker=s-1.us-east5-b"),
  ]


def test_one_host_has_no_coordinator_and_train_no_worker_name(host):
  host.set(hosts="1", command="train --config=c.py --workdir=gs://b/a")
  host.run()
  host.run("work")
  call = host.programs.calls("moe-parity")[-1]
  assert call[1:] == ["train", "--config=c.py", "--workdir=gs://b/a"]


def test_a_machine_of_a_group_finds_its_place_among_the_names(host):
  del host.attributes["agent-worker-number"]
  host.set(api="gce", hosts="3")
  host.programs.write("hostname", "#!/bin/sh\necho s-1-1\n")
  host.run()
  host.run("work")
  call = host.programs.calls("moe-parity")[-1]
  assert call[-4:] == [
    "--coordinator=s-1-0.us-east5-b.c.p.internal:8476",
    *("--num-processes=3", "--process-id=1", "--worker=s-1.us-east5-b"),
  ]


def test_a_second_boot_keeps_the_first_expiry(host):
  host.run()
  (host.home / "expires").write_text(str(int(time.time()) + 1000))
  host.run()
  (on,) = [w for w in host.programs.calls("systemd-run")[3] if w.startswith("--on-active=")]
  assert 990 <= int(on[12:-1]) <= 1000


def test_the_expiry_of_the_whole_is_the_expiry_of_a_late_slice(host):
  host.set(expires=str(int(time.time()) + 600))
  host.run()
  (on,) = [w for w in host.units()["moe-parity-expiry"] if w.startswith("--on-active=")]
  assert 590 <= int(on[12:-1]) <= 600


def test_a_boot_after_the_expiry_gives_the_slice_back(host):
  host.set(expires=str(int(time.time()) - 1))
  host.run()
  assert host.gave_back and "moe-parity" not in host.units()


@pytest.mark.parametrize("broken", ["code", "install"])
def test_a_host_that_cannot_be_set_up_gives_the_slice_back(host, broken):
  if broken == "code":
    host.cloud.change(fail={"storage cp gs://b/a/code.tar.gz": "403: no access"})
  else:
    host.programs.add("uv", "sys.exit(1)")
  assert host.run().returncode != 0
  assert host.gave_back and "could not be set up" in host.log()
  assert "moe-parity" not in host.units()


def test_code_that_comes_at_a_later_try_is_taken(host):
  host.programs.write("sleep", "#!/bin/sh\nrm -f $MOE_PARITY_HOME/../fails\n")
  host.cloud.change(fail={})
  body = (host.programs.folder / "gcloud").read_text()
  blocked = f"if os.path.exists({str(host.folder / 'fails')!r}) and 'code.tar.gz' in sys.argv[-1]:"
  host.programs.write(
    "gcloud", body.replace("words = sys.argv", f"{blocked}\n  sys.exit(1)\nwords = sys.argv")
  )
  (host.folder / "fails").touch()
  assert host.run().returncode == 0
  assert "moe-parity" in host.units()


def test_a_worker_that_asks_is_started_again_on_the_same_host(host):
  host.run()
  host.worker("print('life', lives - 1); sys.exit(75 if lives < 3 else 0)")
  assert host.run("work").returncode == 0
  assert len(host.programs.calls("moe-parity")) == 3
  assert "life 1" in host.log() and "life 2" in host.log()


@pytest.mark.parametrize("status", ["1", "2"])
def test_a_failure_gives_the_slice_back_from_any_host(host, status):
  host.run()
  host.attributes["agent-worker-number"] = "3"
  host.run("ended", EXIT_CODE="exited", EXIT_STATUS=status)
  assert host.gave_back
  assert host.cloud.holds()["copied"][-1][1].startswith("gs://b/a/logs/s-1/host-3-")


@pytest.mark.parametrize(("number", "back"), [("0", True), ("2", False)])
def test_a_complete_study_is_given_back_by_the_first_host(host, number, back):
  host.run()
  host.attributes["agent-worker-number"] = number
  host.run("ended", EXIT_CODE="exited", EXIT_STATUS="0")
  assert host.gave_back is back
  assert host.programs.calls("shutdown") == []


@pytest.mark.parametrize(("code", "status"), [("exited", "75"), ("killed", "TERM")])
def test_a_worker_that_was_stopped_keeps_its_slice(host, code, status):
  host.run()
  host.run("ended", EXIT_CODE=code, EXIT_STATUS=status)
  assert not host.gave_back and host.programs.calls("shutdown") == []
  assert host.cloud.holds()["copied"][-1][1].startswith("gs://b/a/logs/s-1/host-0-")


def test_a_slice_that_may_not_delete_itself_is_switched_off(host):
  host.run()
  host.cloud.change(fail={"delete s-1": "PERMISSION_DENIED"})
  host.run("expired")
  assert host.programs.calls("shutdown") == [["shutdown", "-h", "now"]]
  assert "could not be deleted" in host.log()


def test_a_bucket_that_is_away_stops_no_log_and_no_work(host):
  host.run()
  host.cloud.change(fail={"storage cp": "503"})
  assert host.run("logs").returncode == 0


def test_each_life_of_a_machine_has_a_log_of_its_own(host):
  host.run()
  host.run("logs")
  (host.home / "booted").write_text("20260101-000000")
  host.run("logs")
  first, second = [copy[1] for copy in host.cloud.holds()["copied"] if "/logs/" in copy[1]][-2:]
  assert first != second and second == "gs://b/a/logs/s-1/host-0-20260101-000000.log"


def test_a_fake_program_replaces_a_link_and_not_its_target(tmp_path):
  target = tmp_path / "sleep"
  target.write_text("the machine's own")
  programs = Programs(tmp_path / "fakes")
  (programs.folder / "sleep").unlink()
  (programs.folder / "sleep").symlink_to(target)
  programs.write("sleep", "a fake")
  assert target.read_text() == "the machine's own"
