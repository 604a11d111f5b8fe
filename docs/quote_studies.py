"""The blocks of `quote.py` that show what studies found, from the files they left in `results/`."""

import json
import pathlib

from quote_tables import interval, markdown

from moe_parity.planning.arm_costs import arm_costs
from moe_parity.planning.scaling_laws import StepLaw

RESULTS = pathlib.Path(__file__).resolve().parent.parent / "results"


def read(*names: str) -> dict:
  """A JSON file below `results/`."""
  return json.loads(RESULTS.joinpath(*names).read_text())


def is_earlier(study: str) -> bool:
  """Whether the intervals of a study were made before what a seed does to dense arms alone was in
  them (`study.analysis.seed_noise`); its runs are gone, so they cannot be made again."""
  return "kind_sd" not in read(study, "analysis.json")["noise"]


def mark(study: str) -> str:
  """The mark of intervals that are earlier ones."""
  return " †" if is_earlier(study) else ""


def executed_ratios(study: str) -> dict[str, float]:
  """Arm -> train FLOPs of all its matrix products, router and head included, over dense's."""
  costs = arm_costs(read(study, "plan.json")["arms"])
  return {cost.name: cost.relative["executed_flops"] for cost in costs}


def demo() -> str:
  """The demo's arms, and what may be said of them."""
  analysis = read("demo", "analysis.json")
  lines = [*arms_table("demo"), ""]
  if max(group["num_seeds"] for group in analysis["groups"]) > 1:
    return "\n".join([*lines, headline(analysis), "", _tuned(analysis)])
  return "\n".join(lines)


def arms_table(study: str) -> list[str]:
  """Markdown lines of every arm of a study: size, tokens, epochs, executed FLOPs, score."""
  analysis, plan = read(study, "analysis.json"), read(study, "plan.json")
  executed = executed_ratios(study)
  arms = {arm["name"]: arm for arm in plan["arms"]}
  against = {row["name"]: row for row in analysis["comparisons"]}
  rows = []
  for group in sorted(analysis["groups"], key=lambda g: (g["activation_rate"], g["bpc"])):
    name, row = group["name"], against.get(group["name"])
    arm, repeated = arms[name], group["num_seeds"] > 1
    rows.append([
      name, f"{arm['num_params']:,}", f"{arm['activation_rate']:.3f}", f"{arm['num_tokens']:,}",
      f"{arm['epochs']:.2f}", f"{executed[name]:.2f}", group["num_seeds"], f"{group['bpc']:.4f}",
      f"{row['difference']:+.4f} ({interval(row['simultaneous'])})" if row and repeated else "",
    ])  # fmt: skip
  names = ["arm", "N", "r_a", "tokens", "epochs", "executed FLOPs / dense", "seeds", "BPC",
           "minus dense (simultaneous 95 %)" + mark(study)]  # fmt: skip
  return markdown(names, rows)[1:]


def headline(analysis: dict) -> str:
  """The sentence of a verdict, then those on its controls."""
  wanted = ("Of the lead", "Dense controls", "The lead is not", " also beats ")
  sentences = [s for s in analysis["verdict"]["sentences"] if any(w in s for w in wanted)]
  return f"*{analysis['verdict']['headline']}* {' '.join(sentences)}"


def _tuned(analysis: dict) -> str:
  """How the demo's learning rates were found, and how little its validation text is."""
  tuning, documents = analysis["tuning"], analysis["documents"]
  rates = [f"{t['peak_learning_rate']:g}" for t in tuning["arms"][0]["tries"]]
  best = ", ".join(f"{row['name']} {row['best']:g}" for row in tuning["arms"])
  return (
    f"Every arm and control tried the learning rates {', '.join(rates)} on another seed and is"
    f" compared at its own best ({best}). Validation holds {documents['num_documents']} documents,"
    f" an effective number of {documents['df'] + 1:.0f}: this is a demo, not evidence on MoE."
    " [Log 0030](docs/log/0030-demo-tuned.md)"
  )


def findings(lead: list[str]) -> str:
  """`lead` of newer studies, then two bullets: what steps 1 and 3 found, each with its interval and
  its doubts."""
  return "\n".join([*lead, _shapes(), _repetition(), _older()])


def effective_documents(*studies: str) -> str:
  """The effective number of validation documents of studies: "four", or "four to five"."""
  words = {3: "three", 4: "four", 5: "five", 6: "six"}
  numbers = {round(read(study, "analysis.json")["documents"]["df"] + 1) for study in studies}
  return " to ".join(words.get(n, str(n)) for n in sorted({min(numbers), max(numbers)}))


def _older() -> str:
  """What limits the last two findings, and all of them."""
  old = ("architecture_small", "data_reuse_small")
  texts = {read(study, "analysis.json")["documents"]["num_documents"] for study in old}
  sizes = [read(*path.relative_to(RESULTS).parts)["budget"]["num_params"] for path in _plans()]
  smaller = StepLaw.fitted_on["num_params"][0] / max(sizes)
  return (
    f"- **Limits.** In the last two, the {' or '.join(map(str, texts))} validation documents count"
    f" as {effective_documents(*old)}, seeds differ in initial weights only, and intervals"
    " leave out what a seed does to dense arms alone: they are too narrow. All models here are"
    f" at least {smaller:.0f} times smaller than the smallest that the law for batches and learning"
    " rates was fitted on. [All results, and what speaks against them](docs/results/index.md)"
  )


def _plans() -> list[pathlib.Path]:
  """plan.json of every study that the findings rest on."""
  studies = ("depth/*", "whole_small", "architecture_small", "data_reuse_small")
  return [path for study in studies for path in RESULTS.glob(f"{study}/plan.json")]


def validation_documents() -> str:
  """What the validation text of steps 1 to 3 counts as."""
  old = ("architecture_small", "mixture_small", "data_reuse_small")
  texts = {read(study, "analysis.json")["documents"]["num_documents"] for study in old}
  plans = [read(study, "plan.json")["budget"] for study in old]
  share = [plan["num_unique_tokens"] / plan["num_params"] for plan in plans]
  return (
    f"- **Validation text** of steps 1 to 3 is {' or '.join(map(str, texts))} documents that count"
    f" as {effective_documents(*old)} independent ones.\n"
    f"- **Scale.** {plans[0]['num_params'] / 1e6:.1f}M parameters and {min(share):.1f} to"
    f" {max(share):.1f} unique bytes per parameter say nothing certain about billions."
  )


TIMED = {  # config: the folder of its results
  "demo.py": "demo",
  "routed_scale.py": "routed_scale/r12",
  "depth_shapes.py": "depth_shapes/n200_b2",
  "depth.py": "depth/n200_b5",
}


def durations() -> str:
  """How long the runs of finished studies trained, tries of learning rates included."""
  rows, machines = [], set()
  for config, folder in TIMED.items():
    analysis = read(folder, "analysis.json")
    tuned = (analysis["tuning"] or {"arms": []})["arms"] if "tuning" in analysis else []
    tries = {arm["name"]: len(arm["tries"]) for arm in tuned}
    seeds = {group["name"]: group["num_seeds"] for group in analysis["groups"]}
    runs = {name: seeds[name] + tries.get(name, 0) for name in seeds}
    seconds = {row["name"]: row["seconds"] for row in analysis["resources"]["rows"]}
    hours = sum(runs[name] * seconds[name] for name in runs) / 3600
    params = analysis["resources"]["rows"][0]["num_params"]
    rows.append([
      f"`configs/{config}`", f"{params / 1e6:.1f}M", sum(seeds.values()), sum(tries.values()),
      f"{min(seconds.values()):.0f} to {max(seconds.values()):.0f}", f"{hours:.1f}",
    ])  # fmt: skip
    machines |= set(analysis["resources"]["notes"])
  names = ["config", "N", "compared runs", "tries", "seconds a run", "hours in all"]
  return "\n".join([" ".join(sorted(machines)), *markdown(names, rows)])


def _shapes() -> str:
  step, gains, ties = read("architecture_small", "architecture.json"), {}, []
  for stage in step["stages"]:
    incumbent = next(o for o in stage["options"] if o["label"] == stage["incumbent"])
    gains[stage["kind"]] = gains.get(stage["kind"], 0.0) + incumbent["difference"]
    if stage["tie"]:
      ties.append({"granularity": "top-K"}.get(stage["name"], stage["name"]))
  between, arms = step["between"], step["num_arms"]
  return (
    "- **Shape matters as much as sparsity.** Searching depth and width lowers dense by"
    f" {gains['dense']:.4f} BPC and MoE by {gains['moe']:.4f}; {', '.join(ties[:-1])} and"
    f" {ties[-1]} are not distinguishable at three seeds. The selected MoE minus the selected"
    f" dense arm: {between['difference']:+.4f} ({interval(between['interval'])}), both chosen on"
    f" the text they are scored on, {arms['moe']} arms against {arms['dense']}."
    " [Step 1](docs/results/step1.md)"
  )


def _repetition() -> str:
  step, costs = read("data_reuse_small", "data_reuse.json"), {}
  schemes = step["schemes"]
  epochs = {row["part"]: row["epochs"] for row in schemes if row["reuse"] == "epochs"}
  for row in step["costs"]:
    if row["part"] in epochs:
      costs.setdefault(epochs[row["part"]], []).append(row)
  clear = min(e for e, rows in costs.items() if all(row["interval"][0] > 0 for row in rows))
  free = max(e for e in costs if e < clear)
  spent = [row["difference"] for row in costs[clear]]
  last = max(schemes, key=lambda scheme: scheme["epochs"] or 0)
  lost = sum(row["verdict"] == "dense better" for row in last["comparisons"])
  return (
    f"- **Repeating data is cheap at first.** Up to {free:g} epochs no cost is distinguishable;"
    f" {clear:g} epochs cost {min(spent):.2f} to {max(spent):.2f} BPC; at {last['epochs']:g} epochs"
    f" dense is better than {lost} of {len(last['comparisons'])} MoE arms. Doubts: two seeds, which"
    " are the same under every scheme but are counted as if they were not, so the intervals are"
    " too narrow; very little text. [Step 3](docs/results/step3.md)"
  )


def mixture() -> str:
  """Step 2, the sweep on a mixture of text: arms, and what it says for and against the paper."""
  analysis = read("mixture_small", "analysis.json")
  step = read("mixture_small", "activation_rate.json")
  sweep, executed = step["sweeps"][0], executed_ratios("mixture_small")
  against, rows = {row["name"]: row for row in analysis["comparisons"]}, []
  for arm in sweep["arms"]:
    row, compared = against.get(arm["name"]), ["", "", ""]
    if row:
      compared = [f"{row['difference']:+.4f}", interval(row["simultaneous"]), row["verdict"]]
    rows.append([
      arm["name"], f"{arm['activation_rate']:.3f}", f"{arm['num_tokens']:,}",
      f"{arm['epochs']:.2f}", f"{executed[arm['name']]:.2f}", arm["num_seeds"], f"{arm['bpc']:.4f}",
      *compared,
    ])  # fmt: skip
  noise = analysis["noise"]
  names = ["arm", "r_a", "tokens", "epochs", "executed FLOPs / dense", "seeds", "BPC",
           "minus dense", "simultaneous 95 % interval", "verdict"]  # fmt: skip
  lines = [
    f"{sum(arm['num_seeds'] for arm in sweep['arms'])} runs, N = {sweep['num_params']:,}, C ="
    f" {sweep['train_flops']:.3g} FLOPs, every arm on the same {sweep['dense_tokens']:,} bytes of"
    f" text. The seed standard deviation is {noise['sd']:.4f} BPC ({noise['df']} degrees of"
    f" freedom). *{analysis['verdict']['headline']}*",
    *markdown(names, rows),
    "",
  ]
  wanted = ("BPC is lowest", "The best activation rate", "The curve is lowest", "The fitted curve",
            "Against dense_2c")  # fmt: skip
  sentences = [s for s in analysis["verdict"]["sentences"] if s.startswith(wanted)]
  return "\n".join(lines + [f"- {s}" for s in [*sentences, _tuning(step["tuning"])]])


def _tuning(tuning: dict) -> str:
  sides = []
  for side in tuning["sides"]:
    if side["best"] == side["arm"]:
      sides.append(f"{side['kind']} is best at its own")
    else:
      sides.append(f"{side['kind']} gains {side['gain']:.4f} BPC with {side['best']}")
  return (
    f"Half and twice the learning rate: {' and '.join(sides)}. MoE minus dense is"
    f" {tuning['difference_at_law']:+.4f} BPC as compared and {tuning['difference_tuned']:+.4f}"
    f" (95 % interval {interval(tuning['tuned_interval'])}) with each side at its best."
  )


def search() -> str:
  """Step 1, the architecture search: every question with its answer, and the shapes it chose."""
  step, rows = read("architecture_small", "architecture.json"), []
  budget, noise = read("architecture_small", "plan.json")["budget"], step["noise"]
  for stage in step["stages"]:
    for option in stage["options"]:
      bounds = option["simultaneous"]
      rows.append([
        f"{stage['kind']}: {stage['question']}" if option is stage["options"][0] else "",
        option["label"], option["num_seeds"], f"{option['bpc']:.4f}",
        f"{option['difference']:+.4f}" if bounds else "", interval(bounds) if bounds else "",
        {"inside the noise": "not distinguishable"}.get(option["verdict"], option["verdict"]),
      ])  # fmt: skip
  names = ["question", "option", "seeds", "BPC", "minus chosen", "simultaneous 95 % interval", ""]
  between, arms, runs = step["between"], step["num_arms"], step["num_runs"]
  lines = [
    f"{sum(runs.values())} runs, N = {budget['num_params']:,}, C = {budget['train_flops']:.3g}"
    f" FLOPs, {budget['num_unique_tokens']:,} bytes of text. The seed standard deviation is"
    f" {noise['sd']:.4f} BPC ({noise['df']} degrees of freedom).",
    *markdown(names, rows),
    "",
    f"Selected architectures. MoE: {_shape(step['backbone'])}. Dense:"
    f" {_shape(step['dense_backbone'])}.",
    "",
    f"The MoE side had {arms['moe']} arms ({runs['moe']} runs), the dense side {arms['dense']}"
    f" ({runs['dense']} runs), all at equal N and C. The selected MoE minus the selected dense arm:"
    f" {between['difference']:+.4f} BPC (95 % interval {interval(between['interval'])}). Both were"
    " selected on the text they are scored on, which flatters the side with more arms.",
  ]
  return "\n".join(lines)


def routed_scale() -> str:
  """The last stage of the search alone, at two activation rates: what multiplies the routed sum."""
  rows = []
  for folder in sorted((RESULTS / "routed_scale").iterdir()):
    step = read("routed_scale", folder.name, "architecture.json")
    stage = next(row for row in step["stages"] if row["name"] == "scale")
    for option in stage["options"]:
      bounds = option["simultaneous"]
      rows.append([
        f"{option['activation_rate']:.3f}", f"{option['experts_per_token']} of"
        f" {option['num_experts']}", option["label"], f"{option['bpc']:.4f}",
        f"{option['difference']:+.4f}" if bounds else "", interval(bounds) if bounds else "",
        option["verdict"],
      ])  # fmt: skip
  names = ["r_a", "K of E", "routed sum", "BPC", "minus chosen",
           "simultaneous 95 % interval (documents alone)", ""]  # fmt: skip
  return "\n".join(markdown(names, rows)[1:])


def _shape(arm: dict) -> str:
  size = f"{arm['num_layers']} layers, d_model {arm['d_model']}"
  if arm["layout"] == "dense":
    return f"{size}, d_ffn {arm['d_ffn']}"
  shared = "with a shared expert" if arm["d_shared"] else "without a shared expert"
  gates = {"raw": "gates not normalized", "normalized": "gates normalized"}[arm["gates"]]
  return (
    f"{size}, layout {arm['layout']}, top-{arm['experts_per_token']} of {arm['num_experts']}"
    f" experts with d_expert {arm['d_expert']}, {shared}, {gates}"
  )


def reuse() -> str:
  """Step 3, data reuse: every arm under every scheme, against dense and against no repetition."""
  step = read("data_reuse_small", "data_reuse.json")
  budget = read("data_reuse_small", "plan.json")["budget"]
  cost, rows = {(row["part"], row["name"]): row for row in step["costs"]}, []
  for scheme in step["schemes"]:
    name = f"{scheme['epochs']:g} epochs" if scheme["reuse"] == "epochs" else scheme["reuse"]
    arms = {arm["name"]: arm for arm in scheme["arms"]}
    for row in scheme["comparisons"]:
      arm, again = arms[row["name"]], cost.get((scheme["part"], row["name"]))
      paired = [f"{again['difference']:+.4f}", interval(again["interval"])] if again else ["", ""]
      rows.append([
        name, f"{arm['activation_rate']:.3f}", f"{arm['epochs']:.2f}", f"{arm['bpc']:.4f}",
        f"{row['difference']:+.4f}", interval(row["simultaneous"]), row["verdict"], *paired,
      ])  # fmt: skip
  noise = step["noise"]
  names = ["reuse", "r_a", "epochs", "BPC", "minus dense", "simultaneous 95 % interval", "verdict",
           "minus unique", "pointwise 95 % interval"]  # fmt: skip
  lines = [
    f"{sum(step['num_runs'].values())} runs, N = {budget['num_params']:,}, C ="
    f" {budget['train_flops']:.3g} FLOPs; dense reads {budget['dense_tokens']:,} bytes once and"
    f" scores {step['schemes'][0]['baseline']['bpc']:.4f} BPC. The seed standard deviation is"
    f" {noise['sd']:.4f} BPC (two seeds per arm; {noise['df']} degrees of freedom as the study"
    " counted them). Intervals against dense are simultaneous within a scheme; differences from"
    " `unique` are paired by seed.",
    *markdown(names, rows),
    "",
    _law(step["law"]),
  ]
  return "\n".join(lines)


def _law(law: dict) -> str:
  low, high = law["interval"]
  fits = " So it does not describe these runs." if law["misfit"] else ""
  return (
    f"Muennighoff's law, fitted to these runs, gives R* = {law['token_decay']:.0f} (95 % interval"
    f" {low:.2f} to {high:.0f}) with an error of {law['rmse']:.4f} nats per token"
    f" ({law['rmse_published']:.4f} with the published R* = {law['token_decay_published']:.1f});"
    f" seeds explain {law['noise']:.4f}.{fits}"
  )
