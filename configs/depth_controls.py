"""Does a dense model of better shape explain the lead of MoE in depth.py?

  moe-parity plan  --config=configs/depth_controls.py
  moe-parity study --config=configs/depth_controls.py --workdir=runs/more --config.data.source=STORE
  moe-parity study --config=configs/depth_controls.py:tiny --workdir=runs/tiny_more

The second with --config.data.tokenizer=store; STORE is that of depth.py. Dense, the best MoE arm
and the control of its active size are those of depth.py at 5 bytes a parameter. Beside them stand
two dense models of a half and a quarter of N that are wider for their depth than the ones there.
All try the learning rates that were tried there and have three seeds. 45 runs, half an hour on one
CPU core."""

from configs.depth import SHAPES
from moe_parity.config import parse_arg
from moe_parity.defaults import base, dense_arm, moe_arm

SIZE, TOKENS_PER_PARAM, RATE = 200, 5, 0.2  # thousands of parameters; the best MoE arm's rate
WIDE = ((0.25, 2, 48), (0.5, 2, 64))  # times N, layers, d_model
LEARNING_RATES = (0.002, 0.004, 0.008, 0.016, 0.032, 0.064)  # what the grid of depth.py grew to


def get_config(arg=None):
  arg = parse_arg(arg, tiny=False)
  config = base()
  config.name = "depth_controls"
  budget = config.budget
  budget.num_params = 1000 * SIZE
  budget.dense_tokens = 20_000 if arg.tiny else TOKENS_PER_PARAM * budget.num_params
  budget.seq_len = 64 if arg.tiny else 128
  budget.reuse = "strict"
  budget.convention = "executed"
  dense, moe = SHAPES[SIZE]
  config.arms.dense = dense_arm(**dense, d_head=16, multiple_of=1)
  config.arms.moe_20 = moe_arm(RATE, **moe, d_head=16, multiple_of=2)
  config.arms.dense_active = dense_arm(active_of="moe_20", multiple_of=1)
  for multiple, layers, width in WIDE:
    name = f"dense_{multiple:g}_{layers}x{width}".replace(".", "p")
    config.arms[name] = dense_arm(
      params_multiple=multiple, num_layers=layers, d_model=width, d_head=16, multiple_of=1
    )
  for name in config.arms:
    config.arms[name].seeds = (0,) if arg.tiny else (0, 1, 2)
  config.study.learning_rate_grid = LEARNING_RATES[:2] if arg.tiny else LEARNING_RATES
  config.study.grid_extensions = 0
  config.data.draw_per_seed = True
  config.train.log_every = 50
  config.evaluation.max_tokens = 5_000 if arg.tiny else 0
  return config
