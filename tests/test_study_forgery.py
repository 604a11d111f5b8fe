"""Files of a study that contradict each other: each is named, and no winner follows.

After the 24 forgeries of an outside audit, 16 of which an earlier certificate let pass.
"""

import json
import math
import pathlib
import shutil

import numpy as np
import pytest

from moe_parity import cli, files
from moe_parity.data.ledger import Ledger
from moe_parity.errors import UserError
from moe_parity.study import certificate, rescoring
from moe_parity.study.workers import runner
from moe_parity.training import load_run

ROOT = pathlib.Path(__file__).resolve().parent.parent
CONFIG = f"--config={ROOT}/configs/demo.py:tiny"
SMALL = [
  "--config.budget.dense_tokens=5120", "--config.evaluation.max_tokens=2000",
  "--config.evaluation.ablations=('routed_removed',)", "--config.train.eval_every=20",
  "--only=dense,moe_40",
]  # fmt: skip
REAL = runner.RunActions()
DENSE, MOE = "runs/dense-s0", "runs/moe_40-s0"


@pytest.fixture(scope="module")
def study(tmp_path_factory):
  folder = tmp_path_factory.mktemp("studies") / "study"
  with pytest.MonkeyPatch.context() as patch:
    patch.setenv("MOE_PARITY_CACHE", str(tmp_path_factory.mktemp("cache")))
    assert cli.main(["study", CONFIG, f"--workdir={folder}", *SMALL]) == 0
    yield folder


@pytest.fixture
def copy(study, tmp_path):
  return pathlib.Path(shutil.copytree(study, tmp_path / "copy"))


def change(path, edit):
  value = json.loads(path.read_text())
  edit(value)
  files.write_json(path, value, seal=True)


def failures(folder, anew: bool):
  """Failed checks of the study and its runs: certified anew, or held against their hashes."""
  for run in (DENSE, MOE):
    (certificate.certify_run if anew else certificate.recheck_run)(folder / run)
  whole = certificate.certify_study(folder)
  rows = list(whole["checks"])
  for run in (DENSE, MOE):
    rows += json.loads((folder / run / "certificate.json").read_text())["checks"]
  assert whole["passed"] == all(row["passed"] for row in rows)
  return [row for row in rows if not row["passed"]]


def lower_bpc(result):
  result["validation"]["bpc"] -= 0.1


def lower_bpc_and_nats(result):
  lower_bpc(result)
  result["validation"]["nats"] *= 0.97


def lower_a_document(result):
  result["validation"]["documents"][0]["nats"] *= 0.5


def lose_a_document(result):
  result["validation"]["documents"].pop()


def lose_a_domain(result):
  result["validation"]["by_domain"].popitem()


def lower_an_ablation(result):
  result["ablations"]["routed_removed"]["bpc"] -= 0.1


def lower_an_ablated_document(result):
  result["ablations"]["routed_removed"]["nats"][0] *= 0.5


def lose_an_ablated_document(result):
  result["ablations"]["routed_removed"]["nats"].pop()


def never_learned(result):
  result["train_cross_entropy"] = 9.0


EDITS = {
  "bpc": (f"{MOE}/result.json", lower_bpc, "score: bpc"),
  "bpc and nats": (f"{MOE}/result.json", lower_bpc_and_nats, "score: nats"),
  "a document": (f"{MOE}/result.json", lower_a_document, "score: nats"),
  "untrained": (f"{MOE}/result.json", never_learned, "training loss"),
  "lost document": (f"{MOE}/result.json", lose_a_document, "score: num_documents"),
  "ablation": (f"{MOE}/result.json", lower_an_ablation, "score: routed_removed bpc"),
  "ablated document": (
    f"{MOE}/result.json",
    lower_an_ablated_document,
    "score: routed_removed cross_entropy",
  ),
  "lost ablated document": (
    f"{MOE}/result.json",
    lose_an_ablated_document,
    "routed_removed: documents",
  ),
  "lost ablation": (f"{MOE}/result.json", lambda r: r["ablations"].clear(), "ablations"),
  "training loss": (
    f"{MOE}/result.json",
    lambda r: r.update(train_cross_entropy=r["train_cross_entropy"] - 0.01),
    "metrics: training loss",
  ),
  "N": (f"{MOE}/plan.json", lambda p: p.update(num_params=90_000), "num_params"),
  "tokens": (f"{MOE}/plan.json", lambda p: p.update(num_tokens=5_000), "num_tokens"),
  "K": (
    f"{MOE}/plan.json",
    lambda p: p["architecture"].update(experts_per_token=3),
    "num_active_params",
  ),
  "d_ffn": (f"{MOE}/plan.json", lambda p: p["architecture"].update(d_ffn=999), ": plan"),
  "rate": (f"{MOE}/plan.json", lambda p: p.update(activation_rate=0.1), ": plan"),
  "learning rate": (f"{MOE}/plan.json", lambda p: p.update(peak_learning_rate=1.0), ": plan"),
  "name": (f"{MOE}/plan.json", lambda p: p.update(name="moe_20"), "result: name"),
  "seed": (f"{MOE}/result.json", lambda r: r.update(seed=5), "result: seed"),
  "position": (f"{MOE}/config.json", lambda c: c["model"].update(position="none"), ": settings"),
  "decay": (f"{MOE}/config.json", lambda c: c["optimizer"].update(weight_decay=0.0), ": settings"),
  "plan's data seed": (f"{MOE}/plan.json", lambda p: p.update(data_seed=5), "ledger: data seed"),
  "recounted rate": (
    f"{MOE}/plan.json",
    lambda p: p.update(activation_rate=0.3),
    "activation_rate",
  ),
  "warm-up": (
    f"{MOE}/plan.json",
    lambda p: p.update(warmup_steps=p["num_steps"] // 2),
    "metrics: learning rates",
  ),
  "bytes": (
    f"{MOE}/result.json",
    lambda r: r["validation"].update(num_bytes=5),
    "score: num_bytes",
  ),
  "macro": (
    f"{MOE}/result.json",
    lambda r: r["validation"].update(macro_bpc=1.0),
    "score: macro_bpc",
  ),
  "domain": (f"{MOE}/result.json", lose_a_domain, "score: domains"),
  "data seed": (f"{MOE}/config.json", lambda c: c["data"].update(seed=5), "ledger: seed"),
}


@pytest.mark.parametrize("name", EDITS)
def test_an_edit_contradicts_another_file(copy, name):
  path, edit, failed = EDITS[name]
  change(copy / path, edit)
  assert any(failed in row["name"] for row in failures(copy, anew=True))


@pytest.mark.parametrize("name", [*EDITS, "checkpoint", "metrics", "ledger"])
def test_a_file_changed_since_it_was_certified_is_named(copy, name):
  if name in EDITS:
    path, edit, _ = EDITS[name]
    change(copy / path, edit)
  else:
    inside = {"checkpoint": "checkpoints", "metrics": "metrics.jsonl", "ledger": "ledger.npz"}[name]
    path = f"{MOE}/{inside}"
    found = [copy / path] if (copy / path).is_file() else sorted((copy / path).rglob("*"))
    file = max((p for p in found if p.is_file()), key=lambda p: p.stat().st_size)
    content = bytearray(file.read_bytes())
    content[len(content) // 2] ^= 1
    file.write_bytes(content)
  rows = failures(copy, anew=False)
  said = next(row for row in rows if row["name"] == "files since they were certified")
  assert pathlib.Path(path).name.split(".")[0] in said["measured"]


def test_a_score_edited_with_its_certificate_fails_the_study(copy):
  """The hash in the certificate was that of the edited file, and nothing looked at the scores."""
  change(copy / MOE / "result.json", lower_bpc)
  edited = {"result.json": files.sha256_of(copy / MOE / "result.json")}
  change(copy / MOE / "certificate.json", lambda c: c["files"].update(edited))
  (row,) = failures(copy, anew=False)
  assert row["name"] == "moe_40 (seed 0): score: bpc"


def change_lines(path, kind, edit):
  lines = [json.loads(line) for line in path.read_text().splitlines()]
  for line in lines:
    if line["kind"] == kind:
      edit(line)
  path.write_text("".join(json.dumps(line) + "\n" for line in lines))


METRICS_EDITS = {
  "score": ("validation", lambda x: x.update(bpc=x["bpc"] - 0.1), "metrics: validation scores"),
  "nats": ("validation", lambda x: x.update(nats=x["nats"] * 0.9), "metrics: validation scores"),
  "tokens": ("validation", lambda x: x.update(num_tokens=7), "metrics: tokens"),
  "trained tokens": ("train", lambda x: x.update(num_tokens=7), "metrics: tokens"),
  "loss": ("train", lambda x: x.update(cross_entropy=1.0), "metrics: training loss"),
}


@pytest.mark.parametrize("name", METRICS_EDITS)
def test_an_edit_of_the_metrics_contradicts_another_number(copy, name):
  kind, edit, failed = METRICS_EDITS[name]
  change_lines(copy / MOE / "metrics.jsonl", kind, edit)
  assert [row["name"] for row in failures(copy, anew=True)] == [
    "moe_40: its own certificate", failed
  ]  # fmt: skip


def certified_with(run, edits):
  """The certificate as one who edited the files would leave it, with their hashes."""
  hashes = {name: files.sha256_of(run / name) for name in edits}
  change(run / "certificate.json", lambda c: c["files"].update(hashes))


def test_logs_edited_with_their_certificate_fail_it(copy):
  run = copy / MOE
  change(run / "result.json", lower_an_ablation)
  change_lines(run / "metrics.jsonl", *METRICS_EDITS["score"][:2])
  certified_with(run, ("result.json", "metrics.jsonl"))
  of_edits = {"score: routed_removed bpc", "metrics: validation scores"}
  for lacks in (False, True):  # a certificate of an earlier version has no such lines
    if lacks:
      change(run / "certificate.json", lambda c: c.update(passed=True, checks=[
        row for row in c["checks"] if row["name"] not in of_edits]))  # fmt: skip
    assert {row["name"] for row in failures(copy, anew=False)} == {
      "moe_40: its own certificate", *of_edits
    }  # fmt: skip


def test_a_newer_date_of_a_result_certifies_nothing_anew(copy):
  """An edit has a newer date too: the same `study` or `train` again made it the run's own."""
  change(copy / MOE / "result.json", lower_an_ablation)
  for again in (certificate.certify_or_recheck, lambda run: runner.certify_or_recheck(run, REAL)):
    again(copy / MOE)
    written = json.loads((copy / MOE / "certificate.json").read_text())
    failed = {row["name"] for row in written["checks"] if not row["passed"]}
    assert failed == {"files since they were certified", "score: routed_removed bpc"}
  certificate.forget_unfinished(copy / MOE)
  assert (copy / MOE / "certificate.json").exists()
  (copy / MOE / "result.json").unlink()  # to be scored again from its checkpoint
  certificate.forget_unfinished(copy / MOE)
  assert not (copy / MOE / "certificate.json").exists()


def test_a_run_of_an_earlier_version_says_it_has_no_sums(copy):
  run = copy / MOE
  change(run / "result.json", lambda r: r["ablations"]["routed_removed"].pop("nats"))

  def without_sums(line):
    for name in [name for name in line if name == "nats" or name.startswith("scored_")]:
      del line[name]

  change_lines(run / "metrics.jsonl", "validation", without_sums)
  assert failures(copy, anew=True) == []
  rows = {row["name"]: row for row in json.loads((run / "certificate.json").read_text())["checks"]}
  assert "of an earlier version" in rows["score: routed_removed bpc"]["how"]
  words = rows["metrics: validation scores"]["measured"]
  assert "lines are of an earlier version, without sums: not checked" in words
  lines = rescored(copy)[MOE]
  assert [line["measured"] for line in lines if line["name"] == f"{rescoring.NAME}: ablations"] == [
    "not rescored: a run of an earlier version, with their totals alone"
  ]
  change(run / "result.json", lower_an_ablation)
  assert "score: routed_removed bpc" in {row["name"] for row in failures(copy, anew=True)}


def test_ablated_nats_whose_sums_agree_fail_the_rescoring(copy):
  def lower(result):
    score = result["ablations"]["routed_removed"]
    score["nats"] = [0.9 * nats for nats in score["nats"]]
    score |= {name: 0.9 * score[name] for name in ("bpc", "bpb", "cross_entropy")}

  change(copy / MOE / "result.json", lower)
  assert failures(copy, anew=True) == []
  lines = rescored(copy, "new")
  assert all(row["passed"] for row in lines[DENSE])
  failed = [row for row in lines[MOE] if not row["passed"]]
  name = f"{rescoring.NAME}: routed_removed"
  assert [row["name"] for row in failed] == [name, f"{name}: their sum"]
  assert failed[0]["planned"].startswith(("2 of", "3 of", "4 of"))
  assert "off by 11 %" in failed[0]["measured"]


def test_an_edited_plan_of_the_study_fails_the_arm_it_changes(copy):
  def longer(plan):
    next(arm for arm in plan["arms"] if arm["name"] == "moe_40")["num_tokens"] += 64

  change(copy / "plan.json", longer)
  row, derived = failures(copy, anew=True)
  assert row["name"] == "moe_40 (seed 0): plan" and "num_tokens" in row["measured"]
  assert "moe_40 (seed 0: epochs: " in derived["measured"]  # by its tokens it has others


def test_a_run_of_another_arm_in_its_place_fails(copy):
  shutil.rmtree(copy / MOE)
  shutil.copytree(copy / DENSE, copy / MOE)
  (row,) = failures(copy, anew=True)
  assert row["name"] == "moe_40 (seed 0): plan"


def test_swapped_run_folders_fail(copy):
  (copy / DENSE).rename(copy / "aside")
  (copy / MOE).rename(copy / DENSE)
  (copy / "aside").rename(copy / MOE)
  assert sum(": plan" in row["name"] for row in failures(copy, anew=True)) == 2


def test_swapped_checkpoints_fail(copy):
  (copy / DENSE / "checkpoints").rename(copy / "aside")
  (copy / MOE / "checkpoints").rename(copy / DENSE / "checkpoints")
  (copy / "aside").rename(copy / MOE / "checkpoints")
  assert failures(copy, anew=False)


def edit_ledger(run, edit):
  ledger = Ledger.load(run / "ledger.npz")
  edit(ledger)
  ledger.save(run / "ledger.npz")


def move_a_read(ledger):
  first, second = np.flatnonzero(ledger.counts)[:2]
  ledger.counts[first] += 1
  ledger.counts[second] -= 1


def other_windows(ledger):
  ledger.counts = np.roll(ledger.counts, 1)


@pytest.mark.parametrize("edit", [move_a_read, other_windows])
def test_a_ledger_that_is_not_its_order_fails(copy, edit):
  edit_ledger(copy / MOE, edit)
  assert any(row["name"].startswith("ledger: windows") for row in failures(copy, anew=True))


@pytest.mark.parametrize(
  "piece", ["config.json", "plan.json", "metrics.jsonl", "ledger.npz", "checkpoints"]
)
@pytest.mark.parametrize("damage", ["lost", "cut"])
def test_a_lost_or_cut_piece_is_that_arms_failure_alone(copy, piece, damage):
  path = copy / MOE / piece
  if path.is_dir():
    for part in path.rglob("*"):
      if part.is_file() and damage == "cut":
        part.write_bytes(part.read_bytes()[:5])
    if damage == "lost":
      shutil.rmtree(path)
  elif damage == "lost":
    path.unlink()
  else:
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 3])
  for anew in (True, False):
    rows = failures(copy, anew)
    assert rows and not any("dense" in row["name"] for row in rows)


def test_a_page_is_written_without_a_winner_and_says_why(copy, capsys):
  change(copy / f"{MOE}/result.json", lower_bpc)
  assert cli.main(["report", str(copy)]) == 0
  assert "No winner" in capsys.readouterr().out
  analysis = json.loads((copy / "analysis.json").read_text())
  assert any("result.json was changed" in words for words in analysis["certificate"]["failures"])


def test_a_study_resumed_with_other_settings_is_refused(copy, capsys):
  other = ["--config.data.seed=5", "--config.model.position=none"]
  assert cli.main(["study", CONFIG, f"--workdir={copy}", *SMALL, *other]) == 2
  error = capsys.readouterr().err
  assert "data.seed: 0 -> 5" in error and "model.position: alibi -> none" in error
  scored = ["--config.evaluation.max_tokens=1000"]
  assert cli.main(["study", CONFIG, f"--workdir={copy}", *SMALL, *scored]) == 2
  assert "evaluation.max_tokens: 2000 -> 1000" in capsys.readouterr().err


def test_a_run_whose_text_changed_is_not_scored_on_it(copy, capsys):
  change(copy / f"{MOE}/data.json", lambda d: d["fingerprint"].update(validation_tokens="0" * 64))
  assert cli.main(["evaluate", str(copy / MOE)]) == 2
  assert "the held-out tokens" in capsys.readouterr().err


def edit_consistently(result):
  """Lowers a document's nats, and with them every sum that rests on it."""
  validation = result["validation"]
  document = validation["documents"][1]
  domain = validation["by_domain"][document["domain"]]
  less = 0.1 * document["nats"]
  for entry in (document, validation, domain):
    entry["nats"] -= less
  for entry in (validation, domain):
    for name, units in (("bpc", "num_chars"), ("bpb", "num_bytes")):
      entry[name] = entry["nats"] / math.log(2) / entry[units]
  validation["cross_entropy"] = validation["nats"] / validation["num_tokens"]
  for name in ("bpc", "bpb"):
    domains = validation["by_domain"].values()
    validation[f"macro_{name}"] = sum(d[name] for d in domains) / len(domains)


def rescored(folder, which="all"):
  """Failed checks of the study and its runs, and the lines about rescored documents of each run."""
  certificate.rescore_study(folder, which)
  lines = {}
  for run in (DENSE, MOE):
    rows = json.loads((folder / run / "certificate.json").read_text())["checks"]
    lines[run] = [row for row in rows if row["name"].startswith(rescoring.NAME)]
  return lines


def test_a_study_rescores_documents_from_its_checkpoints(study):
  for run in (DENSE, MOE):
    rows = json.loads((study / run / "certificate.json").read_text())["checks"]
    lines = [row for row in rows if row["name"].startswith(rescoring.NAME)]
    assert len(lines) == (4 if run == MOE else 2) and all(row["passed"] for row in lines)
    assert abs(lines[1]["difference_pct"]) < 1e-3
  found = json.loads((study / "analysis.json").read_text())["certificate"]["rescored"]
  assert found["runs"] == 2 and found["documents"] >= 8 and found["not_rescored"] == {}


def test_nats_edited_so_that_all_sums_agree_fail_the_rescoring(copy):
  change(copy / MOE / "result.json", edit_consistently)
  certificate.certify_run(copy / MOE)  # hashes and sums agree again
  rows = json.loads((copy / MOE / "certificate.json").read_text())["checks"]
  assert all(row["passed"] for row in rows)
  lines = rescored(copy, "new")
  assert all(row["passed"] for row in lines[DENSE])
  assert [row["passed"] for row in lines[MOE]] == [False, False, True, True]
  assert "off by 11 %" in lines[MOE][0]["measured"]
  whole = json.loads((copy / "certificate.json").read_text())
  failed = next(row for row in whole["checks"] if not row["passed"])
  assert failed["name"] == "moe_40: its own certificate"
  assert rescoring.NAME in failed["measured"]


def test_documents_that_the_text_does_not_have_fail(copy):
  def rename(result):
    result["validation"]["documents"][0]["source"] = "elsewhere"

  change(copy / MOE / "result.json", rename)
  (line,) = rescored(copy)[MOE]
  assert not line["passed"] and "source elsewhere, the text has" in line["measured"]


@pytest.mark.parametrize("damage", ["lost", "cut"])
def test_a_damaged_checkpoint_fails_the_rescoring_of_its_arm(copy, damage):
  path = copy / MOE / "checkpoints"
  if damage == "lost":
    shutil.rmtree(path)
  else:
    file = max((p for p in path.rglob("*") if p.is_file()), key=lambda p: p.stat().st_size)
    file.write_bytes(file.read_bytes()[:-9])
  lines = rescored(copy)
  assert all(row["passed"] for row in lines[DENSE])
  assert [row["passed"] for row in lines[MOE]] == [False]
  assert "checkpoint" in lines[MOE][0]["measured"]


def gone(*args, **kwargs):
  raise UserError("no token store of text/, and nothing is fetched")


def test_where_it_cannot_be_done_it_says_not_rescored(copy, monkeypatch, capsys):
  with monkeypatch.context() as patch:
    patch.setattr(rescoring.importlib.util, "find_spec", lambda name: None)
    (line,) = rescored(copy)[MOE]
  assert line["passed"] and line["measured"] == "not rescored: JAX is not installed"
  monkeypatch.setattr(load_run, "open_run_data", gone)
  (line,) = rescored(copy)[MOE]
  assert line["passed"] and "not rescored: its text is not here (no token store" in line["measured"]
  assert cli.main(["report", str(copy)]) == 0
  found = json.loads((copy / "analysis.json").read_text())["certificate"]
  assert found["passed"] and found["rescored"]["runs"] == 0
  assert "not rescored: its text" in (copy / "report" / "index.html").read_text()


def test_a_device_that_fails_is_no_failure_of_the_run(copy):
  def busy():
    raise RuntimeError("TPU is in use by another process")

  (line,) = rescoring.rescore(copy / MOE, busy)
  assert line["passed"] and "could not compute it (TPU is in use" in line["measured"]


def test_a_run_is_rescored_once_for_its_content(copy, monkeypatch):
  calls = []
  monkeypatch.setattr(rescoring, "rescore", lambda run, start: calls.append(run.name) or 1 / 0)
  certificate.rescore_study(copy, "new")
  assert calls == []
  change(copy / MOE / "result.json", edit_consistently)
  certificate.recheck_run(copy / MOE)
  with pytest.raises(ZeroDivisionError):
    certificate.rescore_study(copy, "new")
  assert calls == ["moe_40-s0"]


def test_a_sample_stays_within_its_bounds(tmp_path):
  (tmp_path / "result.json").write_text("{}")
  lengths = [5_000] * 30 + [100_000]
  taken = rescoring._sample(tmp_path, lengths, 32_768)
  assert len(taken) == 6 and taken == sorted(taken) and 30 not in taken
  assert len(rescoring._sample(tmp_path, [10] * 99, 32_768)) == rescoring.MAX_DOCUMENTS
  assert rescoring._sample(tmp_path, [40_000, 50_000], 32_768) == [0]  # the shortest, alone
  assert rescoring._sample(tmp_path, [400_000], 32_768) == []
  (tmp_path / "result.json").write_text("{ }")
  assert rescoring._sample(tmp_path, lengths, 32_768) != taken  # an edit draws anew
