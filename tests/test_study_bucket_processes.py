"""Several processes as one run on a bucket, which is all that they share: killed and resumed."""

import json
import signal

import pytest

from tests.helpers.bucket_server import BucketServer
from tests.helpers.workers import TINY, end, start, wait_until, world

pytest.importorskip("gcsfs", reason="pip install gcsfs")
pytestmark = pytest.mark.slow
RUN = "studies/a/runs/moe_40-s0"
STUDY = ["study", "--only=moe_40", *TINY, "--config.mesh.data=2", "--config.train.save_every=30",
         "--config.train.log_every=5", "--config.budget.batch_multiple=2"]  # fmt: skip


@pytest.fixture
def bucket():
  server = BucketServer()
  yield server
  server.stop()


class Hosts:
  """Two hosts of a slice: each has its own disk, and both reach the bucket."""

  def __init__(self, bucket, folder):
    self._bucket, self._folder, self._started = bucket, folder, []

  def start(self):
    place = ["--workdir=gs://mine/studies/a", "--worker=slice-1"]
    place += ["--compile-cache=gs://mine/studies/a/launch/compiled"]
    both = [
      start(self._folder / f"host-{i}", *STUDY, *place, *words, **self._bucket.environment)
      for i, words in enumerate(world(2))
    ]
    self._started += both
    return both

  def end(self):
    for process in self._started:
      process.kill()

  def noted(self):
    """The step that a replacement would resume from, 0 for none."""
    name = f"{RUN}/latest.json"
    return json.loads(self._bucket.read(name))["step"] if self._bucket.names(name) else 0

  def logged(self):
    """The steps of metrics.jsonl in the newest snapshot."""
    latest = json.loads(self._bucket.read(f"{RUN}/latest.json"))
    lines = self._bucket.read(f"{RUN}/{latest['snapshot']}/metrics.jsonl").splitlines()
    return [json.loads(line)["step"] for line in lines]


@pytest.fixture
def hosts(bucket, tmp_path):
  hosts = Hosts(bucket, tmp_path)
  yield hosts
  hosts.end()


def test_two_processes_on_a_bucket_are_killed_and_resume(hosts, bucket, tmp_path):
  """Ends as a run of one process that nobody killed, on a disk."""
  # As `launch/tpu.sh` leaves the place before the study begins.
  bucket.write("studies/a/launch/code/c0ffee.tar.gz", b"code")
  killed = hosts.start()
  wait_until(lambda: hosts.noted() >= 30, *killed)
  for process in killed:
    process.kill()
    process.communicate()
  at_kill = hosts.noted()
  shards = bucket.names(f"{RUN}/shards")
  assert {name.split("ocdbt.")[1].split("/")[0] for name in shards if "/ocdbt." in name} == {
    "process_0",
    "process_1",
  }
  stopped = hosts.start()
  wait_until(lambda: hosts.noted() > at_kill, *stopped)
  stopped[1].send_signal(signal.SIGTERM)
  ends = [end(process) for process in stopped]
  assert [code for code, _ in ends] == [75, 75], ends
  assert f"stopped with a checkpoint of step {hosts.noted()} of" in ends[0][1]
  logged = hosts.logged()
  assert logged == sorted(set(logged)) and 0 <= hosts.noted() - logged[-1] < 5
  ends = [end(process) for process in hosts.start()]
  assert [code for code, _ in ends] == [0, 0], ends
  assert not bucket.names(f"{RUN}/shards") and not bucket.names(f"{RUN}/latest.json")
  assert bucket.names("studies/a/launch/compiled")
  alone = [*STUDY, f"--workdir={tmp_path}/alone"]
  code, output = end(start(tmp_path / "host-0", *alone, devices=2))
  assert code == 0, output
  result, expected = (
    json.loads(text)
    for text in (
      bucket.read(f"{RUN}/result.json"),
      (tmp_path / "alone/runs/moe_40-s0/result.json").read_bytes(),
    )
  )
  assert result["validation"]["bpc"] == pytest.approx(expected["validation"]["bpc"], rel=1e-6)
  certificate = json.loads(bucket.read(f"{RUN}/certificate.json"))
  assert certificate["passed"], [row for row in certificate["checks"] if not row["passed"]]
