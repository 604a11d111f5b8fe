"""launch/gke.sh: the manifests field by field, and a fake kubectl that keeps what it is given."""

import copy
import json
import re

import pytest

from moe_parity.launch import manifests
from moe_parity.launch.__main__ import main
from moe_parity.launch.accelerators import slice_type
from tests.helpers.fake_programs import Programs
from tests.helpers.kubernetes_fields import problems

STUDY = ("study", "--config=configs/paper_2b.py", "--workdir=gs://b/My_Study")
TPU = ("--type=v6e-16", "--workers=3", "--queue=research", "--image=i:1")
GPU = ("--accelerator=nvidia-h100-80gb", "--gpus=2", "--workers=5", "--image=i:1")
ALL_TYPES = ("pods", "jobs.batch", "jobsets.jobset.x-k8s.io", "localqueues.kueue.x-k8s.io")
KUBECTL = """
objects_file, refused, types = {file!r}, {refused!r}, {types!r}
objects = json.load(open(objects_file)) if os.path.exists(objects_file) else {{}}
if sys.argv[1] == "api-resources":
  print("\\n".join(types))
  if not types:
    sys.exit(
      'E1129 20:17:50.7 1 memcache.go:265] "Unhandled Error" err="connection refused"\\n'
      "The connection to the server localhost:8080 was refused - did you specify the right host?"
    )
elif sys.argv[1] in ("get", "delete") and "jobsets" in sys.argv[2]:
  if "jobsets.jobset.x-k8s.io" not in types:
    sys.exit('error: the server doesn\\'t have a resource type "jobsets"')
if sys.argv[1] in ("create", "apply"):
  made = json.load(sys.stdin)
  name = made["kind"].lower() + "/" + made["metadata"]["name"]
  if name == refused:
    sys.exit('Error from server (BadRequest): strict decoding error: unknown field "spec.x"')
  objects[name] = made
elif sys.argv[1] == "get" and "--output=json" in sys.argv:
  selector = [word.split("=", 2)[2] for word in sys.argv if word.startswith("--selector=")]
  labelled = [m for m in objects.values() if m["metadata"]["labels"]["moe-parity"] in selector]
  print(json.dumps(dict(kind="List", items=labelled)))
elif sys.argv[1] == "delete":
  selector = [word.split("=", 2)[2] for word in sys.argv if word.startswith("--selector=")]
  for name, made in list(objects.items()):
    if name in sys.argv or made["metadata"].get("labels", {{}}).get("moe-parity") in selector:
      del objects[name]
json.dump(objects, open(objects_file, "w"))
"""


class Cluster:
  def __init__(self, folder):
    self.file, self.programs = folder / "objects.json", Programs(folder)
    self.refuse("")

  def refuse(self, name, types=ALL_TYPES):
    text = KUBECTL.format(file=str(self.file), refused=name, types=list(types))
    self.programs.add("kubectl", text)

  def objects(self):
    return json.loads(self.file.read_text()) if self.file.exists() else {}


@pytest.fixture
def cluster(tmp_path, monkeypatch):
  cluster = Cluster(tmp_path)
  monkeypatch.setenv("PATH", cluster.programs.path)
  monkeypatch.setenv("LOGNAME", "ada")
  return cluster


def submit(*options, words=STUDY):
  return main(["gke", "submit", *options, "--", *words])


def work(**changes):
  given = {
    "study": "s",
    "image": "i",
    "queue": "q",
    "namespace": "n",
    "command": STUDY,
    "spot": True,
  }
  given |= {"owner": "ada", "hours": 3, "max_restarts": 20, "service_account": "writer"}
  return manifests.Work(**(given | changes))


def every_manifest():
  for changes in ({}, {"spot": False, "queue": "", "hours": 0, "service_account": ""}):
    yield from manifests.jobsets(work(**changes), slice_type("v6e-16"), 2)
    yield from manifests.jobsets(work(**changes), slice_type("v5p-8"), 1)
    yield manifests.gpu_job(work(**changes), "nvidia-h100-80gb", 2, 3)
  yield from manifests.queue("q", "n", slice_type("v6e-16"), 4)


def test_every_field_is_one_that_kubernetes_has():
  for manifest in every_manifest():
    assert problems(manifest) == []


def test_a_misspelt_field_is_named():
  (manifest,) = manifests.jobsets(work(), slice_type("v6e-16"), 1)
  wrong = copy.deepcopy(manifest)
  job = wrong["spec"]["replicatedJobs"][0]["template"]["spec"]
  job["paralelism"] = job.pop("parallelism")
  wrong["spec"]["failurePolicy"]["maxRestarts"] = "20"
  assert problems(wrong) == [
    ".spec.failurePolicy.maxRestarts: '20' is no int",
    ".spec.replicatedJobs[0].template.spec.paralelism: no such field",
  ]


def what_a_jobset_does(manifest, message, reason="PodFailurePolicy"):
  """The first rule of a JobSet that fits its Job's failure, as the JobSet controller reads them."""
  for rule in manifest["spec"]["failurePolicy"]["rules"]:
    patterns = rule.get("onJobFailureMessagePatterns", [""])
    if reason in rule["onJobFailureReasons"] and any(re.search(p, message) for p in patterns):
      return rule["action"]
  return "RestartJobSet"


def message(code, rule):
  """As Kubernetes' Job controller says it."""
  failed = f"Container worker for pod n/s-1-slice-0-0-x failed with exit code {code}"
  return f"{failed} matching FailJob rule at index {rule}"


@pytest.mark.parametrize(
  ("said", "reason", "action"),
  [
    (message(75, 1), "PodFailurePolicy", "RestartJobSetAndIgnoreMaxRestarts"),
    (message(1, 1), "PodFailurePolicy", "FailJobSet"),
    (message(2, 1), "PodFailurePolicy", "FailJobSet"),
    (
      "Pod n/s-1-slice-0-0-x has condition DisruptionTarget matching FailJob rule at index 0",
      "PodFailurePolicy",
      "RestartJobSetAndIgnoreMaxRestarts",
    ),
    ("Job has reached the specified backoff limit", "BackoffLimitExceeded", "RestartJobSet"),
    ("Job was active longer than specified deadline", "DeadlineExceeded", "FailJobSet"),
  ],
)
def test_a_jobset_restarts_or_fails_by_what_ended_it(said, reason, action):
  (manifest,) = manifests.jobsets(work(), slice_type("v6e-16"), 1)
  assert what_a_jobset_does(manifest, said, reason) == action
  assert manifest["spec"]["failurePolicy"]["maxRestarts"] == 20


def test_only_known_exit_codes_of_a_slice_reach_the_rules():
  (manifest,) = manifests.jobsets(work(), slice_type("v6e-16"), 1)
  job = manifest["spec"]["replicatedJobs"][0]["template"]["spec"]
  assert job["podFailurePolicy"]["rules"][1]["onExitCodes"]["values"] == [1, 2, 75]
  assert job["backoffLimit"] == 0  # any other end fails the Job at once, for the JobSet to restart
  assert job["template"]["spec"]["restartPolicy"] == "Never"  # a failure policy needs it


def test_a_gpu_job_repeats_an_index_that_asks_and_fails_others():
  rules = manifests.gpu_job(work(), "h100", 1, 2)["spec"]["podFailurePolicy"]["rules"]
  by_code = {r["onExitCodes"]["values"][0]: r["action"] for r in rules if "onExitCodes" in r}
  assert by_code == {75: "Ignore", 1: "FailIndex", 2: "FailJob"}
  assert rules[0] == {
    "action": "Ignore",
    "onPodConditions": [{"type": "DisruptionTarget", "status": "True"}],
  }


def test_each_worker_has_a_slice_a_share_and_a_name_of_its_own(cluster):
  assert submit(*TPU, "--spot", "--hours=2") == 0
  made = cluster.objects()
  assert set(made) == {f"jobset/my-study-{k}" for k in (1, 2, 3)}
  one = made["jobset/my-study-2"]
  assert one["metadata"]["labels"]["kueue.x-k8s.io/queue-name"] == "research"
  (replicated,) = one["spec"]["replicatedJobs"]
  job = replicated["template"]["spec"]
  assert (replicated["replicas"], job["parallelism"], job["completions"]) == (1, 4, 4)
  assert job["activeDeadlineSeconds"] == 7200
  pod = job["template"]["spec"]
  assert pod["nodeSelector"] == {
    "cloud.google.com/gke-spot": "true",
    "cloud.google.com/gke-tpu-accelerator": "tpu-v6e-slice",
    "cloud.google.com/gke-tpu-topology": "4x4",
  }
  (container,) = pod["containers"]
  assert container["resources"] == {"limits": {"google.com/tpu": 4}}
  assert container["args"] == [
    *(*STUDY, "--compile-cache=gs://b/My_Study/launch/compiled", "--coordinator=auto"),
    *("--shard=2/3", "--worker=my-study-2"),
  ]


def test_gpus_are_one_indexed_job(cluster):
  assert submit(*GPU) == 0
  (job,) = cluster.objects().values()
  assert job["kind"] == "Job" and job["spec"]["completionMode"] == "Indexed"
  assert job["spec"]["completions"] == job["spec"]["parallelism"] == 5
  pod = job["spec"]["template"]["spec"]
  assert pod["nodeSelector"] == {"cloud.google.com/gke-accelerator": "nvidia-h100-80gb"}
  assert pod["containers"][0]["args"][-1] == "--worker=my-study-$(JOB_COMPLETION_INDEX)"
  assert pod["containers"][0]["resources"] == {"limits": {"nvidia.com/gpu": 2}}


def test_an_object_that_is_refused_leaves_none_behind(cluster, capsys):
  cluster.refuse("jobset/my-study-3")
  assert submit(*TPU) == 1
  said = capsys.readouterr().err
  assert 'unknown field "spec.x"' in said and "deleting jobset/my-study-1" in said
  assert said.count("\n") == 3  # and not the manifest
  assert cluster.objects() == {}


def test_an_object_that_was_there_before_is_not_deleted(cluster):
  assert submit(*TPU) == 0
  cluster.refuse("jobset/my-study-1")  # as a server refuses a name that is taken
  assert submit(*TPU) == 1
  assert len(cluster.objects()) == 3


def test_delete_removes_one_study(cluster):
  submit(*TPU)
  submit(*GPU, "--name=other")
  assert main(["gke", "delete", "--name=my-study"]) == 0
  assert list(cluster.objects()) == ["job/other"]
  assert main(["gke", "delete", "--name=other"]) == 0
  assert cluster.objects() == {}


def test_what_a_colleague_submitted_is_not_deleted(cluster, capsys, monkeypatch):
  submit(*TPU)
  monkeypatch.setenv("LOGNAME", "Bob.B")
  assert main(["gke", "delete", "--name=My_Study"]) == 2
  said = capsys.readouterr().err.splitlines()[-1]
  assert "--name=My_Study: ada asked for it, not bob-b; nothing was done" in said
  assert "'delete --everyone'" in said and len(cluster.objects()) == 3
  assert main(["gke", "delete", "--name=My_Study", "--everyone"]) == 0
  assert cluster.objects() == {}


def test_a_study_is_found_by_the_name_that_submit_was_given(cluster):
  submit(*GPU, "--name=Ada's GPUs")
  assert main(["gke", "delete", "--name=Ada's GPUs"]) == 0 and cluster.objects() == {}


def test_without_jobset_jobs_of_gpus_are_deleted(cluster, capsys):
  submit(*GPU)
  cluster.refuse("", types=("pods", "jobs.batch"))
  assert main(["gke", "status", "--name=my-study"]) == 0
  assert main(["gke", "delete", "--name=my-study"]) == 0
  said = capsys.readouterr().err
  assert said.count("this cluster has no jobsets.jobset.x-k8s.io, so there are no slices") == 2
  assert "error" not in said and cluster.objects() == {}


@pytest.mark.parametrize(
  ("words", "says"),
  [
    (["submit", *TPU, "--", *STUDY], "no jobsets.jobset.x-k8s.io; an administrator installs"),
    (["submit", *GPU, "--queue=q", "--", *STUDY], "no localqueues.kueue.x-k8s.io"),
    (["queue", "--queue=q", "--type=v6e-16", "--slices=4"], "no localqueues.kueue.x-k8s.io"),
  ],
)
def test_what_a_cluster_lacks_is_one_line(cluster, capsys, words, says):
  cluster.refuse("", types=("pods", "jobs.batch"))
  assert main(["gke", *words]) == 2
  said = capsys.readouterr().err
  assert says in said and said.count("\n") == 1 and cluster.objects() == {}


@pytest.mark.parametrize("action", ["delete", "status", "logs"])
def test_no_cluster_is_one_line_with_the_way_to_one(cluster, capsys, action):
  cluster.refuse("", types=())
  assert main(["gke", action, "--name=a"]) == 2
  said = capsys.readouterr().err
  assert "(The connection to the server localhost:8080 was refused" in said
  assert "get-credentials CLUSTER" in said and said.count("\n") == 1


def test_a_dry_run_prints_what_kubectl_would_read(cluster, capsys):
  assert main(["gke", "submit", "--dry-run", *TPU, "--", *STUDY]) == 0
  text = capsys.readouterr().out
  found = re.findall(
    r"kubectl create --validate=strict --filename=- <<'END'\n(.*?)\nEND", text, re.S
  )
  assert [json.loads(part)["metadata"]["name"] for part in found] == [
    f"my-study-{k}" for k in (1, 2, 3)
  ]
  assert cluster.programs.calls() == []


def test_status_logs_image_and_queue_are_plain_commands(cluster, capsys):
  main(["gke", "status", "--dry-run", "--name=s"])
  main(["gke", "logs", "--dry-run", "--name=s"])
  main(["gke", "image", "--dry-run", "--image=r/i:1", "--extra=gpu"])
  lines = capsys.readouterr().out.splitlines()
  assert lines[0] == "kubectl get jobsets,jobs,pods --namespace=default --selector=moe-parity=s"
  assert lines[1].startswith("kubectl logs ") and "--prefix" in lines[1]
  assert "--build-arg=EXTRA=gpu --tag=r/i:1" in lines[2] and lines[3] == "docker push r/i:1"
  assert main(["gke", "queue", "--queue=research", "--type=v6e-16", "--slices=4"]) == 0
  made = cluster.objects()
  (group,) = made["clusterqueue/research"]["spec"]["resourceGroups"]
  assert group["flavors"][0]["resources"] == [{"name": "google.com/tpu", "nominalQuota": 64}]


def test_a_dollar_sign_reaches_the_worker_as_it_was_typed():
  """Kubernetes (third_party/forked/golang/expansion): $$ is $, $(NAME) a variable, $x itself."""
  typed = "--config.data.source=$$a$(HOME)$x"
  words = ["study", "--workdir=gs://b/a", typed]
  (jobset,) = manifests.jobsets(work(command=words), slice_type("v6e-16"), 1)
  (replicated,) = jobset["spec"]["replicatedJobs"]
  job = manifests.gpu_job(work(command=words), "nvidia-l4", 1, 2)
  for pod in (replicated["template"]["spec"]["template"]["spec"], job["spec"]["template"]["spec"]):
    args = pod["containers"][0]["args"]
    assert re.sub(r"\$\$", "$", args[2]) == typed and "$(" not in args[2].replace("$$", "")
  assert "--worker=s-$(JOB_COMPLETION_INDEX)" in args


@pytest.mark.parametrize(
  ("options", "words", "says"),
  [
    (TPU, ("study", "--workdir=/data/a"), "a pod's disk goes with the pod"),
    (TPU, ("train", "--workdir=gs://b/a"), "study --only=ARM"),
    (TPU, ("train", "--workdir=a"), "train: only study can be launched so"),
    (TPU, ("bench",), "bench: only study"),
    (TPU, (*STUDY, "--worker=a"), "--worker"),
    ((*TPU, "--workers=0"), STUDY, "at least 1"),
    ((*TPU, "--type=v6e-3"), STUDY, "no such slice"),
    ((*TPU, "--name=9"), STUDY, "cannot name a study"),
    ((*TPU, "--hours=-1"), STUDY, "--hours=-1"),
    ((*TPU, "--hours=inf"), STUDY, "--hours=inf"),
    ((*TPU, "--max-restarts=-1"), STUDY, "--max-restarts=-1"),
  ],
)
def test_what_cannot_run_is_refused_before_kubectl(cluster, capsys, options, words, says):
  assert submit(*options, words=words) == 2
  assert says in capsys.readouterr().err and cluster.programs.calls() == []


def test_the_dockerfile_makes_what_its_entry_point_uses():
  import pathlib

  root = pathlib.Path(__file__).resolve().parent.parent
  lines = (root / "launch/Dockerfile").read_text().splitlines()
  copied = {word for line in lines if line.startswith("COPY") for word in line.split()[1:-1]}
  assert {"pyproject.toml", "constraints.txt", ".python-version", "launch", "."} <= copied
  assert 'ENTRYPOINT ["bash", "launch/local.sh"]' in lines
  version = (root / ".python-version").read_text().strip()
  assert f"FROM python:{version}-slim" in lines
