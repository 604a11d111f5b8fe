"""What data a run really saw, proved from its ledger and its store; whether two runs saw the same.

audit_run    unique and seen tokens per domain and source, the order against the planned one
compare_runs the same windows? in the same order, as far as both went?
"""

from collections.abc import Sequence
from pathlib import Path

import numpy as np

from moe_parity import files
from moe_parity.data.ledger import Ledger, order_digest
from moe_parity.data.mixture import Mixture, order_from
from moe_parity.data.token_store import Split, is_store, open_store
from moe_parity.data.window_order import Order
from moe_parity.errors import UserError
from moe_parity.fields.table import DOMAIN_NAME
from moe_parity.stored.read import check
from moe_parity.stored.run_files import COUNT


def audit_run(run: str | Path, store: str | Path | None = None, verify: bool = False) -> dict:
  """Recounts a run's data.

  Args:
    run: a run folder with ledger.npz, and plan.json where the run had a plan.
    store: the token store, where it is not at the path the ledger remembers.
    verify: also hash the store's files against its manifest.
  Returns:
    {"run", "passed", "checks": [{"name", "expected", "found", "passed"}], "num_tokens",
    "num_unique_tokens", "epochs", "by_domain" and "by_origin": {name: {"num_tokens" seen,
    "num_unique_tokens", "epochs"}}, "ledger": its summary}. Tokens per domain are those read as
    targets, separators included, each counted for the domain it is of; they add up to the totals.
    A mixture deals out whole windows, each counted for the domain of its first target: "ledger"
    has those counts, and they are what its plan is checked by.
  Raises:
    UserError: no ledger, no store, or a store with another token stream.
  """
  run = Path(run)
  ledger = Ledger.load(run / "ledger.npz")
  if ledger.data.get("split") == "chats":
    raise UserError(
      f"{run} was fine-tuned on chats, which are in no token store; its {run}/certificate.json"
      " recounts them, and `data audit` takes the run it was made from"
    )
  _check_states(ledger, run, ("split", "sha256", "order"))
  opened = open_store(_store_of(ledger, run) if store is None else store, verify=verify)
  splits = {split.name: split for split in (opened.train, opened.validation)}
  if ledger.data["split"] not in splits:
    raise UserError(f"{run}/ledger.npz names the split {ledger.data['split']!r}; run the arm again")
  split = splits[ledger.data["split"]]
  if split.fingerprint != ledger.data["sha256"]:
    raise UserError(
      f"{run} was trained on a stream with sha256 {ledger.data['sha256'][:12]}, {opened.folder} "
      f"has {split.fingerprint[:12]}; give the store the run was trained on"
    )
  documents = split.documents
  origins = [origin["path"] for origin in opened.manifest["origins"]]
  checks = order_checks(ledger) + _plan_checks(ledger, run)
  return {
    "run": str(run),
    "passed": all(check["passed"] for check in checks),
    "checks": checks,
    "num_tokens": ledger.num_tokens,
    "num_unique_tokens": ledger.num_unique_tokens,
    "epochs": ledger.summary()["epochs"],
    "by_domain": _tokens_by(split, ledger, documents.domain, list(documents.domains)),
    "by_origin": _tokens_by(split, ledger, documents.origin, origins),
    "ledger": ledger.summary(),
  }


def compare_runs(a: str | Path, b: str | Path) -> dict:
  """Whether two runs saw the same data, from their ledgers alone.

  Returns:
    {"same_stream", "same_windows" (the same set), "same_order" (row for row as far as both went),
    "rows_compared", "first_difference" (row, or None), "windows_in_both", "windows_only_in_a",
    "windows_only_in_b", "a" and "b": their summaries, "verdict": one sentence}. The order of a run
    is that of its plan once the ledger's digest agrees with it; where one does not, "same_order" is
    False and the verdict says so.
  """
  first, second = Ledger.load(Path(a) / "ledger.npz"), Ledger.load(Path(b) / "ledger.npz")
  for ledger, run in ((first, a), (second, b)):
    _check_states(ledger, run, ("sha256", "order"))
  result = {"a": first.summary(), "b": second.summary()}
  same_stream = (first.data["sha256"], first.seq_len) == (second.data["sha256"], second.seq_len)
  result |= {"same_stream": same_stream, "same_windows": False, "same_order": False}
  if not same_stream:
    return result | {"verdict": "the runs read different token streams or windows"}
  seen = [ledger.counts > 0 for ledger in (first, second)]
  rows = min(first.row, second.row)
  planned = [_order(ledger).windows(0, rows) for ledger in (first, second)]
  differing = np.flatnonzero(planned[0] != planned[1])
  faithful = [_is_planned_order(ledger) for ledger in (first, second)]
  result |= {
    "same_windows": bool(np.array_equal(*seen)),
    "same_order": all(faithful) and differing.size == 0,
    "rows_compared": rows,
    "first_difference": int(differing[0]) if differing.size else None,
    "windows_in_both": int(np.sum(seen[0] & seen[1])),
    "windows_only_in_a": int(np.sum(seen[0] & ~seen[1])),
    "windows_only_in_b": int(np.sum(seen[1] & ~seen[0])),
  }
  return result | {"verdict": _verdict(result, faithful)}


def _verdict(result: dict, faithful: list[bool]) -> str:
  if not all(faithful):
    return f"run {'ab'[faithful.index(False)]} did not read its windows in the order it names"
  windows = (
    "the same windows"
    if result["same_windows"]
    else f"{result['windows_in_both']} windows in common, {result['windows_only_in_a']} only in a, "
    f"{result['windows_only_in_b']} only in b"
  )
  order = (
    f"in the same order over the {result['rows_compared']} rows that both read"
    if result["same_order"]
    else f"in different orders from row {result['first_difference']} on"
  )
  return f"{windows}, {order}"


def _check_states(ledger: Ledger, run: str | Path, names: Sequence[str]) -> None:
  if missing := [name for name in names if ledger.data.get(name) is None]:
    raise UserError(f"{run}/ledger.npz does not state its {missing[0]}; run the arm again")


def _store_of(ledger: Ledger, run: Path) -> str:
  if "store" not in ledger.data:
    raise UserError(f"{run}/ledger.npz does not name its token store; give the store's folder")
  location = ledger.data["store"]
  if not is_store(location):
    raise UserError(
      f"{run} read the token store {location}, which is not there; if it has moved, --store names"
      " its place"
    )
  return location


def _order(ledger: Ledger) -> Order | Mixture:
  return order_from(ledger.data["order"], ledger.domain_ids)


def _is_planned_order(ledger: Ledger) -> bool:
  return order_digest(_order(ledger).windows(0, ledger.row)) == ledger.digest


def order_checks(ledger: Ledger) -> list[dict]:
  """The order that a ledger names, computed again, against its digest, counts and budget."""
  order = _order(ledger)
  windows = order.windows(0, ledger.row)
  expected = np.bincount(windows, minlength=ledger.counts.size)
  wrong = int(np.sum(expected != ledger.counts))
  budget = order.num_unique * ledger.seq_len
  return [
    _check("windows in the order of the plan", True, order_digest(windows) == ledger.digest),
    _check("windows read another number of times than planned", 0, wrong),
    _check("rows counted", ledger.row, int(ledger.counts.sum(dtype=np.int64))),
    _check("unique tokens within the budget", f"at most {budget}", ledger.num_unique_tokens,
           ledger.num_unique_tokens <= budget),
  ]  # fmt: skip


_PLANNED = dict.fromkeys(("num_tokens?", "num_unique_tokens?", "batch_sequences?"), COUNT) | {
  "mixture?": {DOMAIN_NAME: {"num_tokens": int, "num_unique_tokens": int}}
}


def _plan_checks(ledger: Ledger, run: Path) -> list[dict]:
  """Against plan.json: the budget in whole windows, the tokens to the last step."""
  if not (run / "plan.json").is_file():
    return []
  way_out = "restore it from a copy"
  plan = files.read_json(run / "plan.json", way_out)
  check(plan, _PLANNED, run / "plan.json", way_out)
  checks = []
  if tokens := plan.get("num_tokens"):
    step = (plan.get("batch_sequences") or 1) * ledger.seq_len
    text = f"{tokens} to within a step of {step}"
    near = abs(ledger.num_tokens - tokens) <= step
    checks.append(_check("tokens seen", text, ledger.num_tokens, near))
  if unique := plan.get("num_unique_tokens"):
    allowed = ledger.num_unique_tokens <= unique
    checks.append(
      _check("unique tokens seen", f"at most {unique}", ledger.num_unique_tokens, allowed)
    )
  by_domain = ledger.by_domain()
  for domain, planned in (plan.get("mixture") or {}).items():
    for field in ("num_tokens", "num_unique_tokens"):
      value = by_domain[domain][field] if domain in by_domain else None
      checks.append(_check(f"{domain}: {field} of its windows", planned[field], value))
  return checks


def _check(name: str, expected, found, passed: bool | None = None) -> dict:
  verdict = bool(expected == found) if passed is None else bool(passed)
  return {"name": name, "expected": expected, "found": found, "passed": verdict}


def _tokens_by(split: Split, ledger: Ledger, label: np.ndarray, names: list[str]) -> dict:
  """Seen and unique target tokens of each label, exact to the token where a window has several."""
  seq_len = ledger.seq_len
  end = ledger.counts.size * seq_len + 1
  # Between two neighboring cuts lie targets of one window and one document.
  edges = np.arange(1, end + 1, seq_len)
  starts = split.document_starts
  cuts = np.unique(np.concatenate([edges, starts[(starts > 1) & (starts < end)]]))
  lengths = np.diff(cuts)
  window = (cuts[:-1] - 1) // seq_len
  owner = label[np.searchsorted(starts, cuts[:-1], side="right") - 1]
  counts = ledger.counts[window].astype(np.int64)
  seen = np.bincount(owner, weights=lengths * counts, minlength=len(names))
  unique = np.bincount(owner, weights=lengths * (counts > 0), minlength=len(names))
  return {
    name: {
      "num_tokens": int(seen[i]),
      "num_unique_tokens": int(unique[i]),
      "epochs": float(seen[i] / unique[i]) if unique[i] else 0.0,
    }
    for i, name in enumerate(names)
  }
