"""The `moe-parity` command: one verb a question, each a few lines over the rooms that do the work.

Imports happen inside the verbs, so that `plan` and `account` answer without loading JAX.
"""

import argparse
import errno
import json
import pathlib
import shlex
import sys
from collections.abc import Sequence

from moe_parity.errors import UserError

ROOT = pathlib.Path(__file__).resolve().parent.parent  # of the checkout: configs/ and tests/

ABOUT = """\
Dense or Mixture-of-Experts? At equal total parameters N, equal training compute C and equal unique
data D (arXiv 2506.12119), which wins, and at which activation rate N_a / N?

  moe-parity demo                                            the whole question, small, on this CPU
  moe-parity plan    --config=configs/paper_7b.py            what every arm would cost, in a second
  moe-parity study   --config=configs/demo.py --workdir=runs/mine      train, certify, judge
  moe-parity report  runs/mine                               one HTML page

Any field of a config can be set on the command line: --config.budget.dense_tokens=2000000
"""


def main(argv: Sequence[str] | None = None) -> int:
  """Runs one verb; the exit status. 0 done, 1 it ran and the answer is no, 2 mend the input."""
  argv = list(sys.argv[1:] if argv is None else argv)
  parser = _parser()
  args, overrides = parser.parse_known_args(argv)
  if args.verb is None:
    parser.print_help()
    return 2
  args.overrides, args.command = overrides, "moe-parity " + shlex.join(argv)
  try:
    if overrides and not hasattr(args, "config"):
      raise UserError(f"unknown option {overrides[0]!r}; see moe-parity {args.verb} --help")
    return args.run(args)
  except UserError as error:
    print(f"error: {error}", file=sys.stderr)
  except KeyboardInterrupt:
    print("\nstopped; the same command goes on from the last checkpoint", file=sys.stderr)
    return 130
  except Exception as error:
    if not _disk_is_full(error):
      raise
    print(
      "error: the disk is full; nothing finished is lost. Free some space (train.keep_checkpoints"
      " sets how many checkpoints stay), then run the same command again",
      file=sys.stderr,
    )
  return 2


def _disk_is_full(error: BaseException | None) -> bool:
  """Whether a full disk is what lies behind an error, however deeply a library wrapped it."""
  while error is not None:
    if isinstance(error, OSError) and error.errno in (errno.ENOSPC, errno.EDQUOT):
      return True
    if "No space left on device" in str(error):
      return True
    error = error.__cause__ or error.__context__
  return False


def _parser() -> argparse.ArgumentParser:
  raw = argparse.RawDescriptionHelpFormatter
  parser = argparse.ArgumentParser("moe-parity", description=ABOUT, formatter_class=raw)
  verbs = parser.add_subparsers(dest="verb", metavar="VERB")

  def verb(name, run, help_, *, config=False, workdir="", json_=False):
    sub = verbs.add_parser(name, help=help_, description=help_, allow_abbrev=False)
    sub.set_defaults(run=run)
    if config:
      sub.add_argument(
        "--config",
        required=True,
        metavar="FILE.py[:ARG]",
        help="its docstring lists the arguments; set fields by --config.name=value",
      )
    if workdir:
      sub.add_argument("--workdir", required=True, type=pathlib.Path, help=workdir)
    if json_:
      sub.add_argument("--json", action="store_true", help="print JSON for machines")
    return sub

  verb(
    "plan",
    _plan,
    "derive every arm of a budget; refuse arms that are not at parity",
    config=True,
    json_=True,
  )
  account = verb("account", _account, "price any table of shapes, row by row", json_=True)
  account.add_argument("table", type=pathlib.Path, metavar="SHAPES.csv")
  account.add_argument("--convention", default="paper", help="paper | paper_full | exact")
  train = verb("train", _train, "train one arm of a config", config=True, workdir="run folder")
  train.add_argument("--arm", default="", help="which arm; may be left out where there is one")
  train.add_argument("--seed", type=int, default=None, help="which of the arm's seeds")
  study = verb(
    "study",
    _study,
    "train all arms, certify equal resources, judge",
    config=True,
    workdir="study folder",
    json_=True,
  )
  study.add_argument("--only", default="", metavar="ARM,ARM", help="train these arms only")
  study.add_argument("--dry-run", action="store_true", help="print the queue and train nothing")
  report = verb("report", _report, "write a study's page, figures and tables again", json_=True)
  report.add_argument("folder", type=pathlib.Path, metavar="STUDY")
  evaluate = verb("evaluate", _evaluate, "score a trained run on held-out text", json_=True)
  evaluate.add_argument("folder", type=pathlib.Path, metavar="RUN")
  evaluate.add_argument("--mode", default="document", help="document | strided | packed")
  evaluate.add_argument("--stride", type=int, default=0, help="tokens, for --mode=strided")
  evaluate.add_argument("--max-tokens", type=int, default=0, help="0: all held-out text")
  prepare = verb("prepare", _prepare, "turn text into a token store with a manifest", json_=True)
  prepare.add_argument("--source", default="builtin", help="builtin | file | folder")
  prepare.add_argument(
    "--tokenizer", default="bytes", help="bytes | bpe:<vocab> | a tokenizer.json"
  )
  prepare.add_argument("--store", default="", help="folder to make; default: one in the cache")
  prepare.add_argument(
    "--held-out", default="", help="hash:<share> | works:<name>,<name> | source:<path>"
  )
  prepare.add_argument(
    "--max-bad-records",
    type=int,
    default=0,
    help="unreadable records that may be skipped; the manifest counts them",
  )
  audit = verb(
    "audit", _audit, "prove what data runs saw, how often, and whether it was the same", json_=True
  )
  audit.add_argument("runs", type=pathlib.Path, nargs="+", metavar="RUN")
  audit.add_argument("--verify", action="store_true", help="also hash the token store's files")
  overlap = verb(
    "contamination", _contamination, "find held-out text that training text contains", json_=True
  )
  overlap.add_argument("store", type=pathlib.Path, metavar="STORE")
  overlap.add_argument("--ngram", type=int, default=13, help="words in a row that count as seen")
  bench = verb("bench", _bench, "measure this machine: ratios from one run", json_=True)
  bench.add_argument(
    "--only", default="", metavar="NAME,NAME", help="startup, step, layer, compile, loader"
  )
  demo = verb("demo", _demo, "the whole question in a few minutes on a CPU")
  demo.add_argument("--workdir", type=pathlib.Path, default=pathlib.Path("runs/demo"))
  demo.add_argument("--config", default=str(ROOT / "configs" / "demo.py"), help=argparse.SUPPRESS)
  test = verb("test", _test, "run the tests; further arguments go to pytest")
  test.add_argument("pytest", nargs=argparse.REMAINDER)
  return parser


def _load(args):
  from moe_parity import config

  return config.load(args.config, args.overrides)


def _plan(args) -> int:
  from moe_parity.resources.plan import make_plan

  plan = make_plan(_load(args))
  if args.json:
    print(json.dumps(plan.to_dict(), indent=2))
  else:
    print_table(plan.to_rows())
    for note in plan.notes:
      print(f"note: {note}")
  return 0


def _account(args) -> int:
  from moe_parity.resources.account_table import account_file, printable

  rows = account_file(args.table, args.convention)
  if args.json:
    print(json.dumps(rows, indent=2))
  else:
    print_table(printable(rows))
  return 0


def _prepare(args) -> int:
  from moe_parity.console import bytes_bar
  from moe_parity.data.prepare import prepare

  with bytes_bar() as progress:
    store = prepare(
      args.source,
      args.tokenizer,
      args.store,
      held_out=args.held_out,
      max_bad_records=args.max_bad_records,
      progress=progress,
    )
  if args.json:
    print(json.dumps(store.manifest, indent=2))
  else:
    print_table(store_rows(store))
    print(f"token store: {store.folder}")
  return 0


def store_rows(store) -> list[dict]:
  """What a store holds, a row a split and domain."""
  rows = []
  for name in ("train", "validation"):
    for domain, totals in store.manifest["splits"][name]["by_domain"].items():
      rows.append({"split": name, "domain": domain, **totals})
  return rows


def open_data(config):
  """The config's token store, made first where it is not there yet, with a bar while it is made."""
  from moe_parity.console import bytes_bar
  from moe_parity.data.prepare import prepare

  with bytes_bar() as progress:
    return prepare(config.data.source, config.data.tokenizer, config.data.store, progress=progress)


def _planned(args):
  """(config, plan, store): the plan knows the corpus, so that a budget it cannot feed is refused
  before JAX is loaded."""
  from moe_parity.resources.plan import make_plan

  config = _load(args)
  make_plan(config)  # what is wrong with the numbers is said before any text is read
  store = open_data(config)
  available = store.train.num_windows(config.budget.seq_len) * config.budget.seq_len
  vocab_size = store.tokenizer.vocab_size
  return config, make_plan(config, available_tokens=available, vocab_size=vocab_size), store


def _train(args) -> int:
  config, plan, store = _planned(args)
  from moe_parity.study.runner import select

  arms = select(plan.arms, [args.arm] if args.arm else [])
  if args.seed is not None:
    arms = [arm for arm in arms if arm.seed == args.seed]
  if len(arms) != 1:
    choices = ", ".join(f"--arm={arm.name} --seed={arm.seed}" for arm in plan.arms)
    raise UserError(f"train takes one arm and {len(arms)} fit; choose one of {choices}")
  from moe_parity.console import TrainingBars
  from moe_parity.startup import start_jax
  from moe_parity.study.certificate import certify_run
  from moe_parity.training.loop import train_arm

  start_jax()
  with TrainingBars(arms) as bars:
    result = train_arm(
      config, arms[0], store, args.workdir, lambda p: bars.update(arms[0], p), bars.print
    )
  passed = certify_run(args.workdir)["passed"]
  validation = result["validation"]
  print(
    f"{arms[0].name}: {validation['bpc']:.4f} bits per character, {validation['bpb']:.4f} per"
    f" byte ({validation['mode']}); certificate {'passed' if passed else 'FAILED'}"
  )
  return 0 if passed else 1


def _study(args) -> int:
  config, plan, store = _planned(args)
  only = [name for name in args.only.split(",") if name]
  if args.dry_run:
    return _dry_run(args, plan, only)
  return _run_study(args, config, plan, store, only)


def _dry_run(args, plan, only) -> int:
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
  if getattr(args, "json", False):
    print(json.dumps(rows, indent=2))
  else:
    print_table(rows)
  return 0


def _run_study(args, config, plan, store, only) -> int:
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
  if getattr(args, "json", False):
    print(json.dumps(analysis, indent=2))
  else:
    print_verdict(analysis, page)
  failed = [arm for arm in arms if arm.status == "failed"]
  return 1 if failed or analysis["certificate"]["passed"] is False else 0


def print_verdict(analysis: dict, page: pathlib.Path) -> None:
  """The verdict in words, then where the page is."""
  import textwrap

  verdict = analysis["verdict"]
  print("\n" + textwrap.fill(verdict["headline"], 96))
  for sentence in verdict["sentences"]:
    print(textwrap.fill(sentence, 96, initial_indent="- ", subsequent_indent="  "))
  print(f"\nreport: {page}")


def _report(args) -> int:
  from moe_parity.report.page import write_report

  page = write_report(args.folder)
  analysis = json.loads((args.folder / "analysis.json").read_text())
  if args.json:
    print(json.dumps(analysis, indent=2))
  else:
    print_verdict(analysis, page)
  return 0


def _evaluate(args) -> int:
  from moe_parity.startup import start_jax

  start_jax()
  from moe_parity.training.restore import evaluate_run

  result = evaluate_run(args.folder, args.mode, args.stride, args.max_tokens)
  if args.json:
    print(json.dumps(result, indent=2))
  else:
    print_table([{"domain": name, **row} for name, row in result["by_domain"].items()])
    print(
      f"all: {result['bpc']:.4f} bits per character, {result['bpb']:.4f} per byte"
      f" ({result['mode']}, S = {result['seq_len']})"
    )
  return 0


def _audit(args) -> int:
  from moe_parity.data.audit import audit_run, compare_runs

  audits = [audit_run(run, verify=args.verify) for run in args.runs]
  pairs = [{"with": str(run)} | compare_runs(args.runs[0], run) for run in args.runs[1:]]
  if args.json:
    print(json.dumps({"runs": audits, "against_first": pairs}, indent=2))
  else:
    names = ("run", "num_tokens", "num_unique_tokens", "epochs", "passed")
    print_table([{name: audit[name] for name in names} for audit in audits])
    for audit in audits:
      for failed in (check for check in audit["checks"] if not check["passed"]):
        print(f"{audit['run']}: {failed['name']}: {failed['expected']} expected, {failed['found']}")
    for pair in pairs:
      print(f"{args.runs[0]} and {pair['with']}: {pair['verdict']}")
  return 0 if all(audit["passed"] for audit in audits) else 1


def _contamination(args) -> int:
  from moe_parity.data.contamination import documents_of, overlap
  from moe_parity.data.token_store import open_store

  store = open_store(args.store)
  found = overlap(documents_of(store.train), documents_of(store.validation), args.ngram)
  if args.json:
    print(json.dumps(found, indent=2))
  else:
    print_table([{"domain": name, **row} for name, row in found["by_domain"].items()])
    print(
      f"{found['num_contaminated']} of {found['num_documents']} held-out documents share a run"
      f" of {args.ngram} words with training text; {100 * found['share']:.2f} % of all runs"
    )
  return 0


def _bench(args) -> int:
  from moe_parity.benchmarks.suite import run

  rows = run([name for name in args.only.split(",") if name])
  if args.json:
    print(json.dumps(rows, indent=2))
  else:
    for name, table in rows.items():
      print(f"\n{name}")
      print_table(table)
  return 0


def _demo(args) -> int:
  config, plan, store = _planned(args)
  print_table(plan.to_rows())
  return _run_study(args, config, plan, store, [])


def _test(args) -> int:
  import subprocess

  # A fresh process: the tests check array shapes by a hook that must come before our imports.
  arguments = args.pytest or ["-n", "2", str(ROOT / "tests")]
  return subprocess.call([sys.executable, "-m", "pytest", *arguments], cwd=ROOT)


def print_table(rows: Sequence[dict]) -> None:
  """Rows of equal keys in aligned columns, numbers to the right, as wide as they are."""
  if not rows:
    print("(nothing)")
    return
  cells = [[name.replace("_", " ") for name in rows[0]]]
  cells += [[show(value) for value in row.values()] for row in rows]
  widths = [max(map(len, column)) for column in zip(*cells, strict=True)]
  right = [isinstance(value, int | float) for value in rows[0].values()]
  cells.insert(1, ["-" * width for width in widths])
  for line in cells:
    columns = zip(line, widths, right, strict=True)
    print("  ".join(c.rjust(w) if r else c.ljust(w) for c, w, r in columns).rstrip())


def show(value) -> str:
  """A cell: integers with separators, other numbers to four digits."""
  if isinstance(value, bool) or not isinstance(value, int | float):
    return "" if value is None else str(value)
  if isinstance(value, int):
    return f"{value:,}" if abs(value) < 10**9 else f"{value:.4g}"
  return f"{value:.4g}"


if __name__ == "__main__":
  sys.exit(main())
