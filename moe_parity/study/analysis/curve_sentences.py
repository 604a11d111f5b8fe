"""The verdict's sentences on the curve over activation rates: its minimum, and where it is below
dense."""

from moe_parity.study.analysis.wording import listed

# arXiv 2506.12119, Tables 11 and 12: the E84 K28 7B run appears with identical settings as 0.4664
# and 0.4670. The paper gives no seeds.
PUBLISHED_NOISE = 0.0006


def optimum(report: dict) -> list[str]:
  """Where the curve is lowest, and whether that is known."""
  fitted = report["curve"]
  if not fitted:
    have = report["num_rates"]
    return [
      "No best activation rate can be read off: a curve takes three different rates, and the MoE"
      f" arms that are done have {have}."
    ] if have else []  # fmt: skip
  minimum = fitted["minimum"]
  low, high = minimum["interval"]
  ends = (
    f"{'at most ' if minimum['open_below'] else ''}{100 * low:.1f} %"
    f" to {'at least ' if minimum['open_above'] else ''}{100 * high:.1f} %"
  )
  rate = f"{100 * minimum['activation_rate']:.1f} %"
  if minimum["at_edge"]:
    side = "smallest" if minimum["at_edge"] == "lower" else "largest"
    other = "smaller" if side == "smallest" else "larger"
    line = (
      f"BPC is lowest at the {side} activation rate tried, {rate}: the optimum is not bracketed; "
      f"add arms with {other} r_a."
    )
  elif minimum["bracketed"]:
    line = f"The best activation rate is r_a* = {rate} (95 % interval {ends}), bracketed."
  else:
    line = (
      f"The curve is lowest at r_a* = {rate}, but the 95 % interval reaches the edge of the rates "
      f"tried ({ends}): the optimum is not bracketed."
    )
  other = [
    f"{100 * r:.1f} % as {name}" for name, r in fitted["minimum_by_form"].items()
    if name != fitted["form"]
  ]  # fmt: skip
  detail = (
    f"The curve is {fitted['form']} ({listed(other)}); its interval holds {_covered(report)}."
  )
  lines = [line, detail]
  if fitted["misfit"]:
    lines.append(
      "The arms stray from the smooth curve by more than their seeds explain: something besides "
      "r_a differs between them (granularity, depth), and r_a* is to be read with that in mind."
    )
  return lines


def _covered(report: dict) -> str:
  """What the curve's interval holds, as `rate_curve.fit` draws it."""
  scatter = "the arms' scatter about the curve"
  if report["noise"]["df"]:
    if report["curve"]["scatter_df"]:
      return f"the validation documents, the seeds and, where it is larger than these, {scatter}"
    return "the validation documents and the seeds"
  if report["curve"]["scatter_df"]:
    return f"the validation documents and {scatter}"
  return "the validation documents only, for a curve through three arms shows no scatter"


def region(report: dict) -> list[str]:
  """At which rates the curve lies below dense."""
  fitted = report["curve"]
  if not fitted or fitted["below_dense"] is None:
    return []
  if not fitted["below_dense"]:
    return ["Nowhere in the range tried does the fitted curve lie below dense."]
  line = f"The fitted curve lies below dense for r_a in {_ranges(fitted['below_dense'])}"
  if fitted["surely_below_dense"] is None:
    return [f"{line}, by one seed of dense, which is no statement on another."]
  if fitted["surely_below_dense"]:
    return [f"{line}; at 95 % confidence throughout, in {_ranges(fitted['surely_below_dense'])}."]
  return [f"{line}; at 95 % confidence, nowhere."]


def scatter(report: dict) -> str:
  """What the arms' scatter about the curve says of training noise, without repeated seeds."""
  fitted = report["curve"]
  published = (
    f"In the paper two identical 7B runs differ by {PUBLISHED_NOISE} BPC; small runs differ more."
  )
  if not fitted or fitted["scatter_sd"] is None:
    return f"How large that noise is, these runs do not show. {published}"
  return (
    f"The arms scatter by {fitted['scatter_sd']:.4f} BPC about a smooth curve "
    f"({fitted['scatter_df']} degrees of freedom), which is training noise and shape together. "
    f"{published}"
  )


def _ranges(ranges: list[list[float]]) -> str:
  return listed([f"{100 * a:.1f} to {100 * b:.1f} %" for a, b in ranges])
