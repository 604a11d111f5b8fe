"""A task: items that a model is examined on, and how they are scored."""

import dataclasses
import functools
import hashlib
import json

KINDS = ("choices", "gold", "generate")


@dataclasses.dataclass(frozen=True, slots=True)
class Item:
  """One question.

  Attributes:
    name: unique within its task.
    contexts: what the model is shown before each continuation; one text where all share it.
    continuations: what may follow: the choices, or the gold answer alone. Empty for "generate".
    gold: index of the right continuation.
    answers: texts that count as right, for "generate".
    stop: texts that end what is generated.
    max_tokens: to generate at most.
    tests: a program that follows the generated one and fails if it is wrong; "" for other tasks.
    header: stands before the generated program where that does not begin with `entry`.
    entry: how a program begins that is whole; "" where each is.
    question: the item's own text, without its examples: what a contamination scan looks for.
  """

  name: str
  contexts: tuple[str, ...]
  continuations: tuple[str, ...] = ()
  gold: int = 0
  answers: tuple[str, ...] = ()
  stop: tuple[str, ...] = ()
  max_tokens: int = 0
  tests: str = ""
  header: str = ""
  entry: str = ""
  question: str = ""

  def context(self, choice: int) -> str:
    """What stands before a choice."""
    return self.contexts[choice if len(self.contexts) > 1 else 0]


@dataclasses.dataclass(frozen=True)
class BenchmarkTask:
  """Items that are scored alike.

  Attributes:
    name: as the command line gives it.
    source: who made its prompts.
    kind: one of KINDS.
    metric: the score it is known for; the others are reported too.
    num_shots: solved examples in a prompt.
    category: of the benchmark, "" for what the registry does not know.
    benchmark: its name in the registry, "" likewise.
  """

  name: str
  source: str
  kind: str
  metric: str
  num_shots: int
  items: tuple[Item, ...]
  category: str = ""
  benchmark: str = ""

  @functools.cached_property
  def fingerprint(self) -> str:
    """sha256 of what the items hold: tasks are the same if their items are, whatever the name."""
    digest = hashlib.sha256(f"{self.kind} {self.metric}\n".encode())
    for item in self.items:
      digest.update(json.dumps(dataclasses.astuple(item), ensure_ascii=True).encode() + b"\n")
    return digest.hexdigest()

  def limited(self, most: int) -> "BenchmarkTask":
    """The first `most` items of a fixed shuffle; all for 0 or where there are no more.

    A file may be sorted by subject or difficulty: its first items would be of one kind.
    """
    if not most or most >= len(self.items):
      return self
    order = sorted(self.items, key=lambda item: hashlib.sha256(item.name.encode()).digest())
    return dataclasses.replace(self, items=tuple(order[:most]))

  def in_chats(self) -> "BenchmarkTask":
    """The task with choices as an assistant writes them: without the space that they begin with."""
    items = (
      dataclasses.replace(item, continuations=tuple(c.lstrip(" ") for c in item.continuations))
      for item in self.items
    )
    return dataclasses.replace(self, items=tuple(items))

  @property
  def chance(self) -> float | None:
    """Accuracy of a guess: the mean over items of 1 / choices; None where nothing is chosen."""
    if self.kind != "choices":
      return None
    return sum(1 / len(item.continuations) for item in self.items) / len(self.items)

  @property
  def majority(self) -> float | None:
    """Accuracy of always choosing the most frequent place among the choices."""
    if self.kind != "choices":
      return None
    golds = [item.gold for item in self.items]
    return max(golds.count(gold) for gold in set(golds)) / len(golds)
