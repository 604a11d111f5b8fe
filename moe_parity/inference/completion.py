"""Text to text: prompts in, what the model writes after them out, piece by piece as it comes."""

import dataclasses
from collections.abc import Callable, Sequence

import numpy as np

from moe_parity.data.chat_template import ChatTemplate
from moe_parity.data.inner_text import decode_after
from moe_parity.data.tokenizer import Tokenizer
from moe_parity.errors import UserError
from moe_parity.inference.generator import Generator
from moe_parity.inference.sampling import Sampling

UNFINISHED = "\ufffd"  # what an id that ends inside a character decodes to


@dataclasses.dataclass
class Completion:
  """What a model wrote after a prompt.

  Attributes:
    prompt: as it was given.
    text: without the stop that ended it.
    tokens: ids drawn, the one that ended it included.
    finish: why it ended: "stop" (a stop token or text) or "length" (`max_tokens`).
  """

  prompt: str
  text: str = ""
  tokens: list[int] = dataclasses.field(default_factory=list)
  finish: str = ""


def complete(
  generator: Generator,
  tokenizer: Tokenizer,
  prompts: Sequence[str],
  *,
  max_tokens: int = 0,
  sampling: Sampling = Sampling(),  # noqa: B008 - frozen
  stop: Sequence[str] = (),
  seed: int = 0,
  on_text: Callable[[int, str, bool], None] = lambda row, text, is_last: None,
  template: ChatTemplate | None = None,
) -> list[Completion]:
  """Continues every prompt until a stop or for `max_tokens`.

  Each begins, as a document in training, with the token that begins one.

  Args:
    max_tokens: 0 generates up to the model's last position, as many for every prompt as for the
      longest.
    stop: texts that end a completion; also the tokens that end or begin a document do.
    on_text: is given (number of the prompt, new text, whether it is the last) as it comes; text
      that may turn out to be the beginning of a stop, or that ends inside a character, is held back
      until that is clear.
    template: prompts are what a user says, and the completion is the assistant's answer.
  Raises:
    UserError: an empty stop text; see `Generator.generate`.
  """
  if "" in stop:
    raise UserError("stop='' is in every text; leave it out or give the text to stop at")
  if template is None:
    ids = [
      np.concatenate([[tokenizer.bos_id], encoded]).astype(np.int32)
      for encoded in tokenizer.encode_batch(list(prompts))
    ]
  else:
    chats = [[{"role": "user", "content": prompt}] for prompt in prompts]
    ids = [template.encode_prompt(tokenizer, messages) for messages in chats]
  if not max_tokens:
    longest = max((len(row) for row in ids), default=0)
    max_tokens = max(generator.num_positions - longest, 1)
  steps = generator.generate(ids, max_tokens, sampling, seed)
  done = [Completion(prompt) for prompt in prompts]
  shown = [0] * len(done)
  for token_B in steps:
    for row, completion in enumerate(done):
      if completion.finish:
        continue
      _add(completion, int(token_B[row]), int(ids[row][-1]), tokenizer, stop)
      if len(completion.tokens) == max_tokens and not completion.finish:
        completion.finish = "length"
      clear = completion.text if completion.finish else _clear(completion.text, stop)
      if len(clear) > shown[row] or completion.finish:
        on_text(row, clear[shown[row] :], bool(completion.finish))
        shown[row] = max(len(clear), shown[row])
    if all(completion.finish for completion in done):
      break
  return done


def _add(completion: Completion, token: int, before: int, tokenizer, stop) -> None:
  completion.tokens.append(token)
  if token in tokenizer.end_ids:
    completion.finish = "stop"
    return
  text = decode_after(tokenizer, before, completion.tokens)
  places = [place for place in (text.find(s) for s in stop) if place >= 0]
  if places:
    text, completion.finish = text[: min(places)], "stop"
  completion.text = text


def _clear(text: str, stop: Sequence[str]) -> str:
  """The part of a text that later tokens cannot change or take away."""
  text = text.rstrip(UNFINISHED)
  longest = max((len(s) for s in stop), default=1)
  for size in range(min(longest - 1, len(text)), 0, -1):
    if any(s.startswith(text[-size:]) for s in stop):
      return text[:-size]
  return text
