"""README.md of an export, written from the files of its run."""

import json
import pathlib
import re

from moe_parity import markdown
from moe_parity.fields.choices import NORM_EPSILON, ROPE_BASE
from moe_parity.interchange.hf_config import CLASSES
from moe_parity.interchange.tensors import ERNIE, OWN, QWEN2_MOE
from moe_parity.training import run_folder

CERTIFICATE, IMPORTED = "certificate.json", "imported"

# The folders of an absolute path or of an address, up to the name at its end: in a value of a
# config, where commas, equals signs and colons divide, and in a sentence, where blanks do.
_ROOT = r"(?:\w+://|~|(?<![\w.~)])/)"
_FOLDERS_IN_VALUE = re.compile(_ROOT + r"[^,=:]*/(?=[^,=:/])")
_FOLDERS_IN_TEXT = re.compile(_ROOT + r"[^\s,;=:()'\"]*/(?=[^\s/])")

_WORDS = {
  "dense": "a dense decoder",
  "moe": "a Mixture-of-Experts decoder",
}


def model_card(folder: pathlib.Path, model_type: str, step: int | None) -> str:
  """The card, in Markdown with the metadata that model hubs read.

  Args:
    folder: of the run.
    step: of the checkpoint; None for the newest.
  """
  plan = run_folder.read_json(folder / run_folder.PLAN)
  config = run_folder.read_json(folder / run_folder.CONFIG)
  parts = [_header(plan), _summary(plan, model_type), _numbers(plan)]
  use, exactness = _use(model_type), _exactness(plan, config, model_type)
  if plan["kind"] == IMPORTED:
    origin = f"Imported from a {plan['imported_from']} folder: its training is not known here."
    parts += [f"## Origin\n\n{origin}", use, exactness]
  else:
    parts += [_scores(run_folder.read_result(folder), step), _certificate(folder)]
    if plan.get("finetuning"):
      parts.insert(3, _finetuned(plan, run_folder.read_result(folder)))
    parts += [use, exactness, _reproduce(plan, config), _data(folder)]
  return "\n\n".join(part for part in parts if part) + "\n"


def _header(plan: dict) -> str:
  is_moe = plan["architecture"]["num_experts"] > 0
  tags = ["moe_parity", "mixture-of-experts" if is_moe else "dense"]
  lines = ["library_name: transformers", "pipeline_tag: text-generation", "tags:"]
  return "\n".join(["---", *lines, *(f"- {tag}" for tag in tags), "---"])


def _summary(plan: dict, model_type: str) -> str:
  kind = _WORDS.get(plan["kind"], "a decoder")
  return (
    f"# {plan['name']}\n\nThis is {kind} in the class `{CLASSES[model_type]}`. It comes from"
    " moe_parity, which compares dense and Mixture-of-Experts models at equal total parameters N,"
    " equal training compute C and equal unique data (arXiv 2506.12119). Weights are float32."
  )


def _numbers(plan: dict) -> str:
  a = plan["architecture"]
  rows = [
    ("total parameters N, without vocabulary matrices", _count(plan.get("num_params"))),
    ("parameters active for a token N_a", _count(plan.get("num_active_params"))),
    ("activation rate r_a = N_a / N", _share(plan.get("activation_rate"))),
    ("training compute C, FLOPs", _power(plan.get("train_flops"))),
    ("convention of N and C", plan.get("convention")),
    ("training tokens D", _count(plan.get("num_tokens"))),
    ("unique tokens", _count(plan.get("num_unique_tokens"))),
    ("epochs over them", _number(plan.get("epochs"))),
    ("positions", _count(plan.get("seq_len"))),
    ("seed", plan.get("seed")),
    ("layers, width, heads", f"{a['num_layers']}, {a['d_model']}, {a['num_heads']}"),
  ]
  if a["num_experts"]:
    rows += [
      ("experts E, chosen K", f"{a['num_experts']}, {a['experts_per_token']}"),
      ("width of an expert, of the shared expert", f"{a['d_expert']}, {a['d_shared']}"),
      ("layout", a["layout"]),
    ]
  return "## What went in\n\n" + _table([row for row in rows if row[1] is not None])


def _finetuned(plan: dict, result: dict | None) -> str:
  stated = plan["finetuning"]
  rows = [
    ("chats, each seen this often", f"{_count(stated['num_examples'])}, {plan['epochs']:g} times"),
    ("scored tokens of a pass", _count(stated["num_scored_tokens"])),
    ("learning rate over its pretraining peak", stated["learning_rate_multiple"]),
    ("sha256 of the rows", stated["chats_sha256"]),
    ("tokens of pretraining", _count(stated["base_num_tokens"])),
    ("unique tokens of pretraining", _count(stated["base_num_unique_tokens"])),
    ("compute of pretraining, FLOPs", _power(stated["base_train_flops"])),
  ]
  if result is not None:
    for when, key in (("before", "before"), ("after", "validation")):
      score = result["finetuning"][key]["bpc"]
      rows.append((f"bits per character of held-out answers, {when}", _number(score)))
  return (
    "## Fine-tuned\n\nThe model was pretrained, then fine-tuned on chats; tokens and compute above"
    " are those of fine-tuning. The tokenizer's chat template is that of training.\n\n"
    + _table(rows)
  )


def _scores(result: dict | None, step: int | None) -> str:
  if result is None:
    return "## Scores\n\nThe run had not finished when this was exported: there are no scores."
  validation = result["validation"]
  rows = [("all held-out text", _number(validation["bpc"]), _number(validation["bpb"]))]
  rows += [
    (name, _number(row["bpc"]), _number(row["bpb"]))
    for name, row in validation["by_domain"].items()
  ]
  of = f"step {result['finished_step']}"
  note = "" if step in (None, result["finished_step"]) else (
    f" **This export holds step {step}, which was not scored.**"
  )  # fmt: skip
  header = ("held-out text", "bits per character", "bits per byte")
  return f"## Scores\n\nOf {of}, {validation['mode']} mode.{note}\n\n" + _table(rows, header)


def _certificate(folder: pathlib.Path) -> str:
  heading = "## Certificate\n\n"
  if not (folder / CERTIFICATE).exists():
    return heading + "The run has none: its N, C and D were not recounted from its files."
  value = run_folder.read_json(folder / CERTIFICATE)
  verdict = "passed" if value.get("passed") else "**failed**"
  text = f"{heading}N, C and D recounted from the run's checkpoint and ledger: {verdict}."
  rows = [
    (c["name"], _bare(c["planned"]), _bare(c["measured"]), "yes" if c["passed"] else "**no**")
    for c in value.get("checks", [])
    if {"name", "planned", "measured", "passed"} <= set(c)
  ]
  return text + ("\n\n" + _table(rows, ("check", "planned", "measured", "passed")) if rows else "")


def _use(model_type: str) -> str:
  remote = ", trust_remote_code=True" if model_type == OWN else ""
  return f"""## Use

```python
from transformers import AutoModelForCausalLM, AutoTokenizer

tokenizer = AutoTokenizer.from_pretrained(FOLDER)
model = AutoModelForCausalLM.from_pretrained(FOLDER{remote})
inputs = tokenizer("The ", return_tensors="pt", return_token_type_ids=False)
print(tokenizer.decode(model.generate(**inputs, max_new_tokens=40)[0]))
```

A text begins with the token that begins a document; the tokenizer puts it there."""


def _exactness(plan: dict, config: dict, model_type: str) -> str:
  lines = ["Weights are the run's own, bit for bit; nothing was rounded."]
  if model_type == QWEN2_MOE:
    lines.append(
      "The shared expert of moe_parity has no gate; this class's has. Its gate is zero (one half)"
      " and its down projection doubled, which is exact. Biases are zero."
    )
    lines.append("The router computes in the model's dtype here: float32 routes as in training.")
  model = config["model"]
  if model_type == ERNIE:
    lines.append("Rows of queries and keys are in the order in which this class rotates them.")
    if not model.get("normalize_gates"):
      lines.append(
        "Gates are raw: `moe_norm_min` of 1 says so to transformers. vLLM's class always divides"
        " them by their sum and would compute another model."
      )
  if model.get("position") == "rope":
    lines.append(f"Rotary base {model.get('rope_base', ROPE_BASE):g}.")
  lines.append(f"Norms add {model.get('norm_epsilon', NORM_EPSILON):g}.")
  if not config["data"].get("cross_documents", True):
    lines.append(
      "In training attention did not cross documents. Here it sees all of its input: give one"
      " document a sequence."
    )
  if model.get("capacity_factor"):
    lines.append("Assignments beyond capacity were dropped in training; here none are.")
  lines.append(f"Trained on {plan['seq_len']} positions.")
  return "## Exactness\n\n" + "\n".join(f"- {line}" for line in lines)


def _reproduce(plan: dict, config: dict) -> str:
  tuned = bool(plan.get("finetuning"))
  names = ("budget", "data", "model", "optimizer", *["finetuning"] * tuned)
  wanted = {name: dict(config[name]) for name in names if name in config}
  for name in ("source", "store"):  # of one machine; the text is known by its content
    wanted["data"].pop(name, None)
  wanted = _without_folders(wanted)
  then = ""
  if tuned:
    wanted["finetuning"].pop("data", None)
    chosen = plan["finetuning"]["learning_rate_multiple"], round(plan["epochs"])
    options = "--learning-rates={:g} --epochs={}".format(*chosen)
    then = f" `moe-parity sft RUN --data=CHATS {options}` on the chats of these hashes, and"
  return f"""## Reproduce

`moe-parity train --config=FILE.py --arm={plan["name"]} --workdir=RUN` with a config of these
sections, in which a file elsewhere is named without its folder, then{then}
`moe-parity export RUN --to=hf --out=FOLDER --check`.

```json
{json.dumps(wanted, indent=2)}
```"""


def _without_folders(value):
  """A config's values; of a file elsewhere (a tokenizer, held-out text) only its name is left."""
  if isinstance(value, dict):
    return {name: _without_folders(part) for name, part in value.items()}
  if isinstance(value, list | tuple):
    return [_without_folders(part) for part in value]
  return _FOLDERS_IN_VALUE.sub("", value) if isinstance(value, str) else value


def _bare(value) -> str:
  """A certificate's value, which may be an error that names files of this machine."""
  return _FOLDERS_IN_TEXT.sub("", str(value))


def _data(folder: pathlib.Path) -> str:
  if not (folder / run_folder.DATA).exists():
    return ""
  data = json.dumps(run_folder.read_json(folder / run_folder.DATA), indent=2)
  return f"The data by content, and the versions it was trained with:\n\n```json\n{data}\n```"


def _table(rows, header=("", "")) -> str:
  return markdown.table(header, rows).rstrip()


def _count(value) -> str | None:
  return None if value is None else f"{value:,}"


def _share(value) -> str | None:
  return None if value is None else f"{100 * value:.2f} %"


def _power(value) -> str | None:
  return None if value is None else f"{value:.4g}"


def _number(value) -> str | None:
  return None if value is None else f"{value:.4f}"
