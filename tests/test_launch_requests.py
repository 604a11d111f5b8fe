"""The commands for gcloud, and the names of slices, against independent sources."""

import argparse
import json
import os
import pathlib
import shutil
import subprocess

import pytest

from moe_parity.errors import UserError
from moe_parity.launch import tpu_look, tpu_plan, tpu_requests
from moe_parity.launch.accelerators import CHIPS, slice_type
from moe_parity.planning import tpu_slices


def named_slices():
  for generation in tpu_slices.GENERATIONS.values():
    for grid in generation.grids:
      chips = tpu_slices.Slice(generation, grid).num_chips
      if generation.name in CHIPS and chips != 2:
        yield f"{generation.name}-{chips * generation.units_in_name}"


@pytest.mark.parametrize("name", list(named_slices()))
def test_a_slice_is_the_one_that_planning_knows(name):
  ours, theirs = slice_type(name), tpu_slices.parse_slice(name)
  assert ours.num_chips == theirs.num_chips and ours.name == name
  if ours.num_chips > 1:
    assert sorted(ours.topology.split("x")) == sorted(map(str, theirs.grid))


@pytest.mark.parametrize(
  ("name", "hosts", "machine", "topology", "accelerator"),
  [
    ("v6e-1", 1, "ct6e-standard-1t", "1x1", "v6e-1"),
    ("v6e-8", 1, "ct6e-standard-8t", "2x4", "v6e-8"),
    ("v6e-16", 4, "ct6e-standard-4t", "4x4", "v6e-16"),
    ("v5litepod-16", 4, "ct5lp-hightpu-4t", "4x4", "v5litepod-16"),
    ("v5p-8", 1, "ct5p-hightpu-4t", "2x2x1", "v5p-8"),
    ("v5p-128", 16, "ct5p-hightpu-4t", "4x4x4", "v5p-128"),
    ("tpu7x-64", 8, "tpu7x-standard-4t", "2x4x4", "tpu7x-64"),
  ],
)
def test_hosts_and_machines_of_a_slice(name, hosts, machine, topology, accelerator):
  found = slice_type(name)
  assert (found.num_hosts, found.machine_type) == (hosts, machine)
  assert (found.topology, found.accelerator_type) == (topology, accelerator)


@pytest.mark.parametrize("name", ["v6e-2", "v6e-12", "v5p-9", "v5p-2", "v6e-512", "v6e", "v4-8"])
def test_a_slice_that_is_not_built_is_refused(name):
  with pytest.raises(UserError, match=f"--type={name}"):
    slice_type(name)


def test_a_value_with_a_comma_gets_another_delimiter():
  assert tpu_requests.gcloud_dict({"a": "1", "b": "2"}) == "a=1,b=2"
  assert tpu_requests.gcloud_dict({"a": "1,2", "b": "x y"}) == "^|^a=1,2|b=x y"
  assert tpu_requests.gcloud_dict({"a": "1,2|3", "b": "2"}) == "^;^a=1,2|3;b=2"


def requests(api="tpu", **changes):
  options = {
    "type": "v6e-16",
    "slices": 1,
    "hours": 2.5,
    "wait_hours": 1.0,
    "name": "s",
    "api": api,
  }
  options |= {"project": "p", "zone": "us-east5-b", "spot": True, "reserved": False, "network": ""}
  options |= {"subnetwork": "", "service_account": "me@p", "image": "ours/tpu"} | changes
  words = ["study", "--config=configs/paper_2b.py", "--only=a,b", "--workdir=gs://b/s"]
  return tpu_plan.plan(argparse.Namespace(**options), words, "0123456789abcdef", 1000)


def every_command():
  for api in ("tpu", "gce"):
    for changes in ({}, {"spot": False, "reserved": True, "network": "n", "subnetwork": "m"}):
      (request,) = requests(api, **changes)
      yield from tpu_requests.create(request)
    yield from tpu_requests.delete("s-1", api, "p", "us-east5-b")
    yield from tpu_requests.listing(api, "p", "us-east5-b")
    yield tpu_requests.ssh("s-1", api, "p", "us-east5-b", "all", "ls")
  yield tpu_requests.hosts_of("s-1", "p", "us-east5-b")
  looks = tpu_look.looks(
    api="tpu", project="p", zone="us-east5-b", bucket="b", ignore_changes=False
  )
  yield from (look.line for look in looks if look.line.argv[0] == "gcloud")
  yield from tpu_plan.ship("0123", "gs://b/a")[1:]


def test_a_single_host_has_no_wiring_to_ask_for():
  (one,) = requests("gce", type="v6e-8")
  kinds = [line.argv[2] for line in tpu_requests.create(one)]
  assert kinds == ["instance-templates", "instance-groups"]
  assert not any("workload-policy" in word for word in tpu_requests.create(one)[1].argv)


def test_an_expiry_is_stated_to_the_cloud_where_it_has_one():
  (request,) = requests("gce")
  template = tpu_requests.create(request)[1].argv
  assert (
    "--max-run-duration=9000s" in template and "--instance-termination-action=DELETE" in template
  )
  (queued,) = requests("tpu")
  assert "--valid-until-duration=3600s" in tpu_requests.create(queued)[0].argv
  assert queued.metadata["moe-parity-expires"] == queued.labels["expires"] == "13600"


@pytest.mark.slow
@pytest.mark.skipif(not shutil.which("gcloud"), reason="gcloud judges its own flags where it is")
def test_gcloud_itself_takes_every_flag(tmp_path):
  # Offline: a wrong flag ends with 2 and `unrecognized arguments`, a right one asks for a login.
  env = os.environ | {"CLOUDSDK_CONFIG": str(tmp_path), "CLOUDSDK_CORE_DISABLE_PROMPTS": "1"}
  for line in every_command():
    done = subprocess.run(line.argv, env=env, capture_output=True, text=True, timeout=120)
    assert done.returncode != 2, done.stderr
    assert "unrecognized" not in done.stderr and "invalid choice" not in done.stderr.lower()


def test_a_broken_result_file_is_no_result(tmp_path):
  (tmp_path / "compile_x.json").write_text("{")
  (tmp_path / "compile_y.json").write_text(json.dumps([1]))
  finding = tpu_look.fits(pathlib.Path(tmp_path), "configs/a.py:b=1", slice_type("v6e-16"))
  assert finding.warning and "compile --config=configs/a.py:b=1 --topology=v6e-16" in finding.mend
