"""Checks that the files a run left agree with each other, and are those that were certified.

Against accident this is complete: a file that was edited, cut, swapped or lost disagrees with
another file or with its hash. Against a determined author no hash helps: who can rewrite every file
can rewrite the hashes too. Only a run trained again, or documents scored again from the checkpoint
(`evaluate`), show that.
"""

import hashlib
import json
import math
import pathlib
import re
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import numpy as np

from moe_parity import config as configs
from moe_parity.data import chat_template, storage
from moe_parity.data.audit import order_checks
from moe_parity.data.ledger import Ledger
from moe_parity.files import sha256_of, tree_sha256
from moe_parity.training import checkpoint_hashes, run_folder
from moe_parity.training.metrics import METRICS

LEDGER, ROUTING = "ledger.npz", "routing.npz"
FILES = (run_folder.CONFIG, run_folder.PLAN, run_folder.RESULT, run_folder.DATA, METRICS, LEDGER,
         ROUTING, chat_template.FILE)  # fmt: skip
SUM_TOLERANCE = 1e-9  # relative: sums of float64 over documents
# What reading a damaged file can raise; anything else is a fault of ours and must show.
DAMAGE = (ValueError, KeyError, TypeError, IndexError, AttributeError, OSError, EOFError,
          ArithmeticError)  # fmt: skip


def line(name: str, planned: Any, measured: Any, passed: bool, how: str) -> dict:
  """A line of a certificate about something that is not a number with a tolerance."""
  return {
    "name": name,
    "planned": planned,
    "measured": measured,
    "difference_pct": None,
    "passed": bool(passed),
    "how": how,
  }


def guarded(name: str, checks: Callable[[], Sequence[dict]]) -> list[dict]:
  """The checks, or one failed line that names the piece which is missing or damaged."""
  try:
    return list(checks())
  except DAMAGE as error:
    words = " ".join(str(error).split()) or type(error).__name__
    return [line(name, "readable", words[:300], False, "the run's files")]


def file_hashes(folder: pathlib.Path, step: int) -> dict[str, str]:
  """sha256 of every file that the certificate rests on; the checkpoint of `step` is one entry, over
  the names and contents of its files."""
  hashes = {name: sha256_of(folder / name) for name in FILES if (folder / name).is_file()}
  return hashes | {f"checkpoints/{step}": tree_sha256(folder / "checkpoints" / str(step))}


def changed_files(folder: pathlib.Path, certified: dict[str, str]) -> list[str]:
  """What became of files since they were certified, a phrase each; [] for nothing."""
  problems = []
  for name, before in certified.items():
    path = folder / name
    is_tree = re.fullmatch(r"checkpoints/\d+", name) and path.is_dir()
    if not (is_tree or storage.is_file_inside(folder, name)):
      problems.append(f"{name[:80]} is missing")
    elif (tree_sha256(path) if is_tree else sha256_of(path)) != before:
      problems.append(f"{name} was changed")
  return problems


def score_checks(result: dict) -> Iterator[dict]:
  """The scores of result.json against the documents that it lists."""
  validation = result["validation"]
  documents = validation["documents"]
  sums = {
    name: math.fsum(row[name] for row in documents)
    for name in ("nats", "num_tokens", "num_bytes", "num_chars")
  }
  bits = sums["nats"] / math.log(2)
  expected = sums | {
    "bpc": bits / sums["num_chars"],
    "bpb": bits / sums["num_bytes"],
    "cross_entropy": sums["nats"] / sums["num_tokens"],
    "num_documents": len(documents),
  }
  by_domain = validation["by_domain"]
  named = sorted({row["domain"] for row in documents})
  if by_domain:
    yield line("score: domains", named, sorted(by_domain), named == sorted(by_domain),
               "documents in result.json")  # fmt: skip
  for domain, entry in by_domain.items():
    of_domain = [row for row in documents if row["domain"] == domain]
    nats = math.fsum(row["nats"] for row in of_domain)
    for name, units in (("bpc", "num_chars"), ("bpb", "num_bytes")):
      count = sum(row[units] for row in of_domain)
      bits = nats / math.log(2) / count if count else math.nan  # of no document: equal to nothing
      yield _same_score(f"{name} of {domain}", bits, entry[name])
  for name in ("bpc", "bpb"):
    mean = math.fsum(entry[name] for entry in by_domain.values()) / max(1, len(by_domain))
    if by_domain:
      yield _same_score(f"macro_{name}", mean, validation[f"macro_{name}"])
  for name in ("bpc", "bpb", "cross_entropy", "nats", "num_tokens", "num_bytes", "num_chars",
               "num_documents"):  # fmt: skip
    yield _same_score(name, expected[name], validation[name])


def _same_score(
  name: str,
  expected: int | float,
  stated: int | float,
  how: str = "sum of the documents in result.json",
) -> dict:
  same = math.isclose(expected, stated, rel_tol=SUM_TOLERANCE)
  return line(f"score: {name}", expected, stated, same, how)


def ablation_checks(plan: dict, result: dict, config: dict) -> Iterator[dict]:
  """The scores that a trained model has with parts taken away: whether they are those that the
  config asks for, and the sums of their documents."""
  found, validation = result.get("ablations") or {}, result["validation"]
  asked = (config["evaluation"].get("ablations") or ()) if plan["kind"] == "moe" else ()
  chosen = plan["architecture"]["experts_per_token"]
  planned = sorted(n for n in asked if not (plan.get("tunes") or (n == "top_1" and chosen == 1)))
  yield line("ablations", planned, sorted(found), planned == sorted(found), "config.json")
  tokens = validation["num_tokens"]
  for name, score in found.items():
    how, nats = "sum of the nats of its documents in result.json", score.get("nats")
    if nats is None:
      how = "its cross-entropy: a run of an earlier version, without the nats of its documents"
      total = score["cross_entropy"] * tokens
    else:
      number, total = len(validation["documents"]), math.fsum(nats)
      yield line(f"{name}: documents", number, len(nats), number == len(nats), "result.json")
      yield _same_score(f"{name} cross_entropy", total / tokens, score["cross_entropy"], how)
    bits = total / math.log(2)
    yield _same_score(f"{name} bpc", bits / validation["num_chars"], score["bpc"], how)
    yield _same_score(f"{name} bpb", bits / validation["num_bytes"], score["bpb"], how)


def checkpoint_checks(folder: pathlib.Path, plan: dict) -> Iterator[dict]:
  """Whether the last checkpoint is what was written, and of this run."""
  path = folder / "checkpoints" / str(plan["num_steps"])
  if not checkpoint_hashes.is_hashed(path) and not checkpoint_hashes.is_marked(path):
    return  # of a version without hashes
  why = checkpoint_hashes.problem(path, checkpoint_hashes.run_identity(plan))
  yield line("checkpoint: files", "as written", why or "as written", not why, "its hashes.json")


def identity_checks(plan: dict, result: dict) -> Iterator[dict]:
  """Whether result.json is of the planned arm."""
  for name in ("name", "kind", "role", "seed"):
    same = plan[name] == result[name]
    yield line(f"result: {name}", plan[name], result[name], same, "plan.json, result.json")


def ledger_checks(ledger: Ledger, plan: dict, config: dict) -> Iterator[dict]:
  """Windows and order of the ledger, computed again from seed, epoch and position; and that they
  are those of the plan and the config."""
  for check in order_checks(ledger):
    how = "the order of (seed, epoch, position), computed again"
    yield line(f"ledger: {check['name']}", check["expected"], check["found"], check["passed"], how)
  order = ledger.data["order"]
  seed = config["data"]["seed"]
  if config["data"].get("draw_per_seed"):
    seed += plan["seed"]
  yield line("ledger: seed", seed, order["seed"], seed == order["seed"], "config.json")
  if "data_seed" in plan:
    same = plan["data_seed"] == order["seed"]
    yield line("ledger: data seed", plan["data_seed"], order["seed"], same, "plan.json")
  rows = plan["num_steps"] * plan["batch_sequences"]
  yield line("ledger: rows", rows, ledger.row, rows == ledger.row, "plan.json")


def learning_checks(plan: dict, result: dict) -> Iterator[dict]:
  """Whether the run learned anything: its last training loss against that of a uniform guess."""
  uniform = math.log(plan["architecture"]["vocab_size"])
  loss = result.get("train_cross_entropy")  # null where its lines are lost
  passed = loss is not None and math.isfinite(loss) and loss < uniform
  yield line("training loss", f"below ln V = {uniform:.4f}", loss, passed, "result.json")


def settings_checks(configs_by_arm: dict[str, dict], of_study: dict) -> Iterator[dict]:
  """Whether all arms of a study were trained with the same settings, but for what an arm decides,
  and whether study.json has those.

  Args:
    configs_by_arm: label -> the run's config.json. of_study: the config in study.json, or {}.
  """
  shared = {label: _shared_settings(config) for label, config in configs_by_arm.items()}
  first_label = next(iter(shared), "")
  for label, found in shared.items():
    changed = configs.differences(shared[first_label], found)
    words = "; ".join(changed[:3]) + (f" and {len(changed) - 3} more" if changed[3:] else "")
    yield line(f"{label}: settings", f"those of {first_label}", words or "the same", not changed,
               "config.json of each run")  # fmt: skip
  if shared and run_folder.SETTINGS[0] in of_study:
    changed = configs.differences(shared[first_label], _shared_settings(of_study))
    yield line("settings in study.json", f"those of {first_label}", "; ".join(changed[:3])
               or "the same", not changed, "study.json, config.json of each run")  # fmt: skip


def _shared_settings(config: dict) -> dict:
  """Settings that all arms share: what an arm decides for itself, and how a batch is cut for the
  memory of a device, are left out. A study may give each seed data of its own."""
  sections = run_folder.settings(config)
  evaluation = {**config.get("evaluation", {})}
  evaluation = {name: evaluation.get(name) for name in ("mode", "stride", "max_tokens")} | {
    "tuning_share": evaluation.get("tuning_share", 0.0)
  }
  model = {
    k: v for k, v in sections["model"].items() if k not in ("normalize_gates", "routed_scale")
  }
  return {
    "data": {k: v for k, v in sections["data"].items() if k != "seed"},
    "model": model,
    "optimizer": sections["optimizer"],
    "evaluation": evaluation,
  }


def data_checks(data_by_run: dict[str, dict], info: dict) -> Iterator[dict]:
  """Whether all runs of a study read one token store: its tokens, held-out ones too, its documents
  and its tokenizer; and whether study.json names that store.

  Args:
    data_by_run: label -> the run's data.json. info: study.json.
  """
  prints = {label: data["fingerprint"] for label, data in data_by_run.items()}
  if not prints:
    return
  data = info.get("data") or {}
  stated = {
    "train_tokens": data.get("train_sha256"),
    "validation_tokens": data.get("validation_sha256"),
    "tokenizer": (data.get("tokenizer") or {}).get("fingerprint"),
  }
  label, found = next(iter(prints.items()))
  changed = [name for name, value in stated.items() if value and value != found[name]]
  words = f"other {', '.join(changed)} than {label}" if changed else "that of the runs"
  yield line("token store in study.json", "that of the runs", words, not changed,
             "study.json, data.json of each run")  # fmt: skip
  first_label, first = next(iter(prints.items()))
  number = len({tuple(sorted(found.items())) for found in prints.values()})
  how = "data.json of each run"
  for label, found in prints.items():
    if changed := [name for name in first if found.get(name) != first[name]]:
      how += f"; {label} has other {', '.join(changed)} than {first_label}"
      break
  yield line("one token store", 1, number, number == 1, how)


def scored_alike_checks(scored: Sequence[tuple[dict, dict]], of: str) -> Iterator[dict]:
  """Whether runs were scored on the same documents, in one order and mode, and no run has the
  scores of another seed of its arm.

  Args:
    scored: plan and `validation` of result.json of each run. of: what the runs are, in words.
  """
  labels = [f"{arm['name']} (seed {arm['seed']})" for arm, _ in scored]
  keys = [_scored_on(validation) for _, validation in scored]
  usual = max(keys, key=keys.count, default="")
  others = [label for label, key in zip(labels, keys, strict=True) if key != usual]
  more = f" and {len(others) - 3} more" if others[3:] else ""
  words = f"other ones in {', '.join(others[:3])}{more}" if others else "the same"
  yield line(f"validation documents of {of}", "the same", words, not others, "result.json")
  first: dict[tuple, str] = {}
  copies = []
  for (arm, validation), label in zip(scored, labels, strict=True):
    nats = tuple(row["nats"] for row in validation["documents"])
    before = first.setdefault((arm["name"], nats), label)
    copies += [f"{label} has those of {before}"] if nats and before != label else []
  yield line(f"scores of {of}", "each seed its own", "; ".join(copies[:3]) or "each seed its own",
             not copies, "result.json")  # fmt: skip


def _scored_on(validation: dict) -> str:
  """Hash of what a run was scored on, and how."""
  names = ("domain", "source", "num_tokens", "num_bytes", "num_chars")
  rows = [[row[name] for name in names] for row in validation["documents"]]
  how = [validation[name] for name in ("mode", "seq_len", "stride")]
  return hashlib.sha256(json.dumps([how, rows]).encode()).hexdigest()


def versions_of(data_by_run: dict[str, dict]) -> dict[str, dict[str, int]]:
  """Of Python, this package and each library: how many runs were trained with each version, all
  or in part."""
  found: dict[str, dict[str, int]] = {}
  for data in data_by_run.values():
    once = dict.fromkeys(pair for versions in data["versions"] for pair in versions.items())
    for name, version in once:
      of_name = found.setdefault(name, {})
      of_name[version] = of_name.get(version, 0) + 1
  return found


def windows_sha256(ledger: Ledger) -> str:
  """Hash of which windows were read at least once."""
  return hashlib.sha256(np.flatnonzero(ledger.counts).astype("<u8").tobytes()).hexdigest()
