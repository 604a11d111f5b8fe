"""`moe-parity report`."""

import json
import pathlib

from moe_parity import files
from moe_parity.commands.common import json_argument, on_disk, place
from moe_parity.commands.output import print_verdict
from moe_parity.errors import UserError

HELP = "write a study's page, figures and tables again"
ABOUT = """\
Checks a study's files against their certificate and writes its page, figures and tables again.

  moe-parity report runs/mine

Writes analysis.json and report/index.html, one self-contained file.

Of each run that is compared a few documents are scored again from its checkpoint, once for every
content of its files: at most 16 documents, 32,768 tokens and 4e12 FLOPs, seconds for a small model
and a minute of a CPU core for a large one; four of them also with what its ablations take away.
--rescore=all does it anew, --rescore=none leaves it out.
"""


def arguments(parser) -> None:
  parser.add_argument("folder", type=place, metavar="STUDY")
  parser.add_argument(
    "--rescore", default="new", choices=("new", "all", "none"),
    help="runs whose documents are scored again: those not scored since they changed, all, or none",
  )  # fmt: skip
  json_argument(parser)


def check_runs_are_there(folder: pathlib.Path) -> None:
  """
  Raises:
    UserError: the folder holds the analysis of finished runs and none of these runs, as those under
      results/ do: analyzing it again would replace its numbers by nothing.
  """
  results = ("result.json", "runs/*/result.json", "parts/*/runs/*/result.json")
  if not (folder / "analysis.json").is_file() or any(any(folder.glob(r)) for r in results):
    return
  rows = files.read_json(folder / "analysis.json").get("arms") or ()
  if done := sum(row.get("status") == "done" for row in rows):
    raise UserError(
      f"{folder} holds the analysis of {done} runs and none of the runs, so report would replace"
      " its numbers by nothing; give the folder where they were trained, or read this one with"
      f" moe_parity.open_study({str(folder)!r})"
    )


def run(args) -> int:
  on_disk(args.folder, "report writes into a study folder on this machine")
  check_runs_are_there(args.folder)
  from moe_parity.report.page import write_report
  from moe_parity.startup import start_jax
  from moe_parity.study.certificate import recheck_study
  from moe_parity.study.reading import comparison_folders, read_steps

  for folder in [args.folder, *comparison_folders(args.folder)]:
    if (folder / "study.json").exists():
      recheck_study(folder, args.rescore, start_jax)
  page = write_report(args.folder)
  analysis = files.read_json(args.folder / "analysis.json")
  if args.json:
    print(json.dumps(analysis, indent=2))
  else:
    step = next((s for s in read_steps(args.folder).values() if s), None)
    print_verdict(analysis, page, step)
  return 0
