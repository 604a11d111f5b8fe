"""Markup in any string of a study is text on its page: it opens no tag and runs no script."""

import html
import json
import re

import pytest

from moe_parity.report import page, table_formats
from tests.helpers import fake_steps, fake_study
from tests.test_report_page import Reader
from tests.test_report_steps import chromium

MARK = "<img src=x onerror=document.title='OWNED'>"
HOSTILE = f"\"'></script></style>{MARK}<script>document.title='OWNED'</script>&amp;$\\x{{"
OWN_TAGS = {
  "html", "head", "meta", "title", "style", "body", "header", "p", "h1", "h2", "h3", "section",
  "div", "figure", "svg", "line", "polyline", "circle", "rect", "text", "a", "figcaption", "img",
  "abbr", "b", "ul", "li", "nav", "table", "thead", "tbody", "tr", "th", "td", "span", "details",
  "summary", "pre", "script",
}  # fmt: skip
KEPT = {
  "method", "status", "kind", "role", "layout", "convention", "mode", "held", "reuse", "held_fixed",
}  # fmt: skip


def poisoned(value, key=""):
  """The value with HOSTILE behind every string that is no keyword of the format and no name of an
  arm, which is read only where it names a folder; a dictionary's own keys too where they are a
  user's: domains, packages."""
  if isinstance(value, dict):
    free = key in ("by_domain", "versions", "data", "config")
    return {(k + HOSTILE if free else k): poisoned(v, k) for k, v in value.items()}
  if isinstance(value, list):
    return [poisoned(v, key) for v in value]
  is_arm = key == "name" and re.fullmatch(r"[\w.]+", str(value))
  if isinstance(value, str) and not is_arm and key not in KEPT | {"folder", "part"}:
    return value + HOSTILE
  return value


def poison(folder):
  for path in folder.rglob("*.json"):
    path.write_text(json.dumps(poisoned(json.loads(path.read_text()))))


@pytest.fixture(scope="module")
def index(tmp_path_factory):
  folder = tmp_path_factory.mktemp("hostile")
  fake = fake_study.Fake(
    rates=(0.17, 0.26, 0.38), seeds=(0, 1), seed_sd=0.003, ablation_cost=0.03,
    controls={"dense_active": (150_000, 1.93)}, statuses={("moe_38", 1): "failed"}, num_steps=60,
  )  # fmt: skip
  fake_study.write_study(folder, fake)
  fake_steps.write_steps(folder)
  part = folder / "parts" / "<i>part"
  fake_study.write_study(part, fake_study.Fake(rates=(0.2, 0.3), telemetry=False))
  poison(folder)
  return page.write_report(folder)


def test_no_string_of_a_study_opens_a_tag_or_an_attribute(index):
  text = index.read_text()
  reader = Reader()
  reader.feed(text)
  reader.close()
  assert set(reader.tags) <= OWN_TAGS and reader.tags.count("script") == 1
  assert reader.open == []
  names = {name for name, _ in reader.attributes}
  assert not [name for name in names if name.startswith("on")]
  assert {v for n, v in reader.attributes if n == "src" and not v.startswith("data:image")} == set()
  links = {value for name, value in reader.attributes if name == "href"}
  assert all(re.match(r"#s\d+$|\.\./", link) for link in links)
  assert MARK not in text


def test_no_name_of_a_study_leads_a_file_out_of_its_report(index):
  assert table_formats.file_name("../../x/y") == "_.._x_y"
  names = {path.name for path in index.parent.iterdir()}
  assert not [name for name in names if set(name) & set("<>'\"/\\")]


def test_hostile_strings_are_shown_as_they_are(index):
  text = index.read_text()
  named = ["ValueError: loss is nan at step 120 <b>", "fake <study> & co"]
  for part in [*named, "jax", "num_params of all arms"]:
    assert html.escape(part + HOSTILE) in text.replace("\N{NO-BREAK SPACE}", " "), part


def test_a_browser_runs_nothing_that_a_study_brought(index, tmp_path):
  printed = chromium(tmp_path, "--virtual-time-budget=5000", "--dump-dom", index.as_uri())
  assert 'class="tip"' in printed  # the page's own script ran
  assert "<title>OWNED" not in printed and "onerror" in printed


def test_the_policy_stops_a_script_that_got_in_all_the_same(index, tmp_path):
  raw = index.read_text().replace("<body>", f"<body>{MARK}<script>document.title='OWNED'</script>")
  other = tmp_path / "raw.html"
  other.write_text(raw)
  printed = chromium(tmp_path / "p", "--virtual-time-budget=5000", "--dump-dom", other.as_uri())
  assert "<title>OWNED" not in printed and 'class="tip"' in printed
