"""`moe-parity study`."""

import json
import sys

from moe_parity import files
from moe_parity.commands.common import (
  config_argument,
  copy_command,
  idle_devices,
  json_argument,
  planned,
  process_arguments,
  processes,
  workdir_argument,
  worker_argument,
)
from moe_parity.commands.output import (
  print_examined,
  print_finetuning,
  print_table,
  print_verdict,
)
from moe_parity.errors import UserError

HELP = "train all arms, certify equal resources, compare"
ABOUT = """\
Trains every arm of a config, recounts N, C and D from the runs' files, compares the arms and
writes the page. Run the same command again to resume; start it several times on one folder to
share the work.

  moe-parity study --config=configs/demo.py --workdir=runs/mine
  moe-parity study --config=configs/demo.py --workdir=runs/mine --dry-run

With finetuning.data and downstream.suite set in the config, every arm is then fine-tuned on chats
and examined on benchmarks.

Writes a study folder: runs/, plan.json, study.json, certificate.json, analysis.json, report/.
Exit status: 0 the study is whole, 1 a run or the certificate failed, 2 the input is wrong, 75 start
it again.
"""


def arguments(parser) -> None:
  config_argument(parser)
  workdir_argument(parser, "study folder; gs://bucket/name too")
  json_argument(parser)
  parser.add_argument(
    "--only", default="", metavar="ARM,ARM", help="train these arms only, with their tries"
  )
  parser.add_argument("--dry-run", action="store_true", help="print the queue and train nothing")
  parser.add_argument(
    "--list-runs", action="store_true", help="print the runs with their numbers and train nothing"
  )
  parser.add_argument(
    "--run", dest="run_number", type=int, default=None, metavar="K",
    help="train the K-th run of --list-runs only, for schedulers that start one job per run",
  )  # fmt: skip
  parser.add_argument(
    "--shard", default="1/1", metavar="I/N", help="this is worker I of N on the same study folder"
  )
  parser.add_argument(
    "--leases",
    "--claims",
    default="",
    metavar="PLACE",
    help="where workers note what they train (in the study); gs:// too",
  )
  parser.add_argument(
    "--stale-after", type=float, default=300.0, metavar="SECONDS",
    help="seconds without a heartbeat, after which a worker's arm is taken over (300)",
  )  # fmt: skip
  worker_argument(parser)
  process_arguments(parser)


def run(args) -> int:
  from moe_parity.study.workers.shard import Shard

  args.shard = Shard.parse(args.shard)
  if args.dry_run and args.list_runs:
    raise UserError("--dry-run and --list-runs print two different lists; give one of them")
  config, _, store = planned(args)
  only = [name for name in args.only.split(",") if name]
  if args.list_runs:
    return list_runs(args, config, store, only)
  if args.dry_run:
    return dry_run(args, config, store, only)
  return run_and_judge(args, config, store, only)


def open_study(args, config, store, several_processes=False):
  """The study of a command's arguments; those that a command does not have are left at their
  defaults."""
  from moe_parity.study.folder import StudyFolder

  given = {"leases": getattr(args, "leases", ""), "command": args.command}
  given["worker"] = getattr(args, "worker", "")
  if hasattr(args, "stale_after"):
    given["stale_seconds"] = args.stale_after
  if not isinstance(args.workdir, str):
    return StudyFolder(config, store, args.workdir, **given)
  from moe_parity.study.workers.bucket_study import BucketStudy

  return BucketStudy(config, store, args.workdir, several_processes=several_processes, **given)


def list_runs(args, config, store, only) -> int:
  """Prints every run that is known by now with its number and status."""
  from moe_parity.study.folder import tasks_of

  study = open_study(args, config, store)
  tasks = tasks_of(study.derive(write=False), only)
  rows = [
    {
      "run": k,
      "comparison": task.comparison.name,
      "arm": task.arm.name,
      "seed": task.arm.seed,
      "folder": task.run,
      "status": study.status(task.run)[0],
    }
    for k, task in enumerate(tasks)
  ]
  print(json.dumps(rows, indent=2)) if args.json else print_table(rows)
  return 0


def chosen_runs(args, study, only) -> list[str]:
  """Folders of the runs that this worker may train: all, or the one of --run.

  Raises:
    UserError: there is no such run, or results decide what else is to be trained.
  """
  from moe_parity.study.folder import tasks_of

  runs = [task.run for task in tasks_of(study.derive(), only)]
  k = getattr(args, "run_number", None)
  if k is None:
    return []
  if study.staged:
    raise UserError(
      f"--run={k}: results decide which runs this study has (study.method, learning rates that are"
      " tried); start workers without --run"
    )
  if not 0 <= k < len(runs):
    raise UserError(f"--run={k}: the runs are 0 to {len(runs) - 1}; --list-runs prints them")
  return [runs[k]]


def dry_run(args, config, store, only) -> int:
  """Prints the queue, and what it rests on."""
  from moe_parity.console import duration
  from moe_parity.startup import start_jax
  from moe_parity.study import tuning
  from moe_parity.study.folder import tasks_of
  from moe_parity.study.methods.method import method_of
  from moe_parity.study.workers.eta import remaining_runs
  from moe_parity.training.peak_flops import measure_peak_flops

  start_jax()
  study = open_study(args, config, store)
  study.derive(write=False)
  peak_flops = lambda: measure_peak_flops(config.model.dtype)  # noqa: E731
  rows, notes = remaining_runs(study, tasks_of(study.comparisons, only), peak_flops)
  if method := method_of(config):
    notes += method.pending_notes(config, study.comparisons)
  notes += tuning.pending_notes(config, study.comparisons)
  if config.finetuning.data:
    from moe_parity.study.finetuning import pending_note

    notes += filter(None, [pending_note(config, study.comparisons)])
  if args.json:
    print(json.dumps(rows, indent=2))
    return 0
  shown = [{k: v for k, v in row.items() if k != "hours"} for row in rows]
  print_table([s | {"time": duration(r["hours"])} for s, r in zip(shown, rows, strict=True)])
  for note in notes:
    print(f"note: {note}")
  return 0


def run_and_judge(args, config, store, only) -> int:
  """Trains what is not done, then certifies, analyzes and writes the page."""
  from moe_parity.config import to_json
  from moe_parity.report.page import write_report
  from moe_parity.sharding import multihost
  from moe_parity.startup import start_jax
  from moe_parity.study.workers import leaving
  from moe_parity.study.workers.agreement import check_agreement
  from moe_parity.study.workers.multi_process import run_follower, stop_followers
  from moe_parity.study.workers.stop_signals import StopSignals

  with StopSignals() as stop:
    start_jax(**processes(args))
    stop.join_processes()
    check_agreement(to_json(config))
    exam = _open_exam(args, config, stop.several_processes)
    if stop.several_processes and isinstance(args.workdir, str) and config.finetuning.data:
      raise UserError(
        f"--workdir={args.workdir}: fine-tuning reads a trained run from a disk that all processes"
        " see; give a network disk, or start workers of one process each"
      )
    if not multihost.is_primary():
      run_follower(store, stop)
      return 0
    study = open_study(args, config, store, stop.several_processes)
    stop.release = lambda: study.leases.release_all("stopped")
    runs = chosen_runs(args, study, only)
    arms = _run(args, study, only, runs, stop)
    stop_followers()
    rescore(args, study)
    step = study.summarize()
    tuned = study.summarize_finetuning()
    examined = _examined(study, exam)
  write_report(study.folder)
  analysis = files.read_json(study.folder / "analysis.json")
  page = study.publish()
  if args.json:
    print(json.dumps(analysis, indent=2))
  else:
    print_verdict(analysis, page, step)
  passed = analysis["certificate"]["passed"]
  if tuned is not None:
    passed = False if tuned["passed"] is False else passed
    if not args.json:
      print_finetuning(tuned)
  if examined is not None:
    passed = False if examined["failed"] else passed
    if not args.json:
      print_examined(examined)
  if running := [arm.name for arm in arms if arm.status == "running"]:
    print(f"with other workers still: {', '.join(running)}; the report grows when they are done")
  asked, to_come = leaving.asked_for(study, arms, only, runs)
  words, is_alone = leaving.awaiting(study, to_come)
  if words:
    print(words, file=sys.stderr if args.json else sys.stdout)
  return leaving.exit_code(asked, passed, bool(to_come), is_alone)


def rescore(args, study) -> None:
  """Scores some documents of every finished run again; see `study/rescoring.py`. A study on a
  bucket has not all its checkpoints here, and its page says that nothing was scored again."""
  from moe_parity.study import certificate

  if not isinstance(args.workdir, str):
    for comparison in study.comparisons:
      certificate.rescore_study(study.folder / comparison.folder)


def _open_exam(args, config, several_processes):
  """The benchmarks that end the study, read before it begins; None for none.

  Raises:
    UserError: a task that is not there, or a study that cannot be examined where it runs.
  """
  from moe_parity.study.examination import is_wanted, open_study_exam

  if not is_wanted(config):
    return None
  if several_processes or isinstance(args.workdir, str):
    on_bucket = isinstance(args.workdir, str)
    where = f"--workdir={args.workdir}" if on_bucket else "several processes"
    folder = args.workdir.rstrip("/").rpartition("/")[2] if on_bucket else args.workdir
    copied = f" copied to a disk ({copy_command(args.workdir)})" if on_bucket else ""
    raise UserError(
      f"config.downstream with {where}: examinations need a study on a disk and one process a"
      " worker; leave its suite and tasks empty, and when the study is done run, in one process,"
      f" `moe-parity downstream {folder} --suite=...` on it{copied}"
    )
  return open_study_exam(config, args.workdir)


def _examined(study, exam) -> dict | None:
  """What downstream.json holds, when this worker is done with the last stage; None without it."""
  from moe_parity.study.examination import examine_study

  if exam is None:
    return None
  return examine_study(study, exam, lambda line: print(line, file=sys.stderr, flush=True))


def _run(args, study, only, runs, stop) -> list:
  """The study's arms, after this worker trained what it could."""
  from moe_parity.console import TrainingBars
  from moe_parity.study.folder import tasks_of
  from moe_parity.study.workers.multi_process import broadcasting_actions
  from moe_parity.study.workers.runner import RunActions, run_study
  from moe_parity.study.workers.shard import Shard

  shard = getattr(args, "shard", Shard(1, 1))
  tasks = tasks_of(study.derive(), only)
  before = {task.run for task in tasks if study.status(task.run)[0] == "done"}
  seen = set()
  with TrainingBars() as bars:

    def show(task, progress) -> None:
      if task.run not in seen:  # a stage may have added runs
        seen.add(task.run)
        left = (t for t in tasks_of(study.comparisons, only) if t.run not in before)
        bars.plan({t.label: t.arm.train_flops for t in left})
      bars.update(task.label, progress)

    if note := idle_devices(study.config):
      bars.print(note)
    return run_study(
      study,
      only=only,
      runs=runs,
      shard=shard,
      on_log=show,
      log=bars.print,
      actions=broadcasting_actions(RunActions()),
      stop=stop,
    )
