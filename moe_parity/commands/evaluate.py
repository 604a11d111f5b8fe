"""`moe-parity evaluate`."""

import json

from moe_parity.commands.common import json_argument, mesh_arguments, on_disk, place
from moe_parity.commands.output import print_lost_text, print_table
from moe_parity.errors import UserError

HELP = "score a trained run on held-out text"
ABOUT = """\
Scores a trained run on its held-out text in bits per character and byte; for an MoE also which
experts each domain goes to (--routing).

  moe-parity evaluate runs/mine/runs/moe_20-s0

Prints the scores (--json for machines); --routing writes specialization.npz into the run.
"""


def arguments(parser) -> None:
  parser.add_argument(
    "folder", type=place, metavar="RUN", help="a run's folder; with --routing a study's too"
  )
  parser.add_argument("--mode", default="document", help="document | strided | packed")
  parser.add_argument("--stride", type=int, default=0, help="tokens, for --mode=strided")
  parser.add_argument("--max-tokens", type=int, default=0, help="0: all held-out text")
  parser.add_argument(
    "--routing",
    action="store_true",
    help="instead of scoring, count which experts each domain goes to; of a study, for all runs",
  )
  parser.add_argument(
    "--prepare-data",
    action="store_true",
    help="fetch and prepare the text that the run's config names, where it is not on this machine",
  )
  mesh_arguments(parser)
  json_argument(parser)


def run(args) -> int:
  from moe_parity.planning.mesh_sizes import read_mesh

  sizes = read_mesh(args)
  on_disk(args.folder, "evaluate reads a run on this machine")
  if args.routing:
    return _routing(args, sizes)
  from moe_parity.startup import start_jax

  start_jax()
  from moe_parity.training.load_run import evaluate_run

  settings = args.mode, args.stride, args.max_tokens, sizes, args.prepare_data
  result = evaluate_run(args.folder, *settings)
  if args.json:
    print(json.dumps(result, indent=2))
  else:
    print_table([{"domain": name, **row} for name, row in result["by_domain"].items()])
    print(
      f"all: {result['bpc']:.4f} bits per character, {result['bpb']:.4f} per byte"
      f" ({result['mode']}, S = {result['seq_len']})"
    )
    print_lost_text(result)
  return 0


def _routing(args, sizes) -> int:
  """Writes specialization.npz into every finished MoE run of the folder and prints it."""
  if args.mode != "document" or args.stride:
    raise UserError("--routing looks at whole documents; leave --mode and --stride out")
  from moe_parity.study.reading import read_everything

  every = read_everything(args.folder)
  runs = [(label, run) for label, run in every if run.done and run.plan["kind"] == "moe"]
  if not runs:
    raise UserError(f"{args.folder} holds no finished MoE run; only those route")
  from moe_parity.startup import start_jax

  start_jax()
  from moe_parity.evaluation import specialization
  from moe_parity.training.load_run import count_run_routing

  rows = []
  for label, run in runs:
    count_run_routing(run.folder, args.max_tokens, sizes, args.prepare_data)
    choices = specialization.load(run.folder)
    for row in specialization.specialization_by_layer(choices):
      pairs = specialization.pair_information(choices, row["layer"] - 1)
      rows.append({"run": label, **row, "pair_information": pairs})
  if args.json:
    print(json.dumps(rows, indent=2))
  else:
    print_table(rows)
    print("nats; excess and share are over chance, by permuting domains among documents")
    print(f"moe-parity report {args.folder} draws it")
  return 0
