"""Scores some documents of a finished run again, from its last checkpoint.

All other checks of a certificate compare files with each other, so files that were changed together
pass them. This one computes: the model in the checkpoint must give the nats that result.json
states. What it costs is bounded: of a run MAX_DOCUMENTS, together MAX_TOKENS and MAX_FLOPS of
forward passes (a minute of a CPU core), on one device; where no document is that short, the
shortest, up to STRETCH times that. ABLATED_DOCUMENTS of them are scored also with what the run's
ablations take away. A run is scored again once for every content of its result and
checkpoint. Which documents is drawn by the hash of result.json, so that an edit draws anew.

Where it cannot be done (no JAX, no text, several processes, weights over MAX_WEIGHT_BYTES) the line
passes and says "not rescored" and why. A checkpoint that is missing or damaged fails it.
"""

import hashlib
import importlib.util
import math
import pathlib
from collections.abc import Callable, Iterator, Sequence

import numpy as np

from moe_parity import files
from moe_parity.errors import UserError
from moe_parity.study.evidence import guarded, line
from moe_parity.training import run_folder

NAME, CERTIFICATE = "documents rescored", "certificate.json"
MAX_DOCUMENTS, MAX_TOKENS, MAX_FLOPS, STRETCH = 16, 32_768, 4e12, 8
ABLATED_DOCUMENTS = 4
MAX_WEIGHT_BYTES = 4 << 30
NEW, ALL, NONE = "new", "all", "none"  # which runs `rescore_runs` scores again
# Largest relative distance of a document's nats, and of the sum of the sample, from result.json: in
# float32 on the platform that trained (batches differ, so sums round differently, and a token may
# then choose another expert), and in other arithmetic or on another platform.
ALIKE, OTHER = (1e-3, 1e-4), (2e-2, 5e-3)
_NOT = "not rescored: "


def rescore_runs(
  study: pathlib.Path,
  places: Sequence[tuple[dict, str]],
  which: str = NEW,
  start: Callable[[], None] = lambda: None,
) -> None:
  """Adds the line to the certificate of every finished run that is compared.

  Args:
    places: (plan, run folder relative to `study`) of every arm.
    which: NEW leaves runs out that were rescored since their result and checkpoint were written;
      ALL scores all again; NONE scores none and says so where there is no line yet.
    start: called before JAX is first used.
  """
  for arm, place in places:
    folder = study / place
    if arm.get("tunes") or arm.get("finetuning") or not (folder / CERTIFICATE).exists():
      continue  # tries are not compared; chats are scored by the checks of fine-tuning
    certificate = guarded(CERTIFICATE, lambda: [run_folder.read_json(folder / CERTIFICATE)])[0]  # noqa: B023
    if "checks" not in certificate:
      continue
    content = _content(folder, certificate)
    if which == NEW and content and certificate.get("rescored_content") == content:
      continue
    if which == NONE:
      if any(row["name"] == NAME for row in certificate["checks"]):
        continue
      rows = [_skipped("by request")]
    else:
      rows = rescore(folder, start)
    kept = [row for row in certificate["checks"] if not row["name"].startswith(NAME)]
    done = not str(rows[0]["measured"]).startswith(_NOT)
    certificate |= {"checks": kept + rows, "rescored_content": content if done else ""}
    certificate["passed"] = all(row["passed"] for row in certificate["checks"])
    files.write_json(folder / CERTIFICATE, certificate, seal=True)


def _content(folder: pathlib.Path, certificate: dict) -> str:
  """Hash of what the certificate knows of result and checkpoint; "" where it knows neither."""
  known = certificate.get("files", {})
  parts = [known[name] for name in sorted(known) if name.startswith(("result", "checkpoints"))]
  changed = [row for row in certificate["checks"] if row["name"].startswith("files since")]
  return "" if changed else hashlib.sha256("".join(parts).encode()).hexdigest() if parts else ""


def rescore(folder: pathlib.Path, start: Callable[[], None] = lambda: None) -> list[dict]:
  """Lines of the certificate: the sample's documents and their sum, or why there are none."""
  if importlib.util.find_spec("jax") is None:
    return [_skipped("JAX is not installed")]
  try:
    return guarded(NAME, lambda: _rescore(folder, start))
  except (RuntimeError, MemoryError) as error:  # a device that is busy, or too little memory
    return [_skipped(f"this machine could not compute it ({' '.join(str(error).split())[:200]})")]


def _skipped(why: str) -> dict:
  return line(NAME, "as stated", f"{_NOT}{why}", True, "the model of the last checkpoint")


def _rescore(folder: pathlib.Path, start: Callable[[], None]) -> list[dict]:
  plan, result = (run_folder.read_json(folder / n) for n in (run_folder.PLAN, run_folder.RESULT))
  validation = result["validation"]
  if validation["mode"] == "packed":
    return [_skipped("mode=packed scores windows, not documents")]
  start()
  import jax

  from moe_parity.evaluation.bits_per_character import nats_of_documents
  from moe_parity.training.load_run import open_run_data, read_config

  if jax.process_count() > 1:
    return [_skipped("several processes; `report` does it in one")]
  config = read_config(folder)
  try:
    split = open_run_data(folder, config).validation
  except UserError as error:
    return [_skipped(f"its text is not here ({error})")]
  from moe_parity.evaluation.document_parts import rows_of_run

  rows = rows_of_run(split.documents, config, is_try=bool(plan.get("tunes")))
  stated = validation["documents"]
  if problem := _other_documents(split.documents, rows, stated):
    return [line(NAME, "those of the text", problem, False, "result.json, the token store")]
  most = min(MAX_TOKENS, int(MAX_FLOPS / (plan["train_flops_per_token"] / 3)))
  sample = _sample(folder, [row["num_tokens"] for row in stated], most)
  if not sample:
    return [_skipped(f"every document is longer than {STRETCH * most:,} tokens")]
  if problem := _too_large(plan):
    return [_skipped(problem)]
  here, trained = jax.default_backend(), result.get("machine", {}).get("platform")
  most_off = ALIKE if here == trained and config.model.dtype == "float32" else OTHER
  lines = []
  for name, score, nats in _scorers(folder, plan, config, split.tokenizer, result):
    chosen = sample if name == NAME else sample[:: -(-len(sample) // ABLATED_DOCUMENTS)]
    stride = validation["stride"] or plan["seq_len"]
    shape_BS = config.evaluation.batch_sequences, plan["seq_len"]
    found = nats_of_documents(score, split, rows[chosen], stride, shape_BS)
    lines += _lines(name, chosen, [nats[i] for i in chosen], found, most_off)
  if any("nats" not in score for score in (result.get("ablations") or {}).values()):
    lines.append(
      line(
        f"{NAME}: ablations",
        "as stated",
        f"{_NOT}a run of an earlier version, with their totals alone",
        True,
        "result.json",
      )
    )
  return lines


def _other_documents(documents, rows: np.ndarray, stated: Sequence[dict]) -> str:
  """How result.json's documents differ from those that the run's config chooses; "" if not."""
  if len(rows) != len(stated):
    return f"{len(stated)} documents, the config chooses {len(rows)}"
  for i, (row, own) in enumerate(zip(rows, stated, strict=True)):
    found = {
      "domain": documents.domains[documents.domain[row]],
      "source": documents.sources[documents.source[row]],
      "num_tokens": int(documents.num_text_tokens[row]),
      "num_bytes": int(documents.num_bytes[row]),
      "num_chars": int(documents.num_chars[row]),
    }
    for name, value in found.items():
      if own[name] != value:
        return f"document {i}: {name} {own[name]}, the text has {value}"
  return ""


def _sample(folder: pathlib.Path, lengths: Sequence[int], most: int) -> list[int]:
  """Positions in result.json's documents, in order."""
  digest = hashlib.sha256((folder / run_folder.RESULT).read_bytes()).digest()
  rng = np.random.default_rng(int.from_bytes(digest[:8], "little"))
  taken, left = [], most
  for i in rng.permutation(len(lengths)).tolist():
    if lengths[i] <= left and len(taken) < MAX_DOCUMENTS:
      taken.append(i)
      left -= lengths[i]
  if not taken and min(lengths) <= STRETCH * most:
    taken = [int(np.argmin(lengths))]
  return sorted(taken)


def _too_large(plan: dict) -> str:
  """Why the model is not loaded here; "" where it is."""
  from moe_parity.planning.accounting import cost_of
  from moe_parity.planning.architecture import Architecture

  shape = Architecture.from_dict(plan["architecture"])
  size = 4 * cost_of(shape, plan["seq_len"], "exact").num_params
  if size <= MAX_WEIGHT_BYTES:
    return ""
  return f"{size:,} bytes of weights, more than {MAX_WEIGHT_BYTES:,}; `evaluate` takes a mesh"


def _scorers(folder: pathlib.Path, plan: dict, config, tokenizer, result: dict) -> Iterator[tuple]:
  """(name of its lines, the trained model as `Score`, nats of each document as result.json has
  them), then the same for every ablation of which it has them."""
  from moe_parity.evaluation.ablations import ablated_scores
  from moe_parity.evaluation.model_scorer import make_scorer
  from moe_parity.model.documents import document_separators
  from moe_parity.training.load_run import load_run

  run = load_run(folder, step=plan["num_steps"])
  separators = document_separators(tokenizer, config.data.cross_documents)
  score = make_scorer(run.architecture, run.options, separators)(run.params, run.buffers)
  yield NAME, score, [row["nats"] for row in result["validation"]["documents"]]
  ablations = {n: s["nats"] for n, s in (result.get("ablations") or {}).items() if "nats" in s}
  model = run.architecture, run.options, separators, None, run.params, run.buffers
  for name, score in ablated_scores(tuple(ablations), *model):
    yield f"{NAME}: {name}", score, ablations[name]


def _lines(
  name: str,
  sample: Sequence[int],
  stated: Sequence[float],
  found: np.ndarray,
  most: tuple[float, float],
) -> list[dict]:
  """Two lines of the certificate.

  Args:
    sample: positions of documents. stated, found: their nats. most: as `ALIKE`.
  """
  how = "the model of the last checkpoint, document by document; nats"
  off = np.abs(found / np.array(stated) - 1)
  worst = int(off.argmax())
  total, was = math.fsum(found), math.fsum(stated)
  return [
    line(
      name,
      f"{len(sample)} of them within {100 * most[0]:g} %",
      f"document {sample[worst]} off by {100 * off[worst]:.2g} %",
      bool(off[worst] <= most[0]),
      how,
    ),
    {
      **line(f"{name}: their sum", was, total, abs(total / was - 1) <= most[1], how),
      "difference_pct": 100 * (total / was - 1),
      "tolerance_pct": 100 * most[1],
    },
  ]


def summary(certificates: Sequence[tuple[str, dict]]) -> dict:
  """`rescored` of analysis.json's certificate: runs and documents that were, and what was not.

  Args:
    certificates: of the finished runs, by label.
  """
  runs, documents, left_out = 0, 0, {}
  for label, certificate in certificates:
    row = next((r for r in certificate.get("checks", []) if r["name"] == NAME), None)
    if row is None:
      left_out[label] = "not rescored yet: `report` on its folder does it"
    elif str(row["measured"]).startswith(_NOT):
      left_out[label] = str(row["measured"])
    elif row["planned"] != "readable":
      runs += 1
      documents += int(str(row["planned"]).split()[0]) if str(row["planned"])[:1].isdigit() else 0
  return {"runs": runs, "documents": documents, "not_rescored": left_out}
