"""Scores of single items, from nats of choices or from generated text."""

import collections
import math
import re
import string
from collections.abc import Callable

import numpy as np

from moe_parity.downstream.tasks import BenchmarkTask, Item

LOWER_IS_BETTER = {
  "bits_per_byte",
  "bits_per_char",
  "perplexity",
  "word_perplexity",
  "byte_perplexity",
}
# No shares of right answers, whatever the values: likelihoods, errors, correlations, and overlaps
# of texts, which some tasks count to 1 and others to 100. A model that scores 0 on all items would
# not show which.
_NO_SHARE = re.compile(
  r"perplexity|bits_per|likelihood|loss|brier|mcc|matthews|pearson|spearman|kendall|corr(?!ect)"
  r"|bleu|rouge|chrf|meteor|bert_?score|comet"
  r"|(?<![a-z])(?:nll|ter|wer|cer|sari|diff|mse|mae|rmse)(?![a-z])"
)


def of_label(label: str) -> str:
  """The metric of a label, which may name lm-eval's filter too: "exact_match (strict-match)"."""
  return label.split(" (")[0]


def is_share(label: str, *value_N: np.ndarray) -> bool:
  """Whether a metric is a share of right answers: by its name it can be one, and every value of
  every run is in 0..1."""
  name = of_label(label).lower()
  if _NO_SHARE.search(name) and not name.endswith(("_acc", "_accuracy")):
    return False
  return all(bool(np.all((values >= 0) & (values <= 1))) for values in value_N)


def of_choices(
  task: BenchmarkTask, nats_R: np.ndarray, tokens_R: np.ndarray
) -> dict[str, np.ndarray]:
  """Metric -> value of every item, for kinds "choices" and "gold".

  accuracy takes the likeliest choice; accuracy_per_char, _per_byte and _per_token divide by the
  choice's length, with the space that it begins with where it has one, before. Of equals the first
  is taken. bits_per_byte is of the gold continuation.

  Args:
    nats_R: of every choice, in order of items and choices.
    tokens_R: ids of every choice.
  """
  names = ["accuracy", "accuracy_per_char", "accuracy_per_byte", "accuracy_per_token"]
  found = {name: np.zeros(len(task.items)) for name in (*names, "bits_per_byte")}
  start = 0
  for number, item in enumerate(task.items):
    those = slice(start, start + len(item.continuations))
    start = those.stop
    num_bytes = np.array([len(text.encode()) for text in item.continuations])
    num_chars = np.array([len(text) for text in item.continuations])
    for name, length in zip(names, (1, num_chars, num_bytes, tokens_R[those]), strict=True):
      found[name][number] = np.argmin(nats_R[those] / length) == item.gold
    nats = nats_R[those][item.gold]
    found["bits_per_byte"][number] = nats / (num_bytes[item.gold] * math.log(2))
  return found if task.kind == "choices" else {"bits_per_byte": found["bits_per_byte"]}


def of_text(metric: str, item: Item, text: str) -> float:
  """Score of a generated text, 0..1."""
  return TEXT_METRICS[metric](text, item.answers)


def normalized(text: str) -> str:
  """As SQuAD compares answers: lower case, without punctuation, articles and extra spaces."""
  text = "".join(c for c in text.lower() if c not in string.punctuation)
  return " ".join(re.sub(r"\b(a|an|the)\b", " ", text).split())


def exact_match(text: str, answers: tuple[str, ...]) -> float:
  """Whether the text is one of the answers, both normalized."""
  return float(normalized(text) in map(normalized, answers))


def f1(text: str, answers: tuple[str, ...]) -> float:
  """Largest harmonic mean of precision and recall of the text's words, over the answers."""
  return max(_f1(normalized(text).split(), normalized(answer).split()) for answer in answers)


def _f1(words: list[str], wanted: list[str]) -> float:
  if not words or not wanted:
    return float(words == wanted)
  common = (collections.Counter(words) & collections.Counter(wanted)).total()
  return 2 * common / (len(words) + len(wanted))


def exact_number(text: str, answers: tuple[str, ...]) -> float:
  """Whether the last number of the text is the answer's, written in whatever way."""
  found = re.findall(r"-?\d[\d,]*(?:\.\d+)?", text)
  return float(bool(found) and _number(found[-1]) in map(_number, answers))


def _number(text: str) -> float | str:
  try:
    return float(text.replace(",", "").replace("$", "").strip())
  except ValueError:
    return text


TEXT_METRICS: dict[str, Callable[[str, tuple[str, ...]], float]] = {
  "exact_match": exact_match,
  "f1": f1,
  "exact_number": exact_number,
}
