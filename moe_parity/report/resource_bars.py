"""The three resources of every arm as bars: how equal they are, at a glance."""

from collections.abc import Mapping, Sequence

from moe_parity.report.markup import details, words

OPEN_ROWS = 10  # arms shown before the others are folded
OFF = 0.02  # distance from dense that a bar shows in another color
RESOURCES = (
  ("num_params", "N (parameters)"),
  ("executed_flops", "executed FLOPs"),
  ("num_unique_tokens", "unique tokens"),
)


def ratios(report: dict) -> list[dict]:
  """A row for every arm at parity and every control: name, role, and each resource over dense's
  (None where the plan does not give it)."""
  unique = {row["name"]: row["num_unique_tokens"] for row in reversed(report["arms"])}
  own = unique.get(report["baseline"]) or _of_dense(report, unique)
  rows = []
  for row in report["resources"]["rows"]:
    if row["role"] not in ("arm", "control"):
      continue
    tokens = unique.get(row["name"])
    rows.append({
      "name": row["name"],
      "role": row["role"],
      "num_params": row["num_params_ratio"],
      "executed_flops": row["executed_flops_ratio"],
      "num_unique_tokens": tokens / own if tokens and own else None,
    })  # fmt: skip
  return rows


def _of_dense(report: dict, unique: Mapping[str, int | None]) -> int | None:
  """Unique tokens of the dense arm that the resources are relative to, before one is done."""
  for row in report["resources"]["rows"]:
    if row["executed_flops_ratio"] == 1 and row["num_params_ratio"] == 1:
      return unique.get(row["name"])
  return None


def resource_bars(report: dict) -> str:
  """The bars as HTML; "" where there is no dense arm to compare with."""
  rows = [row for row in ratios(report) if row["num_params"]]
  if len(rows) < 2:
    return ""
  largest = max(row[name] or 0 for row in rows for name, _ in RESOURCES)
  rest = f"{len(rows) - OPEN_ROWS} more arms"
  body = _table(rows[:OPEN_ROWS], largest)
  if rows[OPEN_ROWS:]:
    body += details(rest, _table(rows[OPEN_ROWS:], largest))
  return f'<div class="bars"><p class="caption"><b>{words(_heading(rows))}</b></p>\n{body}</div>\n'


def _heading(rows: Sequence[Mapping]) -> str:
  at_parity = [row for row in rows if row["role"] == "arm"]
  sentences = []
  for name, label in RESOURCES:
    values = [row[name] for row in at_parity if row[name]]
    if values:
      sentences.append(f"{label} {_range(min(values), max(values))}")
  return f"Resources relative to dense: {', '.join(sentences)}"


def _range(low: int | float, high: int | float) -> str:
  if f"{low:.2f}" == f"{high:.2f}":
    return f"{low:.2f}"
  return f"{low:.2f} to {high:.2f}"


def _table(rows: Sequence[Mapping], largest: int | float) -> str:
  head = "".join(f"<th>{words(label)}</th>" for _, label in RESOURCES)
  body = "".join(
    f"<tr><th>{words(_name(row))}</th>"
    + "".join(_cell(row[name], largest, row["role"]) for name, _ in RESOURCES)
    + "</tr>\n"
    for row in rows
  )
  return f"<table><thead><tr><th></th>{head}</tr></thead><tbody>\n{body}</tbody></table>\n"


def _name(row: Mapping) -> str:
  return f"{row['name']} (control)" if row["role"] == "control" else row["name"]


def _cell(ratio: int | float | None, largest: int | float, role: str) -> str:
  if ratio is None:
    return "<td>not known</td>"
  look = "control" if role == "control" else "off" if abs(ratio - 1) > OFF else "even"
  length, dense = 100 * ratio / largest, 100 / largest
  return (
    f'<td><svg viewBox="0 0 100 12" preserveAspectRatio="none" aria-hidden="true">'
    f'<rect class="{look}" x="0" y="2" width="{length:.2f}" height="8"/>'
    f'<line x1="{dense:.2f}" x2="{dense:.2f}" y1="0" y2="12"/></svg>'
    f"<span>{ratio:.2f}\N{MULTIPLICATION SIGN}</span></td>"
  )
