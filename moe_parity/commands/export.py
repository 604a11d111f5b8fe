"""`moe-parity export`."""

import json

from moe_parity.commands.common import (
  checkpoint_arguments,
  folder_here,
  json_argument,
  on_disk,
  place,
)
from moe_parity.errors import check_choice
from moe_parity.fields.check import check_kind
from moe_parity.fields.kinds import Number

HELP = "write a trained run as a folder that transformers loads"
ABOUT = """\
Writes a trained run as a folder that Hugging Face transformers loads, with a model card.

  moe-parity export runs/mine/runs/moe_20-s0 --to=hf --out=exported --check

Writes a new folder; --check loads it in transformers and exits 1 where logits or text differ. Needs
pip install 'moe_parity[hf]', and torch for --check alone.
"""
FORMATS = ("hf",)


def arguments(parser) -> None:
  parser.add_argument("folder", type=place, metavar="RUN")
  parser.add_argument("--to", default="hf", metavar="FORMAT", help="hf")
  parser.add_argument("--out", required=True, type=place, metavar="DIR", help="a new folder")
  parser.add_argument(
    "--class", dest="model_type", default="", metavar="NAME",
    help="llama | qwen2_moe | ernie4_5_moe | moe_parity (our own file); if left out, the first of"
    " these that is exact",
  )  # fmt: skip
  checkpoint_arguments(parser)
  parser.add_argument(
    "--shard-mb", type=float, default=5000, metavar="MB", help="the most a weight file holds"
  )
  parser.add_argument(
    "--check", action="store_true", help="load it in transformers and compare logits and text"
  )
  json_argument(parser)


def run(args) -> int:
  check_choice("--to", args.to, FORMATS)
  check_kind("--shard-mb", args.shard_mb, Number(0.001, 1e9))
  on_disk(args.folder, "export reads a run on this machine")
  folder_here(args.out, "export")
  from moe_parity.startup import start_jax

  start_jax()
  from moe_parity.interchange.export import export_run

  if args.check:
    from moe_parity.interchange.check import check_exports, hf_python

    hf_python()  # before anything is written
  exported = export_run(
    args.folder,
    args.out,
    step=args.step or None,
    model_type=args.model_type,
    tokenizer=args.tokenizer,
    shard_bytes=int(args.shard_mb * 1e6),
  )
  result = {
    "folder": str(exported.folder),
    "model_type": exported.model_type,
    "weight_files": exported.weight_files,
  }
  if args.check:
    [result["check"]] = check_exports([exported])
  if args.json:
    print(json.dumps(result, indent=2))
  else:
    _print(result)
  return 0 if not args.check or result["check"]["passed"] else 1


def _print(result: dict) -> None:
  number = len(result["weight_files"])
  plural = "s" if number > 1 else ""
  print(f"{result['folder']}: {result['model_type']}, {number} weight file{plural}")
  if "check" not in result:
    return
  check = result["check"]
  same = "the same" if check["equal_greedy"] else "other"
  print(
    f"{check['class']} in transformers {check['transformers']}, torch {check['torch']}: logits"
    f" differ by at most {check['largest_difference']:.1e} (allowed: {check['tolerance']:.0e}),"
    f" {100 * check['equal_argmax']:g} % of arg-maxima are equal, {same} greedy tokens"
  )
  for kind in ("missing", "unexpected"):
    if check[kind]:
      print(f"{kind} tensors: {', '.join(check[kind][:5])}")
  print("the export says what the run says" if check["passed"] else "THE EXPORT DIFFERS")
