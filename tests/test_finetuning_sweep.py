"""Which candidate is kept, and what is said of it."""

import math

import pytest

from moe_parity.errors import UserError
from moe_parity.finetuning import sweep
from moe_parity.planning.finetuning_plan import candidate_name


def row(learning_rate, epochs, loss=1.0):
  return {"candidate": f"{learning_rate} {epochs}", "learning_rate": learning_rate,
          "epochs": epochs, "cross_entropy": loss}  # fmt: skip


def test_the_lowest_loss_is_kept_and_the_first_of_equals():
  rows = [row(0.1, 1, 2.0), row(0.1, 2, math.inf), row(0.3, 1, 1.5), row(0.3, 2, 1.5)]
  assert sweep.best(rows) is rows[2]
  with pytest.raises(UserError, match="every candidate diverged .0.1 2."):
    sweep.best([rows[1]])


@pytest.mark.parametrize(
  "kept, said",
  [
    ((0.2, 2), []),
    ((0.1, 2), ["the learning rate kept, 0.1, is the lowest tried"]),
    ((0.3, 1), ["the learning rate kept, 0.3, is the highest tried"]),
    ((0.2, 4), ["the number of passes kept, 4, is the highest tried"]),
  ],
)
def test_an_end_of_the_grid_is_named(kept, said):
  tried = [row(rate, epochs) for rate in (0.1, 0.2, 0.3) for epochs in (1, 2, 4)]
  assert sweep.edges(row(*kept), tried) == said


def test_what_was_made_of_the_kept_run_stays(tmp_path):
  """The command run again finds the candidate it kept; another candidate replaces it."""
  out = tmp_path / "sft"
  for name, loss in (("lr1_e1", 1), ("lr2_e1", 2)):
    folder = out / sweep.CANDIDATES / name
    folder.mkdir(parents=True)
    (folder / "plan.json").write_text(name)
    (folder / "result.json").write_text(f"{loss}")
  sweep.adopt(out / sweep.CANDIDATES / "lr1_e1", out)
  (out / "downstream").mkdir()
  (out / "downstream" / "task.json").write_text("days of work")
  sweep.adopt(out / sweep.CANDIDATES / "lr1_e1", out)
  assert (out / "downstream" / "task.json").read_text() == "days of work"
  (out / "plan.json").unlink()  # what is lost is mended
  sweep.adopt(out / sweep.CANDIDATES / "lr1_e1", out)
  assert (out / "plan.json").read_text() == "lr1_e1"
  sweep.adopt(out / sweep.CANDIDATES / "lr2_e1", out)
  assert sorted(path.name for path in out.iterdir()) == ["candidates", "plan.json", "result.json"]
  assert (out / "result.json").read_text() == "2"


def test_a_grid_of_one_has_no_ends():
  assert sweep.edges(row(0.1, 2), [row(0.1, 2)]) == []


@pytest.mark.parametrize(
  "names",
  [
    ("notes.txt",),
    ("notes.txt", "candidates/"),  # of none tried so far
    ("notes.txt", "candidates/anna.pdf"),  # of another kind
    ("candidates/lr0p1_e2/", "candidates/anna.pdf"),
  ],
)
def test_a_folder_with_other_things_is_not_taken(tmp_path, names):
  """The run that is kept replaces all that the folder holds."""
  for name in names:
    path = tmp_path / name
    path.parent.mkdir(exist_ok=True)
    path.mkdir() if name.endswith("/") else path.touch()
  with pytest.raises(UserError, match="is not empty and holds (no fine-tuned|candidates/anna.pdf)"):
    sweep.check_out(tmp_path)


def test_a_sweep_that_was_interrupted_is_taken(tmp_path):
  sweep.check_out(tmp_path / "new")
  (tmp_path / "candidates").mkdir()
  (tmp_path / "lease").touch()
  sweep.check_out(tmp_path)
  for rate in (0.1, 3, 1e-05, 1e20):
    (tmp_path / "candidates" / candidate_name(rate, 2)).mkdir()
  (tmp_path / "plan.json").touch()
  sweep.check_out(tmp_path)
  with pytest.raises(UserError, match="plan.json is a file"):
    sweep.check_out(tmp_path / "plan.json")


def test_candidates_of_another_run_are_refused(tmp_path, monkeypatch):
  plan = {"finetuning": {"chats_sha256": "c", "base_sha256": "of moe"}}
  (tmp_path / "candidates" / "lr0p1_e2").mkdir(parents=True)
  (tmp_path / "candidates" / "lr0p1_e2" / "plan.json").touch()
  monkeypatch.setattr(sweep.run_folder, "read_json", lambda path: plan)
  sweep.check_candidates(tmp_path, plan["finetuning"])
  with pytest.raises(
    UserError, match="base_sha256=of moe, and now it would be of dense; use anoth"
  ):
    sweep.check_candidates(tmp_path, plan["finetuning"] | {"base_sha256": "of dense"})
