"""Says in words what the numbers of an analysis allow, and what they do not.

Order: what stands in the way of any verdict (certificate, missing arms, one seed) comes before who
was ahead. A winner is named only when resources were certified equal, training noise is known from
repeated seeds, and every planned run is done.
"""

from moe_parity.study import effort
from moe_parity.study.analysis import controls, curve_sentences
from moe_parity.study.analysis.wording import count, listed

MORE_PASSES = 1.5  # times dense's passes over the text, from which they are mentioned


def verdict(report: dict) -> dict:
  """headline (one sentence), sentences (the reasons, in reading order), against (those of them
  that speak against the headline or limit it), winner, beats_dense, explained_by, conclusive.

  conclusive says whether nothing stood in the way of an answer, be it that no arm wins. beats_dense
  is the best MoE arm where it is better than dense; explained_by is the dense control that does as
  well as that arm, as far as these runs can tell; then there is no winner. Else winner is that arm,
  or the dense arm where it beats every MoE arm. All are names or None.
  """
  ahead = _ahead(report)
  obstacles = _obstacles(report)
  sentences = obstacles + _comparison(report) + _picked(report)
  sentences += controls.sentences(report["controls"], _beats_dense(report))
  sentences += effort.sentences(report["tuning"])
  sentences += _passes(report) + report["resources"]["hidden"]
  sentences += _noise(report)
  sentences += curve_sentences.optimum(report) + curve_sentences.region(report)
  sentences += _references(report) + _domains(report) + _multiplicity(report)
  conclusive = bool(ahead["sentence"]) and not obstacles
  headline = _headline(report, ahead["sentence"])
  winner = ahead["winner"] if conclusive else None
  beats_dense = winner if any(r["name"] == winner for r in report["comparisons"]) else None
  explained_by = None
  if beats_dense and controls.is_explained(report["controls"]):
    explained_by = controls.best_control(report["controls"])["name"]
  return {
    "headline": headline,
    "sentences": sentences,
    "against": _against(report, obstacles, sentences),
    "winner": None if explained_by else winner,
    "beats_dense": beats_dense,
    "explained_by": explained_by,
    "conclusive": conclusive,
  }


def _against(report: dict, obstacles: list[str], sentences: list[str]) -> list[str]:
  """The sentences that a reader who doubts the headline would point at."""
  beats_dense = _beats_dense(report)
  on_lead = []  # where no arm is said to be ahead, nothing speaks against its lead
  if beats_dense or not any(map(_is_judged, report["comparisons"])):
    on_lead = controls.sentences(report["controls"], beats_dense)
    if report["controls"] and report["controls"]["controls"]:
      if not controls.is_explained(report["controls"]):  # then the controls speak for it, if tuned
        on_lead = controls.untuned(report["controls"], beats_dense)
  found = obstacles + on_lead + report["resources"]["hidden"]
  found += _picked(report) if beats_dense else []
  found += effort.edges(report["tuning"]) + effort.same_documents(report["tuning"])
  found += _passes(report)
  fixed_text = report["noise"]["df"] and not report["noise"]["draws_data"]
  found += _noise(report) if fixed_text else []
  turned = [line for line in _domains(report) if "reversed" in line]
  curve, on_curve = report["curve"], curve_sentences.optimum(report)
  found += on_curve[:1] if curve and not curve["minimum"]["bracketed"] else []
  found += [line for line in on_curve if "stray from" in line] + turned
  return [line for line in sentences if line in found]


def _headline(report: dict, ahead: str) -> str:
  certificate = report["certificate"]
  if certificate["passed"] is False:
    return "No winner: the certificate did not pass, so it is not shown that arms are comparable."
  if len(report["arms"]) > 1 and all(row["kind"] != "dense" for row in report["arms"]):
    return "No verdict: no dense arm is part of this comparison."
  if not ahead:
    return "No verdict yet: it takes a finished dense arm and a finished MoE arm."
  if certificate["passed"] is None:
    return f"No winner yet: no complete certificate. In the runs so far, {ahead}."
  if not any(_is_judged(row) for row in report["comparisons"]):
    return f"One seed proves nothing, so no arm is called better. {ahead[0].upper()}{ahead[1:]}."
  if report["not_done"]:
    return f"Not all runs are done. So far, {ahead}."
  if _beats_dense(report) and controls.is_explained(report["controls"]):
    row = controls.best_control(report["controls"])
    words = "scores better still" if row["moe_to_control"]["verdict"] == "control better" else (
      "cannot be told from the best of them"
    )  # fmt: skip
    ahead += f"; but {row['name']}, a dense model of {row['num_params']:,} parameters at equal"
    ahead += f" compute and data, {words}"
  equal = listed(["parameters", *(name for name, same in report["equal"].items() if same)])
  other = listed([name for name, same in report["equal"].items() if not same])
  return f"At equal {equal}{f' but not equal {other}' if other else ''}, {ahead}."


def _beats_dense(report: dict) -> bool:
  """Whether an MoE arm is better than dense by its verdict."""
  return any(row["verdict"] == "MoE better" for row in report["comparisons"])


def _is_judged(row: dict) -> bool:
  return row["verdict"] not in ("one seed", "no verdict")


def _ahead(report: dict) -> dict:
  rows = [row for row in report["comparisons"] if _is_judged(row)]
  if not rows:
    return {"sentence": _lowest(report), "winner": None}
  better = [r for r in rows if r["verdict"] == "MoE better"]
  worse = [r for r in rows if r["verdict"] == "dense better"]
  noun = "MoE arm" if len(rows) == len(report["comparisons"]) else "repeated MoE arm"
  if better:
    best = min(better, key=lambda r: r["difference"])
    picked = report["picked"]
    corrected = ""
    if picked and picked["num_arms"] > 1 and picked["name"] == best["name"]:
      corrected = f"; corrected for being the best of {picked['num_arms']}, by"
      corrected += f" {-picked['corrected']:.4f}"
    arm = f"({best['name']}, r_a {_pct(best)})"
    if len(rows) == 1:
      who = f"the only {noun} {arm} beats dense"
    elif len(better) == 1:
      who = f"{count(1, len(rows), noun)} beats dense, {best['name']} (r_a {_pct(best)})"
    else:
      who = f"{count(len(better), len(rows), noun)} beat dense, the best {arm}"
    return {
      "sentence": f"{who} by {-best['difference']:.4f} BPC "
      f"({_interval(best['simultaneous'])}{corrected})",
      "winner": best["name"],
    }
  if len(worse) == len(rows):
    every = f"the only {noun}" if len(rows) == 1 else f"every {noun}"
    return {"sentence": f"dense beats {every}", "winner": rows[0]["baseline"]}
  if len(rows) == 1:
    return {
      "sentence": f"the only {noun} cannot be told to be better than dense", "winner": None
    }  # fmt: skip
  lost = f"; dense beats {count(len(worse), len(rows), noun)}" if worse else ""
  return {"sentence": f"no MoE arm can be told to be better than dense{lost}", "winner": None}


def _lowest(report: dict) -> str:
  """What runs without repetition show: where the lowest MoE arm lies, and no more."""
  if not report["comparisons"]:
    return ""
  low = min(report["comparisons"], key=lambda r: r["difference"])
  where = "below" if low["difference"] < 0 else "above"
  which = "lowest" if len(report["comparisons"]) > 1 else "only"
  return (
    f"the {which} MoE arm of these runs ({low['name']}, r_a {_pct(low)}) scores "
    f"{abs(low['difference']):.4f} BPC {where} {low['baseline']}; another seed may turn that round"
  )


def _obstacles(report: dict) -> list[str]:
  lines = []
  certificate = report["certificate"]
  if certificate["passed"] is False:
    lines.append(
      "The certificate did not pass, and arms that are not shown to be comparable have no winner: "
      + "; ".join(certificate["failures"]) + "."
    )  # fmt: skip
  elif certificate["passed"] is None:
    lines.append(
      f"There is no certificate for {listed(certificate['missing']) or 'this study'}: "
      "whether resources were equal is not shown, so no winner is named."
    )
  if report["not_done"]:
    absent = [
      f"{r['name']} seed {r['seed']} ({r['status']}{': ' + r['error'] if r['error'] else ''})"
      for r in report["not_done"]
    ]
    lines.append(f"{count(len(absent), len(report['arms']), 'run')} not done: {listed(absent)}.")
  groups, noise = report["groups"], report["noise"]
  if groups and not noise["df"]:
    lines.append(
      "One seed at this size proves nothing, and rows have no verdict: the intervals cover only "
      "the choice of validation documents, not training noise. " + curve_sentences.scatter(report)
    )
  return lines


def _comparison(report: dict) -> list[str]:
  lines = []
  for outcome in ("MoE better", "not distinguishable", "dense better", "one seed", "no verdict"):
    rows = [r for r in report["comparisons"] if r["verdict"] == outcome]
    each = [
      f"{r['name']} (r_a {_pct(r)}) {r['difference']:+.4f} BPC "
      f"({_interval(r['simultaneous'], signed=True)})"
      for r in rows
    ]
    if each:
      lines.append(f"{outcome[0].upper()}{outcome[1:]}: {listed(each)}.")
  if lines:
    lines[0] = f"Against {report['baseline']}, negative is MoE better. {lines[0]}"
  return lines


def _picked(report: dict) -> list[str]:
  """The lead of the best arm without the luck of having been picked."""
  picked = report["picked"]
  if not picked or picked["num_arms"] < 2:
    return []
  return [
    f"{picked['name']} is the lowest of {picked['num_arms']} MoE arms, and the lowest of several is"
    f" in part the luckiest: it stands at {picked['difference']:+.4f} BPC against dense; scored"
    f" by seeds and documents that did not pick it, the best arm stands at"
    f" {picked['corrected']:+.4f}."
  ]


def _passes(report: dict) -> list[str]:
  """Says where the best MoE arm reads the text more often than dense, as equal compute lets it."""
  if not report["comparisons"]:
    return []
  best = min(report["comparisons"], key=lambda row: row["difference"])
  epochs = {row["name"]: row["epochs"] for row in reversed(report["arms"])}
  own, dense = epochs.get(best["name"]), epochs.get(best["baseline"])
  if not own or not dense or own < MORE_PASSES * dense:
    return []
  return [
    f"Equal compute is no equal number of tokens: {best['name']} passes over the text {own:.2f}"
    f" times, {best['baseline']} {dense:.2f} times."
  ]


def _noise(report: dict) -> list[str]:
  noise = report["noise"]
  if not noise["df"]:
    return []
  covers = "weights, data order and the text that was drawn"
  if not noise["draws_data"]:
    covers = (
      "initial weights only, for all seeds read the same text in the same order: another draw of "
      "the text is in no interval"
    )
  kinds = ""
  if noise["kind_sd"]:
    kinds = (
      f" It moves dense arms against MoE arms by {noise['kind_sd']:.4f} BPC, which counts in every"
      " difference between them."
    )
  some = " Arms with one seed get no verdict." if noise["min_seeds"] < 2 else ""
  return [
    f"Between seeds an arm varies by {noise['sd']:.4f} BPC (standard deviation pooled over arms, "
    f"{noise['df']} degrees of freedom). Each arm's interval goes by its own spread, moderated by "
    f"that of the others, and holds the choice of validation documents too. A seed covers "
    f"{covers}.{kinds}{some}"
  ]


def _references(report: dict) -> list[str]:
  lines = []
  for name in dict.fromkeys(r["baseline"] for r in report["references"]):
    rows = [r for r in report["references"] if r["baseline"] == name]
    better = [r for r in rows if r["verdict"] == "MoE better"]
    group = next(g for g in report["groups"] if g["name"] == name)
    best = min(rows, key=lambda r: r["difference"])
    judged = f"{count(len(better), len(rows), 'MoE arm')} better; "
    which = f"the best, {best['name']},"
    if len(rows) == 1:
      judged, which = f"{best['verdict']}; ", best["name"]
    if not any(_is_judged(row) for row in rows):
      judged = ""
    lines.append(
      f"Against {name}, which spent {group['compute_multiple']:g} times the compute and is not at "
      f"parity: {judged}{which} {best['difference']:+.4f} BPC "
      f"({_interval(best['simultaneous'], signed=True)})."
    )
  return lines


def _domains(report: dict) -> list[str]:
  """Names the domains in which the best arm's difference has the other sign than overall."""
  if not report["comparisons"]:
    return []
  best = min(report["comparisons"], key=lambda r: r["difference"])
  rows = [r for r in report["by_domain"] if r["name"] == best["name"]]
  turned = [r["domain"] for r in rows if r["difference"] * best["difference"] < 0]
  if not turned:
    way = "below" if best["difference"] < 0 else "above"
    return [f"{best['name']} is {way} dense in each of the {len(rows)} domains."] if rows else []
  return [f"For {best['name']} the order is reversed in {listed(turned)}."]


def _multiplicity(report: dict) -> list[str]:
  num = len(report["comparisons"])
  if num < 2:
    return []
  return [
    f"{num} arms are compared with one dense arm: verdicts go by simultaneous intervals, which all "
    "hold together with 95 % confidence. Per-domain intervals are not adjusted."
  ]


def _pct(row: dict) -> str:
  return f"{100 * row['activation_rate']:.1f} %"


def _interval(interval: list[float] | None, signed: bool = False) -> str:
  if interval is None:
    return "no interval"
  low, high = interval if signed else sorted(-x for x in interval)
  return f"{low:+.4f} to {high:+.4f}" if signed else f"95 % interval {low:.4f} to {high:.4f}"
