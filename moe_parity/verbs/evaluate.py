"""`moe-parity evaluate`."""

import json
import pathlib

from moe_parity.verbs.common import json_argument
from moe_parity.verbs.printing import print_table

HELP = "score a trained run on held-out text"


def arguments(parser) -> None:
  parser.add_argument("folder", type=pathlib.Path, metavar="RUN")
  parser.add_argument("--mode", default="document", help="document | strided | packed")
  parser.add_argument("--stride", type=int, default=0, help="tokens, for --mode=strided")
  parser.add_argument("--max-tokens", type=int, default=0, help="0: all held-out text")
  json_argument(parser)


def run(args) -> int:
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
