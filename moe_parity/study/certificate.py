"""Were N, C and D equal? Recounted from what a run left behind, never read from its plan.

Parameters are counted from the shapes of the arrays in the last checkpoint; tokens from the ledger
of windows that the train step was given; compute from both (`recount`). Whether the files agree
with each other, and are still those that were certified, is checked too (`evidence`).
"""

import pathlib
from collections.abc import Callable, Sequence

from moe_parity import config as configs
from moe_parity import files
from moe_parity.data.ledger import Ledger
from moe_parity.errors import UserError
from moe_parity.planning.arm_costs import RESOURCES, executed_flops
from moe_parity.planning.arm_plan import NOT_COMPARED, budget_of, with_later_fields
from moe_parity.study import effort, evidence, rescoring, run_lists
from moe_parity.study.evidence import guarded, line
from moe_parity.study.finetuning_checks import finetuning_checks, same_chats
from moe_parity.study.metrics_checks import metrics_checks
from moe_parity.study.reading import run_place
from moe_parity.training import run_folder

CERTIFICATE = "certificate.json"
_CHANGED, _AGAIN = "files since they were certified", "logs read again"
# Fields of a run's plan that say how it stands to the budget and the other arms of a comparison.
_RELATIVE = ("compute_ratio", "residual_params_pct", "residual_flops_pct", "residual_unique_pct")


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

  What is missing or damaged is a failed line of the certificate, not an error.

  Raises:
    UserError: the run is not finished (no result.json).
  """
  if not (folder / run_folder.RESULT).exists():
    raise UserError(f"{folder} has no result.json: the run is not finished; train it first")
  value: dict = {"arm": folder.name, "seed": None, "measured": {}, "ledger": {}, "files": {}}
  value["unique_windows_sha256"] = ""
  value["checks"] = guarded("the run's files", lambda: _run_checks(folder, value))
  value["passed"] = all(check["passed"] for check in value["checks"])
  files.write_json(folder / CERTIFICATE, value, seal=True)
  return value


def _run_checks(folder: pathlib.Path, value: dict) -> list[dict]:
  """All checks of a run; puts what was measured into `value`."""
  plan = run_folder.read_json(folder / run_folder.PLAN)
  value |= {"arm": plan["name"], "seed": plan["seed"]}
  result = run_folder.read_json(folder / run_folder.RESULT)
  config = configs.from_stored(run_folder.read_json(folder / run_folder.CONFIG))
  ledger = Ledger.load(folder / evidence.LEDGER)
  value |= {"ledger": ledger.summary(), "unique_windows_sha256": evidence.windows_sha256(ledger)}
  checks = guarded("checkpoint", lambda: _recounts(folder, plan, result, ledger, value))
  checks += guarded("checkpoint", lambda: evidence.checkpoint_checks(folder, plan))
  checks += guarded("result.json", lambda: evidence.identity_checks(plan, result))
  checks += guarded("result.json", lambda: evidence.score_checks(result))
  checks += guarded("result.json", lambda: evidence.learning_checks(plan, result))
  checks += guarded("ledger.npz", lambda: evidence.ledger_checks(ledger, plan, config))
  if plan.get("finetuning"):
    checks += guarded("chats", lambda: finetuning_checks(folder, plan, result, ledger))
  checks += _logs_checks(folder, plan, result, config)
  value["files"] = evidence.file_hashes(folder, plan["num_steps"])
  return checks


def _logs_checks(folder: pathlib.Path, plan: dict, result: dict, config: dict) -> list[dict]:
  """Whether ablations and metrics.jsonl agree with themselves and with the run's other files."""
  checks = guarded("ablations", lambda: evidence.ablation_checks(plan, result, config))
  log_every = config["train"]["log_every"] or plan["num_steps"]
  return checks + guarded("metrics.jsonl", lambda: metrics_checks(plan, result, folder, log_every))


def _recounts(
  folder: pathlib.Path, plan: dict, result: dict, ledger: Ledger, value: dict
) -> list[dict]:
  """N, N_a, tokens, unique tokens and compute, from arrays and ledger, against the plan."""
  from moe_parity.study.recount import checkpoint_shapes, count  # JAX, which a recheck needs not

  counted = count(checkpoint_shapes(folder, plan["num_steps"]), plan)
  tokens, unique = ledger.num_tokens, ledger.num_unique_tokens
  arrays, windows = "shapes of the checkpoint's arrays", "windows in the ledger"
  train_flops = counted["train_flops_per_token"] * tokens
  executed = counted["executed_flops_per_token"] * tokens
  value["measured"] = counted | {
    "num_tokens": tokens, "num_unique_tokens": unique, "train_flops": train_flops,
    "executed_flops": executed,
  }  # fmt: skip
  checks = [
    check(name, plan[name], counted[name], 0.0, arrays)
    for name in ("num_params", "num_active_params", "train_flops_per_token")
  ]
  checks += [
    check("num_tokens", plan["num_tokens"], tokens, 0.0, windows),
    check("num_steps", plan["num_steps"], result["finished_step"], 0.0, "result.json"),
    check(
      "train_flops", plan["train_flops"], train_flops, 0.0,
      "FLOPs a token of the arrays x tokens in the ledger",
    ),
    check(
      "executed_flops", executed_flops(plan), executed, 0.0,
      "every matrix product a token, from the arrays, x tokens in the ledger",
    ),
    check(
      "num_unique_tokens", min(plan["num_unique_tokens"], tokens), unique, 0.005,
      "windows seen at least once; a last epoch that is not full may leave some out",
    ),
  ]  # fmt: skip
  if unique > plan["num_unique_tokens"]:
    checks[-1] |= {"passed": False, "how": "more unique tokens than the budget allows"}
  rate = counted["num_active_params"] / counted["num_params"]
  kind = "moe" if plan["architecture"]["num_experts"] else "dense"
  checks.append(check("activation_rate", plan["activation_rate"], rate, 1e-9, arrays))
  checks.append(line("kind", plan["kind"], kind, plan["kind"] == kind, "experts in plan.json"))
  by_domain = ledger.by_domain()
  for domain, planned in plan.get("mixture", {}).items():
    checks += [
      check(f"{domain}: {name}", planned[name], by_domain[domain][name], 0.0, windows)
      for name in ("num_tokens", "num_unique_tokens")
      if planned[name]
    ]
  return checks


def forget_unfinished(folder: pathlib.Path) -> None:
  """Call before a run is trained: removes the certificate of one whose result.json was removed, for
  it is of another result. A later result is never taken for a new one by its date: an edit has a
  later one too."""
  if not (folder / run_folder.RESULT).exists():
    (folder / CERTIFICATE).unlink(missing_ok=True)


def certify_or_recheck(folder: pathlib.Path) -> dict:
  """Certifies a finished run that was not yet, else `recheck_run`; its certificate."""
  if not (folder / CERTIFICATE).exists():
    return certify_run(folder)
  recheck_run(folder)
  return run_folder.read_json(folder / CERTIFICATE)


def recheck_run(folder: pathlib.Path) -> None:
  """Holds a certified run's files against their hashes, and its logs against each other anew, for
  certificates of earlier versions lack lines of that; what is wrong fails its certificate.

  A run whose certificate holds no hashes (of an earlier version) is certified anew.
  """
  path = folder / CERTIFICATE
  certified = guarded("certificate.json", lambda: [run_folder.read_json(path)])[0]
  if not certified.get("files"):
    certify_run(folder)
    return
  changed = evidence.changed_files(folder, certified["files"])
  anew = {row["name"]: row for row in guarded(_AGAIN, lambda: _logs_again(folder))}
  earlier = [row for row in certified["checks"] if row["name"] not in (_CHANGED, _AGAIN)]
  checks = [anew.pop(row["name"], row) for row in earlier]
  checks += anew.values()
  if changed:
    checks.append(line(_CHANGED, "unchanged", "; ".join(changed), False, "sha256 of each file"))
  passed = all(row["passed"] for row in checks)
  if checks != certified["checks"] or passed != certified["passed"]:
    certified |= {"checks": checks, "passed": passed}
    files.write_json(path, certified, seal=True)


def _logs_again(folder: pathlib.Path) -> list[dict]:
  """`_logs_checks` of a run's files as they are now."""
  plan, result, config = (
    run_folder.read_json(folder / name)
    for name in (run_folder.PLAN, run_folder.RESULT, run_folder.CONFIG)
  )
  return _logs_checks(folder, plan, result, configs.from_stored(config))


def recheck_study(
  folder: pathlib.Path, which: str = rescoring.NEW, start: Callable[[], None] = lambda: None
) -> dict:
  """`recheck_run` of every finished run of a study's folder, then `rescore_study`.

  Args:
    which, start: as of `rescoring.rescore_runs`.
  """
  for _, place in _places(folder):
    if (folder / place / run_folder.RESULT).exists():
      if (folder / place / CERTIFICATE).exists():
        recheck_run(folder / place)
      else:
        certify_run(folder / place)
  return rescore_study(folder, which, start)


def rescore_study(
  folder: pathlib.Path, which: str = rescoring.NEW, start: Callable[[], None] = lambda: None
) -> dict:
  """`rescoring.rescore_runs` of a study's folder, then `certify_study`."""
  rescoring.rescore_runs(folder, _places(folder), which, start)
  return certify_study(folder)


def _places(folder: pathlib.Path) -> list[tuple[dict, str]]:
  """(plan, run folder relative to `folder`) of every arm of a study; a run may be in the folder
  of another comparison, and nowhere else."""
  plan, listed = run_folder.read_json(folder / run_folder.PLAN), _info(folder).get("arms") or ()
  places = {(arm["name"], arm["seed"]): arm["folder"] for arm in listed if "folder" in arm}
  arms = [
    (arm, places.get((arm["name"], arm["seed"]), f"runs/{arm['name']}-s{arm['seed']}"))
    for arm in plan.get("arms") or ()
  ]
  for _, place in arms:
    run_place(folder, place)
  return arms


def _info(folder: pathlib.Path) -> dict:
  """study.json, {} before it is there."""
  path = folder / "study.json"
  return run_folder.read_json(path) if path.exists() else {}


def certify_study(folder: pathlib.Path) -> dict:
  """Compares the finished runs with the budget and with each other; writes certificate.json.

  References (dense at twice the compute) and tries of learning rates are certified as runs and left
  out of the comparison; that all arms had as many tries, and took the best, is checked;
  controls (dense of another N) are compared in C and unique tokens.
  """
  plan, info, places = (
    run_folder.read_json(folder / run_folder.PLAN),
    _info(folder),
    _places(folder),
  )
  budget = budget_of(plan)
  checks, runs, missing, found, data, of_place = [], [], [], {}, {}, {}
  for arm, place in places:
    label = f"{arm['name']} (seed {arm['seed']})"
    if not (folder / place / CERTIFICATE).exists():
      missing.append(label)
      continue
    certificate = _read(label, folder / place / CERTIFICATE)
    if "planned" in certificate:  # it is damaged: a failed line stands for it
      checks.append(certificate)
      continue
    measured = certificate.get("measured")
    if failed := _failed(certificate):
      checks.append(line(f"{arm['name']}: its own certificate", "passed", failed, False,
                         f"{place.rpartition('/')[2]}/{CERTIFICATE}"))  # fmt: skip
    checks += guarded(label, lambda: _plan_checks(label, arm, folder / place))  # noqa: B023
    config = _read(label, folder / place / run_folder.CONFIG)
    if "model" in config:
      found[label] = of_place[place] = config
    if (folder / place / run_folder.DATA).exists():  # runs before November 2026 have none
      of_run = _read(label, folder / place / run_folder.DATA)
      if "fingerprint" in of_run:
        data[label] = of_run
    if arm.get("role") not in NOT_COMPARED and measured:
      runs.append((arm, measured, certificate))
  checks += guarded("the runs of the study", lambda: run_lists.run_list_checks(
    folder, places, info, of_place))  # fmt: skip
  checks += guarded("plan.json", lambda: run_lists.plan_checks(
    folder, plan, budget, info, of_place))  # fmt: skip
  checks += evidence.settings_checks(found, info.get("config") or {})
  checks += evidence.data_checks(data, info)
  checks += guarded("result.json of the runs", lambda: _scores_checks(folder, places))
  tolerances: dict[str, float] = {}
  checks += guarded("the budget in plan.json", lambda: _budget_checks(budget, runs, tolerances))
  checks += guarded("the ledgers of the runs", lambda: _data_checks(budget, runs))
  checks += guarded("tries of learning rates", lambda: _effort_checks(folder))
  value = {
    "passed": bool(runs) and all(row["passed"] for row in checks),
    "tolerances": tolerances,
    "checks": checks,
    "missing": missing,
    "relative_to_dense": relative_to_dense(runs),
    "data": next((of_run["fingerprint"] for of_run in data.values()), {}),
    "versions": evidence.versions_of(data),
  }
  files.write_json(folder / CERTIFICATE, value, seal=True)
  return value


def _failed(certificate: dict) -> str:
  """What a run's certificate fails by, or where it contradicts itself; "" if it passed."""
  rows, measured = certificate["checks"], certificate.get("measured") or {}
  failed = [row["name"] for row in rows if not row["passed"]]
  failed += [
    f"{row['name']} is {row['measured']} in its checks and {measured[row['name']]} in its counts"
    for row in rows
    if row["name"] in measured and measured[row["name"]] != row["measured"]
  ]
  if not (failed or certificate["passed"]):
    failed = ["not passed"]
  return ", ".join(failed) or ("" if measured else "it holds no counts")


def _read(label: str, path: pathlib.Path) -> dict:
  """The JSON file, or a failed line of a certificate where it is missing or damaged."""
  return guarded(label, lambda: [run_folder.read_json(path)])[0]


def _plan_checks(label: str, arm: dict, folder: pathlib.Path) -> list[dict]:
  """Whether a run's own plan is the study's."""
  own = with_later_fields(run_folder.read_json(folder / run_folder.PLAN), arm)
  # A run that two comparisons share is in one of them, with what that one compares it by.
  ignored = _RELATIVE + (("name", "role") if ".." in folder.parts else ())
  planned, own = ({k: v for k, v in plan.items() if k not in ignored} for plan in (arm, own))
  changed = configs.differences(planned, own)
  words = "; ".join(changed[:3]) or "the same"
  how = f"plan.json of the study and of {folder.name}"
  return [line(f"{label}: plan", "the study's", words, not changed, how)]


def _scores_checks(folder: pathlib.Path, places: Sequence[tuple[dict, str]]) -> list[dict]:
  """Whether runs that are compared were scored alike, and tries of learning rates among them."""
  checks = []
  for of in ("the runs", "the tries"):
    scored = [
      (arm, run_folder.read_json(folder / place / run_folder.RESULT)["validation"])
      for arm, place in places
      if bool(arm.get("tunes")) == (of == "the tries")
      and (folder / place / run_folder.RESULT).exists()
    ]
    checks += evidence.scored_alike_checks(scored, of) if scored else []
    for arm, validation in scored:  # a certificate may have been edited with the result it is of
      own = evidence.score_checks({"validation": validation}) if "nats" in validation else ()
      label = f"{arm['name']} (seed {arm['seed']})"
      checks += [row | {"name": f"{label}: {row['name']}"} for row in own if not row["passed"]]
  return checks


def _effort_checks(folder: pathlib.Path) -> list[dict]:
  """Whether every compared arm had as many tries of its learning rate, and took the best."""
  places = [(arm, folder / place) for arm, place in _places(folder)]
  tries = effort.scores_of_tries(places)
  return list(effort.effort_checks(effort.tuned_arms([arm for arm, _ in places], tries)))


def _budget_checks(budget: dict, runs: Sequence[tuple], tolerances: dict[str, float]) -> list[dict]:
  """N, C (or tokens) and unique tokens of every run against the budget; fills `tolerances`."""
  tolerances["num_params"] = budget["params_tolerance"]
  if budget["held_fixed"] == "tokens":
    tolerances["num_tokens"] = budget["flops_tolerance"]
    budget = budget | {"num_tokens": budget["dense_tokens"]}
  else:
    tolerances["train_flops"] = budget["flops_tolerance"]
  if budget["equal_data"]:  # other schemes give each arm a D^ of its own, which its run certifies
    tolerances["num_unique_tokens"] = budget["flops_tolerance"]
  checks = []
  for name, tolerance in tolerances.items():
    for arm, measured, _ in runs:
      if name == "num_params" and arm["role"] == "control":
        continue  # its N is another by intent, which its own certificate holds to its plan
      label = f"{arm['name']} (seed {arm['seed']}): {name}"
      checks.append(
        check(label, budget[name], measured[name], tolerance, "recounted, against the budget")
      )
  return checks


def _data_checks(budget: dict, runs: Sequence[tuple]) -> list[dict]:
  """Whether runs read one stream, and those of one seed the same windows of it where the budget
  shares unique data."""
  if not runs:
    return []
  streams = {certificate["ledger"]["sha256"] for _, _, certificate in runs}
  checks = [
    line("one token stream", 1, len(streams), len(streams) == 1,
         "sha256 of the token file in each ledger")
  ]  # fmt: skip
  checks += same_chats(runs)
  if not budget["equal_data"]:
    return checks
  by_seed: dict[object, dict[str, str]] = {}
  for arm, measured, certificate in runs:
    if measured["num_unique_tokens"] != arm["num_unique_tokens"]:
      continue  # a last epoch that is not full leaves windows out, which its own line shows
    seed = certificate["ledger"].get("order", {}).get("seed")
    windows = by_seed.setdefault(seed, {})
    windows[f"{arm['name']} (seed {arm['seed']})"] = certificate.get("unique_windows_sha256", "")
  for seed, windows in by_seed.items():
    number = len(set(windows.values()))
    checks.append(
      line(f"one set of windows (data seed {seed})", 1, number, number == 1,
           f"which windows each ledger holds: {', '.join(windows)}")
    )  # fmt: skip
  return checks


def relative_to_dense(runs: Sequence[tuple[dict, dict, dict]]) -> list[dict]:
  """Recounted resources of every certified run over those of the first dense one: C, executed
  FLOPs, parameters without and with vocabulary, without and with router and norms, bytes of
  weights.

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
    | {r: measured[r] / dense[r] for r in RESOURCES if measured.get(r) and dense.get(r)}
    for arm, measured, _ in runs
  ]
