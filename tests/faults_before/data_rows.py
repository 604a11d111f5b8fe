"""Inputs of the rows on data: text, tokenizers, stores."""

import gzip
import json
import random

from tests.faults_before.code import (
  ACCEPTED,
  HANGS,
  HELD,
  MISLEADING,
  WORDS,
  WRONG,
  Code,
  documents,
  verdict,
)

TOKENIZER = """
import json, sys
from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers, trainers
kind, (docs, name) = sys.argv[1], sys.argv[2:]
texts = [json.loads(line)["text"] for line in open(docs)]
if kind == "lossy":
  t = Tokenizer(models.BPE()); t.pre_tokenizer = pre_tokenizers.Whitespace()
  t.train_from_iterator(texts, trainers.BpeTrainer(vocab_size=300, special_tokens=["<s>", "</s>"]))
else:
  t = Tokenizer(models.BPE()); t.decoder = decoders.ByteLevel()
  t.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=kind == "spaces")
  t.train_from_iterator(texts, trainers.BpeTrainer(vocab_size=600, show_progress=False,
    special_tokens=["<|endoftext|>"], initial_alphabet=pre_tokenizers.ByteLevel.alphabet()))
  if kind == "spaces":
    t.add_tokens([AddedToken(" " * n, normalized=True) for n in range(24, 1, -1)])
t.save(name)
"""
LOAD = """
import sys
from moe_parity.data.tokenizer import load
t = load(sys.argv[1])
text = "if x:\\n        return   y"
print(t.eos_id, t.decode(t.encode_batch([text])[0]) == text)
"""


def json_endings(code: Code):
  (code.box / "c4").mkdir()
  rows = [json.dumps({"text": text}) + "\n" for text in documents("c4")]
  for shard in range(12):
    with gzip.open(code.box / f"c4/c4-train.{shard}.json.gz", "wt") as file:
      file.writelines(rows[10 * shard : 10 * shard + 10])
  done = code.prepare("--source=c4", store="endings")
  found = code.num_documents("endings")
  return (WRONG, f"120 records are {found} documents") if found == 12 else verdict(done, HELD)


def added_tokens(code: Code):
  code.write("code.jsonl", [f"def {w}(x):\n        return   {w}\n" * 9 for w in WORDS] * 20)
  code.python(TOKENIZER, "spaces", "code.jsonl", "spaces.json")
  done = code.python(LOAD, "spaces.json")
  return (WRONG, "decoded without its blanks") if "False" in done.last else verdict(done, HELD)


def lossy_tokenizer(code: Code):
  code.write("plain.jsonl")
  code.python(TOKENIZER, "lossy", "plain.jsonl", "lossy.json")
  code.write("lossy.jsonl", [text.replace("paper", "紙 café") for text in documents("l")])
  done = code.prepare("--source=lossy.jsonl", "--tokenizer=lossy.json", store="lossy")
  return verdict(done, HELD if "give back" in done.output else WRONG)


def separator_merge(code: Code):
  code.write("html.jsonl", [f"<s>old</s> <s>price</s> {text}" for text in documents("h")] * 3)
  code.python(TOKENIZER, "merges", "html.jsonl", "html.json")
  done = code.python(LOAD, "html.json")
  wrong = done.code == 0 and not done.last.startswith("0 ")
  return (WRONG, f"eos is {done.last.split()[0]}, a merge") if wrong else verdict(done, HELD)


def bad_row(code: Code):
  (code.box / "two").mkdir()
  made = code.python("""
import pyarrow as pa, pyarrow.parquet as pq
texts = [f"document {i} " + "word " * 30 for i in range(2400)]
pq.write_table(pa.table({"text": ["good " + text for text in texts]}), "two/b.parquet")
raw = pa.array([t.encode() if i != 30 else b"\\xff bad" for i, t in enumerate(texts)], pa.binary())
column = pa.Array.from_buffers(pa.string(), len(raw), raw.buffers())
pq.write_table(pa.table({"text": column}), "two/a.parquet")
""")
  assert made.code == 0, made.output
  done = code.prepare("--source=two", "--max-bad-records=1", store="rows")
  found = code.num_documents("rows")
  return verdict(done, HELD) if found == 4799 else (WRONG, f"of 4,799 good rows {found:,} are left")


def folders_skipped(code: Code):
  code.write("data/a.jsonl"), code.write("other/b.jsonl")
  (code.box / "data/books").symlink_to("../other")
  done = code.prepare("--source=data", store="linked")
  found = code.num_documents("linked")
  return (WRONG, f"{found} of 240 documents") if found < 240 else verdict(done, HELD)


def keys_ignored(code: Code):
  code.write("keyed.jsonl", domain=["a", "b"])
  return verdict(code.prepare("--source=keyed.jsonl", "--domain-key=domian", store="keyed"))


def domain_dots(code: Code):
  code.write("c4.en.jsonl"), code.write("c4.de.jsonl")
  done = code.prepare("--source=c4.en.jsonl,c4.de.jsonl", store="dots")
  found = list(code.manifest("dots").get("splits", {}).get("train", {}).get("by_domain", {}))
  return (WRONG, f"two domains are {found}") if len(found) == 1 else verdict(done, HELD)


def contamination_scripts(code: Code):
  rng = random.Random(2)
  texts = ["".join(chr(rng.randint(0x4E00, 0x9FA5)) for _ in range(400)) for _ in range(40)]
  code.write("zh.jsonl", [f"前前{text}後" for text in texts])
  code.write("eval.jsonl", texts[:20])
  code.prepare("--source=zh.jsonl", store="zh")
  done = code.cli("data", "contamination", "zh", "--against=eval.jsonl")
  return (WRONG, done.last) if "0.00 %" in done.last else verdict(done, HELD)


def unbroken_text(code: Code):
  rng = random.Random(1)
  code.write("dna.jsonl", [*documents("d"), "".join(rng.choice("ACGT") for _ in range(1_000_000))])
  done = code.prepare("--source=dna.jsonl", "--tokenizer=bpe:330", store="dna", cpu_seconds=60)
  return (HANGS, "not done after 60 s of a CPU") if done.code < 0 else verdict(done, HELD)


def deep_json(code: Code):
  with open(code.box / code.write("deep.jsonl"), "a") as file:
    file.write('{"text": "one", "meta": ' + "[" * 200_000 + "]" * 200_000 + "}\n")
  done = code.prepare("--source=deep.jsonl", "--max-bad-records=5", store="deep")
  return verdict(done, HELD)


def control_names(code: Code):
  code.write("control.jsonl", domain=["a\nb", "a\0b"])
  return verdict(code.prepare("--source=control.jsonl", store="control"))


def records_twice(code: Code):
  code.write("twice.jsonl")
  with open(code.box / "twice.jsonl", "a") as file:
    file.write('{"text": "the first", "text": "the last"}\n')
  return verdict(code.prepare("--source=twice.jsonl", store="twice"))


def option_names(code: Code):
  code.write("a,b.jsonl")
  done = code.prepare("--source=a,b.jsonl", store="comma")
  return (MISLEADING, done.last) if done.code and "\\" not in done.last else verdict(done, HELD)


def store_in_source(code: Code):
  code.write("inside/a.jsonl")
  code.prepare("--source=inside", store="inside/st")
  done = code.prepare("--source=inside", store="inside/st")
  return (MISLEADING, done.last) if done.code else verdict(done, HELD)


def any_manifest(code: Code):
  code.write("m.jsonl")
  code.prepare("--source=m.jsonl", store="m")
  manifest = code.manifest("m")
  (code.box / "m/manifest.json").write_text(json.dumps(manifest | {"splits": 3}))
  return verdict(code.cli("data", "show", "m"))


def names_lead_out(code: Code):
  code.write("out.jsonl")
  code.prepare("--source=out.jsonl", store="bucket/far/st")
  path = code.box / "bucket/far/st/manifest.json"
  manifest = json.loads(path.read_text())
  manifest["splits"]["train"]["files"]["../../escaped"] = {"size": 1, "sha256": "0" * 64}
  path.write_text(json.dumps(manifest))
  (code.box / "bucket/escaped").write_text("x")
  done = code.python(
    """
import contextlib, sys
from fsspec.implementations.local import LocalFileSystem
from moe_parity.data import storage, token_store
storage._reaching = contextlib.contextmanager(lambda place: iter([(LocalFileSystem(), place)]))
token_store._fetch(sys.argv[1])
""",
    str(code.box / "bucket/far/st"),
  )
  places = [code.box / "escaped", code.box / "cache/escaped", code.box.parent / "escaped"]
  found = any(place.exists() for place in places)
  return (WRONG, "a file outside of the cache was written") if found else verdict(done, ACCEPTED)
