"""`moe-parity account`."""

import json
import pathlib

from moe_parity.commands.common import json_argument
from moe_parity.commands.output import print_table

HELP = "count parameters and FLOPs of any table of shapes, row by row"
ABOUT = """\
Counts parameters and FLOPs of every architecture in a CSV file under one convention, and says by
how much printed values disagree.

  moe-parity account shapes.csv --convention=paper
  moe-parity account shapes.csv --convention=executed --vocab-size=65536

Columns: n_layers, d_model, n_heads or d_head, seq_len; d_ffn where a layer is dense; for an MoE E,
K, De, and Dse with a shared expert. Tokens: iters and batch_seqs, or D_tokens. A value that the
file prints itself (N_params, Na_params, ra_pct, M_flops_per_token, D_tokens, C_flops, D_over_N, lr,
batch_seqs) is compared: "off %" is ours over it, minus 1. Of lr and batch_seqs ours are StepLaw's.
Examples: moe_parity/paper/table*.csv.
Prints a table (--json for machines); writes nothing.
"""


def arguments(parser) -> None:
  parser.add_argument("table", type=pathlib.Path, metavar="SHAPES.csv")
  parser.add_argument("--convention", default="paper", help="paper | paper_full | exact | executed")
  parser.add_argument(
    "--vocab-size", type=int, default=0, metavar="V",
    help="vocabulary of rows without a column vocab_size; `executed` needs it",
  )  # fmt: skip
  parser.add_argument(
    "--attention-block", type=int, default=512, metavar="QUERIES",
    help="queries computed at a time (model.attention_block), for `executed`",
  )  # fmt: skip
  json_argument(parser)


def run(args) -> int:
  from moe_parity.planning.account_table import account_file, printable

  rows = account_file(
    args.table,
    args.convention,
    vocab_size=args.vocab_size,
    attention_block=args.attention_block,
  )
  if args.json:
    print(json.dumps(rows, indent=2))
  else:
    print_table(printable(rows))
  return 0
