"""The Kubernetes objects of a study on GKE, as JSON that kubectl takes. Pure functions.

TPUs: a JobSet a slice (jobset.x-k8s.io/v1alpha2), because slices are independent worlds. GPUs: one
indexed Job. Either is admitted by a Kueue queue. What follows a worker's end:

  75, or the node is taken away   start again, without using up a retry
  1 or 2                          the object fails: the same would happen again
  killed, or any other code       start again, at most `max_restarts` times
"""

from collections.abc import Mapping, Sequence
from typing import NamedTuple

from moe_parity.launch.accelerators import SliceType
from moe_parity.launch.exit_codes import FAILED, MEND_INPUT, START_AGAIN

STUDY_LABEL, OWNER_LABEL = "moe-parity", "moe-parity-owner"
QUEUE_LABEL = "kueue.x-k8s.io/queue-name"
TAKEN_AWAY = [{"type": "DisruptionTarget", "status": "True"}]  # eviction, preemption, node drained


class Work(NamedTuple):
  """What all objects of one submit share.

  Attributes:
    study: name of the study and beginning of all names.
    command: arguments of moe-parity, which begin with study.
    hours: after which an object is stopped by Kubernetes, 0 for never.
    max_restarts: after crashes; those that a worker asks for are not counted.
    owner: the person who submits.
  """

  study: str
  image: str
  queue: str
  namespace: str
  command: Sequence[str]
  spot: bool
  hours: int | float
  max_restarts: int
  owner: str
  service_account: str = ""


def jobsets(work: Work, slice_type: SliceType, workers: int) -> list[dict]:
  """A JobSet a worker, each on a slice of its own."""
  return [_jobset(work, slice_type, k, workers) for k in range(1, workers + 1)]


def _jobset(work: Work, slice_type: SliceType, k: int, workers: int) -> dict:
  name, hosts = f"{work.study}-{k}", slice_type.num_hosts
  more = ["--coordinator=auto"] if hosts > 1 else []
  more += [f"--shard={k}/{workers}", f"--worker={name}"]
  pod = _pod(work, [*_literal(work.command), *more], {"google.com/tpu": slice_type.chips_per_host})
  pod["nodeSelector"] |= {
    "cloud.google.com/gke-tpu-accelerator": slice_type.chip.gke_accelerator,
    "cloud.google.com/gke-tpu-topology": slice_type.topology,
  }
  pod |= {"hostNetwork": True, "dnsPolicy": "ClusterFirstWithHostNet"}
  container = pod["containers"][0]
  container["ports"] = [{"containerPort": 8471}, {"containerPort": 8476}]
  container["securityContext"] = {"privileged": True}  # libtpu opens the chips' device files
  job = {
    "parallelism": hosts,
    "completions": hosts,
    "backoffLimit": 0,
    **_deadline(work),
    "podFailurePolicy": {
      "rules": [
        {"action": "FailJob", "onPodConditions": TAKEN_AWAY},
        {"action": "FailJob", "onExitCodes": _codes(START_AGAIN, FAILED, MEND_INPUT)},
      ]
    },
    "template": {"metadata": {"labels": {STUDY_LABEL: work.study}}, "spec": pod},
  }
  return {
    "apiVersion": "jobset.x-k8s.io/v1alpha2",
    "kind": "JobSet",
    "metadata": _metadata(work, name)
    | {
      "annotations": {
        "alpha.jobset.sigs.k8s.io/exclusive-topology": "cloud.google.com/gke-nodepool"
      }
    },
    "spec": {
      "failurePolicy": {"maxRestarts": work.max_restarts, "rules": failure_rules()},
      "replicatedJobs": [{"name": "slice", "replicas": 1, "template": {"spec": job}}],
    },
  }


def failure_rules() -> list[dict]:
  """What a JobSet does when its Job failed. The first rule that fits counts; if none does, the
  JobSet is restarted and a retry is used up.

  A Job says in its message which exit code its failure policy saw ("... failed with exit code 1
  matching FailJob rule ..."), and only there.
  """
  return [
    {
      "name": "failed_or_mend_input",
      "action": "FailJobSet",
      "onJobFailureReasons": ["PodFailurePolicy"],
      "onJobFailureMessagePatterns": [rf"exit code ({FAILED}|{MEND_INPUT}) "],
    },
    {
      "name": "start_again_or_taken_away",
      "action": "RestartJobSetAndIgnoreMaxRestarts",
      "onJobFailureReasons": ["PodFailurePolicy"],
    },
    {
      "name": "out_of_time",
      "action": "FailJobSet",
      "onJobFailureReasons": ["DeadlineExceeded"],
    },
  ]


def gpu_job(work: Work, accelerator: str, gpus: int, workers: int) -> dict:
  """One indexed Job: `workers` pods with `gpus` GPUs each, each its own worker."""
  more = ["--worker=" + work.study + "-$(JOB_COMPLETION_INDEX)"]  # Kubernetes fills it in
  command = [*_literal(work.command), *more]
  pod = _pod(work, command, {"nvidia.com/gpu": gpus})
  pod["nodeSelector"]["cloud.google.com/gke-accelerator"] = accelerator
  return {
    "apiVersion": "batch/v1",
    "kind": "Job",
    "metadata": _metadata(work, work.study),
    "spec": {
      "completionMode": "Indexed",
      "parallelism": workers,
      "completions": workers,
      "backoffLimitPerIndex": work.max_restarts,
      **_deadline(work),
      "podFailurePolicy": {
        "rules": [
          {"action": "Ignore", "onPodConditions": TAKEN_AWAY},
          {"action": "Ignore", "onExitCodes": _codes(START_AGAIN)},
          {"action": "FailIndex", "onExitCodes": _codes(FAILED)},
          {"action": "FailJob", "onExitCodes": _codes(MEND_INPUT)},
        ]
      },
      "template": {"metadata": {"labels": {STUDY_LABEL: work.study}}, "spec": pod},
    },
  }


def _literal(words: Sequence[str]) -> list[str]:
  """Words that Kubernetes leaves as they are: it fills in $(NAME) and takes $$ for $."""
  return [word.replace("$", "$$") for word in words]


def queue(name: str, namespace: str, slice_type: SliceType, slices: int) -> list[dict]:
  """What an administrator makes once: a Kueue queue over some slices of one type."""
  flavor, api = slice_type.name, "kueue.x-k8s.io/v1beta1"
  labels = {
    "cloud.google.com/gke-tpu-accelerator": slice_type.chip.gke_accelerator,
    "cloud.google.com/gke-tpu-topology": slice_type.topology,
  }
  quota = {"name": "google.com/tpu", "nominalQuota": slice_type.num_chips * slices}
  group = {
    "coveredResources": ["google.com/tpu"],
    "flavors": [{"name": flavor, "resources": [quota]}],
  }
  return [
    {
      "apiVersion": api,
      "kind": "ResourceFlavor",
      "metadata": {"name": flavor},
      "spec": {"nodeLabels": labels},
    },
    {
      "apiVersion": api,
      "kind": "ClusterQueue",
      "metadata": {"name": name},
      "spec": {"namespaceSelector": {}, "resourceGroups": [group]},
    },
    {
      "apiVersion": api,
      "kind": "LocalQueue",
      "metadata": {"name": name, "namespace": namespace},
      "spec": {"clusterQueue": name},
    },
  ]


def _metadata(work: Work, name: str) -> dict:
  labels = {STUDY_LABEL: work.study, OWNER_LABEL: work.owner}
  labels |= {QUEUE_LABEL: work.queue} if work.queue else {}
  return {"name": name, "namespace": work.namespace, "labels": labels}


def _pod(work: Work, command: Sequence[str], chips: Mapping[str, int]) -> dict:
  # A worker saves within 10 s of SIGTERM; the grace is for a large checkpoint.
  pod: dict = {"restartPolicy": "Never", "terminationGracePeriodSeconds": 60, "nodeSelector": {}}
  if work.spot:
    pod["nodeSelector"]["cloud.google.com/gke-spot"] = "true"
    pod["tolerations"] = [
      {
        "key": "cloud.google.com/gke-spot",
        "operator": "Equal",
        "value": "true",
        "effect": "NoSchedule",
      }
    ]
  if work.service_account:
    pod["serviceAccountName"] = work.service_account
  limits = {"limits": dict(chips)}
  worker = {"name": "worker", "image": work.image, "args": list(command), "resources": limits}
  return pod | {"containers": [worker]}


def _deadline(work: Work) -> dict:
  return {"activeDeadlineSeconds": round(work.hours * 3600)} if work.hours else {}


def _codes(*codes: int) -> dict:
  return {"containerName": "worker", "operator": "In", "values": sorted(codes)}
