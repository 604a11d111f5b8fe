"""`moe-parity sft`."""

import argparse
import json

from moe_parity.commands.common import (
  folder_here,
  json_argument,
  on_disk,
  place,
  process_arguments,
  processes,
  worker_argument,
)
from moe_parity.commands.output import print_table
from moe_parity.errors import NotFiniteError, UserError

HELP = "fine-tune a trained run on chats"
ABOUT = """\
Fine-tunes a trained run on chats, with the loss on what the assistant says. Tries every pair of
--learning-rates and --epochs and keeps the one with the lowest loss on held-out chats. Run the same
command again to resume. A study fine-tunes all its arms with --config.finetuning.data=FILE.

  moe-parity sft runs/mine/runs/moe_20-s0 --data chats.jsonl
  moe-parity sft runs/demo/runs/moe_20-s0 --data builtin --learning-rates 0.3 --epochs 4

Writes a run folder (RUN/sft, or --out) with the chat template and finetuning.json, the sweep.
"""
FORMAT_HELP = "messages | sharegpt | alpaca; as the first record shows if left out"


def arguments(parser) -> None:
  parser.add_argument("folder", type=place, metavar="RUN")
  parser.add_argument(
    "--data", required=True, metavar="FILE,FILE", help="chats in JSON, one a line; or builtin"
  )
  parser.add_argument("--out", type=place, default=None, metavar="DIR", help="RUN/sft if left out")
  parser.add_argument("--format", default=None, metavar="NAME", help=FORMAT_HELP)
  parser.add_argument("--learning-rates", type=_numbers, default=None, metavar="X,X",
                      help="multiples of the run's pretraining peak (0.1,0.3)")  # fmt: skip
  parser.add_argument("--epochs", type=_integers, default=None, metavar="N,N",
                      help="passes over the chats (2,4)")  # fmt: skip
  parser.add_argument("--batch-sequences", type=int, default=None, metavar="N",
                      help="packed rows a step (8)")  # fmt: skip
  parser.add_argument("--held-out", type=float, default=None, metavar="SHARE",
                      help="share of the chats, for validation (0.1)")  # fmt: skip
  for name, what in (
    ("too-long", "longer than the model's positions"),
    ("duplicates", "given twice"),
  ):
    what = f"chats {what}: refuse | leave-out, and count"
    parser.add_argument(f"--{name}", default=None, metavar="HOW", help=what)
  parser.add_argument("--ignore-keys", dest="ignored_keys", type=_words, default=None,
                      metavar="KEY,KEY", help="keys of a record to ignore")  # fmt: skip
  parser.add_argument("--template", default=None, metavar="FILE",
                      help="JSON: special tokens that mark system, user and assistant")  # fmt: skip
  parser.add_argument("--mesh", type=_integers, default=None, metavar="D,F,E",
                      help="devices along data, fsdp and expert; as pretrained")  # fmt: skip
  worker_argument(parser)
  process_arguments(parser)
  json_argument(parser)


def _words(text: str) -> tuple[str, ...]:
  return tuple(part for part in text.split(",") if part)


def _numbers(text: str, kind=float, rule: str = "numbers, as 0.1,0.3") -> tuple[float | int, ...]:
  try:
    return tuple(kind(part) for part in _words(text))
  except ValueError:
    raise argparse.ArgumentTypeError(f"{text!r} is no list of {rule}") from None


def _integers(text: str) -> tuple[int, ...]:
  return _numbers(text, int, "whole numbers, as 2,4")


def run(args) -> int:
  on_disk(args.folder, "sft reads a run on this machine")
  from moe_parity import files
  from moe_parity.finetuning.base_run import open_base
  from moe_parity.finetuning.sweep import SWEEP, candidates, check_out, edges

  base = open_base(args.folder)
  config = _config(args, base)
  candidates(config.finetuning)
  out = folder_here(args.out or args.folder / "sft", "sft")
  check_out(out)
  from moe_parity.finetuning.finetune import chat_rows
  from moe_parity.training.load_run import open_run_data

  store = open_run_data(args.folder, config)
  rows = chat_rows(config, store, base.plan["seq_len"])
  from moe_parity.config import to_json
  from moe_parity.startup import start_jax
  from moe_parity.study.certificate import certify_run
  from moe_parity.study.workers.agreement import check_agreement
  from moe_parity.study.workers.stop_signals import StopSignals

  with StopSignals() as stop:
    start_jax(**processes(args))
    stop.join_processes()
    check_agreement(to_json(config))
    swept = _sweep(args, config, base, store, rows, out, stop)
  if swept is None:
    return 0
  tried, chosen = swept
  passed = certify_run(out)["passed"]
  if args.json:
    print(json.dumps(files.read_json(out / SWEEP), indent=2))  # null for a loss that is infinite
  else:
    print_table(tried)
    print(_sentence(base, rows, out, chosen, passed))
    for words in edges(chosen, tried):
      print(f"note: {words}; a better one may lie beyond")
  return 0 if passed else 1


def _config(args, base):
  """The config of the base run, with the fine-tuning that the command line asks for.

  Raises:
    UserError: an option that breaks its row of the table of fields.
  """
  from moe_parity.config import from_stored
  from moe_parity.defaults import base as defaults
  from moe_parity.defaults import completed
  from moe_parity.fields.check import check_fields
  from moe_parity.training import run_folder

  config = completed(from_stored(run_folder.read_json(base.folder / run_folder.CONFIG)))
  config.finetuning = defaults().finetuning
  for name in config.finetuning:
    if getattr(args, name, None) is not None:
      config.finetuning[name] = getattr(args, name)
  config.evaluation.ablations = ()
  check_fields(config)
  if args.mesh is not None:
    if len(args.mesh) != 3:
      raise UserError(f"--mesh={args.mesh} has {len(args.mesh)} numbers; give three, as 2,1,4")
    config.mesh.data, config.mesh.fsdp, config.mesh.expert = args.mesh
  return config.lock()


def _sweep(args, config, base, store, rows, out, stop) -> tuple[list[dict], dict] | None:
  """(every candidate, the chosen one), which `out` then holds; None but in the first process."""
  from moe_parity import files
  from moe_parity.console import TrainingBars
  from moe_parity.finetuning import sweep
  from moe_parity.finetuning.finetune import finetune_arm, plan_candidate
  from moe_parity.study.workers.run_lease import leased_everywhere
  from moe_parity.training.control import RunControl

  (out / sweep.CANDIDATES).mkdir(parents=True, exist_ok=True)
  sweep.check_candidates(out, rows.counts | {"base_sha256": base.sha256})
  tried = []
  with TrainingBars() as bars, leased_everywhere(out, bars.print, args.worker) as lease:
    if lease is not None:
      stop.release = lambda: lease.release("stopped")
    for rate, epochs in sweep.candidates(config.finetuning):
      plan = plan_candidate(config, base, rows, rate, epochs)
      name = sweep.candidate_name(rate, epochs)
      folder = out / sweep.CANDIDATES / name
      on_log = lambda p, label=f"{plan.name} {name}": bars.update(label, p)  # noqa: E731
      control = RunControl(lease.check, stop) if lease else RunControl(stop=stop)
      try:
        result = finetune_arm(config, plan, store, base, rows, folder, on_log, bars.print, control)
      except NotFiniteError as error:
        bars.print(f"{name}: {error}")
        result = None
      tried.append(sweep.row_of(rate, epochs, result))
    if lease is None:
      return None
    chosen = sweep.best(tried)
    lease.check()
    sweep.adopt(out / sweep.CANDIDATES / chosen["candidate"], out)
    written = {"chosen": chosen["candidate"], "candidates": tried}
    files.write_json(out / sweep.SWEEP, written, seal=True)
  return tried, chosen


def _sentence(base, rows, out, chosen: dict, passed: bool) -> str:
  from moe_parity.training import run_folder

  result = run_folder.read_result(out)
  before = result["finetuning"]["before"]
  counts = rows.counts
  left_out = {
    "too long": counts["num_too_long_left_out"], "duplicates": counts["num_duplicates_left_out"],
  }  # fmt: skip
  words = "".join(f", {number} {name} left out" for name, number in left_out.items() if number)
  return (
    f"{base.plan['name']}: {counts['num_examples']} chats{words}; held-out answers"
    f" {before['bpc']:.4f} -> {chosen['bpc']:.4f} bits per character ({chosen['candidate']}), text"
    f" {result['validation']['bpc']:.4f}; certificate {'passed' if passed else 'FAILED'}\n{out}"
  )
