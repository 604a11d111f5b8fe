"""What analysis.json and downstream.json hold, which reports and notebooks draw from."""

from moe_parity.fields.choices import CONVENTIONS
from moe_parity.fields.kinds import Choice, Text, matching
from moe_parity.fields.table import ARM_NAME, DOMAIN_NAME, SEED
from moe_parity.stored.run_files import AMOUNT, COUNT, INTERVAL, KIND, RATE, ROLE
from moe_parity.stored.study_files import BELOW, OPTIMUM, RANGES, STATUS

_NAMED = {"name": ARM_NAME, "seed": SEED, "status": STATUS}
_ARM = _NAMED | {
  "kind?": KIND, "role?": ROLE, "activation_rate?": RATE, "num_params?": COUNT,
  "num_active_params?": COUNT, "train_flops?": AMOUNT, "num_tokens?": COUNT,
  "num_unique_tokens?": COUNT, "epochs?": AMOUNT, "compute_multiple?": AMOUNT, "bpc?": float,
  "bpb?": float, "macro_bpc?": float, "macro_bpb?": float, "cross_entropy?": float,
  "train_cross_entropy?": float, "seconds?": float,
  "by_domain": {DOMAIN_NAME: {"bpc?": float, "bpb?": float}},
}  # fmt: skip
_GROUP = {
  "name": ARM_NAME, "kind": KIND, "role": ROLE, "activation_rate": RATE,
  "compute_multiple": AMOUNT, "num_params?": COUNT, "num_seeds": COUNT, "bpc": float,
  "bpc_by_seed": [float], "seed_sd?": float, "moderated_sd?": float, "interval": INTERVAL,
}  # fmt: skip
_DIFFERENCE = {
  "difference": float,
  "interval?": INTERVAL,
  "simultaneous?": INTERVAL,
  "verdict": str,
}
_COMPARISON = _DIFFERENCE | {
  "name": ARM_NAME, "baseline": str, "activation_rate": RATE, "num_seeds": COUNT,
  "baseline_seeds": COUNT,
}  # fmt: skip
_CONTROLS = {
  "best": str, "lead": float, "peak_learning_rate": AMOUNT, "tuned?": bool,
  "controls": [{"name": str, "num_params": COUNT, "peak_learning_rate": AMOUNT,
                "to_dense": _DIFFERENCE, "moe_to_control": _DIFFERENCE}],
  "ablations": {str: {"cost": float, "lead_left": float}},
}  # fmt: skip
_CURVE = {
  "form": str, "grid": [AMOUNT], "bpc": [float], "band": ([float], [float]), "minimum": OPTIMUM,
  "minimum_by_form": {str: float}, "scatter_sd?": float, "scatter_df": float, "scatter_p?": float,
  "noise_df?": float, "misfit": bool, "below_dense?": RANGES, "surely_below_dense?": RANGES,
  "difference_band?": ([float], [float]), "below": BELOW,
}  # fmt: skip
_TUNING = {
  "seeds": [SEED], "equal": bool, "own_documents?": int,
  "arms": [{
    "name": str, "role": ROLE, "num_tries": int, "best": AMOUNT,
    "edge": Choice(("", "lowest", "highest")),
    "tries": [{"peak_learning_rate": AMOUNT, "bpc?": float}],
  }],
}  # fmt: skip
_RESOURCES = ("train_flops", "executed_flops", "num_params", "num_params_with_vocabulary",
              "num_params_with_router", "weight_bytes")  # fmt: skip
_COSTS = {f"{name}?": AMOUNT for name in _RESOURCES}
_COSTS |= {f"{name}_ratio?": AMOUNT for name in (*_RESOURCES, "seconds", "joules")}
_COSTS |= {"seconds?": float, "joules?": float}
ANALYSIS = {
  "study": str, "created?": str, "metric": str, "level": RATE, "num_draws": COUNT,
  "arms": [_ARM], "not_done": [_NAMED | {"error": str}], "groups": [_GROUP],
  "certificate": {
    "passed?": bool, "failures": [str], "missing": [str],
    "rescored?": {"runs": int, "documents": int, "not_rescored": {str: str}},
  },
  "equal": {str: bool}, "baseline": str, "comparisons": [_COMPARISON], "references": [_COMPARISON],
  "by_domain": [{
    "domain": DOMAIN_NAME, "name": ARM_NAME, "num_documents": COUNT, "bpc": float,
    "baseline_bpc": float, "difference": float, "interval?": INTERVAL,
  }],
  "picked?": {"name": str, "difference": float, "corrected": float, "num_arms": COUNT},
  "controls?": _CONTROLS,
  "noise": {
    "sd?": float, "df": float, "kind_sd?": float, "kind_df?": float, "min_seeds?": int,
    "max_seeds?": int, "draws_data?": bool,
  },
  "curve?": _CURVE, "num_rates": int,
  "documents": {"num_documents?": int, "df?": float, "largest_share?": RATE,
                "per_domain?": {DOMAIN_NAME: int}},
  "tuning?": _TUNING,
  "resources?": {
    "convention": Choice(("", *CONVENTIONS)), "rows": [{"name": str, "role": ROLE} | _COSTS],
    "hidden": [str], "notes": [str], "energy_notes?": [str],
  },
  "warnings": [str],
  "verdict": {"headline": str, "sentences": [str], "against?": [str], "winner?": str,
              "beats_dense?": str, "explained_by?": str,
              "conclusive": bool},
}  # fmt: skip

# One task of one run, under RUN/downstream/, and what a study's runs make of all of them.
SCORE = {
  "value": float, "interval?": INTERVAL, "higher_is_better": bool, "is_share?": bool,
  "chance?": float, "against_chance": str,
}  # fmt: skip
TASK_RESULT = {
  "task": str, "source": str, "category": str, "benchmark": str, "kind": str, "metric": str,
  "num_shots": int, "num_items": COUNT, "num_items_of_task": COUNT, "scores": {str: SCORE},
  "majority?": float, "num_cut?": int, "share_cut?": RATE, "seconds": float, "key": {},
  "values": str,
}  # fmt: skip
_OVERLAP = {"num_items": int, "num_contaminated": int, "num_too_short": int, "items": [str],
            "examples": [str]}  # fmt: skip
# What was asked of a run, and where the answers are.
_FILE_NAME = Text("a file name", matching(r"[^/\\]+", "is no plain file name"))
EXAMINED = {
  "asked": {}, "values": [_FILE_NAME], "contamination": {str: _OVERLAP},
  "chat_contamination?": {str: _OVERLAP}, "not_searched?": [str],
}  # fmt: skip
OVERLAP = {"num_words": COUNT, "by_task": {str: _OVERLAP}}
_CELL = {"scale": str, "kind": str, "label": str, "arm": str}
DOWNSTREAM = {
  "level": RATE, "contamination?": {str: {str: _OVERLAP}},
  "chat_contamination?": {str: {str: _OVERLAP}}, "not_searched?": {str: [str]},
  "states": {str: {
    "arms": [{"name": str, "kind": KIND, "role": ROLE, "activation_rate": RATE,
              "epochs": AMOUNT, "num_seeds": COUNT}],
    "baseline": str, "not_in_every_run": [str],
    "left_out?": [{"task": str, "metric": str, "reason": str}],
    "scores": [_CELL | {"score": float, "interval?": INTERVAL, "chance?": float}],
    "comparisons": [_CELL | {
      "baseline": str, "num_items": COUNT, "difference": float, "interval?": INTERVAL,
      "simultaneous?": INTERVAL, "verdict": str,
    }],
  }},
}  # fmt: skip
