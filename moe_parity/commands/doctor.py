"""`moe-parity doctor`."""

import json

from moe_parity.commands.common import json_argument, place
from moe_parity.commands.output import print_table
from moe_parity.launch.exit_codes import MEND_INPUT, WHOLE

HELP = "check this machine and a location for studies, and say how to fix what is missing"
ABOUT = """\
Checks Python, JAX, devices, driver and disk, and with --workdir whether that place can be
read, written and used for leases (compare-and-swap).

  moe-parity doctor
  moe-parity doctor --workdir=gs://bucket/study --json

Exit status: 0 all is well, 2 something must be fixed.
"""


def arguments(parser) -> None:
  parser.add_argument("--workdir", type=place, default=None, help="a place for studies; gs:// too")
  parser.add_argument(
    "--skip-devices", action="store_true", help="do not open the devices: another process has them"
  )
  json_argument(parser)


def run(args) -> int:
  from moe_parity.study.workers.checkup import checkup

  findings = checkup(args.workdir, not args.skip_devices)
  if args.json:
    print(json.dumps([finding._asdict() for finding in findings], indent=2))
  else:
    print_table([
      {"what": f.what, "": "ok" if f.ok else "MEND", "found": f.found, "mend by": f.mend}
      for f in findings
    ])  # fmt: skip
  return WHOLE if all(finding.ok for finding in findings) else MEND_INPUT
