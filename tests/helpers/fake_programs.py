"""Programs that stand in for gcloud, kubectl, nvidia-smi and others on PATH; they record argv."""

import json
import pathlib
import shutil
import stat
import sys

# What a shell script of the launchers may use in addition to the fakes.
BASICS = (
  *("bash", "env", "cat", "cksum", "dirname", "mkdir", "sed", "flock", "sleep", "rm", "cp", "mv"),
  *(
    "tr",
    "sort",
    "head",
    "grep",
    "date",
    "hostname",
    "touch",
    "basename",
    "awk",
    "wc",
    "tar",
    "gzip",
  ),
)

RECORD = """#!{python} -SE
import json, os, sys
with open({calls!r}, "a") as file:
  names = ("EXTRA", "CUDA_VISIBLE_DEVICES")
  env = {{name: os.environ[name] for name in names if name in os.environ}}
  argv = [os.path.basename(sys.argv[0]), *sys.argv[1:]]
  file.write(json.dumps({{"argv": argv, "env": env}}) + "\\n")
"""


class Programs:
  """A folder of fake programs, to be PATH alone."""

  def __init__(self, folder: pathlib.Path):
    self.folder, self.log = folder / "bin", folder / "calls.jsonl"
    self.folder.mkdir(parents=True)
    for name in BASICS:
      if found := shutil.which(name):
        (self.folder / name).symlink_to(found)

  @property
  def path(self) -> str:
    return str(self.folder)

  def add(self, name: str, body: str = "") -> None:
    """A program that records its call and then runs `body`, Python with `json`, `os`, `sys`."""
    self.write(name, RECORD.format(python=sys.executable, calls=str(self.log)) + body)

  def write(self, name: str, text: str) -> None:
    file = self.folder / name
    file.unlink(missing_ok=True)  # writing through a link would change the machine's own program
    file.write_text(text)
    file.chmod(file.stat().st_mode | stat.S_IXUSR)

  def calls(self, name: str = "") -> list[list[str]]:
    """The argument lists of all calls, or of those of one program, in order."""
    return [c["argv"] for c in self.records() if not name or c["argv"][0] == name]

  def records(self) -> list[dict]:
    lines = self.log.read_text().splitlines() if self.log.exists() else []
    return [json.loads(line) for line in lines]
