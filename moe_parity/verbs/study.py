"""`moe-parity study`."""

import json

from moe_parity.verbs.common import config_argument, json_argument, planned, workdir_argument
from moe_parity.verbs.printing import print_table, print_verdict

HELP = "train all arms, certify equal resources, judge"


def arguments(parser) -> None:
  config_argument(parser)
  workdir_argument(parser, "study folder")
  json_argument(parser)
  parser.add_argument("--only", default="", metavar="ARM,ARM", help="train these arms only")
  parser.add_argument("--dry-run", action="store_true", help="print the queue and train nothing")


def run(args) -> int:
  config, plan, store = planned(args)
  only = [name for name in args.only.split(",") if name]
  if args.dry_run:
    return dry_run(args, plan, only)
  return run_and_judge(args, config, plan, store, only)


def dry_run(args, plan, only) -> int:
  """Prints the queue."""
  from moe_parity.study.runner import folder_of, select
  from moe_parity.training.run_folder import RESULT

  rows = []
  for arm in select(plan.arms, only):
    done = (args.workdir / folder_of(arm) / RESULT).exists()
    rows.append(
      {
        "arm": arm.name,
        "seed": arm.seed,
        "status": "done" if done else "to do",
        "steps": arm.num_steps,
        "tokens": arm.num_tokens,
        "FLOPs": arm.train_flops,
      }
    )
  if args.json:
    print(json.dumps(rows, indent=2))
  else:
    print_table(rows)
  return 0


def run_and_judge(args, config, plan, store, only) -> int:
  """Trains what is not done, then certifies, analyses and writes the page."""
  from moe_parity.console import TrainingBars
  from moe_parity.report.page import write_report
  from moe_parity.startup import start_jax
  from moe_parity.study.runner import run_study, select

  start_jax()
  with TrainingBars(select(plan.arms, only)) as bars:
    arms = run_study(
      config,
      plan,
      store,
      args.workdir,
      only=only,
      command=args.command,
      report=bars.update,
      warn=bars.print,
    )
  page = write_report(args.workdir)
  analysis = json.loads((args.workdir / "analysis.json").read_text())
  if args.json:
    print(json.dumps(analysis, indent=2))
  else:
    print_verdict(analysis, page)
  failed = [arm for arm in arms if arm.status == "failed"]
  return 1 if failed or analysis["certificate"]["passed"] is False else 0
