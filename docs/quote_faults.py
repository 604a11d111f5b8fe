"""The page that says which test guards against which fault, and what each fault did before.

`faults_rows.json` has the rows: key (that of results/faults_before.json), fault, now (what happens
now; left out where it is one line of error), tests by file.
"""

import json
import pathlib

from quote_tables import markdown

HERE = pathlib.Path(__file__).resolve().parent
BEFORE = HERE.parent / "results" / "faults_before.json"
ROWS = json.loads((HERE / "faults_rows.json").read_text())


def block(section: str) -> str:
  """One table of the page."""
  before = json.loads(BEFORE.read_text())
  says_now = any("now" in row for row in ROWS[section])
  names = ["fault", f"at {before['commit']}", *(["what happens now"] if says_now else []), "test"]
  cells = []
  for row in ROWS[section]:
    was = before["rows"][row["key"]]
    seen = f"not run: {was['said']}" if was["verdict"] == "not run" else was["verdict"]
    tests = "; ".join(
      f"`{file}`: {', '.join(f'`{name}`' for name in found)}"
      for file, found in row["tests"].items()
    )
    cells.append([row["fault"], seen, *([row.get("now", "")] if says_now else []), tests])
  return "\n".join(markdown(names, cells)[1:])


def summary() -> str:
  """How many of the faults were seen at that version."""
  before = json.loads(BEFORE.read_text())
  verdicts = [row["verdict"] for row in before["rows"].values()]
  counts = {name: verdicts.count(name) for name in dict.fromkeys(verdicts)}
  held, not_run = counts.pop("held", 0), counts.pop("not run", 0)
  words = ", ".join(f"{number} {name}" for name, number in counts.items())
  return (
    f"At {before['commit']} the input of {sum(counts.values())} of {len(verdicts)} rows showed the"
    f" fault ({words}); {held} held; {not_run} could not be run there."
  )
