"""The config reference: one table a section, from `moe_parity/fields/table.py`."""

from quote_tables import markdown

from moe_parity.fields.table import ARM_NAME, FIELDS, SECTIONS, Field, rows_of

TITLES = {
  "": "The config itself",
  "budget": "budget: what every arm shares",
  "study": "study: which arms are derived and compared",
  "data": "data: text and tokens",
  "model": "model: what every arm computes, apart from its shape",
  "mesh": "mesh: devices along each axis",
  "optimizer": "optimizer: AdamW",
  "train": "train: how a run is executed and logged",
  "evaluation": "evaluation: how a trained model is scored",
  "finetuning": "finetuning: chats for a trained arm",
  "downstream": "downstream: benchmarks for every arm",
  "arms.*": "arms.NAME: one arm",
}


def fields() -> str:
  """Every field of every section."""
  lines = []
  for section in ("", *SECTIONS, "arms.*"):
    lines += ["", f"## {TITLES[section]}"]
    if section == "arms.*":
      lines += ["", f"NAME: {ARM_NAME.words()}."]
    rows = [_row(field) for field in rows_of(section).values()]
    lines += markdown(["field", "default", "may be", "meaning"], rows)
  return "\n".join([f"{len(FIELDS)} fields.", *lines])


def _row(field: Field) -> list[str]:
  words = field.kind.words()
  cells = (f"`{field.path}`".replace("*", "NAME"), _shown(field.default), words, field.about)
  return [cell.replace("<", "&lt;").replace("*", r"\*") for cell in cells]  # `table` escapes |


def _shown(value) -> str:
  if value in ((), ""):
    return '`""`' if value == "" else "`()`"
  return f"`{value!r}`".replace("'", '"')
