"""What the JSON files of a run folder hold: all that is read back, with types and ranges."""

from moe_parity.fields.choices import ARM_KINDS, CONVENTIONS, GATES, MODES, ROLES
from moe_parity.fields.kinds import Choice, Number, Whole
from moe_parity.fields.table import ARM_NAME, DOMAIN_NAME, SEED

COUNT = Whole(1, 10**30)  # what others are divided by
AMOUNT = Number(0.0, 1e300, open_ends=True)
RATE = Number(0.0, 1.0)
WEIGHT = Number(0.0, 1e300)
KIND = Choice(ARM_KINDS)
ROLE = Choice(("arm", "reference", "control", *(role for role in ROLES if role)))
INTERVAL = (float, float)

ARCHITECTURE = {
  "num_layers": COUNT, "d_model": COUNT, "num_heads": COUNT, "d_head": COUNT, "num_kv_heads": COUNT,
  "layout": str, "d_ffn": int, "num_experts": int, "experts_per_token": int, "d_expert": int,
  "d_shared": int, "vocab_size": int,
}  # fmt: skip
_FINETUNING = {
  "learning_rate_multiple": AMOUNT, "num_examples": COUNT, "num_scored_tokens": COUNT,
  "num_chat_tokens": COUNT, "row_fill": RATE, "num_validation_examples": COUNT,
  "num_duplicates_left_out": int, "num_too_long_left_out": int, "chats_sha256": str,
  "validation_chats_sha256": str, "template": object, "base_sha256": str, "base_step": int,
  "base_num_tokens": COUNT, "base_num_unique_tokens": COUNT, "base_train_flops": AMOUNT,
}  # fmt: skip
# Fields with ? are missing from plans of earlier versions, or null where they do not apply.
ARM_PLAN = {
  "name": ARM_NAME, "kind": KIND, "role": ROLE, "seed": SEED, "architecture": ARCHITECTURE,
  "convention": Choice(CONVENTIONS), "num_params": COUNT, "num_active_params": COUNT,
  "activation_rate": Number(1e-9, 1.0), "forward_flops_per_token": AMOUNT,
  "train_flops_per_token": AMOUNT, "train_flops": AMOUNT, "num_tokens": COUNT,
  "num_unique_tokens": COUNT, "epochs": AMOUNT, "seq_len": COUNT, "batch_sequences": COUNT,
  "num_steps": COUNT, "peak_learning_rate": AMOUNT, "final_learning_rate": float,
  "warmup_steps": int, "compute_multiple": AMOUNT, "compute_ratio?": AMOUNT,
  "residual_params_pct": float, "residual_flops_pct": float, "residual_unique_pct": float,
  "exact_num_params": COUNT, "vocabulary_params?": int, "gates?": Choice(GATES),
  "mixture?": {
    DOMAIN_NAME: {"share": WEIGHT, "num_tokens": int, "num_unique_tokens": int, "epochs": float},
  },
  "attention_block?": COUNT, "data_seed?": SEED, "routed_scale?": str, "tunes?": str,
  "finetuning?": _FINETUNING,
}  # fmt: skip
# A model that was imported has no data and no steps.
IMPORTED_PLAN = {
  "name": str, "kind": Choice(("imported",)), "role": ROLE, "seed": SEED,
  "architecture": ARCHITECTURE, "seq_len": COUNT, "imported_from": str,
}  # fmt: skip

_BITS = {"bpc": float, "bpb": float}
_SUMS = {"nats": float, "num_tokens": int, "num_bytes": int, "num_chars": int}
VALIDATION = _BITS | {
  "mode": Choice(MODES), "seq_len": COUNT, "stride": int, "nats?": float, "num_tokens": COUNT,
  "num_bytes": COUNT, "num_chars": COUNT, "num_documents": COUNT, "cross_entropy": float,
  "by_domain": {DOMAIN_NAME: _BITS | _SUMS | {"num_documents": int}}, "macro_bpc": float,
  "macro_bpb": float, "documents": [{"domain": DOMAIN_NAME, "source": str} | _SUMS],
  "split_documents?": int, "sampled?": bool,
  "text_lost?": {"num_documents": int, "num_chars": int, "num_bytes": int, "share": RATE},
}  # fmt: skip
CHAT_SCORE = {
  "cross_entropy": float, "bpc": float, "nats?": float, "num_tokens?": int, "num_chars?": int,
  "num_examples?": int,
  "examples?": [{"digest": str, "nats": float, "num_tokens": int, "num_chars": int}],
}  # fmt: skip
RESULT = {
  "name": ARM_NAME, "kind": KIND, "role": ROLE, "seed": SEED, "finished_step": COUNT,
  "seconds": float, "compile_seconds?": float, "step_seconds?": float,
  "machine?": {
    "platform": str, "device": str, "num_devices": int, "cpu": str, "num_cores": int
  },
  "power?": {"watts?": float, "how": str}, "attention?": str, "train_cross_entropy?": float,
  "validation": VALIDATION,
  "ablations?": {str: _BITS | {"cross_entropy": float, "nats?": [float]}},
  "layers?": {str: [float]},
  "finetuning?": {"validation": CHAT_SCORE, "before": CHAT_SCORE},
}  # fmt: skip


class _LoggedNumber:
  """Any number, also one that is not finite: of one step, logged as it was."""

  def problem(self, value: object) -> str:
    return "" if type(value) in (int, float) else "is not a number"

  def words(self) -> str:
    return "a number"


_LOGGED = _LoggedNumber()
# A line of metrics.jsonl.
_BY_LAYER = ("max_vio", "router_entropy", "dead_experts", "drop_share", "gate_sum")
_OF_STEP = (
  "loss", "balance_loss", "z_loss", "gradient_norm", "learning_rate", "tokens_per_second",
  "flops_per_second", "peak_share", "bpc", "bpb", "nats",
)  # fmt: skip
METRICS_LINE = {
  "kind": Choice(("train", "validation")), "step": COUNT, "num_tokens?": int,
  "cross_entropy?": _LOGGED, "seconds?": Number(0.0, 1e300),
  "scored_tokens?": COUNT, "scored_bytes?": COUNT, "scored_chars?": COUNT,
  **{f"{name}?": _LOGGED for name in _OF_STEP}, **{f"{name}?": [_LOGGED] for name in _BY_LAYER},
}  # fmt: skip

_HASHES = ("tokenizer", "train_tokens", "train_documents", "validation_tokens")
DATA = {
  "fingerprint": {name: str for name in (*_HASHES, "validation_documents")},
  "versions": [{str: str}],
  "num_devices?": COUNT,  # where they decide the run's numbers
}
CHECK = {
  "name": str, "planned": object, "measured": object, "difference_pct?": float,
  "tolerance_pct?": float, "passed": bool, "how?": str,
}  # fmt: skip
_MEASURED = {
  "num_params": COUNT, "num_active_params": COUNT, "train_flops_per_token": AMOUNT,
  "executed_flops_per_token?": AMOUNT, "num_params_with_vocabulary?": COUNT,
  "num_params_with_router?": COUNT, "weight_bytes?": COUNT, "num_tokens": COUNT,
  "num_unique_tokens": COUNT, "train_flops": AMOUNT, "executed_flops?": AMOUNT,
}  # fmt: skip
# A run's certificate that could not measure holds {} there; a study's has none of these.
CERTIFICATE = {
  "passed": bool, "checks": [CHECK], "arm?": str, "seed?": SEED,
  "measured?": {name if name.endswith("?") else f"{name}?": s for name, s in _MEASURED.items()},
  "ledger?": {
    "sha256?": str, "split?": str, "store?": str, "order_sha256?": str, "num_tokens?": int,
    "num_unique_tokens?": int, "num_windows_seen?": int, "num_rows?": int, "epochs?": float,
    "min_epochs?": int, "max_epochs?": int, "num_examples?": int, "num_scored_tokens?": int,
    "by_domain?": {DOMAIN_NAME: object},
    "order?": {"num_windows?": int, "num_unique?": int, "seed?": int},
  },
  "files?": {str: str}, "unique_windows_sha256?": str, "rescored_content?": str,
  "tolerances?": {str: float}, "missing?": [str],
  "data?": {str: str}, "versions?": {str: {str: COUNT}},
  "relative_to_dense?": [
    {"name": str, "seed": SEED} | {f"{name.rstrip('?')}?": AMOUNT for name in _MEASURED}
  ],
}  # fmt: skip
