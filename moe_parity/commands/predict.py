"""`moe-parity predict`."""

import json
import pathlib

from moe_parity.commands.common import json_argument, load_config
from moe_parity.commands.output import print_table
from moe_parity.errors import UserError

HELP = "expected bits per character of an arm before it is trained, with its uncertainty"
ABOUT = """\
Predicts the score of every arm of a config before it is trained, from the paper's tables or from
your own runs, with a 95 % interval, and says where that extrapolates beyond the runs.

  moe-parity predict --config=configs/paper_7b.py
  moe-parity predict --num-params=2e9 --activation-rate=0.2,1 --tokens=40e9
  moe-parity predict --config=mine.py --runs runs/mine

The tables are of 2B to 7B models on a private text: of small models they say nothing (the interval
then spans orders of magnitude); use --runs.

Prints a table (--json for machines); writes nothing.
"""
POINT = ("num_params", "activation_rate", "tokens", "epochs")


def arguments(parser) -> None:
  parser.add_argument("--config", default="", metavar="FILE.py[:ARG]", help="predict its arms")
  parser.add_argument("--num-params", default="", metavar="N,N", help="without vocabulary")
  parser.add_argument("--activation-rate", default="", metavar="R,R", help="0..1; dense is 1")
  parser.add_argument("--tokens", default="", metavar="D,D", help="tokens seen")
  parser.add_argument("--epochs", default="", metavar="X,X", help="D over unique tokens; default 1")
  parser.add_argument(
    "--runs",
    type=pathlib.Path,
    nargs="+",
    default=[],
    metavar="FOLDER",
    help="your studies or runs to fit instead of the paper's tables, which then lend exponents",
  )
  parser.add_argument(
    "--check",
    action="store_true",
    help="cross-validate: leave out each size, and each degree of reuse, and predict its rows",
  )
  json_argument(parser)


def run(args) -> int:
  from moe_parity.study.surrogate.answer import answer as answer_to

  answer = answer_to(_question(args), args.runs, args.check)
  if args.json:
    print(json.dumps(answer, indent=2))
  else:
    _print(answer, bool(args.runs))
  return 0


def _question(args):
  """The arms of the config, or every combination of the numbers given."""
  from moe_parity.study.surrogate import answer

  given = [name for name in POINT if getattr(args, name)]
  if args.config and given:
    raise UserError(f"--config and --{given[0].replace('_', '-')} are two ways to ask; give one")
  if args.overrides and not args.config:
    raise UserError(f"unknown option {args.overrides[0]!r}; see moe-parity predict --help")
  if args.config:
    from moe_parity.api.plans import planned

    comparisons = planned(load_config(args)).comparisons
    return answer.of_plans({one.name: one.plan for one in comparisons})
  return answer.of_numbers(*(_numbers(args, name) for name in POINT))


def _numbers(args, name: str) -> list[float]:
  option, text = f"--{name.replace('_', '-')}", getattr(args, name)
  if not text and name != "epochs":
    raise UserError(f"{option} is missing; give --config, or --num-params --activation-rate "
                    "--tokens and, where tokens repeat, --epochs")  # fmt: skip
  try:
    return [float(part) for part in (text or "1").split(",")]
  except ValueError:
    raise UserError(f"{option}={text}: not numbers parted by commas, such as 2e9,3e9") from None


def _print(answer: dict, own_runs: bool) -> None:
  print_table([_row(prediction) for prediction in answer["arms"]])
  for prediction in answer["arms"]:
    name = f"{prediction['name']}: " if prediction["name"] else ""
    for sentence in prediction["extrapolates"]:
      print(f"extrapolates: {name}{sentence}")
  print(f"\nfitted on {answer['fitted_on']} ({answer['num_rows']} rows); errors in BPC on rows"
        " left out of the fit, root mean square:")  # fmt: skip
  print_table(
    [
      {
        "form": error["form"],
        "fitted rows": error["seen"],
        "left-out shapes": error["shape"],
        "left-out sizes": error["size"],
        "left-out reuse": error["reuse"],
        "": "<- predicts" if error["chosen"] else "",
      }
      for error in answer["errors"]
    ]
  )
  for name, what in (("leave_one_size_out", "size"), ("leave_one_reuse_out", "reuse of a size")):
    if name in answer:
      print(f"\neach {what} left out, the form chosen and fitted without it, its rows predicted:")
      print_table(answer[name])
  if not own_runs:
    print("\nnote: BPC of the paper's text and tokenizer; on other text compare arms, not levels")


def _row(prediction: dict) -> dict:
  row = {"arm": prediction["name"]} if prediction["name"] else {}
  row |= {
    "N": float(prediction["num_params"]),
    "r_a %": round(100 * prediction["activation_rate"], 2),
    "tokens": float(prediction["num_tokens"]),
    "epochs": round(prediction["epochs"], 2),
    "BPC": round(prediction["bpc"], 4),
    "95 % interval": _interval(prediction["interval"]),
  }
  if "minus_dense" in prediction:
    versus = prediction["minus_dense"]
    row["minus dense"] = f"{versus['difference']:+.4f}" if versus else ""
    row["interval of that"] = _interval(versus["interval"], "+") if versus else ""
  return row | {"extrapolates": "yes" if prediction["extrapolates"] else "no"}


def _interval(ends: list[float], sign: str = "") -> str:
  return f"{ends[0]:{sign}.4f} to {ends[1]:{sign}.4f}"
