"""The blocks of `quote.py` on `configs/whole_small.py`: pretrained, fine-tuned, examined."""

from quote_studies import read
from quote_tables import interval, markdown

STUDY, FIRST = "whole_small", "whole_first"


def pretrained() -> str:
  """Every arm under both reuse schemes, against dense."""
  step, budget = read(STUDY, "data_reuse.json"), read(STUDY, "plan.json")["budget"]
  rows = []
  for scheme in step["schemes"]:
    arms = {arm["name"]: arm for arm in scheme["arms"]}
    for row in scheme["comparisons"]:
      arm = arms[row["name"]]
      rows.append([
        scheme["reuse"], f"{arm['activation_rate']:.3f}", f"{arm['num_tokens']:,}",
        f"{arm['epochs']:.2f}", arm["num_seeds"], f"{arm['bpc']:.4f}", f"{row['difference']:+.4f}",
        interval(row["simultaneous"]), row["verdict"],
      ])  # fmt: skip
  names = ["reuse", "r_a", "tokens", "epochs", "seeds", "BPC", "minus dense",
           "simultaneous 95 % interval", "verdict"]  # fmt: skip
  base = step["schemes"][0]["baseline"]
  about = (
    f"N = {budget['num_params']:,}, C = {budget['train_flops']:.3g} FLOPs (executed); dense reads"
    f" {budget['dense_tokens']:,} BPE tokens once and scores {base['bpc']:.4f} BPC."
    f" *{step['headline']}*"
  )
  return "\n".join([about, *markdown(names, rows)])


def fine_tuned() -> str:
  """MoE minus dense on held-out chats, and which candidates were taken."""
  tuned = read(STUDY, "finetuning.json")
  chats, scores = tuned["chats"], {row["name"]: row for row in tuned["chats"]["arms"]}
  rows = [
    [row["name"], f"{scores[row['name']]['bpc']:.4f}", f"{row['difference']:+.4f}",
     interval(row["simultaneous"]), row["verdict"]]
    for row in chats["comparisons"]
  ]  # fmt: skip
  taken = ", ".join(f"{tuned['candidates'][i]} {number}" for i, number in enumerate(_taken(tuned)))
  passed = {True: "passed", False: "failed", None: "is not whole"}[tuned["passed"]]
  about = (
    f"{len(tuned['chosen'])} runs, each from two candidates; taken: {taken}. Dense scores"
    f" {scores[chats['baseline']]['bpc']:.4f} bits per character on {chats['num_chats']} held-out"
    f" chats. The certificate of equal examples and tokens {passed}."
  )
  names = ["arm", "bits per character", "minus dense", "simultaneous 95 % interval", "verdict"]
  return "\n".join([about, *markdown(names, rows)])


def both_runs() -> str:
  """MoE minus dense in pretraining and on chats, here and in the first run."""
  return (
    f"MoE minus dense, over all arms and both reuse schemes: {_ranges(STUDY)}. In the first run,"
    f" where dense read {read(FIRST, 'plan.json')['budget']['dense_tokens']:,} tokens:"
    f" {_ranges(FIRST)}."
  )


def _ranges(study: str) -> str:
  pretrained = [
    row["difference"]
    for scheme in read(study, "data_reuse.json")["schemes"]
    for row in scheme["comparisons"]
  ]
  rows = read(study, "finetuning.json")["chats"]["comparisons"]
  on_chats = [row["difference"] for row in rows]
  told_apart = sum(row["verdict"] != "not distinguishable" for row in rows)
  return (
    f"{min(pretrained):+.2f} to {max(pretrained):+.2f} BPC after pretraining, {min(on_chats):+.2f}"
    f" to {max(on_chats):+.2f} bits per character on chats after fine-tuning,"
    f" {told_apart or 'none'} of these distinguishable from 0"
  )


def finding() -> str:
  """What the README says of fine-tuning."""
  return (
    "- **Does a lead outlast fine-tuning?** MoE minus dense at"
    f" {read(STUDY, 'plan.json')['budget']['num_params'] / 1e6:.1f}M: {_ranges(STUDY)}."
    f" {_chance(read(STUDY, 'downstream.json'))} Doubts: few chats, no dense control of another"
    " size. [All three steps](docs/results/whole.md)"
  )


def _taken(tuned: dict) -> list[int]:
  return [sum(arm["chosen"] == name for arm in tuned["chosen"]) for name in tuned["candidates"]]


def examined() -> str:
  """Every arm over all tasks, before and after fine-tuning, and how many scores leave chance."""
  found, rows = read(STUDY, "downstream.json"), []
  for state, part in found["states"].items():
    scores = {(row["scale"], row["arm"]): row for row in part["scores"]
              if row["label"] == "all tasks"}  # fmt: skip
    verdicts = {(row["scale"], row["arm"]): row for row in part["comparisons"]
                if row["label"] == "all tasks"}  # fmt: skip
    for arm in part["arms"]:
      row = [state, arm["name"].removeprefix("sft/"), f"{arm['activation_rate']:.2f}",
             f"{arm['epochs']:.2f}"]  # fmt: skip
      for scale, factor, digits in (("accuracy", 100, 1), ("bits_per_byte", 1, 3)):
        score, against = scores[scale, arm["name"]], verdicts.get((scale, arm["name"]))
        low, high = (f"{factor * end:.{digits}f}" for end in score["interval"])
        row += [f"{factor * score['score']:.{digits}f} ({low} to {high})",
                against["verdict"] if against else ""]  # fmt: skip
      rows.append(row)
  names = ["model", "arm", "r_a", "epochs", "accuracy, %", "against dense", "bits per byte of gold",
           "against dense"]  # fmt: skip
  return "\n".join([_chance(found), *markdown(names, rows)])


def _chance(found: dict) -> str:
  rows = [row for part in found["states"].values() for row in part["scores"] if row["chance"]]
  above = sum(row["interval"] is not None and row["interval"][0] > row["chance"] for row in rows)
  below = sum(row["interval"] is not None and row["interval"][1] < row["chance"] for row in rows)
  judged = [row for part in found["states"].values() for row in part["comparisons"]]
  verdicts = ", ".join(
    f"{verdict} {sum(row['verdict'] == verdict for row in judged)}"
    for verdict in dict.fromkeys(row["verdict"] for row in judged)
  )
  return (
    f"Of {len(rows)} accuracies of an arm on a task, {above} have a 95 % interval above guessing"
    f" and {below} one below it. Of {len(judged)} comparisons with dense, of tasks and categories"
    f" on both scales: {verdicts}."
  )
