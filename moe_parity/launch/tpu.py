"""`launch/tpu.sh`: asks for TPU slices that train a study, watches, stops and removes them."""

import argparse
import time
from collections.abc import Sequence

from moe_parity.errors import UserError
from moe_parity.launch import tpu_look, tpu_plan, tpu_requests, tpu_states
from moe_parity.launch.commands import (
  ROOT,
  Shell,
  action_parsers,
  check_owner,
  cloud_name,
  command,
  moe_parity_command,
  need,
  option_of,
  owner,
  say,
)
from moe_parity.launch.tpu_slices import Slices
from moe_parity.launch.tpu_states import Held

HELP = "TPU slices: asks for them, runs a study on them, gives them back"
EXAMPLE = (
  "bash launch/tpu.sh up --type=v6e-16 --slices=4 --spot --project=P --zone=us-east5-b --hours=12"
  " -- study --config=configs/paper_2b.py --workdir=gs://B/a"
)


def arguments(parser: argparse.ArgumentParser) -> None:
  """The subcommands and their options."""
  for sub in action_parsers(parser, ACTIONS):
    sub.add_argument("--project", required=True, help="Google Cloud project")
    sub.add_argument("--zone", required=True, help="for example us-east5-b")


def run(args: argparse.Namespace) -> int:
  """Runs one subcommand; its exit code."""
  if not args.dry_run:
    need("gcloud")
  return ACTIONS[args.action][2](args)


def _study_option(sub: argparse.ArgumentParser) -> None:
  sub.add_argument("--name", required=True, help="of the study: the last part of its workdir")
  _api_option(sub)


def _api_option(sub: argparse.ArgumentParser) -> None:
  sub.add_argument(
    "--api", choices=("tpu", "gce"), default="tpu",
    help="tpu: queued resources (v5e, v5p, v6e); gce: instance groups (v5p, v6e, tpu7x)",
  )  # fmt: skip


def _up_options(sub: argparse.ArgumentParser) -> None:
  add = sub.add_argument
  add("--type", required=True, help="of a slice: v6e-16, v5p-64, v5e-16, tpu7x-64")
  add("--slices", type=int, default=1, help="independent workers on one study (1)")
  add("--hours", type=float, default=12, help="a slice deletes itself after so long (12)")
  add("--wait-hours", type=float, default=24, help="a request waits for chips so long (24)")
  add("--name", default="", help="of the study (the last part of --workdir)")
  kind = sub.add_mutually_exclusive_group()
  kind.add_argument("--spot", action="store_true", help="chips that may be taken away at any time")
  kind.add_argument("--reserved", action="store_true", help="chips of a reservation")
  add(
    "--price",
    type=float,
    metavar="USD",
    help="of a chip-hour; prints the most that the slices may cost",
  )
  add("--service-account", default="", metavar="EMAIL", help="that the hosts act as")
  add("--network", default="")
  add("--subnetwork", default="")
  add("--image", default="", metavar="PROJECT/FAMILY", help="of the hosts; needed by --api=gce")
  add("--any-region", action="store_true", help="take a bucket in another region")
  add("--ignore-changes", action="store_true", help="launch the commit, without what is changed")
  add("--watch", action="store_true", help="stay, and ask again for slices that are taken away")
  add("--yes", action="store_true", help="ask for the slices; without it nothing is asked for")
  _api_option(sub)
  add("rest", nargs=argparse.REMAINDER, metavar="-- study ...")


def _logs_options(sub: argparse.ArgumentParser) -> None:
  sub.add_argument("--workdir", required=True, help="of the study, gs://bucket/name")
  sub.add_argument("--slice", default="*", metavar="K", help="one slice (all)")
  sub.add_argument("--host", default="0", metavar="I", help="a host of it, or * (0)")


def _all_options(sub: argparse.ArgumentParser) -> None:
  _study_option(sub)
  sub.add_argument("--everyone", action="store_true", help="also slices that colleagues asked for")


def _ssh_options(sub: argparse.ArgumentParser) -> None:
  _study_option(sub)
  sub.add_argument("--slice", type=int, default=1, metavar="K")
  sub.add_argument("--host", default="0", metavar="I", help="a number, or all with --command (0)")
  sub.add_argument("--command", default="", help="run this instead of a shell")


def _sweep_options(sub: argparse.ArgumentParser) -> None:
  sub.add_argument("--everyone", action="store_true", help="also what colleagues left behind")
  sub.add_argument("--yes", action="store_true", help="delete; without it they are only listed")


def up(args: argparse.Namespace) -> int:
  """Looks, ships the commit, asks for the slices that are not there."""
  words = moe_parity_command(args.rest, only=("study",))
  shell = Shell(dry_run=args.dry_run)
  head = shell.ask(command("git", "-C", ROOT, "rev-parse", "HEAD"))
  if head.code:
    raise UserError(f"this is no git checkout ({head.why}); launch from a clone of the repository")
  requests = tpu_plan.plan(args, words, head.out.strip(), int(time.time()))
  bucket = option_of(words, "workdir").split("/")[2]
  looks = tpu_look.looks(
    api=args.api, project=args.project, zone=args.zone, bucket=bucket,
    ignore_changes=args.ignore_changes,
  )  # fmt: skip
  shipping = tpu_plan.ship(head.out.strip(), requests[0].metadata["moe-parity-code"])
  slices = Slices(shell, args.api, args.project, args.zone)
  if args.dry_run:
    lines = [*(look.line for look in looks), *slices.listing(), *shipping]
    for line in [*lines, *(line for r in requests for line in tpu_requests.create(r))]:
      print(line.shown())
    say(tpu_plan.cost(requests, args.price))
    return 0
  findings = [look.judge(shell.ask(look.line)) for look in looks]
  if config := option_of(words, "config"):
    findings.append(tpu_look.fits(ROOT / "results", config, requests[0].slice_type))
  judge(findings, args.any_region)
  say(tpu_plan.cost(requests, args.price))
  if not args.yes:
    say("nothing was asked for; the same command with --yes asks for the slices")
    return 0
  for line in shipping:
    shell.run(line)
  slices.ask_for(requests)
  say(f"watch: bash launch/tpu.sh status --project={args.project} --zone={args.zone}")
  return slices.watch(requests) if args.watch else 0


def judge(findings: Sequence[tpu_look.Finding], any_region: bool) -> None:
  """Prints what was found.

  Raises:
    UserError: an obstacle; all of them are in the message.
  """
  obstacles = []
  for finding in findings:
    allowed = any_region and "--any-region" in finding.mend
    stops = bool(finding.mend) and not finding.warning and not allowed
    say(f"{'no' if stops else '--' if finding.mend else 'ok'}  {finding.what}")
    if finding.mend:
      say(f"      {finding.mend}")
    if stops:
      obstacles.append(f"{finding.what}; {finding.mend}")
  if obstacles:
    raise UserError("nothing was asked for. " + " | ".join(obstacles))


def status(args: argparse.Namespace) -> int:
  """Prints our slices in the zone, of both APIs."""
  shell, held = Shell(dry_run=args.dry_run), []
  for api in ("tpu", "gce"):
    slices = Slices(shell, api, args.project, args.zone)
    if args.dry_run:
      for line in slices.listing():
        print(line.shown())
    else:
      held += slices.held()
  if args.dry_run:
    return 0
  now = time.time()
  for one in held:
    left = f"expires in {(one.expires - now) / 3600:.1f} h" if one.expires else "no expiry"
    print(f"{one.name}  {one.state}  {one.owner}  {left}  ({tpu_states.meaning(one.state)})")
  if not held:
    print("no slices of moe_parity")
  return 0


def logs(args: argparse.Namespace) -> int:
  """Prints the ends of the logs that hosts wrote into the bucket."""
  name = cloud_name(args.workdir.rstrip("/").split("/")[-1])
  place = f"{args.workdir.rstrip('/')}/launch/logs/{name}-{args.slice}/host-{args.host}-*"
  line = command("gcloud", "storage", "cat", "--display-url", "--range=-4000", place)
  Shell(dry_run=args.dry_run).run(line, stream=True)
  return 0


def ssh(args: argparse.Namespace) -> int:
  """Opens a shell on a host, or runs a command there."""
  slices = Slices(Shell(dry_run=args.dry_run), args.api, args.project, args.zone)
  for line in slices.ssh(f"{cloud_name(args.name)}-{args.slice}", args.host, args.command):
    slices.shell.run(line, stream=True)
  return 0


def _held(args: argparse.Namespace, slices: Slices) -> list[Held]:
  """The slices of the study that is named.

  Raises:
    UserError: some are another person's, and --everyone is not given.
  """
  held = slices.of(cloud_name(args.name))
  if not args.everyone:
    check_owner([one.owner for one in held], args.name, args.action)
  if not held:
    say(
      f"{args.name} has no slices of --api={args.api} in {args.zone}; 'status' lists those of"
      " both APIs"
    )
  return held


def stop(args: argparse.Namespace) -> int:
  """Stops the workers of a study: they save a checkpoint. The chips stay, and are paid for."""
  slices = Slices(Shell(dry_run=args.dry_run), args.api, args.project, args.zone)
  for held in _held(args, slices):
    for line in slices.ssh(held.name, "all", "sudo systemctl stop moe-parity"):
      slices.shell.run(line, stream=True)
  return 0


def down(args: argparse.Namespace) -> int:
  """Deletes every slice of a study, and waits until none is listed."""
  slices = Slices(Shell(dry_run=args.dry_run), args.api, args.project, args.zone)
  held = _held(args, slices)
  slices.remove([one.name for one in held])
  if held and not args.dry_run:
    say(f"{len(held)} slices of {args.name} are gone")
  return 0


def sweep(args: argparse.Namespace) -> int:
  """Removes what is past its expiry, suspended or failed."""
  shell, now, me = Shell(dry_run=args.dry_run), time.time(), owner()
  for api in ("tpu", "gce"):
    slices = Slices(shell, api, args.project, args.zone)
    mine = [one for one in slices.held() if args.everyone or one.owner == me]
    reasons = {one.name: why for one in mine if (why := tpu_states.why_sweep(one, now))}
    for name, why in reasons.items():
      say(f"{name}: {why}")
    if args.yes or args.dry_run:
      slices.remove(list(reasons))
    elif reasons:
      say("nothing was deleted; the same command with --yes deletes them")
  return 0


def _no_options(sub: argparse.ArgumentParser) -> None:
  del sub


ACTIONS = {
  "up": ("asks for slices and runs a study on them; again: for those taken away", _up_options, up),
  "status": ("our slices in the zone", _no_options, status),
  "logs": ("the ends of the hosts' logs", _logs_options, logs),
  "ssh": ("a shell on a host", _ssh_options, ssh),
  "stop": ("stops the workers; the chips stay, and are paid for", _all_options, stop),
  "down": ("deletes a study's slices", _all_options, down),
  "sweep": ("removes slices that are expired, suspended or failed", _sweep_options, sweep),
}
