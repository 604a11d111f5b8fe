"""From records to documents: names and keys mean what they say, losses are those that happened."""

import json

import pytest

from moe_parity.data.corpus import Source, parse_sources
from moe_parity.data.prepare import prepare
from moe_parity.data.readers import value_of
from moe_parity.errors import UserError
from moe_parity.escapes import escape
from tests.helpers.small_store import read_source, write_jsonl
from tests.test_data_columnar import WRITERS


def texts(count=40):
  return [f"document {i} " + f"word{i} " * 9 for i in range(count)]


def domains(folder, records, **keys):
  path = write_jsonl(folder / "pile.jsonl", records)
  store = prepare(Source(path, **keys), store=str(folder / "st"), held_out="hash:0.3")
  found = {}
  for split in store.manifest["splits"].values():
    for name, totals in split["by_domain"].items():
      found[name] = found.get(name, 0) + totals["num_documents"]
  return found


@pytest.mark.parametrize("values, expected", [
  ([0, 1], {"0": 20, "1": 20}), ([False, True], {"false": 20, "true": 20}),
  (["", "a"], None), ([" \n", "a"], None), ([None, "a"], {"pile": 20, "a": 20}),
  ([1.5, -3], {"1.5": 20, "-3": 20}), ([float("nan"), "a"], None), ([["a"], "a"], None),
  ([{"a": 1}, "a"], None), (["\ud83d", "a"], None),
  (["c4.en", "c4.de"], {"c4.en": 20, "c4.de": 20}),
  (["a,b", "x=1 #%?[2]"], {"a,b": 20, "x=1 #%?[2]": 20}),
])  # fmt: skip
@pytest.mark.parametrize("key", ["domain", "meta.set"])
def test_a_domain_is_what_its_record_says(tmp_path, values, expected, key):
  outer = [{"text": text, "domain": values[i % 2]} for i, text in enumerate(texts())]
  inner = [{"text": r["text"], "meta": {"set": r["domain"]}} for r in outer]
  arguments = (tmp_path, outer if key == "domain" else inner)
  if expected is None:
    with pytest.raises(UserError, match=f"record 1: field '{key}' (is|has|must)"):
      domains(*arguments, domain_key=key)
  else:
    assert domains(*arguments, domain_key=key) == expected


UNPRINTED = ["a\nb", "a\0", "\x1b[2J", "a\x7f", "a\x85", "a\u2028b", "\u202etxt", "x" * 1001]


@pytest.mark.parametrize("name", UNPRINTED, ids=ascii)
def test_a_domain_has_a_name_that_can_be_printed(tmp_path, name):
  """It went into tables, stores and results; a newline in it made two lines of one."""
  records = [{"text": text, "domain": name} for text in texts(3)]
  with pytest.raises(UserError, match="record 1: field 'domain' is .*, which (holds|is)") as caught:
    domains(tmp_path, records)
  assert "\n" not in str(caught.value)
  if len(name) < 200 and "\0" not in name:
    path = write_jsonl(tmp_path / f"{name}.jsonl", [{"text": text} for text in texts(3)])
    with pytest.raises(UserError, match="would name a domain .*; give it one") as caught:
      prepare(Source(path), store=str(tmp_path / "st"), held_out="hash:0.3")
    assert "\n" not in str(caught.value)
  with pytest.raises(UserError, match="a domain's name="):
    parse_sources(f"{escape(name)}=books")


def test_a_key_is_looked_up_as_written_and_then_by_level():
  record = {"a": {"b.c": 1, "b": {"c": 2}}, "a.b": {"c": 3}, "x": None, "y": 5, "z": {"w": None}}
  assert value_of(record, "a.b.c") == 1
  assert value_of({"a.b.c": 4} | record, "a.b.c") == 4
  assert value_of({"a.b": {"c": 3}}, "a.b.c") == 3
  assert value_of({"a": {"b": {"c": 2}}}, "a.b.c") == 2
  assert [value_of(record, key) for key in ("x", "x.y", "y.z", "z.w", "q", "q.r", "")] == [None] * 7


@pytest.mark.parametrize("option", ["text_key", "domain_key", "source_key"])
@pytest.mark.parametrize("key", ["domian", "meta.domian", "domain.x"])
def test_a_given_key_that_no_record_has_is_refused(tmp_path, option, key):
  records = [{"text": text, "domain": "a", "source": "s", "meta": {"x": 1}} for text in texts()]
  path = write_jsonl(tmp_path / "a.jsonl", records)
  with pytest.raises(UserError, match=key):
    prepare(Source(path, **{option: key}), store=str(tmp_path / "s"), held_out="hash:0.3",
            max_bad_records=1000)  # fmt: skip


def test_a_given_key_is_refused_for_plain_text_too(tmp_path):
  for i, text in enumerate(texts(9)):
    (tmp_path / f"{i}.txt").write_text(text)
  with pytest.raises(UserError, match="text_key='body': no record of the corpus has it"):
    prepare(Source(str(tmp_path), text_key="body"), store=str(tmp_path / ".s"), held_out="hash:0.3")


def test_a_key_of_some_records_is_enough(tmp_path):
  records = [{"text": text} | ({"lang": "de"} if i == 7 else {}) for i, text in enumerate(texts())]
  assert domains(tmp_path, records, domain_key="lang") == {"pile": 39, "de": 1}


@pytest.mark.parametrize("kind", ["parquet", "arrow"])
def test_nested_columns_hold_text_and_domain(tmp_path, kind):
  listed = [{"meta": {"body": t, "set": f"d{i % 2}"}, "more": i} for i, t in enumerate(texts())]
  path = WRITERS[kind](tmp_path / f"x.{kind}", listed)
  found, _ = read_source(path, text_key="meta.body", domain_key="meta.set", source_key="more")
  assert [d.text for d in found] == texts()
  assert [d.domain for d in found[:3]] == ["d0", "d1", "d0"] and found[5].source == "5"


def test_nested_text_of_json_is_read(tmp_path):
  path = write_jsonl(tmp_path / "x.jsonl", [{"a": {"b": {"t": text}}} for text in texts()])
  assert [d.text for d in read_source(path, text_key="a.b.t")[0]] == texts()


def test_held_out_sources_are_read_by_the_keys_of_the_corpus(tmp_path):
  train = write_jsonl(tmp_path / "a.jsonl", [{"body": text} for text in texts()])
  held = write_jsonl(tmp_path / "b,c.jsonl", [{"body": f"held {text}"} for text in texts(5)])
  rule = "source:" + held.replace(",", "\\,")
  store = prepare(Source(train, text_key="body"), store=str(tmp_path / "s"), held_out=rule)
  assert (store.train.num_documents, store.validation.num_documents) == (40, 5)


def test_a_long_text_is_given_back_by_its_bytes(tmp_path):
  """Columns of plain bytes are text where they are UTF-8."""
  listed = [{"text": text.encode() if i != 3 else b"\xff"} for i, text in enumerate(texts())]
  path = WRITERS["parquet"](tmp_path / "x.parquet", listed)
  found, bad = read_source(path, limit=1)
  assert [d.text for d in found] == [text for i, text in enumerate(texts()) if i != 3]
  assert "record 4: field 'text' is not UTF-8" in bad.messages[0]


def test_losses_are_in_the_manifest(tmp_path):
  lines = [json.dumps({"text": text}).encode() for text in texts()]
  lines[5] = b'{"text": "\xff"}'
  (tmp_path / "a.jsonl").write_bytes(b"\n".join(lines) + b"\n")
  store = prepare(
    str(tmp_path / "a.jsonl"), store=str(tmp_path / "s"), held_out="hash:0.3", max_bad_records=1
  )
  lost = store.manifest["bad_records"]
  assert (lost["count"], lost["num_bytes"]) == (1, len(lines[5]) + 1)
  assert "a.jsonl, record 6: not UTF-8" in lost["messages"][0]
