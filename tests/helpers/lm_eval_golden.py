"""Bits per byte as lm-eval counts them, to hold ours against: makes tests/golden/lm_eval.json.

  pip install lm-eval==0.4.13          # without torch; 69 packages, so not part of the test extra
  python -m tests.helpers.lm_eval_golden

Its task, its windows, its byte counts and its aggregation; only the model is ours: any function of
all the tokens that a window shows before a target, so that a window cut elsewhere changes the sum.
"""

import json
import math
import pathlib
import sys
import tempfile

import numpy as np

from moe_parity.data import corpus

GOLDEN = pathlib.Path(__file__).parents[1] / "golden" / "lm_eval.json"
SEQ_LEN = 64
LENGTHS = (1, 2, 63, 64, 65, 66, 127, 128, 129, 191, 193, 500, 777, 2048, 3001)  # characters


def texts() -> list[str]:
  """Beginnings of the held-out documents of the built-in corpus, of every length about a window."""
  documents = corpus.builtin("validation")
  found = [d.text[: LENGTHS[i % len(LENGTHS)]] for i, d in enumerate(documents)]
  return list(dict.fromkeys(found))  # a store keeps a text once


def nats(inputs: np.ndarray, targets: np.ndarray) -> np.ndarray:
  """Float64 [B, S]: a function of each target, its place, and all tokens before it in its row."""
  place = np.arange(inputs.shape[1])
  return 0.2 + (np.cumsum(inputs, axis=1) * 13 + place * 7 + targets * 5) % 97 / 50


def by_lm_eval(listed: list[str]) -> float:
  """What `simple_evaluate` calls bits_per_byte."""
  from lm_eval import simple_evaluate, utils
  from lm_eval.api.model import TemplateLM
  from lm_eval.api.task import ConfigurableTask

  class Model(TemplateLM):
    eot_token_id = 0  # begins every document
    tokenizer_name = "bytes"

    def tok_encode(self, string, add_special_tokens=None, **kwargs):
      return [16 + byte for byte in string.encode()]

    def _loglikelihood_tokens(self, requests, **kwargs):
      found = []
      for _, context, continuation in requests:
        row = np.array([context + continuation])
        scored = nats(row[:, :-1], row[:, 1:])[0, len(context) - 1 :]
        found.append((-float(scored.sum()), False))
      return found

    def loglikelihood_rolling(self, requests, disable_tqdm=False):
      totals = []
      for (text,) in (request.args for request in requests):
        windows = utils.get_rolling_token_windows(
          self.tok_encode(text), self.prefix_token_id, max_seq_len=SEQ_LEN, context_len=1
        )
        pairs = [("", *utils.make_disjoint_window(window)) for window in windows]
        totals.append(math.fsum(value for value, _ in self._loglikelihood_tokens(pairs)))
      return totals

    def generate_until(self, requests, disable_tqdm=False):
      raise NotImplementedError

  with tempfile.TemporaryDirectory() as folder:
    path = pathlib.Path(folder) / "texts.jsonl"
    path.write_text("".join(json.dumps({"text": text}) + "\n" for text in listed))
    task = ConfigurableTask(
      config={
        "task": "held_out",
        "dataset_path": "json",
        "dataset_kwargs": {"data_files": {"test": str(path)}, "cache_dir": folder},
        "test_split": "test",
        "output_type": "loglikelihood_rolling",
        "doc_to_text": "",
        "doc_to_target": lambda doc: doc["text"],
        "metric_list": [{"metric": "bits_per_byte"}],
      }
    )
    found = simple_evaluate(Model(), tasks=[task], bootstrap_iters=0)
  return found["results"]["held_out"]["bits_per_byte,none"]


def main() -> int:
  import lm_eval

  found = {
    "lm_eval": lm_eval.__version__,
    "seq_len": SEQ_LEN,
    "num_documents": len(texts()),
    "bits_per_byte": by_lm_eval(texts()),
  }
  GOLDEN.write_text(json.dumps(found, indent=1) + "\n")
  return 0


if __name__ == "__main__":
  sys.exit(main())
