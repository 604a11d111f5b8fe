"""`moe-parity train`."""

from moe_parity.commands.common import (
  config_argument,
  idle_devices,
  on_disk,
  planned,
  process_arguments,
  processes,
  workdir_argument,
  worker_argument,
)
from moe_parity.commands.output import print_lost_text
from moe_parity.errors import UserError

HELP = "train one arm of a config"
ABOUT = """\
Trains one arm of a config. Run the same command again to resume after an interruption.

  moe-parity train --config=configs/demo.py --arm=moe_20 --seed=0 --workdir=runs/moe_20

Writes a run folder: config, plan, metrics, checkpoints, ledger of the windows it read, scores
(result.json) and its certificate.
"""


def arguments(parser) -> None:
  config_argument(parser)
  workdir_argument(parser, "run folder")
  parser.add_argument("--arm", default="", help="which arm; may be left out where there is one")
  parser.add_argument("--seed", type=int, default=None, help="which of the arm's seeds")
  worker_argument(parser)
  process_arguments(parser)


def run(args) -> int:
  on_disk(args.workdir, "train writes into a folder of this machine")
  config, plan, store = planned(args)
  arm = select_run(plan.arms, args.arm, args.seed)
  from moe_parity.config import to_json
  from moe_parity.sharding import multihost
  from moe_parity.startup import start_jax
  from moe_parity.study.certificate import certify_or_recheck
  from moe_parity.study.workers.agreement import check_agreement
  from moe_parity.study.workers.stop_signals import StopSignals

  with StopSignals() as stop:
    start_jax(**processes(args))
    stop.join_processes()
    check_agreement(to_json(config))
    result = _train(args, config, arm, store, stop)
  if not multihost.is_primary():
    return 0
  certificate = certify_or_recheck(args.workdir)
  passed = certificate["passed"]
  validation = result["validation"]
  print(
    f"{arm.name}: {validation['bpc']:.4f} bits per character, {validation['bpb']:.4f} per"
    f" byte ({validation['mode']}); certificate {'passed' if passed else 'FAILED'}"
  )
  for row in certificate["checks"]:
    if not row["passed"]:
      print(f"  {row['name']}: {row['measured']}, expected {row['planned']}")
  print_lost_text(validation)
  return 0 if passed else 1


def select_run(arms, name: str, seed: int | None):
  """The one arm of a plan that has a name and a seed; either may be left out where one fits.

  Raises:
    UserError: none fits, or several do.
  """
  from moe_parity.study.folder import select

  named = select(arms, [name] if name else [], "--arm")
  fit = [arm for arm in named if seed in (None, arm.seed)]
  if len(fit) == 1:
    return fit[0]
  choices = ", ".join(f"--arm={arm.name} --seed={arm.seed}" for arm in fit or named)
  if not fit:
    raise UserError(f"--seed={seed} is no seed of the plan's; choose one of {choices}")
  raise UserError(f"train takes one arm with one seed and {len(fit)} fit; choose one of {choices}")


def _train(args, config, arm, store, stop) -> dict:
  from moe_parity.console import TrainingBars
  from moe_parity.study.certificate import forget_unfinished
  from moe_parity.study.workers.run_lease import leased_everywhere
  from moe_parity.training.control import RunControl
  from moe_parity.training.loop import train_arm

  with TrainingBars() as bars, leased_everywhere(args.workdir, bars.print, args.worker) as lease:
    if lease is not None:
      stop.release = lambda: lease.release("stopped")
      forget_unfinished(args.workdir)
    if note := idle_devices(config):
      bars.print(note)
    on_log = lambda p: bars.update(arm.name, p)  # noqa: E731
    if config.study.learning_rate_grid:
      bars.print(
        f"note: trains at the plan's learning rate, {arm.peak_learning_rate:.4g}; `study` alone"
        " tries those of study.learning_rate_grid"
      )
    control = RunControl(lease.check, stop) if lease else RunControl(stop=stop)
    return train_arm(config, arm, store, args.workdir, on_log, bars.print, control)
