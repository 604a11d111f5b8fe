"""What the JSON files of a study folder hold, but for the analysis: `analysis_file`."""

from moe_parity.fields.choices import CONVENTIONS, HELD_FIXED, REUSE
from moe_parity.fields.kinds import Choice
from moe_parity.fields.table import ARM_NAME, SEED
from moe_parity.stored.run_files import (
  AMOUNT,
  ARM_PLAN,
  CHAT_SCORE,
  COUNT,
  INTERVAL,
  KIND,
  RATE,
  ROLE,
)

STATUSES = ("done", "running", "pending", "failed", "missing")
STATUS = Choice(STATUSES)
NOT_FINITE = "NotFiniteError"  # `failure` of a run that diverged: the name of its error's class
_HELD = {"held_fixed?": Choice(HELD_FIXED), "shared?": Choice(HELD_FIXED)}  # shared: formerly
PLAN = {
  "name?": str, "notes?": [str], "arms": [ARM_PLAN],
  "budget": _HELD | {
    "num_params": COUNT, "train_flops": AMOUNT, "num_unique_tokens": COUNT, "equal_data?": bool,
    "dense_tokens?": int, "seq_len": COUNT, "reuse": Choice(REUSE), "epochs?": float,
    "convention?": Choice(CONVENTIONS), "params_tolerance?": RATE, "flops_tolerance?": RATE,
    "batch_multiple?": int,
  },
}  # fmt: skip
STUDY = {
  "name": str, "created?": str, "command?": str, "config": {}, "versions?": {str: str},
  "data?": {
    "train_sha256?": str, "validation_sha256?": str, "text_lost?": {str: {str: float}},
    "tokenizer?": {"name?": str, "fingerprint?": str, "vocab_size?": int, "bos_id?": object,
                   "eos_id?": object, "pad_id?": object},
  },
  "arms": [{"name": ARM_NAME, "seed": SEED, "folder?": str, "status": STATUS, "error?": str,
            "failure?": str}],
}  # fmt: skip

# finetuning.json of a study, and of one fine-tuned run (`moe-parity sft`).
_TRIED = {
  "candidate": str, "learning_rate": AMOUNT, "epochs": COUNT,
  "cross_entropy?": float, "bpc?": float, "text_bpc?": float,  # null: it diverged
}  # fmt: skip
_OF_ARM = {
  "name": ARM_NAME, "comparison?": str, "seed": SEED, "kind": KIND, "role": ROLE, "base": str,
  "activation_rate": RATE, "tried": [_TRIED],
}  # fmt: skip
_CHOSEN = {
  "chosen": str, "edges": [str], "learning_rate": AMOUNT, "epochs": COUNT, "folder": str,
  "before": CHAT_SCORE, "after": CHAT_SCORE, "text_bpc_after": float,
}  # fmt: skip
_BEFORE = {"text_bpc_before?": float}
FINETUNING = {
  "candidates": [str], "complete": bool, "passed?": bool, "chosen": [_OF_ARM | _CHOSEN | _BEFORE],
  "arms": [_OF_ARM | {f"{name}?": shape for name, shape in _CHOSEN.items()} | _BEFORE],
  "chats?": {
    "baseline": str, "num_chats": int,
    "arms": [{"name": str, "num_seeds": COUNT, "bpc": float, "interval?": INTERVAL}],
    "comparisons": [{"name": str, "difference": float, "interval?": INTERVAL,
                     "simultaneous?": INTERVAL, "verdict": str}],
  },
}  # fmt: skip
SWEEP = {"chosen": str, "candidates": [_TRIED]}

# The paper's three steps.
_NOISE = {"sd?": float, "df": float, "min_seeds?": int, "max_seeds?": int}
_NUM_RUNS = {"moe": int, "dense": int}
_SIDE = {"moe?": int, "dense?": int}
_OPTION = {
  "arm": str, "label": str, "layout": str, "num_layers": COUNT, "d_model": COUNT, "d_ffn": int,
  "num_heads": COUNT, "d_head": COUNT, "num_experts": int, "experts_per_token": int,
  "d_expert": int, "d_shared": int, "num_params": COUNT, "num_active_params": COUNT,
  "activation_rate": RATE, "forward_flops_per_token": AMOUNT, "train_flops_per_token": AMOUNT,
  "train_flops": AMOUNT, "num_tokens": COUNT, "gates": str, "kappa": AMOUNT,
  "aspect_ratio": AMOUNT, "ffn_ratio": float, "total_ffn_ratio?": float, "shared_expert": bool,
  "loss?": float, "balance_loss?": float, "bpc?": float, "num_seeds": int, "difference?": float,
  "simultaneous?": INTERVAL, "interval?": INTERVAL, "verdict": str, "routed_scale?": str,
  "peak_learning_rate?": AMOUNT,
}  # fmt: skip
ARCHITECTURE_STEP = {
  "method": Choice(("architecture",)), "level": RATE, "rule": str, "backbone?": _OPTION,
  "dense_backbone?": _OPTION, "num_arms": _SIDE, "num_runs": _NUM_RUNS, "noise": _NOISE,
  "between?": {"difference": float, "interval?": INTERVAL}, "headline?": str, "sentences": [str],
  "stages": [{
    "name": str, "kind": KIND, "question": str, "complete": bool, "incumbent": str,
    "chosen?": str, "tie": bool, "options": [_OPTION], "skipped": [{"label": str, "why": str}],
  }],
}  # fmt: skip
_LINE = {"slope": float, "intercept?": float, "interval?": INTERVAL, "r2?": float}
OPTIMUM = {
  "activation_rate": AMOUNT, "bpc": float, "interval?": INTERVAL, "open_below": bool,
  "open_above": bool, "at_edge": str, "bracketed": bool, "share_lower_edge?": RATE,
  "share_upper_edge?": RATE,
}  # fmt: skip
RANGES = [INTERVAL]
BELOW = [{"baseline": str, "compute_multiple": AMOUNT, "ranges": RANGES, "surely?": RANGES}]
_SWEPT = {
  "name": ARM_NAME, "kind": KIND, "role": ROLE, "activation_rate": RATE, "num_seeds": int,
  "bpc?": float, "interval?": INTERVAL, "seed_sd?": float, "loss?": float,
  "train_flops_per_token": AMOUNT, "train_flops": AMOUNT, "num_tokens": COUNT,
  "num_unique_tokens": COUNT, "epochs": AMOUNT, "compute_multiple": AMOUNT,
}  # fmt: skip
_TUNED = {
  "name": str, "learning_rate_multiplier": AMOUNT, "batch_sequences": COUNT,
  "peak_learning_rate": AMOUNT, "bpc": float, "num_seeds": int,
}  # fmt: skip
ACTIVATION_RATE_STEP = {
  "method": Choice(("activation_rate",)), "level": RATE, "metric?": str, "sentences": [str],
  "num_runs": _NUM_RUNS, "noise?": _NOISE,
  "stages": [{"name": str, "arms": [str], "complete": bool}],
  "sweeps": [{
    "part": str, "held": Choice(HELD_FIXED), "num_params": COUNT, "train_flops?": AMOUNT,
    "dense_tokens": int, "reuse": Choice(REUSE), "arms": [_SWEPT], "optimum?": OPTIMUM,
    "below": BELOW, "log_log?": _LINE | {"y": str, "num_arms": int, "monotone": bool},
    "flops_linear?": _LINE, "not_done": [str],
  }],
  "transfer?": {
    "sizes": [COUNT],
    "optima": [{"num_params": COUNT, "activation_rate": AMOUNT, "interval?": INTERVAL,
                "bracketed": bool}],
    "pairs": [{"num_params": (COUNT, COUNT), "log_ratio": float, "interval?": INTERVAL,
               "verdict": str}],
  },
  "tuning?": {
    "sides": [{"kind": KIND, "arm": str, "arms": [_TUNED], "best": str, "gain": float,
               "gain_interval?": INTERVAL}],
    "difference_at_law": float, "difference_tuned": float, "tuned_interval?": INTERVAL,
    "num_arms": _SIDE,
  },
}  # fmt: skip
_POINT = {"name": str, "activation_rate": RATE, "epochs": AMOUNT, "cross_entropy": float}
DATA_REUSE_STEP = {
  "method": Choice(("data_reuse",)), "level": RATE, "num_runs": _NUM_RUNS, "noise": _NOISE,
  "not_done": [str], "headline?": str, "sentences": [str],
  "schemes": [{
    "part": str, "reuse": Choice(REUSE), "epochs?": AMOUNT, "equal_data": bool,
    "arms": [{
      "name": ARM_NAME, "kind": KIND, "role": ROLE, "activation_rate": RATE, "num_tokens": COUNT,
      "num_unique_tokens": COUNT, "epochs": AMOUNT, "bpc?": float, "cross_entropy?": float,
      "num_seeds": int,
    }],
    "baseline?": {"name": str, "bpc": float},
    "comparisons": [{"name": str, "activation_rate": RATE, "epochs": AMOUNT, "difference": float,
                     "simultaneous?": INTERVAL, "verdict": str}],
  }],
  "costs": [{"name": str, "part": str, "activation_rate": RATE, "epochs": AMOUNT,
             "difference": float, "interval?": INTERVAL}],
  "law?": {
    "name": str, "token_decay_published": float, "token_decay": float, "interval?": INTERVAL,
    "at_edge": bool, "open": (bool, bool), "exponent": float, "num_runs": int, "rmse": float,
    "noise?": float, "misfit": bool, "rmse_published": float, "points": [_POINT],
    "curves": [{"name": str, "activation_rate": RATE, "epochs": [AMOUNT],
                "cross_entropy": [float], "cross_entropy_published": [float]}],
  },
}  # fmt: skip
