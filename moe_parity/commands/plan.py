"""`moe-parity plan`."""

import json

from moe_parity.commands.common import config_argument, json_argument, load_config
from moe_parity.commands.output import print_table
from moe_parity.errors import UserError

HELP = "derive every arm of a budget; refuse arms that are not at parity"
ABOUT = """\
Derives every arm of a config before anything runs: shape, N, N_a, FLOPs a token, tokens, unique
tokens, epochs, batch, steps, learning rate and memory. Refuses arms that are not at parity, with
what differs.

  moe-parity plan --config=configs/paper_7b.py
  moe-parity plan --config=configs/demo.py --config.budget.dense_tokens=400000
  moe-parity plan --config=configs/single_gpu.py --topology=h100 --share=0.4     # with its hours

Prints a table (--json for machines); writes nothing.
"""


def arguments(parser) -> None:
  config_argument(parser)
  parser.add_argument(
    "--topology",
    default="",
    metavar="NAME",
    help="GiB with the attention of this card, host or slice, and hours on it (h100, h100-8, a100,"
    " l4, v5p-128, ...)",
  )
  parser.add_argument(
    "--share",
    type=float,
    metavar="S",
    help="share of the peak FLOP/s of --topology that a step reaches (0.4)",
  )
  json_argument(parser)


def run(args) -> int:
  from moe_parity.api.plans import planned
  from moe_parity.planning.hours import device_of
  from moe_parity.planning.plan_costs import rows_with_memory
  from moe_parity.study import tuning
  from moe_parity.study.methods.method import method_of

  if args.json and args.topology:
    raise UserError(
      f"--topology={args.topology} with --json, which knows no device; leave one of them out"
    )
  share = share_of(args)
  device = device_of(args.topology) if args.topology else None
  config = load_config(args)
  plan = planned(config)
  if args.json:
    print(json.dumps(plan.to_dict(), indent=2))
    return 0
  for comparison in plan.comparisons:
    if comparison.name:
      print(f"\ncomparison {comparison.name}")
    print_table(rows_with_memory(config, comparison.plan, device))
    print()
    print_table(comparison.plan.cost_rows())
    if comparison.plan.mixture_rows():
      print()
      print_table(comparison.plan.mixture_rows())
    if args.topology:
      print_hours(config, comparison.plan, args.topology, share)
    notes = [*comparison.plan.notes, *attention_notes(config, comparison.plan)]
    for note in notes if device else [*notes, *memory_notes(config, comparison.plan)]:
      print(f"note: {note}")
  if method := method_of(config):
    for note in method.pending_notes(config, list(plan.comparisons)):
      print(f"note: {note}")
  for note in tuning.pending_notes(config, list(plan.comparisons), on_paper=True):
    print(f"note: {note}")
  if missing := missing_sources(config.data.source):
    names = ", ".join(missing)
    print(f"note: data.source: {names} not found; `study` refuses that before training")
  return 0


def share_of(args) -> float:
  """
  Raises:
    UserError: a share out of range, or of no device.
  """
  from moe_parity.planning.hours import DEFAULT_SHARE, check_share

  if args.share is not None and not args.topology:
    raise UserError(
      f"--share={args.share:g} is of a device's peak and none is given; add --topology=h100"
    )
  return check_share(DEFAULT_SHARE if args.share is None else args.share)


def missing_sources(source: str) -> list[str]:
  """Places of text on this machine that are not there; one with a scheme is not looked for."""
  from moe_parity.data.corpus import is_there, parse_sources

  paths = [one.path for one in parse_sources(source)]
  return [path for path in paths if "://" not in path and not is_there(path)]


def print_hours(config, plan, topology: str, share: float) -> None:
  """Hours of every arm on a device at a stated share of its peak, and of all together."""
  from moe_parity.planning.hours import hours_rows

  rows = hours_rows(plan, topology, share, config.model.dtype)
  print()
  print_table(rows)
  total = sum(row["hours"] for row in rows)
  print(f"{total:,.1f} hours in all on {topology} at {100 * share:.0f} % of its peak, by executed"
        " FLOPs; the share is stated, not measured")  # fmt: skip


def memory_notes(config, plan) -> list[str]:
  """What the arms need where attention is fused and stores no scores, which the column of the table
  counts unless the config names such an implementation; nothing where it makes no difference."""
  from moe_parity.planning.attention_choice import FUSED, attention_rows
  from moe_parity.planning.memory import planned_memory

  model, notes = config.model, []
  for arm in {arm.name: arm for arm in plan.arms}.values():
    stored = planned_memory(config, arm)
    fused = planned_memory(config, arm, fused=True)
    sizes = model.dtype, arm.seq_len, arm.architecture.d_head, model.position
    takes = {row["attention"] for row in attention_rows(model.attention, *sizes)}
    is_large = stored and stored.total > 2**30
    if is_large and fused.total < 0.9 * stored.total and takes & set(FUSED):
      notes.append(f"{arm.name} {fused.total / 2**30:.2f}")
  if not notes:
    return []
  return [
    "GiB a device counts attention in blocks, which stores scores; where it is fused (cudnn,"
    f" flash), it is {', '.join(notes)}"
  ]


def attention_notes(config, plan) -> list[str]:
  """Which implementation computes attention on which device; one sentence, or one for each width
  of heads where arms differ."""
  from moe_parity.planning.attention_choice import attention_rows

  model, notes = config.model, {}
  for arm in plan.arms:
    width = arm.architecture.d_head
    rows = attention_rows(model.attention, model.dtype, arm.seq_len, width, model.position)
    devices = {}
    for row in rows:
      devices.setdefault((row["attention"], row["reason"]), []).append(row["device"])
    attention = (
      f"{implementation} on {', '.join(names)}" + (f" ({reason})" if reason else "")
      for (implementation, reason), names in devices.items()
    )
    notes.setdefault("; ".join(attention), []).append(width)
  return [
    f"attention of heads of {', '.join(map(str, sorted(set(widths))))} channels: {attention}"
    for attention, widths in notes.items()
  ]
