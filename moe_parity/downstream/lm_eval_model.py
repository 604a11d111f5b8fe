"""A run as lm-eval knows a model: a `TemplateLM` over `Likelihood` and `Generator`.

lm-eval is an extra: only `lm_eval_tasks` imports this file, when a task of lm-eval is examined. It
loads neither torch nor transformers for this.
"""

from collections.abc import Callable, Sequence

import numpy as np
from lm_eval import utils
from lm_eval.api.model import TemplateLM

from moe_parity.downstream.examinee import Examinee
from moe_parity.downstream.generation import continued
from moe_parity.downstream.likelihood import Continuation
from moe_parity.errors import UserError

MAX_TOKENS = 256  # generated where a task does not say
# Names that lm-eval has for that number, the first that is given counts.
_LIMITS = ("max_gen_toks", "max_new_tokens", "max_tokens", "max_completion_tokens")
# What else of generation_kwargs leaves greedy text as it is: by itself, or with one value.
_OF_SAMPLING = {"do_sample", "temperature", "top_p", "top_k", "min_p", "typical_p"}
_NEUTRAL = {"num_beams": 1, "repetition_penalty": 1.0, "length_penalty": 1.0}


class LmEvalModel(TemplateLM):
  """Ids come from the run's tokenizer; every context begins as a document begins.

  Attributes:
    num_cut: prompt tokens that did not fit the window so far; num_cut_requests: requests they are
      of.
  """

  def __init__(self, examinee: Examinee, report: Callable[[str], None] = lambda line: None):
    super().__init__()
    self._examinee, self._report = examinee, report
    self._tokenizer, self._template = examinee.tokenizer, examinee.template
    self.num_cut, self.num_cut_requests = 0, 0

  @property
  def eot_token_id(self) -> int:
    return self._tokenizer.eos_id

  @property
  def prefix_token_id(self) -> int:
    return self._tokenizer.bos_id

  @property
  def max_length(self) -> int:
    return self._examinee.num_positions

  @property
  def tokenizer_name(self) -> str:
    return self._tokenizer.fingerprint

  def tok_encode(self, string, add_special_tokens=None, **kwargs) -> list[int]:
    if self._template:
      return self._template.encode_text(self._tokenizer, string).tolist()
    return self._tokenizer.encode_batch([string])[0].tolist()

  def chat_template(self, chat_template=False) -> str:
    return self._template.jinja() if self._template else ""

  def apply_chat_template(self, chat_history, add_generation_prompt=True) -> str:
    """The prompt of a chat. Without a generation prompt an assistant's turn that comes last is one
    that the model continues: it is not ended."""
    text = self._template.render(chat_history, add_generation_prompt)
    is_begun = not add_generation_prompt and chat_history[-1]["role"] == "assistant"
    return text.removesuffix(self._template.end) if is_begun else text

  def _loglikelihood_tokens(self, requests, **kwargs) -> list[tuple[float, bool]]:
    pairs = [(_begun(context, self._tokenizer.bos_id), ids) for _, context, ids in requests]
    return self._score(pairs)

  def _score(self, pairs: Sequence[tuple[list[int], list[int]]]) -> list[tuple[float, bool]]:
    asked = [Continuation(*(np.array(ids, np.int32) for ids in pair)) for pair in pairs]
    found = self._examinee.likelihood.score(asked)
    self._count(found.num_cut)
    return [
      (-float(nats), bool(is_greedy))
      for nats, is_greedy in zip(found.nats, found.is_greedy, strict=True)
    ]

  def _count(self, num_cut: np.ndarray) -> None:
    self.num_cut += int(num_cut.sum())
    self.num_cut_requests += int(np.count_nonzero(num_cut))

  def loglikelihood_rolling(self, requests, disable_tqdm=False) -> list[float]:
    pairs, owners = [], []
    for number, request in enumerate(requests):
      windows = utils.get_rolling_token_windows(
        self.tok_encode(request.args[0]), self.prefix_token_id, self.max_length, context_len=1
      )
      for window in windows:
        pairs.append(utils.make_disjoint_window(window))
        owners.append(number)
    totals = np.zeros(len(requests))
    np.add.at(totals, np.array(owners, np.int64), [found[0] for found in self._score(pairs)])
    return totals.tolist()

  def generate_until(self, requests, disable_tqdm=False) -> list[str]:
    rows, limits, stops = [], [], []
    for context, options in (request.args for request in requests):
      rows.append(np.array(_begun(self.tok_encode(context), self._tokenizer.bos_id), np.int32))
      until = options.get("until") or ()
      stops.append((until,) if isinstance(until, str) else tuple(until))
      _check_greedy(options)
      limits.append(_limit(options))
    texts, num_cut = continued(self._examinee, rows, limits, stops, "lm-eval", self._report)
    self._count(num_cut)
    return texts


def _begun(ids: list[int], bos_id: int) -> list[int]:
  return ids if ids and ids[0] == bos_id else [bos_id, *ids]


def _limit(options: dict) -> int:
  """Tokens to generate at most."""
  given = [(name, options[name]) for name in _LIMITS if options.get(name) is not None]
  name, value = given[0] if given else ("", MAX_TOKENS)
  if not isinstance(value, int) or value < 1:
    raise UserError(
      f"a task's generation_kwargs have {name}={value!r}, which is no number of tokens of at least"
      " 1; mend it in a copy of its YAML, given by --include-path"
    )
  return value


def _check_greedy(options: dict) -> None:
  """
  Raises:
    UserError: options of a task that would change its text, which is greedy here.
  """
  samples, temperature = options.get("do_sample"), float(options.get("temperature") or 0)
  # As lm-eval has it: without do_sample the temperature says whether text is sampled.
  if samples and options.get("temperature") is None:
    temperature = 1.0
  if samples is not False and temperature > 0:
    raise UserError(
      f"a task asks for sampled text (temperature={temperature:g}), and scores here are of greedy"
      " text; set do_sample: false in a copy of its YAML, given by --include-path"
    )
  known = {"until", *_LIMITS, *_OF_SAMPLING}
  for name, value in options.items():
    if name not in known and (value != _NEUTRAL[name] if name in _NEUTRAL else value is not None):
      raise UserError(
        f"a task's generation_kwargs have {name}={value!r}, which greedy text here does not know;"
        " take it out in a copy of its YAML, given by --include-path"
      )
