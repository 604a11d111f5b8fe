"""The report of whole, partial and single-run folders: self-contained, complete, escaped."""

import base64
import hashlib
import html.parser
import json
import re
import urllib.parse
import xml.etree.ElementTree as ElementTree

import pytest

from moe_parity.report import page, tables
from tests.helpers import fake_study

VOID = {"meta", "img", "source", "br"}
INLINE = {"abbr", "b", "a", "span", "title"}  # what they hold is part of the sentence about them


class Reader(html.parser.HTMLParser):
  """Checks that tags nest, and collects text, tags and attributes."""

  def __init__(self):
    super().__init__()
    self.open, self.tags, self.attributes, self.words = [], [], [], []

  def handle_starttag(self, tag, attrs):
    self.tags.append(tag)
    self.words += [] if tag in INLINE else [" "]
    self.attributes += attrs
    if tag not in VOID:
      self.open.append(tag)

  def handle_endtag(self, tag):
    assert self.open and self.open[-1] == tag, f"</{tag}> closes {self.open[-3:]}"
    self.open.pop()
    self.words += [] if tag in INLINE else [" "]

  def handle_data(self, data):
    if self.open and self.open[-1] not in ("style", "script"):
      self.words.append(data)


def read(path):
  reader = Reader()
  reader.feed(path.read_text())
  reader.close()
  assert reader.open == []
  return reader, " ".join("".join(reader.words).split())


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
  folder = tmp_path_factory.mktemp("whole")
  page.write_report(
    fake_study.write_study(
      folder, fake_study.Fake(rates=(0.1, 0.25, 0.5), seeds=(0, 1), seed_sd=0.003)
    )
  )
  return folder


@pytest.fixture(scope="module")
def partial(tmp_path_factory):
  folder = tmp_path_factory.mktemp("partial")
  statuses = {"moe_55": "failed", "moe_10": "running", "dense_2c": "pending"}
  fake_study.write_study(folder, fake_study.Fake(passed=None, statuses=statuses))
  (folder / "report").mkdir()
  (folder / "report/old.png").write_bytes(b"x")
  (folder / "report/notes.txt").write_text("mine")
  page.write_report(folder)
  return folder


def test_the_page_needs_no_network_and_runs_only_its_own_script(whole):
  text = (whole / "report/index.html").read_text()
  reader, _ = read(whole / "report/index.html")
  assert not {"link", "iframe", "object"} & set(reader.tags) and "@import" not in text
  for name, value in reader.attributes:
    assert not name.startswith("on")
    if name in ("src", "href", "srcset"):
      assert value.startswith(("data:image/svg+xml,", "#", "../runs/"))
  (script,) = re.findall(r"<script>(.*?)</script>", text, flags=re.DOTALL)
  digest = base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()
  assert f"default-src 'none'; script-src 'sha256-{digest}';" in text
  assert "fetch" not in script and "innerHTML" not in script


def test_the_verdict_comes_first_and_every_section_is_linked(whole):
  text = (whole / "report/index.html").read_text()
  _, words = read(whole / "report/index.html")
  headline = json.loads((whole / "analysis.json").read_text())["verdict"]["headline"]
  against = words.index("What speaks against it")
  assert words.index(headline) < words.index("Resources relative to dense") < against
  places = ['"headline"', '"first"', '"bars"', '"against"', "<nav", "Certificate</h2>"]
  assert sorted(places, key=text.index) == places
  for target in re.findall(r'href="#(\w+)"', text):
    assert f'id="{target}"' in text


def test_every_sentence_of_the_verdict_stands_on_the_page(whole):
  _, words = read(whole / "report/index.html")
  for sentence in json.loads((whole / "analysis.json").read_text())["verdict"]["sentences"]:
    assert " ".join(sentence.split()) in words


def test_scores_on_the_page_are_those_of_result_json(whole):
  _, words = read(whole / "report/index.html")
  for path in (whole / "runs").glob("*/result.json"):
    validation = json.loads(path.read_text())["validation"]
    assert f"{validation['bpc']:.4f}" in words
    for domain in validation["by_domain"].values():
      assert f"{domain['bpc']:.4f}" in words


def test_inline_figures_are_well_formed_for_desk_and_phone(whole):
  reader, _ = read(whole / "report/index.html")
  widths = []
  for name, value in reader.attributes:
    if name == "src":
      root = ElementTree.fromstring(urllib.parse.unquote(value.split(",", 1)[1]))
      widths.append(float(root.get("width").removesuffix("pt")))
  assert widths == [6.6 * 72, 3.75 * 72] * 9
  alts = [value for name, value in reader.attributes if name == "alt"]
  assert len(alts) == 18 and all(len(alt) > 40 for alt in alts)


def test_how_to_reproduce_has_command_versions_hashes_config(whole):
  _, words = read(whole / "report/index.html")
  info = json.loads((whole / "study.json").read_text())
  for value in (info["command"], info["data"]["train_sha256"], info["versions"]["jax"]):
    assert value in words
  assert f'"num_params": {fake_study.NUM_PARAMS}' in words
  assert "What each side got" in words


def test_each_side_s_arms_runs_and_compute_are_counted(whole):
  report = json.loads((whole / "analysis.json").read_text())
  moe, dense, reference = tables.effort(report).rows
  assert (moe["side"], moe["num_arms"], moe["num_runs"], moe["num_done"]) == ("MoE", 3, 6, 6)
  assert (dense["side"], dense["num_arms"], dense["num_runs"]) == ("dense", 1, 2)
  assert reference["side"] == "dense, reference"
  spent = [r["train_flops"] for r in report["arms"] if r["kind"] == "moe"]
  assert moe["train_flops"] == sum(spent) and moe["hours"] == pytest.approx(6 * 61.5 / 3600)


def test_a_figure_or_table_of_an_older_report_does_not_stay(partial):
  left = {path.name for path in (partial / "report").iterdir()}
  assert "old.png" not in left and "notes.txt" in left and "arms.csv" in left


def test_a_study_without_the_papers_steps_has_no_section_on_them(whole):
  _, words = read(whole / "report/index.html")
  for title in ("Architecture search", "Activation rate over budgets", "Data reuse"):
    assert title not in words


def test_figures_and_tables_also_lie_as_plain_files(whole):
  names = {p.name for p in (whole / "report").iterdir()}
  for figure in (
    "gate_sums",
    "layer_norms",
    "activation_rate",
    "loss_curves",
    "routing_health",
    "expert_loads",
    "versus_paper",
  ):
    assert {f"{figure}.png", f"{figure}.svg"} <= names
  made = "layers controls arms domains comparisons shapes plan certificate paper_columns"
  for table in made.split():
    assert {f"{table}.md", f"{table}.csv", f"{table}.tex"} <= names
  assert not [n for n in names if n.endswith(".tmp")]


def test_names_and_errors_from_the_folder_are_escaped(whole, partial):
  assert "fake &lt;study&gt; &amp; co" in (whole / "report/index.html").read_text()
  reader, words = read(partial / "report/index.html")
  assert "loss is nan at step 120 <b>" in words and "study" not in reader.tags


def test_a_partial_study_names_what_is_missing(partial):
  _, words = read(partial / "report/index.html")
  for name in ("moe_55", "moe_10", "dense_2c"):
    assert name in words
  assert "3 of 7 runs are not done" in words
  assert "Not here: a certificate for the study, dense (seed 0)" in words


def test_a_study_with_nothing_done_still_renders(tmp_path):
  fake = fake_study.Fake(rates=(0.2, 0.3, 0.4), passed=None)
  names = ("dense", "dense_2c", "moe_20", "moe_30", "moe_40")
  fake_study.write_study(
    tmp_path, fake_study.dataclasses.replace(fake, statuses=dict.fromkeys(names, "pending"))
  )
  _, words = read(page.write_report(tmp_path))
  for missing in ("no MoE arm is done yet", "no run has logged a step yet", "routing.npz"):
    assert f"Not here: {missing}" in words
  assert "No verdict yet" in words


def test_a_dense_run_folder_alone_is_reported(tmp_path):
  folder = fake_study.write_study(tmp_path, fake_study.Fake(rates=(0.2,))) / "runs/dense-s0"
  _, words = read(page.write_report(folder))
  assert "dense arms have no router" in words
  assert (folder / "report/loss_curves.png").stat().st_size > 5000
