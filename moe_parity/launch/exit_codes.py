"""The exit codes of a worker, which are all that an engine needs to know about it."""

WHOLE = 0  # the study is complete, or what is left is in the hands of live workers
FAILED = 1  # a run or the certificate failed: starting again would fail again
MEND_INPUT = 2  # the input has an error that a person must mend
START_AGAIN = 75  # stopped between two steps with a checkpoint: start me again

MEANINGS = {
  WHOLE: "the study is complete, or other workers have what is left",
  FAILED: "a run or the certificate failed",
  MEND_INPUT: "the input has an error; the log names it",
  START_AGAIN: "stopped with a checkpoint; start it again",
}


def meaning(code: int) -> str:
  """What an exit code says; signals are negative, as `subprocess` has them, or above 128."""
  if killed := signal_of(code):
    return f"killed by signal {killed}"
  return MEANINGS.get(code, f"exit code {code}, which no worker should have")


def signal_of(code: int) -> int:
  """The signal that ended a process, 0 where none did."""
  if code < 0:
    return -code
  return code - 128 if 128 < code < 160 else 0


def combined(codes: list[int]) -> int:
  """The exit code of several workers as one: the one that a person must read about first.

  Input to mend, then a failure (also of a worker that was killed), then "start me again".
  """
  known = [code if code in MEANINGS else FAILED for code in codes]
  for code in (MEND_INPUT, FAILED, START_AGAIN):
    if code in known:
      return code
  return WHOLE
