"""What each fault of the docs' page does at another version: `python -m tests.faults_before`.

  git worktree add ../before e810754
  python -m tests.faults_before --code=../before --scratch=/tmp/before

Writes results/faults_before.json, from which docs/quote_faults.py makes a column. A row whose
result is in the scratch folder is not run again, so that rows may be run in several goes.
"""

import argparse
import datetime
import pathlib
import subprocess
import sys

from moe_parity import files
from tests.faults_before import data_rows, run_rows
from tests.faults_before.code import NOT_RUN, Code

ROOT = pathlib.Path(__file__).resolve().parents[2]
ROWS = {  # key in docs/quote_faults.py -> its input; a text says why it cannot be run
  "json_endings": data_rows.json_endings,
  "changed_text_resume": run_rows.changed_text_resume,
  "changed_text_scored": run_rows.changed_text_scored,
  "learned_nothing": run_rows.learned_nothing,
  "added_tokens": data_rows.added_tokens,
  "lossy_tokenizer": data_rows.lossy_tokenizer,
  "separator_merge": data_rows.separator_merge,
  "bad_row": data_rows.bad_row,
  "folders_skipped": data_rows.folders_skipped,
  "keys_ignored": data_rows.keys_ignored,
  "domain_dots": data_rows.domain_dots,
  "contamination_scripts": data_rows.contamination_scripts,
  "flipped_checkpoint": run_rows.flipped_checkpoint,
  "lost_metrics": run_rows.lost_metrics,
  "loss_by_kills": run_rows.loss_by_kills,
  "arm_decides": run_rows.arm_decides,
  "records_twice": data_rows.records_twice,
  "control_names": data_rows.control_names,
  "sigterm": run_rows.sigterm,
  "live_declared_gone": run_rows.live_declared_gone,
  "zombie": "it takes a worker stopped within its last evaluation and one that takes it over",
  "two_trains": run_rows.two_trains,
  "evaluation_typo": run_rows.evaluation_typo,
  "lost_process": run_rows.lost_process,
  "unbroken_text": data_rows.unbroken_text,
  "temporary_race": run_rows.temporary_race,
  "clocks": run_rows.clocks,
  "own_abort": "its workers did not handle aborts yet",
  "between_two_looks": "its workers left whatever others were at",
  "deep_json": data_rows.deep_json,
  "shapes": run_rows.shapes,
  "one_name_twice": run_rows.one_name_twice,
  "any_manifest": data_rows.any_manifest,
  "lost_lines": run_rows.lost_lines,
  "places": run_rows.places,
  "config_numbers": run_rows.config_numbers,
  "one_damaged_run": run_rows.one_damaged_run,
  "short_validation": run_rows.short_validation,
  "folder_names": run_rows.folder_names,
  "option_names": data_rows.option_names,
  "store_in_source": data_rows.store_in_source,
  "names_lead_out": data_rows.names_lead_out,
  "markup": run_rows.markup,
  "fetches": run_rows.fetches,
  "unpickled": run_rows.unpickled,
}


def main() -> int:
  parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
  parser.add_argument("--code", type=pathlib.Path, required=True, help="a checkout of e810754")
  parser.add_argument("--scratch", type=pathlib.Path, required=True, help="folder for inputs")
  parser.add_argument(
    "--only", default="", metavar="ROW,ROW", help="these rows; results not written"
  )
  parser.add_argument("--out", type=pathlib.Path, default=ROOT / "results" / "faults_before.json")
  args = parser.parse_args()
  chosen = args.only.split(",") if args.only else list(ROWS)
  code, found = Code(args.code, args.scratch), {}
  (args.scratch / "done").mkdir(parents=True, exist_ok=True)
  for key in chosen:
    record = args.scratch / "done" / f"{key}.json"
    if not record.is_file():
      files.write_json(record, _run(ROWS[key], code))
      print(key, record.read_text(), flush=True)
    found[key] = files.read_json(record)
  if not args.only:
    commit = subprocess.check_output(["git", "-C", code.folder, "rev-parse", "--short", "HEAD"])
    files.write_json(args.out, {
      "commit": commit.decode().strip(), "rows": found,
      "when": datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
    })  # fmt: skip
  return 0


def _run(row, code: Code) -> dict:
  if isinstance(row, str):
    return {"verdict": NOT_RUN, "said": row}
  what, said = row(code)
  return {"verdict": what, "said": said}


if __name__ == "__main__":
  sys.exit(main())
