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
  from moe_parity.study.folder import select

  arms = select(plan.arms, [args.arm] if args.arm else [], "--arm")
  if args.seed is not None:
    arms = [arm for arm in arms if arm.seed == args.seed]
  if len(arms) != 1:
    choices = ", ".join(f"--arm={arm.name} --seed={arm.seed}" for arm in plan.arms)
    raise UserError(f"train takes one arm and {len(arms)} fit; choose one of {choices}")
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
    result = _train(args, config, arms[0], store, stop)
  if not multihost.is_primary():
    return 0
  certificate = certify_or_recheck(args.workdir)
  passed = certificate["passed"]
  validation = result["validation"]
  print(
    f"{arms[0].name}: {validation['bpc']:.4f} bits per character, {validation['bpb']:.4f} per"
    f" byte ({validation['mode']}); certificate {'passed' if passed else 'FAILED'}"
  )
  for row in certificate["checks"]:
    if not row["passed"]:
      print(f"  {row['name']}: {row['measured']}, expected {row['planned']}")
  print_lost_text(validation)
  return 0 if passed else 1


def _train(args, config, arm, store, stop) -> dict:
  from moe_parity.console import TrainingBars
  from moe_parity.study.workers.run_lease import leased_everywhere
  from moe_parity.training.control import RunControl
  from moe_parity.training.loop import train_arm

  with TrainingBars() as bars, leased_everywhere(args.workdir, bars.print, args.worker) as lease:
    if lease is not None:
      stop.release = lambda: lease.release("stopped")
    if note := idle_devices(config):
      bars.print(note)
    on_log = lambda p: bars.update(arm.name, p)  # noqa: E731
    control = RunControl(lease.check, stop) if lease else RunControl(stop=stop)
    return train_arm(config, arm, store, args.workdir, on_log, bars.print, control)
