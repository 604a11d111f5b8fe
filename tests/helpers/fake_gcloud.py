"""A gcloud of a text file: keeps queued resources and instance groups, plays their states.

`cloud.json` next to it holds what is there. `moves` are the states that new requests go through,
one list a request; `fail` maps words of a command to the complaint that it fails with.
"""

import json
import pathlib

from tests.helpers.fake_programs import Programs

BODY = """
cloud_file = {cloud!r}
cloud = json.load(open(cloud_file))
words = sys.argv[1:]
flags = dict(word[2:].split("=", 1) for word in words if word.startswith("--") and "=" in word)
line = " ".join(words)

def save():
  json.dump(cloud, open(cloud_file, "w"))

def pairs(text):
  delimiter = ","
  if text.startswith("^"):
    _, delimiter, text = text.split("^", 2)
  return dict(pair.split("=", 1) for pair in text.split(delimiter))

for matching, complaint in cloud["fail"].items():
  if all(word in line for word in matching.split()):
    sys.exit("ERROR: (gcloud) " + complaint)
if words[:2] == ["auth", "list"]:
  print(cloud["account"])
elif words[:2] == ["services", "list"]:
  print("\\n".join(cloud["apis"]))
elif words[:2] == ["projects", "get-iam-policy"]:
  print("\\n".join(role + " user:me" for role in cloud["roles"]))
elif words[:3] == ["storage", "buckets", "describe"]:
  print(cloud["location"])
elif words[:2] == ["storage", "cp"]:
  cloud["copied"].append(words[2:4])
  if cloud.get("code") and words[2].startswith("gs://"):
    import shutil
    shutil.copy(cloud["code"], words[3])
  save()
elif words[:3] == ["compute", "tpus", "queued-resources"]:
  action, queued = words[3], cloud["queued"]
  if action == "list":
    answer = []
    for name, request in list(queued.items()):
      state = request["moves"][0]
      if state == "GONE":
        del queued[name]
        continue
      node = dict(labels=request["labels"], acceleratorType=request["type"])
      answer.append(dict(
        name="projects/p/locations/z/queuedResources/" + name,
        state=dict(state=state), tpu=dict(nodeSpec=[dict(node=node)]),
      ))
      if len(request["moves"]) > 1:
        request["moves"].pop(0)
    answer += cloud["strangers"]
    print(json.dumps(answer))
  elif action == "create":
    if words[4] in queued:
      sys.exit("ERROR: (gcloud) ALREADY_EXISTS: " + words[4])
    queued[words[4]] = dict(
      labels=pairs(flags["labels"]), metadata=pairs(flags["metadata"]),
      type=flags["accelerator-type"], moves=list((cloud["moves"] or [["ACTIVE"]])[0]),
    )
    if len(cloud["moves"]) > 1:
      cloud["moves"].pop(0)
  elif action == "delete":
    if words[4] not in queued:
      sys.exit("ERROR: (gcloud) NOT_FOUND: resource " + words[4] + " not found")
    queued[words[4]]["moves"] = ["DELETING", "GONE"]
  save()
elif "create" in words and words[0] == "compute":
  kind = words[1]
  name = words[words.index("create") + (2 if kind == "resource-policies" else 1)]
  cloud[kind][name] = dict(
    labels=pairs(flags.get("labels", "a=b")), size=int(flags.get("size", 0)),
  )
  save()
elif "delete" in words and words[0] == "compute":
  if words[words.index("delete") + 1] not in cloud[words[1]]:
    sys.exit("ERROR: (gcloud) The resource was not found")
  del cloud[words[1]][words[words.index("delete") + 1]]
  save()
elif words[1:3] == ["instance-templates", "list"]:
  print(json.dumps([
    dict(name=name, properties=dict(labels=made["labels"]))
    for name, made in cloud["instance-templates"].items()
  ]))
elif words[1:4] == ["instance-groups", "managed", "list"]:
  print(json.dumps([
    dict(name=name, size=made["size"] - made.get("lost", 0), targetSize=made["size"],
         status=dict(isStable=True))
    for name, made in cloud["instance-groups"].items()
  ]))
elif "list-instances" in words:
  print("\\n".join(name + "-" + str(i) for i in (2, 0, 1) for name in [words[4]]))
"""


class Cloud:
  """The fake gcloud of some programs, and what its cloud holds."""

  def __init__(self, programs: Programs, **changes):
    self.programs = programs
    self._file = pathlib.Path(programs.path).parent / "cloud.json"
    empty: dict = {"account": "me@x", "location": "US-EAST5", "copied": [], "fail": {}, "moves": []}
    empty |= {"apis": ["tpu.googleapis.com", "compute.googleapis.com", "storage.googleapis.com"]}
    empty |= {"roles": ["roles/tpu.admin"], "queued": {}, "strangers": []}
    empty |= {"instance-templates": {}, "instance-groups": {}, "resource-policies": {}}
    self._file.write_text(json.dumps(empty))
    self.change(**changes)
    programs.add("gcloud", BODY.format(cloud=str(self._file)))

  def change(self, **changes) -> None:
    self._file.write_text(json.dumps(self.holds() | changes))

  def holds(self) -> dict:
    return json.loads(self._file.read_text())

  @property
  def nothing_left(self) -> bool:
    """Whether nothing is there that costs money or quota (what is being deleted is on its way)."""
    now = self.holds()
    queued = [q for q in now["queued"].values() if q["moves"][0] not in ("DELETING", "GONE")]
    kinds = ("instance-templates", "instance-groups", "resource-policies")
    return not queued and not any(now[kind] for kind in kinds)

  def created(self) -> list[str]:
    """Names of the requests that were ever made, in order."""
    calls = self.programs.calls("gcloud")
    return [call[5] for call in calls if call[2:5] == ["tpus", "queued-resources", "create"]]
