"""Small token stores for tests of data and evaluation."""

import json
import random

import tokenizers
from tokenizers import models, pre_tokenizers, trainers

from moe_parity.data import corpus
from moe_parity.data.corpus import Source
from moe_parity.data.prepare import prepare
from moe_parity.data.readers import BadRecords

LETTERS = "abcdefgh \n.éß日本\U0001f600"


def write_jsonl(path, records):
  path.write_text("".join(json.dumps(record) + "\n" for record in records), "utf-8")
  return str(path)


def read_source(path, limit=0, **fields):
  """(documents of a source, what was left out of it), at most `limit` bad records."""
  bad = BadRecords(limit)
  return list(corpus.documents(Source(str(path), **fields), bad)), bad


def texts_of(split):
  """The texts of a split's documents, decoded."""
  return [split.tokenizer.decode(split.document(i)) for i in range(split.num_documents)]


def records(count, seed=0, longest=120, domains=("prose", "code", "math")):
  """Random texts over one-, two-, three- and four-byte characters, all different."""
  rng = random.Random(seed)
  return [
    {
      "text": f"{seed}.{i} " + "".join(rng.choices(LETTERS, k=rng.randint(1, longest))),
      "domain": domains[i % len(domains)],
      "source": f"work-{i}",
    }
    for i in range(count)
  ]


def small_store(folder, count=60, held_out="hash:0.2", seed=0, **kwargs):
  source = write_jsonl(folder / "corpus.jsonl", records(count, seed))
  return prepare(source, store=str(folder / "store"), held_out=held_out, **kwargs)


def one_separator_tokenizer(folder) -> str:
  """The path of a foreign tokenizer whose documents begin and end with the same token."""
  backend = tokenizers.Tokenizer(models.BPE())
  backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
  trainer = trainers.BpeTrainer(
    vocab_size=300, special_tokens=["<|endoftext|>"], show_progress=False,
    initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
  )  # fmt: skip
  backend.train_from_iterator(["one two three two one two"] * 40, trainer)
  backend.save(str(folder / "tokenizer.json"))
  return str(folder / "tokenizer.json")
