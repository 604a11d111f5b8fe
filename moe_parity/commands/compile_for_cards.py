"""`moe-parity compile` for NVIDIA cards: what it prints."""

import json
import os
import sys

from moe_parity.commands.output import print_table
from moe_parity.planning.gpu_cards import Host
from moe_parity.planning.mesh_sizes import MeshSizes, read_mesh, resolve

GIB = 2**30


def run(args, config, arm, host: Host, given: MeshSizes | None) -> int:
  """Compiles an arm's step for a host of cards and prints the report.

  Args:
    given: the mesh of the command line, if there is one.
  """
  os.environ.setdefault("JAX_PLATFORMS", "cpu")  # nothing runs
  from moe_parity.aot.compile_gpu import compile_for_gpu
  from moe_parity.aot.gpu_search import best_of, search

  sizes = _mesh(config, host, given)
  if args.search is None:
    best, reports = compile_for_gpu(config, arm, host, sizes, args.hlo), []
  elif args.search == 0:
    return _print_settings(args, config, arm, host, sizes)
  else:
    reports = search(config, arm, host, sizes, args.search, _progress)
    best = best_of(reports)
    if best is None:
      print("no remat and micro-batch that was compiled fits", file=sys.stderr)
      if not reports:
        return 1
      best = reports[-1]
  rows = [_row(report) for report in reports]
  if args.json:
    print(json.dumps(best | ({"searched": rows} if rows else {}), indent=2))
  else:
    if rows:
      print_table(rows)
      print()
    print_report(best)
  return 0 if best["fits"] else 1


def _mesh(config, host: Host, given: MeshSizes | None) -> MeshSizes:
  """The mesh given, or the config's, or weights and optimizer sharded over all cards."""
  sizes = given or read_mesh(config.mesh)
  if sizes == MeshSizes():
    sizes = MeshSizes(fsdp=host.num_devices)
  return resolve(sizes, host.num_devices)


def _progress(setting) -> None:
  print(
    f"compiling remat {setting.remat}, micro-batch {setting.micro_batch} ...",
    file=sys.stderr,
    flush=True,
  )


def _print_settings(args, config, arm, host: Host, sizes: MeshSizes) -> int:
  """What a search would consider, without compiling."""
  from moe_parity.aot.gpu_search import settings

  rows = [
    {
      "remat": setting.remat,
      "micro_batch": setting.micro_batch,
      "work": setting.work,
      "planned_GiB": round(setting.planned / GIB, 2),
      "fits": "yes" if setting.planned <= host.card.usable_bytes else "no",
    }
    for setting in settings(config, arm, host, sizes)
  ]
  print(json.dumps(rows, indent=2)) if args.json else print_table(rows)
  return 0


def _row(report: dict) -> dict:
  """One line of a search."""
  memory = report["memory"]
  return {
    "remat": report["remat"],
    "micro_batch": report["micro_batch_sequences"],
    "forward_passes": report["work"],
    "planned_GiB": round(memory["planned"] / GIB, 2),
    "GiB": round(memory["total"] / GIB, 2),
    "fits": "yes" if report["fits"] else "no",
    "roofline_s": report["seconds"]["roofline"],
    "compile_s": round(report["compile_seconds"], 1),
  }


def print_report(report: dict) -> None:
  """Memory, attention, kernels, roofline."""
  mesh = " x ".join(f"{axis}={size}" for axis, size in report["mesh"].items())
  print(f"{report['arm']} of {report['config']} on {report['topology']} ({report['card']}): "
        f"{report['devices']} devices, mesh {mesh}{_exchange_words(report)}")  # fmt: skip
  print(f"{report['batch_sequences']} sequences a step in micro-batches of "
        f"{report['micro_batch_sequences']}, remat {report['remat']}; {report['figures']}"
        "\n")  # fmt: skip
  memory = report["memory"]
  names = ("parameters", "optimizer", "batch", "results", "temporaries", "total", "planned")
  print_table([{"memory of a card": name, "GiB": memory[name] / GIB} for name in names])
  fits = "fits" if report["fits"] else "DOES NOT FIT"
  print(f"of {memory['usable'] / GIB:.2f} GiB that JAX takes of {memory['card'] / GIB:.2f}: {fits}")
  print(f"{attention_words(report['attention'])}\n")
  print_table(
    [
      {"kernels": row["kind"], "calls": row["calls"], "TFLOP": row["flops"] / 1e12,
       "GB": row["bytes"] / 1e9, "roofline, ms": 1e3 * row["seconds"]}
      for row in report["kernels"]
    ]
  )  # fmt: skip
  seconds, flops = report["seconds"], report["flops"]
  print(
    f"roofline {seconds['roofline']:.3f} s a step, {report['roofline_days']:.2f} days for the run:"
    f" {100 * report['roofline_share_of_peak']:.0f} % of peak at most; FLOPs"
    f" {flops['compiled'] / flops['plan']:.2f} x the plan's\n"
  )
  print_table(
    [
      {"roofline, ms": 1e3 * row["seconds"], "times": row["times"], "kernel": row["kind"],
       "shape": row["shape"][:36], "from": row["from"][-50:]}
      for row in report["longest"]
    ]
  )  # fmt: skip


def _exchange_words(report: dict) -> str:
  name = report["token_dispatch"]
  return f", tokens dispatched by {name}" if name else ""


def attention_words(attention: dict) -> str:
  """One sentence: who computes attention, and whether scores are stored."""
  words = f"attention: {attention['chosen']}, {attention['cudnn_calls']} cuDNN calls a step"
  if attention["reason"]:
    words += f" ({attention['reason']})"
  scores = attention["score_bytes"]
  words += f"; scores in HBM: {scores / GIB:.2f} GiB" if scores else "; no scores in HBM"
  if attention["unchecked"] and attention["cudnn_calls"]:
    words += f"; NOT CHECKED by cuDNN: {attention['unchecked']}"
  return words
