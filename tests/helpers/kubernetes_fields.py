"""The Kubernetes fields that our manifests use, and a check that names a misspelt one.

Written from the API references of batch/v1, core/v1, jobset.x-k8s.io/v1alpha2 and
kueue.x-k8s.io/v1beta1. A field that a manifest begins to use must be added here first.
"""

TEXTS = {str: str}
LABELED = {"name": str, "namespace": str, "labels": TEXTS, "annotations": TEXTS}
CONTAINER = {
  "name": str,
  "image": str,
  "args": [str],
  "resources": {"limits": {str: int}},
  "ports": [{"containerPort": int}],
  "securityContext": {"privileged": bool},
}
POD = {
  "restartPolicy": str,
  "terminationGracePeriodSeconds": int,
  "nodeSelector": TEXTS,
  "tolerations": [{"key": str, "operator": str, "value": str, "effect": str}],
  "serviceAccountName": str,
  "containers": [CONTAINER],
  "hostNetwork": bool,
  "dnsPolicy": str,
}
RULE = {
  "action": str,
  "onPodConditions": [{"type": str, "status": str}],
  "onExitCodes": {"containerName": str, "operator": str, "values": [int]},
}
JOB_SPEC = {
  "completionMode": str,
  "parallelism": int,
  "completions": int,
  "backoffLimit": int,
  "backoffLimitPerIndex": int,
  "activeDeadlineSeconds": int,
  "podFailurePolicy": {"rules": [RULE]},
  "template": {"metadata": {"labels": TEXTS}, "spec": POD},
}
FAILURE_RULE = {
  "name": str,
  "action": str,
  "onJobFailureReasons": [str],
  "onJobFailureMessagePatterns": [str],
}
JOBSET_SPEC = {
  "failurePolicy": {"maxRestarts": int, "rules": [FAILURE_RULE]},
  "replicatedJobs": [{"name": str, "replicas": int, "template": {"spec": JOB_SPEC}}],
}
FLAVOR = {"name": str, "resources": [{"name": str, "nominalQuota": int}]}
SPECS = {
  ("batch/v1", "Job"): JOB_SPEC,
  ("jobset.x-k8s.io/v1alpha2", "JobSet"): JOBSET_SPEC,
  ("kueue.x-k8s.io/v1beta1", "ResourceFlavor"): {"nodeLabels": TEXTS},
  ("kueue.x-k8s.io/v1beta1", "ClusterQueue"): {
    "namespaceSelector": TEXTS,
    "resourceGroups": [{"coveredResources": [str], "flavors": [FLAVOR]}],
  },
  ("kueue.x-k8s.io/v1beta1", "LocalQueue"): {"clusterQueue": str},
}


def problems(manifest: dict) -> list[str]:
  """Every field of an object that Kubernetes does not have, or of the wrong kind, by its path."""
  key = (manifest.get("apiVersion"), manifest.get("kind"))
  if key not in SPECS:
    return [f"no object {key}"]
  top = {"apiVersion": str, "kind": str, "metadata": LABELED, "spec": SPECS[key]}
  return list(differences(manifest, top, ""))


def differences(value, wanted, path):
  """Yields what in a value is not as wanted: a type, [of what], or {field: what} ({str: what} where
  any field may be)."""
  if isinstance(wanted, type):
    if type(value) is not wanted:  # a bool is no int here
      yield f"{path}: {value!r} is no {wanted.__name__}"
  elif isinstance(wanted, list):
    if not isinstance(value, list):
      yield f"{path}: {value!r} is no list"
      return
    for i, item in enumerate(value):
      yield from differences(item, wanted[0], f"{path}[{i}]")
  elif not isinstance(value, dict):
    yield f"{path}: {value!r} is no object"
  else:
    for name, item in value.items():
      if str not in wanted and name not in wanted:
        yield f"{path}.{name}: no such field"
      else:
        yield from differences(item, wanted.get(name, wanted.get(str)), f"{path}.{name}")
