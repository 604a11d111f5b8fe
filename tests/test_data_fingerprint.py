"""The fingerprint of a token store: equal for equal data, whatever else differs."""

import json

import pytest

from moe_parity.data import shards
from moe_parity.data.fingerprint import changed_parts, check_same_data
from moe_parity.data.prepare import prepare
from moe_parity.errors import UserError
from tests.helpers.small_store import records, write_jsonl

PARTS = {
  "tokenizer", "train_tokens", "train_documents", "validation_tokens", "validation_documents",
}  # fmt: skip


def store_of(folder, found, **kwargs):
  folder.mkdir()
  source = write_jsonl(folder / f"{folder.name}.jsonl", found)
  return prepare(source, store=str(folder / "store"), held_out="hash:0.3", **kwargs)


def test_equal_text_has_one_fingerprint_in_any_folder(tmp_path, monkeypatch):
  one = store_of(tmp_path / "one", records(40))
  monkeypatch.setattr(shards, "SHARD_TOKENS", 300)
  two = store_of(tmp_path / "two", records(40), workers=3)
  assert len(two.manifest["splits"]["train"]["shards"]) > 1
  assert one.fingerprint() == two.fingerprint()
  assert set(one.fingerprint()) == PARTS
  assert json.loads(json.dumps(one.fingerprint())) == one.fingerprint()


def test_text_of_equal_length_changes_the_fingerprint(tmp_path):
  found = records(40)
  one = store_of(tmp_path / "one", found).fingerprint()
  swapped = [{**r, "text": r["text"].replace("a", "b")} for r in found]
  two = store_of(tmp_path / "two", swapped).fingerprint()
  assert one["train_tokens"] != two["train_tokens"]
  assert one["tokenizer"] == two["tokenizer"]


def test_another_domain_of_a_document_changes_only_documents(tmp_path):
  found = records(40)
  one = store_of(tmp_path / "one", found).fingerprint()
  found[7]["domain"] = "law"
  two = store_of(tmp_path / "two", found).fingerprint()
  differing = {name for name in PARTS if one[name] != two[name]}
  assert len(differing) == 1 and differing < {"train_documents", "validation_documents"}


def test_numbers_of_domains_play_no_part(tmp_path):
  """A duplicate in front of all others gives its domain number 0 and then drops out."""
  found = records(40)
  held = {"text": found[0]["text"], "domain": "zebra", "source": "x"}
  plain = store_of(tmp_path / "one", [r | {"domain": "a" if i else "zebra"} for i, r in
                                       enumerate(found)])  # fmt: skip
  other = store_of(tmp_path / "two", [held, *({**r, "domain": "a"} for r in found)])
  assert plain.fingerprint() == other.fingerprint()


def test_a_difference_names_the_part_and_both_hashes():
  kept = dict.fromkeys(PARTS, "0" * 64)
  found = kept | {"validation_tokens": "f" * 64}
  assert changed_parts(kept, kept) == []
  assert changed_parts(kept, found) == ["the held-out tokens (000000000000, now ffffffffffff)"]
  assert changed_parts(kept, {}) and changed_parts({}, kept)
  check_same_data(kept, kept, "runs/a", "stores/a")
  with pytest.raises(UserError, match="runs/a.*stores/b.*held-out tokens"):
    check_same_data(kept, found, "runs/a", "stores/b")
