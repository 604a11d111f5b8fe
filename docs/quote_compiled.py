"""Blocks of steps compiled without a device: results/compile_*.json, results/compiled_meshes/ and
results/gpu_compiled/."""

import json
import pathlib

from quote_tables import markdown

ROOT = pathlib.Path(__file__).resolve().parent.parent
RESULTS = ROOT / "results"
GIB = 2**30


# Compiled after the constants of `planning/mesh_search.py` were rounded from all others.
UNSEEN_MESHES = (
  "2b_v5p-128_data4_fsdp16",
  "2b_v6e-64_data2_fsdp32",
)


def reports() -> list[tuple[dict, bool]]:
  """(report, whether the search's constants were rounded from it) of every step compiled for a TPU
  slice."""
  files = [(path, True) for path in sorted(RESULTS.glob("compile_*.json"))]
  meshes = sorted((RESULTS / "compiled_meshes").glob("*.json"))
  files += [(path, path.stem not in UNSEEN_MESHES) for path in meshes]
  found = [(json.loads(path.read_text()), is_fitted) for path, is_fitted in files]
  return sorted(found, key=lambda pair: (pair[0]["config"], pair[0]["topology"]))


def compiled() -> str:
  """What the compiler says of steps for TPU slices, a row a file."""
  rows = []
  for report, _ in reports():
    memory, seconds = report["memory"], report.get("seconds")
    row = [*_who(report), report["remat"], f"{report['tokens_per_device']:,}"]
    if not report["fits"]:
      rows.append([*row, "does not fit", *[""] * 4])
      continue
    rows.append([
      *row, f"{memory['total'] / GIB:.1f} of {memory['hbm'] / GIB:.1f}",
      f"{1e3 * seconds['step']:.0f}", f"{1e3 * seconds['collective']:.0f}",
      f"{1e3 * seconds['roofline']:.0f}", f"{seconds['step'] / seconds['roofline']:.2f}",
    ])  # fmt: skip
  names = ["arm", "slice", "mesh", "remat", "tokens per device", "GiB", "step, ms",
           "exposed comm., ms", "FLOPs at peak, ms", "step over FLOPs at peak"]  # fmt: skip
  return "\n".join(markdown(names, rows))


def mesh_price() -> str:
  """The search's price of every compiled step for a TPU slice next to the compiled time."""
  from scipy import stats

  rows, prices, steps, unseen = [], [], [], []
  for report, is_fitted in reports():
    if "seconds" not in report:
      continue
    price, place, of = _price(report)
    step = report["seconds"]["step"]
    rows.append([*_who(report), f"{report['tokens_per_device']:,}", f"{place} of {of}",
                 f"{1e3 * price:.0f}", f"{1e3 * step:.0f}", f"{step / price:.2f}",
                 "yes" if is_fitted else "no"])  # fmt: skip
    prices.append(price)
    steps.append(step)
    unseen += [] if is_fitted else [step / price]
  names = ["arm", "slice", "mesh", "tokens per device", "place in the search", "price, ms",
           "compiled, ms", "compiled over price", "in the fit"]  # fmt: skip
  rank = stats.spearmanr(prices, steps).statistic
  words = f"Rank correlation of price and compiled step over these {len(rows)}: {rank:.2f}."
  if unseen:
    words += f" Compiled over price of the {len(unseen)} outside the fit: " + (
      f"{min(unseen):.2f} to {max(unseen):.2f}." if len(unseen) > 1 else f"{unseen[0]:.2f}."
    )
  return "\n".join([*markdown(names, rows), "", words])


def mesh_parts() -> str:
  """Where the time of every compiled step goes, each part over the plan's FLOPs at peak."""
  from moe_parity.planning.tpu_slices import parse_slice

  rows = []
  for report, _ in reports():
    if "seconds" not in report:
      continue
    seconds, generation = report["seconds"], parse_slice(report["topology"]).generation
    exchanged = sum(
      row["exposed_seconds"] for row in report["collectives"] if row["axes"] == "expert"
      and ("to-all" in row["collective"] or row["collective"] == "all-gather")
    )  # fmt: skip
    parts = [
      report["flops"]["compiled"] / generation.flops_per_device,
      report["hbm_bytes"] / generation.bandwidth_per_device,
      seconds["step"] - seconds["collective"],
      exchanged,
      seconds["collective"] - exchanged,
      seconds["step"],
    ]
    rows.append([*_who(report), *(f"{part / seconds['roofline']:.2f}" for part in parts)])
  names = ["arm", "slice", "mesh", "all products at peak", "all HBM traffic at its bandwidth",
           "computation", "exposed expert exchange", "exposed weights and gradients",
           "step"]  # fmt: skip
  return "\n".join(markdown(names, rows))


def _price(report: dict) -> tuple[float, int, int]:
  """Seconds that the search estimates for a compiled mesh, its place among all, and how many."""
  from moe_parity.config import load
  from moe_parity.planning.mesh_search import candidates
  from moe_parity.planning.plan import make_plan
  from moe_parity.planning.tpu_slices import parse_slice

  batch = report["batch_sequences"]
  config = load(
    f"{ROOT}/configs/{report['config']}.py:activation_rate=0.2",
    [f"--config.arms.{arm}.batch_sequences={batch}" for arm in ("moe_20", "dense")],
  )
  arm = next(arm for arm in make_plan(config).arms if arm.name == report["arm"])
  slice_ = parse_slice(report["topology"])
  found = candidates(arm, slice_, remat=report["remat"], kernels=True)
  place = next(i for i, c in enumerate(found) if vars(c.sizes) == report["mesh"])
  return found[place].seconds, place + 1, len(found)


def _who(report: dict) -> list[str]:
  mesh = " x ".join(f"{name} {size}" for name, size in report["mesh"].items() if size > 1)
  return [f"{report['arm']} of {report['config']}", report["topology"], mesh]


def gpu_compiled() -> str:
  """Steps compiled for NVIDIA cards without one, a row a file."""
  rows = []
  for path in sorted((RESULTS / "gpu_compiled").glob("*.json")):
    report = json.loads(path.read_text())
    memory, attention, seconds = report["memory"], report["attention"], report["seconds"]
    mesh = " x ".join(f"{name} {size}" for name, size in report["mesh"].items() if size > 1)
    rows.append([
      f"{report['arm']} of {report['config']}", f"{report['topology']} {mesh}".strip(),
      report["remat"], f"{report['micro_batch_sequences']} of {report['batch_sequences']}",
      f"{memory['temporaries'] / GIB:.1f}",
      f"{memory['total'] / GIB:.1f} of {memory['usable'] / GIB:.1f}",
      "yes" if report["fits"] else "no", attention["cudnn_calls"],
      f"{attention['score_bytes'] / GIB:.1f}" if attention["score_bytes"] else "none",
      report["cublas_calls"], f"{seconds['roofline']:.2f}",
      f"{100 * report['roofline_share_of_peak']:.0f} %",
    ])  # fmt: skip
  names = ["arm", "cards", "remat", "micro-batch", "temporaries, GiB", "all, GiB", "fits",
           "cuDNN calls", "scores in HBM, GiB", "cuBLASLt calls", "roofline, s",
           "peak at the roofline"]  # fmt: skip
  return "\n".join(markdown(names, rows))
