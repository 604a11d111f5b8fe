"""The tables every study has: arms, plan, scores, comparisons, certificates."""

from moe_parity.console import duration
from moe_parity.report.table_formats import (
  Column,
  Table,
  count,
  fixed,
  interval,
  percent,
  quantity,
  scientific,
  signed,
  signed_percent,
)


def arms(report: dict) -> Table:
  """A row for every planned run, finished or not, with its resources and scores."""
  return Table(
    "arms",
    "Arms: resources and held-out scores",
    (
      Column("name", "arm", number=False),
      Column("kind", "kind", number=False),
      Column("role", "role", number=False),
      Column("seed", "seed"),
      Column("status", "status", number=False),
      Column("activation_rate", "r_a %", percent),
      Column("num_params", "N", count),
      Column("train_flops", "C", scientific),
      Column("num_tokens", "tokens", count),
      Column("epochs", "epochs", fixed(2)),
      Column("train_cross_entropy", "train CE", fixed(4)),
      Column("bpc", "BPC", fixed(4)),
      Column("bpb", "BPB", fixed(4)),
      Column("macro_bpc", "macro BPC", fixed(4)),
    ),
    [row for row in report["arms"] if row["role"] != "tuning"],
  )


def resources(report: dict) -> Table:
  """What every arm cost in all, each number over dense's; seconds and energy as measured."""
  over = lambda name: Column(f"{name}_ratio", "x dense", fixed(3))  # noqa: E731
  convention = report["resources"]["convention"]
  return Table(
    "resources",
    "Resources of every arm, relative to dense",
    (
      Column("name", "arm", number=False),
      Column("train_flops", f"C ({convention})", scientific),
      over("train_flops"),
      Column("executed_flops", "executed FLOPs", scientific),
      over("executed_flops"),
      Column("num_params", "N", count),
      over("num_params"),
      Column("num_params_with_vocabulary", "N with vocabulary", count),
      over("num_params_with_vocabulary"),
      Column("num_params_with_router", "N with router, norms", count),
      over("num_params_with_router"),
      Column("weight_bytes", "MiB of weights", lambda x: f"{x / 2**20:.4g}"),
      over("weight_bytes"),
      Column("seconds", "seconds", lambda x: f"{x:.4g}"),
      over("seconds"),
      Column("energy", "energy, kJ", number=False),
      over("joules"),
    ),
    [row | {"energy": _energy(row)} for row in report["resources"]["rows"]],
  )


def _energy(row: dict) -> str | None:
  """Kilojoules; an arm that was timed without knowing its power says so."""
  if row.get("joules") is not None:
    return f"{row['joules'] / 1000:.4g}"
  return None if row["seconds"] is None else "not measured"


def domains(report: dict) -> Table:
  """BPC of every run in every domain; tries of learning rates are left out, as in `arms`."""
  names = list(dict.fromkeys(d for row in report["arms"] for d in row["by_domain"]))
  rows = [
    row | {f"bpc_{d}": v["bpc"] for d, v in row["by_domain"].items()}
    for row in report["arms"]
    if row["by_domain"] and row["role"] != "tuning"
  ]
  columns = (Column("name", "arm", number=False), Column("seed", "seed"))
  columns += (Column("activation_rate", "r_a %", percent),)
  columns += tuple(Column(f"bpc_{d}", d, fixed(4)) for d in names)
  columns += (Column("macro_bpc", "macro", fixed(4)), Column("bpc", "all", fixed(4)))
  return Table("domains", "BPC by domain", columns, rows)


def comparisons(report: dict) -> Table:
  """Every MoE arm against the dense arm at parity and against the references."""
  return Table(
    "comparisons",
    "MoE minus dense, BPC, with 95 % intervals",
    (
      Column("name", "arm", number=False),
      Column("activation_rate", "r_a %", percent),
      Column("baseline", "against", number=False),
      Column("num_seeds", "seeds"),
      Column("difference", "difference", signed),
      Column("interval", "pointwise", interval),
      Column("simultaneous", "simultaneous", interval),
      Column("verdict", "verdict", number=False),
    ),
    report["comparisons"] + report["references"],
  )


def domain_differences(report: dict) -> Table:
  return Table(
    "domain_differences",
    "MoE minus dense by domain, BPC",
    (
      Column("domain", "domain", number=False),
      Column("num_documents", "documents"),
      Column("name", "arm", number=False),
      Column("baseline_bpc", "dense BPC", fixed(4)),
      Column("bpc", "BPC", fixed(4)),
      Column("difference", "difference", signed),
      Column("interval", "95 % interval", interval),
    ),
    report["by_domain"],
  )


def shapes(arms_of_plan: list[dict]) -> Table:
  """The planned architectures; an arm once, for its seeds share them."""
  once = {arm["name"]: {**arm.get("architecture", {}), **arm} for arm in arms_of_plan}
  return Table(
    "shapes",
    "Plan: shapes",
    (
      Column("name", "arm", number=False),
      Column("layout", "layout", number=False),
      Column("num_layers", "L"),
      Column("d_model", "d_model"),
      Column("num_heads", "heads"),
      Column("d_ffn", "d_ffn"),
      Column("num_experts", "E"),
      Column("experts_per_token", "K"),
      Column("d_expert", "d_expert"),
      Column("d_shared", "d_shared"),
      Column("num_params", "N", count),
      Column("num_active_params", "N_a", count),
      Column("activation_rate", "r_a %", percent),
      Column("exact_num_params", "all parameters", count),
    ),
    list(once.values()),
  )


def plan(arms_of_plan: list[dict]) -> Table:
  """Training length, optimizer settings and distance to the budget of every planned run."""
  return Table(
    "plan",
    "Plan: training, and distance to the budget",
    (
      Column("name", "arm", number=False),
      Column("seed", "seed"),
      Column("train_flops_per_token", "M train", scientific),
      Column("num_tokens", "tokens", count),
      Column("num_unique_tokens", "unique", count),
      Column("num_steps", "steps"),
      Column("batch_sequences", "batch"),
      Column("peak_learning_rate", "peak lr", scientific),
      Column("warmup_steps", "warm-up"),
      Column("compute_multiple", "x C", lambda x: f"{x:g}"),
      Column("residual_params_pct", "N off %", signed_percent),
      Column("residual_flops_pct", "C off %", signed_percent),
      Column("residual_unique_pct", "D^ off %", signed_percent),
    ),
    arms_of_plan,
  )


def paper_columns(report: dict, arms_of_plan: list[dict]) -> Table:
  """The runs in the columns of the paper's Tables 9 to 17.

  M is the training value, as there; B counts sequences.
  """
  scores = {(row["name"], row["seed"]): row["bpc"] for row in report["arms"]}
  rows = [
    {
      **arm.get("architecture", {}),
      **arm,
      "tokens_per_param": arm["num_tokens"] / arm["num_params"],
      "bpc": scores.get((arm["name"], arm["seed"])),
    }
    for arm in arms_of_plan
  ]
  return Table(
    "paper_columns",
    "The runs in the paper's columns",
    (
      Column("name", "arm", number=False),
      Column("seed", "seed"),
      Column("num_params", "N", count),
      Column("num_active_params", "N_a", count),
      Column("activation_rate", "r_a %", percent),
      Column("train_flops_per_token", "M", scientific),
      Column("num_tokens", "D", count),
      Column("num_unique_tokens", "D^", count),
      Column("epochs", "epochs", fixed(2)),
      Column("train_flops", "C", scientific),
      Column("tokens_per_param", "D/N", fixed(1)),
      Column("num_layers", "L"),
      Column("d_model", "D_m"),
      Column("num_experts", "E"),
      Column("experts_per_token", "K"),
      Column("d_expert", "D_e"),
      Column("d_shared", "D_se"),
      Column("peak_learning_rate", "lr", scientific),
      Column("batch_sequences", "B"),
      Column("num_steps", "iters"),
      Column("bpc", "BPC", fixed(4)),
    ),
    rows,
  )


def certificate(name: str, parts: list[tuple[str, dict]]) -> Table:
  """All checks of (whose, certificate) pairs: planned against measured."""
  rows = [
    {**check, "whose": whose, "passed": "yes" if check["passed"] else "NO"}
    for whose, part in parts
    for check in part.get("checks", [])
  ]
  return Table(
    name,
    "Certificate: planned against measured",
    (
      Column("whose", "of", number=False),
      Column("name", "check", number=False),
      Column("planned", "planned", quantity),
      Column("measured", "measured", quantity),
      Column("difference_pct", "off %", signed_percent),
      Column("tolerance_pct", "allowed %", lambda x: f"{x:g}"),
      Column("passed", "passed", number=False),
      Column("how", "how it was measured", number=False, wrap=True),
    ),
    rows,
  )


def effort(report: dict) -> Table:
  """How many arms, runs and FLOPs each side of the comparison was given."""
  rows = []
  sides = dict.fromkeys((run["kind"], run["role"]) for run in report["arms"] if run["kind"])
  for kind, role in sorted(sides, key=lambda side: (side[1], side[0] == "dense")):
    runs = [run for run in report["arms"] if (run["kind"], run["role"]) == (kind, role)]
    done = [run for run in runs if run["status"] == "done"]
    rows.append({
      "side": {"moe": "MoE"}.get(kind, kind) + (f", {role}" if role != "arm" else ""),
      "num_arms": len({run["name"] for run in runs}),
      "num_runs": len(runs),
      "num_done": len(done),
      "train_flops": sum(run["train_flops"] for run in done),
      "hours": sum(run["seconds"] or 0 for run in done) / 3600,
    })  # fmt: skip
  return Table(
    "effort",
    "What each side got",
    (
      Column("side", "side", number=False),
      Column("num_arms", "arms"),
      Column("num_runs", "runs planned"),
      Column("num_done", "runs done"),
      Column("train_flops", "FLOPs spent", scientific),
      Column("hours", "time", duration),
    ),
    rows,
  )


def versions(info: dict) -> Table:
  rows = [{"name": name, "version": str(v)} for name, v in info.get("versions", {}).items()]
  columns = (
    Column("name", "package", number=False),
    Column("version", "version", number=False),
  )
  return Table("versions", "Versions", columns, rows)


def data(info: dict) -> Table:
  """Tokenizer and content hashes of the token store, one fact a row."""
  rows = []
  for name, value in info.get("data", {}).items():
    parts = value.items() if isinstance(value, dict) else [("", value)]
    labels = {"train_sha256": "training tokens, sha256", "validation_sha256": "held-out, sha256"}
    if name == "text_lost":
      parts = [(split, ", ".join(f"{k} {n:,}" for k, n in lost.items())) for split, lost in parts]
      name = "text that the tokenizer loses:"
    name = labels.get(name, name)
    rows += [{"name": f"{name} {key}".strip(), "value": str(part)} for key, part in parts]
  columns = (
    Column("name", "what", number=False),
    Column("value", "value", number=False, wrap=True),
  )
  return Table("data", "Data", columns, rows)
