"""What `bench --only=startup` starts is one run of the demo each time."""

import pytest

from moe_parity import cli
from moe_parity.api.plans import planned
from moe_parity.benchmarks import startup
from moe_parity.commands.common import load_config
from moe_parity.commands.train import select_run


@pytest.mark.parametrize("arm", startup.ARMS)
def test_a_first_loss_is_that_of_one_run(arm, tmp_path):
  args, args.overrides = cli._parser().parse_known_args(startup.train_arguments(arm, tmp_path))
  run = select_run(planned(load_config(args)).arms, args.arm, args.seed)
  assert (run.name, run.seed) == (arm, 0)
