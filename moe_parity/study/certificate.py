"""Were N, C and D equal? Recounted from what a run left behind, never read from its plan.

Parameters are counted from the shapes of the arrays in the last checkpoint; tokens from the ledger
of windows that the train step was given; compute from both. Only two things are taken on trust
because nothing on disk shows them: how many experts a token chose (K), how many heads share the
attention width (for the softmax term of `paper_full`), and how many queries attention computed at a
time (for `executed`, which is counted whatever the budget's convention).
"""

import hashlib
import math
import pathlib
from collections.abc import Mapping, Sequence

import jax
import numpy as np

from moe_parity import files
from moe_parity.data.ledger import Ledger
from moe_parity.errors import UserError
from moe_parity.planning.arm_costs import RESOURCES, executed_flops
from moe_parity.training import run_folder

CERTIFICATE = "certificate.json"
# Which kinds of array are parameters under a convention (vocabulary never is).
PARAMS = {"paper": ("matrices",), "paper_full": ("matrices", "router", "norms")}
PARAMS |= {"exact": PARAMS["paper_full"], "executed": PARAMS["paper"]}
FLOPS = {
  "paper": ("matrices", "scores"),
  "paper_full": ("matrices", "scores", "router", "softmax", "elementwise"),
  "exact": ("matrices", "scores", "router"),
  "executed": ("matrices", "computed_scores", "router", "head"),
}
BYTES_PER_PARAM = 4  # checkpoints hold float32


def kind_of(name: str) -> str:
  """What an array is, by its name in the checkpoint."""
  part = name.rpartition(".")[2]
  kinds = {
    "embedding": "vocabulary",
    "head": "vocabulary",
    "router": "router",
    "scale": "norms",
    "routed_scale": "scales",
    "experts_in": "experts",
    "experts_out": "experts",
    **dict.fromkeys(("query", "key", "value", "out", "gate", "up", "down"), "matrices"),
  }
  if part not in kinds:
    raise UserError(f"array {name!r} is of no known kind; the certificate cannot count it")
  return kinds[part]


def count(shapes: Mapping[str, Sequence[int]], plan: dict) -> dict[str, int]:
  """num_params, num_active_params, train_flops_per_token, executed_flops_per_token,
  num_params_with_vocabulary and weight_bytes from array shapes.

  Args:
    shapes: name -> shape of every parameter; layers are stacked on the first axis.
    plan: the arm's plan.json, for K, the number of heads, S, the queries of an attention block and
      the convention.
  """
  architecture, seq_len = plan["architecture"], plan["seq_len"]
  chosen, num_experts = architecture["experts_per_token"], architecture["num_experts"]
  total = dict.fromkeys(("matrices", "experts", "router", "norms", "scales", "vocabulary"), 0)
  attention_width = layers = head = 0
  for name, shape in shapes.items():
    total[kind_of(name)] += math.prod(shape)
    head += math.prod(shape) if name.rpartition(".")[2] == "head" else 0
    if name.endswith(".attention.out"):  # [layers, H*Q, D]
      layers += shape[0]
      attention_width += shape[0] * shape[1]
      d_model = shape[2]
  active_experts = total["experts"] * chosen // num_experts if num_experts else 0
  forward = {
    "matrices": 2 * (total["matrices"] + active_experts),
    "scores": 4 * attention_width * seq_len,
    "computed_scores": 2 * attention_width * (seq_len + _query_block(plan)),
    "head": 2 * head,
    "router": 2 * total["router"],
    "softmax": 3 * layers * architecture["num_heads"] * seq_len,
    "elementwise": 15 * layers * d_model,
  }
  kinds = PARAMS[plan["convention"]]
  outside_experts = sum(total[kind] for kind in kinds)
  return {
    "num_params": outside_experts + total["experts"],
    "num_active_params": outside_experts + active_experts,
    "train_flops_per_token": 3 * sum(forward[kind] for kind in FLOPS[plan["convention"]]),
    "executed_flops_per_token": 3 * sum(forward[kind] for kind in FLOPS["executed"]),
    "num_params_with_vocabulary": outside_experts + total["experts"] + total["vocabulary"],
    "weight_bytes": BYTES_PER_PARAM * sum(total.values()),
  }


def _query_block(plan: dict) -> int:
  """Queries computed at a time; a block that does not divide S is all of S."""
  block = plan.get("attention_block", 512)  # plans before it was written down had this default
  return block if plan["seq_len"] % block == 0 else plan["seq_len"]


def checkpoint_shapes(folder: pathlib.Path, step: int) -> dict[str, tuple[int, ...]]:
  """Shapes of the trained parameters in the checkpoint of `step`, without reading the arrays.

  Raises:
    UserError: the run has no such checkpoint.
  """
  from orbax.checkpoint import v1 as ocp

  path = (folder / "checkpoints" / str(step)).resolve()
  if not path.is_dir():
    raise UserError(f"{folder}/checkpoints has no checkpoint of step {step}; run the arm again")
  metadata = ocp.checkpointables_metadata(path).metadata["model"]["params"]
  shapes = {}
  for path, leaf in jax.tree_util.tree_flatten_with_path(metadata)[0]:
    keys = [str(getattr(key, "key", getattr(key, "name", getattr(key, "idx", "")))) for key in path]
    shapes[".".join(keys[:-1])] = tuple(leaf.shape)  # the last key names the value of a Param
  return shapes


def check(name: str, planned, measured, tolerance: int | float, how: str) -> dict:
  """One line of a certificate; `tolerance` is a share of the planned value."""
  difference = 100 * (measured - planned) / planned
  return {
    "name": name,
    "planned": planned,
    "measured": measured,
    "difference_pct": difference,
    "tolerance_pct": 100 * tolerance,
    "passed": abs(difference) <= 100 * tolerance,
    "how": how,
  }


def certify_run(folder: pathlib.Path) -> dict:
  """Recounts a finished run, writes its certificate.json and returns it.

  Raises:
    UserError: the run is not finished, or what it left cannot be counted.
  """
  result = run_folder.read_result(folder)
  if result is None:
    raise UserError(f"{folder} has no result.json: the run is not finished; train it first")
  plan = run_folder.read_json(folder / run_folder.PLAN)
  ledger = Ledger.load(folder / "ledger.npz")
  counted = count(checkpoint_shapes(folder, plan["num_steps"]), plan)
  tokens, unique = ledger.num_tokens, ledger.num_unique_tokens
  arrays, windows = "shapes of the checkpoint's arrays", "windows in the ledger"
  checks = [
    check(name, plan[name], counted[name], 0.0, arrays)
    for name in ("num_params", "num_active_params", "train_flops_per_token")
  ]
  checks += [
    check("num_tokens", plan["num_tokens"], tokens, 0.0, windows),
    check("num_steps", plan["num_steps"], result["finished_step"], 0.0, "result.json"),
    check(
      "train_flops", plan["train_flops"], counted["train_flops_per_token"] * tokens, 0.0,
      "FLOPs a token of the arrays x tokens in the ledger",
    ),
    check(
      "executed_flops", executed_flops(plan), counted["executed_flops_per_token"] * tokens, 0.0,
      "every matrix product a token, from the arrays, x tokens in the ledger",
    ),
    check(
      "num_unique_tokens", min(plan["num_unique_tokens"], tokens), unique, 0.005,
      "windows seen at least once; a last epoch that is not full may leave some out",
    ),
  ]  # fmt: skip
  if unique > plan["num_unique_tokens"]:
    checks[-1] |= {"passed": False, "how": "more unique tokens than the budget allows"}
  by_domain = ledger.by_domain()
  for domain, planned in plan.get("mixture", {}).items():
    checks += [
      check(f"{domain}: {name}", planned[name], by_domain[domain][name], 0.0, windows)
      for name in ("num_tokens", "num_unique_tokens")
      if planned[name]
    ]
  seen = np.flatnonzero(ledger.counts)
  value = {
    "arm": plan["name"],
    "seed": plan["seed"],
    "passed": all(line["passed"] for line in checks),
    "checks": checks,
    "measured": counted
    | {"num_tokens": tokens, "num_unique_tokens": unique}
    | {"train_flops": counted["train_flops_per_token"] * tokens}
    | {"executed_flops": counted["executed_flops_per_token"] * tokens},
    "ledger": ledger.summary(),
    "unique_windows_sha256": hashlib.sha256(seen.astype("<u8").tobytes()).hexdigest(),
  }
  files.write_json(folder / CERTIFICATE, value)
  return value


def certify_study(folder: pathlib.Path) -> dict:
  """Compares the finished runs with the budget and with each other; writes certificate.json.

  References (dense at twice the compute) are certified as runs and left out of the comparison;
  controls (dense of another N) are compared in C and unique tokens.
  """
  plan = run_folder.read_json(folder / run_folder.PLAN)
  places = {}
  if (folder / "study.json").exists():  # a run may stand in another part of the study
    listed = run_folder.read_json(folder / "study.json")["arms"]
    places = {(arm["name"], arm["seed"]): arm["folder"] for arm in listed}
  checks, runs, missing = [], [], []
  for arm in plan["arms"]:
    place = places.get((arm["name"], arm["seed"]), f"runs/{arm['name']}-s{arm['seed']}")
    path = folder / place / CERTIFICATE
    if not path.exists():
      missing.append(f"{arm['name']} (seed {arm['seed']})")
      continue
    certificate = run_folder.read_json(path)
    if not certificate["passed"]:
      failed = ", ".join(line["name"] for line in certificate["checks"] if not line["passed"])
      checks.append(
        {"name": f"{arm['name']}: its own certificate", "planned": "passed", "measured": failed,
         "difference_pct": None, "passed": False, "how": f"{path.parent.name}/{CERTIFICATE}"}
      )  # fmt: skip
    if arm["role"] != "reference":
      runs.append((arm, certificate["measured"], certificate))
  budget = plan["budget"]
  tolerances = {"num_params": budget["params_tolerance"]}
  if budget["shared"] == "tokens":
    tolerances["num_tokens"] = budget["flops_tolerance"]
    budget = budget | {"num_tokens": budget["dense_tokens"]}
  else:
    tolerances["train_flops"] = budget["flops_tolerance"]
  if budget["equal_data"]:  # other schemes give each arm a D^ of its own, which its run certifies
    tolerances["num_unique_tokens"] = budget["flops_tolerance"]
  for name, tolerance in tolerances.items():
    for arm, measured, _ in runs:
      if name == "num_params" and arm["role"] == "control":
        continue  # its N is another by intent, which its own certificate holds to its plan
      label = f"{arm['name']} (seed {arm['seed']}): {name}"
      checks.append(
        check(label, budget[name], measured[name], tolerance, "recounted, against the budget")
      )
  if runs:
    data = {certificate["ledger"]["sha256"] for _, _, certificate in runs}
    checks.append(
      {"name": "one token stream", "planned": 1, "measured": len(data), "difference_pct": None,
       "passed": len(data) == 1, "how": "sha256 of the token file in each ledger"}
    )  # fmt: skip
  value = {
    "passed": bool(runs) and all(line["passed"] for line in checks),
    "tolerances": tolerances,
    "checks": checks,
    "missing": missing,
    "relative_to_dense": relative_to_dense(runs),
  }
  files.write_json(folder / CERTIFICATE, value)
  return value


def relative_to_dense(runs: Sequence[tuple[dict, dict, dict]]) -> list[dict]:
  """Recounted resources of every certified run over those of the first dense one: C, executed
  FLOPs, parameters with and without vocabulary, bytes of weights.

  Args:
    runs: (plan, measured, certificate) of each; certificates of earlier versions lack some.
  """
  dense = next(
    (measured for arm, measured, _ in runs if arm["kind"] == "dense" and arm["role"] == "arm"), None
  )
  if dense is None:
    return []
  return [
    {"name": arm["name"], "seed": arm["seed"]}
    | {r: measured[r] / dense[r] for r in RESOURCES if r in measured and r in dense}
    for arm, measured, _ in runs
  ]
