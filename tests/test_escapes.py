"""Names in the small languages: both directions, for any name."""

import os
import string

import pytest
from hypothesis import given
from hypothesis import strategies as st

from moe_parity.data.corpus import Source, format_source, parse_sources
from moe_parity.data.formats import FORMATS
from moe_parity.data.scan import HeldOut
from moe_parity.errors import UserError
from moe_parity.escapes import escape, split, split_at_last, unescape
from moe_parity.planning.domain_shares import read_shares

NAMES = st.text(
  st.sampled_from(string.printable + "éß日\u00a0\u2028\U0001f600"), min_size=1, max_size=12
)
UNPRINTED = set("\t\n\r\x0b\x0c\u2028")
DOMAINS = NAMES.filter(lambda name: name.strip() and not UNPRINTED & set(name))
PATHS = st.one_of(NAMES, st.builds(str.__add__, st.sampled_from(["text:", "json:", "a="]), NAMES))
SOURCES = st.builds(
  Source, PATHS, domain=st.one_of(st.just(""), DOMAINS), format=st.sampled_from(["", *FORMATS])
)


@given(NAMES)
def test_an_escaped_name_is_one_part_and_comes_back(name):
  assert unescape(escape(name)) == name
  assert split(f" {escape(name)} ,{escape(name)}", ",") == [escape(name)] * 2
  assert split_at_last(f"{escape(name)}=3", "=") == (escape(name), "3")


@given(st.lists(SOURCES, min_size=1, max_size=3))
def test_any_sources_are_read_as_they_are_written(sources):
  assert parse_sources(",".join(map(format_source, sources))) == sources


@given(st.text(st.sampled_from(r"ab,=:\ []*?#%") , max_size=12))  # fmt: skip
def test_what_is_read_is_written_so_that_it_is_read_again(text):
  try:
    found = parse_sources(text)
  except UserError:
    return
  assert parse_sources(",".join(map(format_source, found))) == found


@given(st.lists(NAMES, min_size=1, max_size=4, unique=True))
def test_weights_name_any_domain(names):
  shares = read_shares(",".join(f"{escape(name)}={place}" for place, name in enumerate(names, 1)))
  assert shares.names == tuple(names)


@given(st.lists(NAMES.filter(str.strip), min_size=1, max_size=4))
def test_held_out_works_have_any_printed_name(names):
  """A config's text holds no control characters, so a rule cannot name a work that has one."""
  if any(UNPRINTED & set(name) for name in names):
    with pytest.raises(UserError, match="holds a control character"):
      HeldOut.parse("works:" + ",".join(map(escape, names)), [Source("x")])
    return
  rule = HeldOut.parse("works:" + ",".join(map(escape, names)), [Source("x")])
  assert len(rule.works) == len(names)
  for name, pattern in zip(names, rule.works, strict=True):
    from moe_parity.data.scan import _is_work

    assert _is_work(name, pattern)


def test_known_spellings_keep_their_meaning():
  assert parse_sources("prose=books/, code=text:src/,gs://b/x") == [
    Source("books/", "prose"), Source("src/", "code", format="text"), Source("gs://b/x"),
  ]  # fmt: skip
  assert parse_sources("./a=b.jsonl") == [Source("./a=b.jsonl")]
  assert parse_sources(r"a\,b.jsonl,lr\=1.jsonl,text\:x") == [
    Source("a,b.jsonl"), Source("lr=1.jsonl"), Source("text:x"),
  ]  # fmt: skip
  assert parse_sources(r"a\[1\].txt")[0].path == "a[[]1].txt"
  assert parse_sources("jsonl:x.log") == [Source("x.log", format="json")]


@pytest.mark.parametrize("text", ["", "a,", ",a", "a\\", "a,,b", "json:, "])
def test_half_a_source_is_refused(text):
  with pytest.raises(UserError, match="empty part|backslash"):
    parse_sources(text)


@pytest.mark.parametrize("name", ["a,b.jsonl", "lr=1e-3.jsonl", "json:x.jsonl", "d=json:,=.md"])
def test_a_file_that_is_meant_otherwise_is_told_how(name, tmp_path, monkeypatch):
  monkeypatch.chdir(tmp_path)
  open(name, "w").close()
  with pytest.raises(UserError, match="which is not there; the file of that very name") as raised:
    parse_sources(name)
  way = str(raised.value).rsplit("is written ", 1)[1]
  assert parse_sources(way) == [Source(name)]
  assert os.path.exists(parse_sources(way)[0].path)
