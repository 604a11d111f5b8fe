"""Which of a study's runs a worker begins with."""

import re
from collections.abc import Sequence
from typing import NamedTuple

from moe_parity.errors import UserError


class Shard(NamedTuple):
  """Worker `index` of `count`, from 1."""

  index: int
  count: int

  @classmethod
  def parse(cls, text: str) -> "Shard":
    """`i/n`.

    Raises:
      UserError: it is not.
    """
    parts = text.split("/")
    if len(parts) != 2 or not all(re.fullmatch("[0-9]{1,9}", part) for part in parts):
      raise UserError(f"--shard={text}: write worker/workers, for example 1/4")
    index, count = map(int, parts)
    if not 1 <= index <= count:
      raise UserError(f"--shard={text}: workers of {count} are 1/{count} to {count}/{count}")
    return cls(index, count)

  def order(self, items: Sequence) -> list:
    """This worker's share first, then everything else."""
    mine = items[self.index - 1 :: self.count]
    return [*mine, *(item for item in items if item not in mine)]
