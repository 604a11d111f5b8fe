"""`moe-parity compile`."""

import dataclasses
import json
import os
import pathlib
import sys

from moe_parity.commands.common import config_argument, json_argument, load_config
from moe_parity.commands.output import print_table
from moe_parity.errors import UserError, suggest

HELP = "compile an arm's step for TPUs or GPUs you do not have: does it fit, what bounds its time"
ABOUT = """\
Compiles an arm's train step for a TPU slice or NVIDIA cards that you do not have. For a slice:
does it fit in HBM, how long does a step take by the compiler's estimate, which communication is
exposed. For cards (with moe_parity[gpu-aot]): does it fit, which kernels run, a bound on its time.

  moe-parity compile --config=configs/paper_7b.py --arm=moe_20 --topology=v5p-128 \\
    --config.budget.batch_multiple=64             # a batch that 64 devices can share
  moe-parity compile --config=configs/single_gpu.py --arm=dense --topology=l4 --search=3

Prints a report (--json for machines); nothing is executed.
"""
GIB = 2**30


def arguments(parser) -> None:
  config_argument(parser)
  parser.add_argument(
    "--topology",
    required=True,
    metavar="NAME",
    help="v5p-128, v6e-64, v5p:4x4x4, ...; or cards: h100, h100-8, a100, a100_40gb, l4",
  )
  parser.add_argument("--arm", default="", help="which arm; may be left out where there is one")
  parser.add_argument(
    "--mesh",
    default="",
    metavar="AXIS=N,AXIS=N",
    help="sizes of data, fsdp and expert; default: the config's, or the best estimated",
  )
  parser.add_argument(
    "--search", nargs="?", type=int, const=3, default=None, metavar="N",
    help="estimate every mesh's step time, compile the N best that fit (3) and report the fastest;"
    " 0 compiles none. For cards: of every remat and micro-batch",
  )  # fmt: skip
  parser.add_argument(
    "--hlo", type=pathlib.Path, metavar="FILE", help="also write the compiled program's text"
  )
  json_argument(parser)


def run(args) -> int:
  from moe_parity.api.plans import planned
  from moe_parity.planning.gpu_cards import is_card, parse_host
  from moe_parity.planning.tpu_slices import parse_slice

  target = (parse_host if is_card(args.topology) else parse_slice)(args.topology)
  check_search(args.search, args.hlo)
  config = load_config(args)
  arm = select_arm(planned(config).arms, args.arm)
  if is_card(args.topology):
    from moe_parity.commands import compile_for_cards

    given = parse_mesh(args.mesh) if args.mesh else None
    return compile_for_cards.run(args, config, arm, target, given)
  return run_for_slice(args, config, arm, target)


def check_search(search: int | None, hlo: pathlib.Path | None) -> None:
  """
  Raises:
    UserError: a number of programs below 0, or one file for the text of several.
  """
  if search is None:
    return
  if search < 0:
    raise UserError(f"--search={search} is below 0; give how many to compile, 0 only lists them")
  if hlo is not None:
    raise UserError(
      f"--hlo={hlo} is one program and --search={search} compiles others too; leave one out, and"
      " compile what the search finds with --hlo"
    )


def run_for_slice(args, config, arm, slice_) -> int:
  """Compiles for a TPU slice and prints the report."""
  meshes = choose_meshes(args, config, arm, slice_)
  if args.search is not None:
    rows = [candidate_row(candidate) for candidate in meshes]
    if not args.json or args.search == 0:
      print(json.dumps(rows, indent=2)) if args.json else print_table(rows)
    meshes = [c.sizes for c in meshes if c.fits][: args.search]
    if not meshes:
      if any(row["fits"] == "yes" for row in rows):
        return 0
      print("no mesh is estimated to fit", file=sys.stderr)
      return 1
  os.environ.setdefault(
    "JAX_PLATFORMS", "cpu"
  )  # nothing runs, so JAX need not look for accelerators
  from moe_parity.aot.compile_step import compile_arm

  reports = []
  for sizes in meshes:
    if len(meshes) > 1:
      print(f"compiling for {sizes} ...", file=sys.stderr, flush=True)
    report = compile_arm(config, arm, slice_, sizes, args.hlo)
    reports.append(report)
    if len(meshes) > 1:
      print(f"{report.get('compile_seconds', 0):.0f} s", file=sys.stderr, flush=True)
  best = min(reports, key=lambda r: (not r["fits"], r.get("seconds", {}).get("step", 0)))
  if args.json:
    report = best if len(reports) == 1 else best | {"searched": [summary(r) for r in reports]}
    print(json.dumps(report, indent=2))
  else:
    if len(reports) > 1:
      print_table([summary(report) for report in reports])
      print()
    print_report(best)
  return 0 if best["fits"] else 1


def select_arm(arms, name: str):
  """The arm of a name, or the only one.

  Raises:
    UserError: no such arm, or several and no name.
  """
  by_name = {arm.name: arm for arm in arms}
  if name and name not in by_name:
    hint = suggest(name, by_name)
    raise UserError(f"--arm={name}: the plan's arms are {', '.join(by_name)}{hint}")
  if not name and len(by_name) > 1:
    names = ", ".join(f"--arm={known}" for known in by_name)
    raise UserError(f"compile takes one arm and the plan has {len(by_name)}; choose one of {names}")
  return by_name[name or next(iter(by_name))]


def candidate_row(candidate) -> dict:
  """One line of what a search considers."""
  return dataclasses.asdict(candidate.sizes) | {
    "fits": "yes" if candidate.fits else "no",
    "planned_GiB": round(candidate.memory.total / GIB, 2),
    "wire_GB": round(candidate.wire_bytes / 1e9, 2),
    "estimated_s": round(candidate.seconds, 3),
  }


def choose_meshes(args, config, arm, slice_) -> list:
  """The meshes to compile for: the one given, or the best planned. For a search all candidates.

  Raises:
    UserError: sizes that are no mesh of the slice; a slice on which no mesh trains the arm.
  """
  from moe_parity.planning.attention_choice import FUSED, Device
  from moe_parity.planning.mesh_search import candidates
  from moe_parity.planning.mesh_sizes import MeshSizes, read_mesh, resolve
  from moe_parity.training.build import model_options

  given = read_mesh(config.mesh)
  if args.mesh:
    given = parse_mesh(args.mesh)
  if given != MeshSizes() or slice_.num_devices == 1:
    if args.search is not None:
      raise UserError(f"--search looks for a mesh and mesh {given} is given; leave one out")
    return [resolve(given, slice_.num_devices)]
  options = model_options(config)
  choice = options.attention_choice(Device("tpu"), arm.seq_len, arm.architecture.d_head)
  is_fused = choice.implementation in FUSED
  ordered = candidates(
    arm,
    slice_,
    micro_batch_sequences=config.train.micro_batch_sequences,
    dtype=config.model.dtype,
    remat=config.model.remat,
    kernels=is_fused,
  )
  return ordered if args.search is not None else [ordered[0].sizes]


def parse_mesh(text: str):
  """`data=4,expert=16`; what is left out is 1, -1 takes the rest.

  Raises:
    UserError: an axis that does not exist or a size that is no number.
  """
  from moe_parity.planning.mesh_sizes import AXES, MeshSizes, read_mesh

  sizes = {}
  for part in text.split(","):
    axis, _, size = part.partition("=")
    if axis not in AXES or not size.lstrip("-").isdigit():
      raise UserError(f"--mesh={text}: {part!r} is not one of {', '.join(AXES)} and its size; use"
                      " for example --mesh=data=4,expert=16")  # fmt: skip
    sizes[axis] = int(size)
  return read_mesh(MeshSizes(**sizes))


def summary(report: dict) -> dict:
  """One line of a search."""
  row = dict(report["mesh"]) | {"fits": "yes" if report["fits"] else "no"}
  seconds = report.get("seconds", {})
  row["GiB"] = round(report["memory"].get("total", 0) / GIB, 2)
  row["step_s"] = seconds.get("step", 0.0)
  row["collectives_s"] = seconds.get("collective", 0.0)
  row["share_of_peak_%"] = 100 * report.get("share_of_peak", 0.0)
  return row | {"days": report.get("days", 0.0)}


def print_report(report: dict) -> None:
  """Memory, work, collectives, operations."""
  mesh = " x ".join(f"{axis}={size}" for axis, size in report["mesh"].items())
  print(f"{report['arm']} of {report['config']} on {report['topology']}: {report['chips']} chips, "
        f"{report['devices']} devices, mesh {mesh}")  # fmt: skip
  print(f"{report['batch_sequences']} sequences a step, {report['tokens_per_device']:,} tokens a "
        f"device; all figures compiler-estimated, nothing ran\n")  # fmt: skip
  _print_memory(report)
  if "seconds" not in report:
    return
  print()
  _print_seconds(report)
  _print_collectives(report["collectives"])
  print()
  _print_operations(report["operations"])


def _print_memory(report: dict) -> None:
  memory = dict(report["memory"])
  planned, hbm = memory.pop("planned"), memory.pop("hbm")
  expected = {name: planned[name] for name in ("parameters", "optimizer", "total")}
  expected["temporaries"] = planned["total"] - planned["parameters"] - planned["optimizer"]
  print_table(
    [
      {"HBM a device": k, "GiB": v / GIB, "planned": expected[k] / GIB if k in expected else None}
      for k, v in memory.items()
    ]
  )
  fits = "fits" if report["fits"] else f"DOES NOT FIT; planned {planned['total'] / GIB:.2f} GiB"
  print(f"of {hbm / GIB:.2f} GiB: {fits}")
  if not report["fits"]:
    print(report.get("compiler", ""))


def _print_seconds(report: dict) -> None:
  seconds, flops = report["seconds"], report["flops"]
  rows = {
    "by the compiler's cycles": "compiler",
    "kernels, FLOPs over peak": "kernel",
    "bytes over HBM bandwidth": "bytes",
    "exposed communication": "collective",
    "step": "step",
    "roofline of the plan's FLOPs": "roofline",
  }
  print_table([{"of a step, s": name, "value": seconds[key]} for name, key in rows.items()])
  print(
    f"{100 * report['share_of_peak']:.1f} % of peak; {report['days']:.1f} days for the run; "
    f"FLOPs {flops['compiled']:.4g} a device, {flops['compiled'] / flops['plan']:.2f} x the plan's;"
    f" {report['hbm_bytes'] / GIB:.1f} GiB of HBM read and written\n"
  )


def _print_collectives(rows: list[dict]) -> None:
  print_table(
    [
      {
        "collective": row["collective"],
        "axes": row["axes"],
        "count": row["count"],
        "of_them_async": row["asynchronous"],
        "sent_MiB": row["wire_bytes"] / 2**20,
        "ms": 1e3 * row["seconds"],
        "exposed_ms": 1e3 * row["exposed_seconds"],
      }
      for row in rows
    ]
  )


def _print_operations(rows: list[dict]) -> None:
  print_table(
    [
      {
        "ms": 1e3 * row["seconds"],
        "times": row["times"],
        "basis": row["basis"],
        "opcode": row["opcode"],
        "shape": row["shape"][:40],
        "from": row["from"][-60:],
      }
      for row in rows
    ]
  )
