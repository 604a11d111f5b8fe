"""launch/tpu.sh against a fake cloud: a test for each row of the table in launch/README.md."""

import json
import time

import pytest

from moe_parity.launch import tpu_slices
from moe_parity.launch.__main__ import main
from tests.helpers.fake_gcloud import Cloud
from tests.helpers.fake_programs import Programs

COMMIT = "0123456789abcdef0123456789abcdef01234567"
WHERE = ("--project=p", "--zone=us-east5-b")
STUDY = ("study", "--config=configs/paper_2b.py", "--workdir=gs://b/My_Study")
UP = ("--type=v6e-16", "--slices=3", "--hours=2", "--wait-hours=1", "--spot")
GIT = """
if "rev-parse" in sys.argv:
  print({commit!r})
elif "status" in sys.argv:
  print({changed!r})
elif "archive" in sys.argv:
  (file,) = [word[9:] for word in sys.argv if word.startswith("--output=")]
  open(file, "w").write("tar")
"""


@pytest.fixture
def programs(tmp_path, monkeypatch):
  programs = Programs(tmp_path)
  programs.add("git", GIT.format(commit=COMMIT, changed=""))
  monkeypatch.setenv("PATH", programs.path)
  monkeypatch.setenv("TMPDIR", str(tmp_path))
  monkeypatch.setenv("LOGNAME", "ada")
  monkeypatch.setattr(tpu_slices, "PAUSE", 0.0)
  monkeypatch.setattr(tpu_slices, "WATCH_PAUSE", 0.0)
  return programs


@pytest.fixture
def cloud(programs):
  return Cloud(programs)


def up(*more, words=STUDY, options=UP):
  return main(["tpu", "up", *options, *WHERE, *more, "--", *words])


def down(name="my-study", *more):
  return main(["tpu", "down", f"--name={name}", *WHERE, *more])


def states(cloud):
  return {name: request["moves"][0] for name, request in cloud.holds()["queued"].items()}


def test_up_asks_for_every_slice_on_its_own_and_ships_the_commit(cloud, programs):
  assert up("--yes") == 0
  assert cloud.created() == ["my-study-1", "my-study-2", "my-study-3"]
  (copied,) = cloud.holds()["copied"]
  assert copied[1] == f"gs://b/My_Study/launch/code/{COMMIT}.tar.gz"
  made = cloud.holds()["queued"]["my-study-2"]
  assert made["type"] == "v6e-16"
  assert made["labels"]["moe-parity"] == "my-study" and made["labels"]["owner"] == "ada"
  assert abs(int(made["labels"]["expires"]) - time.time() - 3 * 3600) < 60
  assert made["metadata"]["moe-parity-workdir"] == "gs://b/My_Study"
  compiled = "--compile-cache=gs://b/My_Study/launch/compiled"
  assert made["metadata"]["moe-parity-command"] == " ".join([*STUDY, compiled])
  assert made["metadata"]["moe-parity-hosts"] == "4"
  assert (call := programs.calls("gcloud")[-1])[-1] == "--quiet" and "--spot" in call


def test_without_yes_it_says_the_cost_and_asks_for_nothing(cloud, capsys):
  assert up("--price=1.5") == 0
  said = capsys.readouterr().err
  assert "3 x v6e-16 = 48 chips" in said and "96 chip-hours, 144.00 USD" in said
  assert "--yes" in said and cloud.nothing_left and cloud.holds()["copied"] == []


@pytest.mark.parametrize("state", ["ACTIVE", "SUSPENDED"])
def test_a_name_that_another_study_has_is_refused(cloud, capsys, state):
  cloud.change(moves=[[state]])
  assert up("--yes") == 0
  before = cloud.holds()["queued"]
  other = (*STUDY[:2], "--workdir=gs://b/bob/My_Study")
  assert up("--yes", words=other) == 2
  said = capsys.readouterr().err
  assert "my-study-1 is a slice of ada" in said and "give --name" in said
  assert cloud.holds()["queued"].keys() == before.keys()
  assert up("--yes", "--name=bobs", words=other) == 0
  assert "bobs-3" in cloud.holds()["queued"]


def test_a_dry_run_prints_every_command_and_runs_none(cloud, programs, capsys):
  assert up("--dry-run") == 0
  assert programs.calls("gcloud") == []
  lines = capsys.readouterr().out.splitlines()
  assert sum(" queued-resources create my-study-" in line for line in lines) == 3
  first = next(i for i, line in enumerate(lines) if "queued-resources create" in line)
  assert "storage cp" in lines[first - 1] and "archive" in lines[first - 2]


def test_what_a_dry_run_prints_is_what_runs(cloud, programs, capsys, monkeypatch):
  import shlex

  monkeypatch.setattr(time, "time", lambda: 1.8e9)
  up("--dry-run")
  shown = [shlex.split(line) for line in capsys.readouterr().out.splitlines()]
  up("--yes")
  assert sorted(shown) == sorted(call for call in programs.calls() if "rev-parse" not in call)


def test_every_obstacle_is_named_at_once_and_nothing_asked_for(programs, capsys):
  programs.add("git", GIT.format(commit=COMMIT, changed=" M moe_parity/cli.py"))
  cloud = Cloud(programs, account="", apis=["storage.googleapis.com"], location="EUROPE-WEST4")
  assert up("--yes") == 2
  said = capsys.readouterr().err
  for cure in (
    "gcloud auth login",
    "gcloud services enable tpu.googleapis.com",
    "use a bucket in us-east5",
    "--ignore-changes",
  ):
    assert cure in said
  assert cloud.created() == []


def test_a_missing_bucket_comes_with_the_command_that_makes_it(cloud, capsys):
  cloud.change(fail={"buckets describe": "not found: 404"})
  assert up("--yes") == 2
  assert "gcloud storage buckets create gs://b --location=us-east5" in capsys.readouterr().err


def test_a_multi_region_holds_its_regions(cloud):
  cloud.change(location="US")
  assert up("--yes") == 0
  cloud.change(location="EU")
  assert up("--yes") == 2


def test_a_role_that_is_not_seen_warns_and_does_not_stop(cloud, capsys):
  cloud.change(roles=["roles/viewer"])
  assert up("--yes") == 0
  assert (
    "add-iam-policy-binding p --member=user:YOU --role=roles/tpu.admin" in capsys.readouterr().err
  )


def test_obstacles_that_a_person_accepts_do_not_stop(programs):
  programs.add("git", GIT.format(commit=COMMIT, changed=" M moe_parity/cli.py"))
  cloud = Cloud(programs, location="EUROPE-WEST4")
  assert up("--yes", "--any-region", "--ignore-changes") == 0
  assert len(cloud.created()) == 3


def test_a_request_refused_midway_leaves_nothing_behind(cloud, capsys):
  cloud.change(fail={"queued-resources create my-study-3": "RESOURCE_EXHAUSTED: quota of v6e"})
  assert up("--yes") == 1
  said = capsys.readouterr().err
  assert "quota of v6e" in said and "deleting my-study-1, my-study-2, my-study-3" in said
  assert cloud.nothing_left


def test_a_refusal_does_not_touch_slices_that_ran_before(cloud):
  assert up("--yes", options=("--type=v6e-16", "--slices=1")) == 0
  cloud.change(fail={"queued-resources create my-study-3": "quota"})
  assert up("--yes") == 1
  assert states(cloud) == {"my-study-1": "ACTIVE"}


def test_ctrl_c_while_asking_leaves_nothing_behind(cloud, monkeypatch):
  run, seen = tpu_slices.Shell.run, []

  def interrupted(self, line, **options):
    result = run(self, line, **options)
    seen.append(line)
    if "my-study-2" in line.argv and "create" in line.argv:
      raise KeyboardInterrupt
    return result

  monkeypatch.setattr(tpu_slices.Shell, "run", interrupted)
  assert up("--yes") == 130
  assert cloud.created() == ["my-study-1", "my-study-2"] and cloud.nothing_left


def test_up_again_asks_only_for_what_was_taken_away(cloud):
  cloud.change(moves=[["ACTIVE"], ["SUSPENDED"], ["FAILED"], ["ACTIVE"]])
  assert up("--yes") == 0
  assert up("--yes") == 0
  assert cloud.created() == [f"my-study-{k}" for k in (1, 2, 3, 2, 3)]
  assert states(cloud) == dict.fromkeys(("my-study-1", "my-study-2", "my-study-3"), "ACTIVE")


def test_watch_replaces_preempted_slices_until_all_have_ended(cloud):
  cloud.change(
    moves=[
      ["ACTIVE", "GONE"],
      ["WAITING_FOR_RESOURCES", "ACTIVE", "SUSPENDING", "SUSPENDED"],
      ["PROVISIONING", "ACTIVE", "GONE"],
      ["ACTIVE", "GONE"],
    ]
  )
  assert up("--yes", "--watch") == 0
  assert cloud.created() == [f"my-study-{k}" for k in (1, 2, 3, 2)]
  assert cloud.nothing_left


def test_watch_gives_up_a_request_that_is_refused_every_time(cloud, capsys):
  cloud.change(moves=[["ACTIVE"], ["FAILED"]])
  assert up("--yes", "--watch", options=("--type=v6e-16", "--slices=2")) == 2
  assert cloud.created().count("my-study-2") == 3
  assert "refused 3 times in a row" in capsys.readouterr().err and cloud.nothing_left


def test_watch_outlasts_looks_that_are_not_answered(cloud, capsys, monkeypatch):
  cloud.change(moves=[["ACTIVE"]])
  sleeps = []

  def sleep(seconds):
    sleeps.append(seconds)
    if len(sleeps) == 1:  # the network goes
      cloud.change(fail={"queued-resources list": "Unable to reach the server"})
    elif len(sleeps) == 3:  # and comes back, after the slices have ended
      cloud.change(fail={}, queued={})

  monkeypatch.setattr(time, "sleep", sleep)
  assert up("--yes", "--watch") == 0
  said = capsys.readouterr().err
  assert said.count("not answered (ERROR: (gcloud) Unable to reach the server)") == 2
  assert "no slice is left" in said


def test_watch_ends_when_no_look_is_answered_any_more(cloud, capsys, monkeypatch):
  cloud.change(moves=[["ACTIVE"]])
  gone = {"queued-resources list": "Unable to reach the server"}
  monkeypatch.setattr(time, "sleep", lambda seconds: cloud.change(fail=gone))
  monkeypatch.setattr(tpu_slices, "MOST_UNANSWERED", 3)
  assert up("--yes", "--watch") == 1
  assert capsys.readouterr().err.count("not answered") == 2
  assert len(cloud.holds()["queued"]) == 3


def test_watch_deletes_what_is_past_the_expiry(cloud, capsys, monkeypatch):
  clock = iter([1.8e9] + [1.8e9 + 3.1 * 3600] * 9)
  monkeypatch.setattr(time, "time", lambda: next(clock))
  assert up("--yes", "--watch") == 75
  assert "the time is over" in capsys.readouterr().err and cloud.nothing_left


def test_down_deletes_the_study_and_nothing_else(cloud):
  assert up("--yes") == 0
  assert up("--yes", "--name=other", options=("--type=v5e-4",)) == 0
  assert down() == 0
  assert states(cloud) == {"other-1": "ACTIVE"}
  assert down("other") == 0
  assert cloud.nothing_left and states(cloud) == {}


@pytest.mark.parametrize("action", ["down", "stop"])
def test_slices_of_a_colleague_are_left_alone(cloud, programs, capsys, monkeypatch, action):
  monkeypatch.setenv("LOGNAME", "Bob.B")
  assert up("--yes") == 0
  monkeypatch.setenv("LOGNAME", "ada")
  before = len(programs.calls())
  assert main(["tpu", action, "--name=My_Study", *WHERE]) == 2
  said = capsys.readouterr().err.splitlines()[-1]
  assert said == (
    "error: --name=My_Study: bob-b asked for it, not ada; nothing was done."
    f" '{action} --everyone' does it to all of that name"
  )
  assert not [c for c in programs.calls()[before:] if "delete" in c or "ssh" in c]
  assert main(["tpu", action, "--name=My_Study", "--everyone", *WHERE]) == 0
  assert cloud.nothing_left == (action == "down")


def test_slices_without_an_owner_are_not_taken_for_mine(cloud, capsys):
  up("--yes", options=("--type=v6e-16", "--slices=1"))
  queued = cloud.holds()["queued"]
  del queued["my-study-1"]["labels"]["owner"]
  cloud.change(queued=queued)
  assert down() == 2
  assert "someone without a label asked for it" in capsys.readouterr().err
  assert states(cloud) == {"my-study-1": "ACTIVE"}


def test_down_says_where_it_found_nothing(cloud, capsys):
  assert up("--yes", options=GCE) == 0
  assert down() == 0
  assert "no slices of --api=tpu in us-east5-b; 'status' lists" in capsys.readouterr().err
  assert not cloud.nothing_left


def test_a_user_without_a_name_is_one_line(cloud, capsys, monkeypatch):
  def unknown():
    raise OSError("No username set in the environment")

  monkeypatch.setattr("getpass.getuser", unknown)
  assert up() == 2
  assert "set LOGNAME=YOU" in capsys.readouterr().err


def test_down_that_is_refused_names_what_is_still_there(cloud, capsys):
  assert up("--yes") == 0
  cloud.change(fail={"delete my-study-2": "PERMISSION_DENIED: tpu.nodes.delete"})
  assert down() == 2
  said = capsys.readouterr().err
  assert "still there, and perhaps paid for: my-study" in said and "PERMISSION_DENIED" in said
  cloud.change(fail={})
  assert down() == 0 and cloud.nothing_left


def test_down_in_a_dry_run_deletes_nothing(cloud, capsys):
  up("--yes")
  assert down("my-study", "--dry-run") == 0
  assert capsys.readouterr().out.count("queued-resources delete my-study-") == 3
  assert len(states(cloud)) == 3


def test_status_in_a_dry_run_prints_its_commands_alone(cloud, programs, capsys):
  assert main(["tpu", "status", "--dry-run", *WHERE]) == 0
  assert programs.calls("gcloud") == []
  lines = capsys.readouterr().out.splitlines()
  assert [line.split(" --")[0] for line in lines] == [
    "gcloud compute tpus queued-resources list",
    "gcloud compute instance-templates list",
    "gcloud compute instance-groups managed list",
  ]


def test_sweep_takes_the_expired_suspended_and_failed_of_mine(cloud, capsys):
  def request(state, owner="ada", expires=4e9):
    labels = {"moe-parity": "s", "owner": owner, "expires": str(int(expires))}
    return {"labels": labels, "metadata": {}, "type": "v6e-16", "moves": [state]}

  stranger = {"name": "a/stranger", "state": {"state": "FAILED"}, "tpu": {"nodeSpec": [{}]}}
  cloud.change(
    strangers=[stranger],
    queued={
      "runs": request("ACTIVE"),
      "late": request("ACTIVE", expires=time.time() - 5400),
      "taken": request("SUSPENDED"),
      "refused": request("FAILED"),
      "theirs": request("FAILED", owner="bob"),
      "odd": request("SOMETHING_NEW"),
    },
  )
  assert main(["tpu", "sweep", *WHERE]) == 0
  assert "late: expired 1.5 h ago" in capsys.readouterr().err and len(states(cloud)) == 6
  assert main(["tpu", "sweep", *WHERE, "--yes"]) == 0
  assert set(states(cloud)) == {"runs", "theirs", "odd"}
  assert main(["tpu", "sweep", *WHERE, "--yes", "--everyone"]) == 0
  assert set(states(cloud)) == {"runs", "odd"}


def test_status_says_what_each_state_means(cloud, capsys):
  cloud.change(moves=[["WAITING_FOR_RESOURCES"], ["ACTIVE"], ["SUSPENDED"]])
  up("--yes")
  capsys.readouterr()
  assert main(["tpu", "status", *WHERE]) == 0
  lines = capsys.readouterr().out.splitlines()
  assert "cost nothing yet" in lines[0] and "is paid for" in lines[1] and "'up' again" in lines[2]
  assert all("expires in 3.0 h" in line for line in lines)


def test_status_of_an_empty_zone_and_of_a_disabled_api(cloud, capsys):
  cloud.change(
    fail={"queued-resources list": "Cloud TPU API has not been used in project p before"}
  )
  assert main(["tpu", "status", *WHERE]) == 0
  assert capsys.readouterr().out == "no slices of moe_parity\n"
  cloud.change(fail={"queued-resources list": "PERMISSION_DENIED: tpu.nodes.list"})
  assert main(["tpu", "status", *WHERE]) == 1


def test_without_an_account_the_way_out_is_named(cloud, capsys):
  said = "You do not currently have an active account selected.\nPlease run:\n  $ gcloud auth login"
  cloud.change(fail={"queued-resources list": said})
  assert down() == 1
  assert "an active account selected.; run 'gcloud auth login'\n" in capsys.readouterr().err


def test_logs_ssh_and_stop_are_one_command_each(cloud, programs):
  up("--yes", options=("--type=v6e-16", "--slices=2"))
  before = len(programs.calls())
  assert main(["tpu", "logs", *WHERE, "--workdir=gs://b/My_Study/"]) == 0
  assert main(["tpu", "ssh", *WHERE, "--name=my-study", "--slice=2", "--command=ls"]) == 0
  assert main(["tpu", "stop", *WHERE, "--name=my-study"]) == 0
  calls = [call[1:] for call in programs.calls()[before:] if "list" not in call]
  assert calls[0][:2] == ["storage", "cat"]
  assert calls[0][-1] == "gs://b/My_Study/launch/logs/my-study-*/host-0-*"
  assert calls[1][3:5] == ["ssh", "my-study-2"] and calls[1][-2:] == ["--worker=0", "--command=ls"]
  assert [call[4] for call in calls[2:]] == ["my-study-1", "my-study-2"]
  assert all(call[-1] == "--command=sudo systemctl stop moe-parity" for call in calls[2:])


GCE = ("--type=v5p-32", "--slices=2", "--hours=2", "--api=gce", "--image=ours/tpu")


def test_instance_groups_come_and_go_with_all_that_is_theirs(cloud):
  assert up("--yes", options=GCE) == 0
  held = cloud.holds()
  for kind in ("instance-templates", "instance-groups", "resource-policies"):
    assert set(held[kind]) == {"my-study-1", "my-study-2"}
  assert held["instance-groups"]["my-study-1"]["size"] == 4
  assert down("my-study", "--api=gce") == 0
  assert cloud.nothing_left


def test_an_instance_group_that_is_refused_leaves_nothing_behind(cloud, capsys):
  cloud.change(fail={"managed create my-study-2": "ZONE_RESOURCE_POOL_EXHAUSTED"})
  assert up("--yes", options=GCE) == 1
  assert "ZONE_RESOURCE_POOL_EXHAUSTED" in capsys.readouterr().err and cloud.nothing_left


def test_an_instance_group_that_lost_hosts_is_asked_for_again(cloud, capsys):
  up("--yes", options=GCE)
  groups = cloud.holds()["instance-groups"]
  groups["my-study-2"]["lost"] = 1
  cloud.change(**{"instance-groups": groups})
  main(["tpu", "status", *WHERE])
  assert "my-study-2  SUSPENDED" in capsys.readouterr().out
  assert up("--yes", options=GCE) == 0
  assert cloud.holds()["instance-groups"]["my-study-2"].get("lost", 0) == 0


def test_ssh_counts_the_hosts_of_a_group_by_their_names(cloud, programs, capsys):
  words = ["tpu", "ssh", *WHERE, "--name=s", "--api=gce", "--host=1", "--command=ls"]
  assert main(words) == 0
  assert programs.calls("gcloud")[-1][1:4] == ["compute", "ssh", "s-1-1"]
  words[-2] = "--host=3"
  assert main(words) == 2 and "use 0 to 2" in capsys.readouterr().err


@pytest.mark.parametrize(
  ("options", "words", "says"),
  [
    (["--type=v6e-17"], STUDY, "use v6e-1, v6e-4"),
    (["--type=h100-8"], STUDY, "v5e, v5p, v6e, tpu7x"),
    (["--type=tpu7x-64"], STUDY, "--api=gce"),
    (["--type=v5e-16", "--api=gce"], STUDY, "leave --api=gce out"),
    (["--type=v6e-16", "--api=gce"], STUDY, "PROJECT/FAMILY"),
    (["--type=v6e-16"], ("study", "--workdir=/shared/a"), "share no disk"),
    (["--type=v6e-16"], ("study", "--workdir=gs://b"), "share no disk"),
    (["--type=v6e-16"], (*STUDY, "--worker=w"), "--worker"),
    (["--type=v6e-16"], (*STUDY, "--coordinator", "a:1"), "--coordinator"),
    (["--type=v6e-16"], ("plan", *STUDY[1:]), "only study can be launched so"),
    (["--type=v6e-16", "--slices=0"], STUDY, "above zero"),
    (["--type=v6e-16", "--hours=nan"], STUDY, "--hours=nan"),
    (["--type=v6e-16", "--wait-hours=inf"], STUDY, "--wait-hours=inf"),
    (["--type=v6e-16", "--price=-1"], STUDY, "--price=-1"),
    (["--type=v6e-16", "--name=42"], STUDY, "cannot name a study"),
  ],
)
def test_what_cannot_work_is_refused_before_gcloud_is_asked(
  cloud, programs, capsys, options, words, says
):
  assert up("--yes", options=options, words=words) == 2
  assert says in capsys.readouterr().err and programs.calls("gcloud") == []


def test_a_compile_result_that_does_not_fit_stops(cloud, capsys, tmp_path, monkeypatch):
  (tmp_path / "results").mkdir()
  result = {"config": "paper_2b", "topology": "v6e-16", "arm": "moe_20", "fits": False}
  (tmp_path / "results/compile_2b.json").write_text(json.dumps(result))
  monkeypatch.setattr("moe_parity.launch.tpu.ROOT", tmp_path)
  assert up("--yes") == 2
  assert "moe_20 on v6e-16 does not fit" in capsys.readouterr().err and cloud.nothing_left
  (tmp_path / "results/compile_2b.json").write_text(json.dumps(result | {"fits": True}))
  assert up("--yes") == 0


def test_without_gcloud_the_way_out_is_named(programs, capsys):
  assert down() == 2
  assert "install the Google Cloud CLI" in capsys.readouterr().err
