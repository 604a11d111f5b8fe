"""The one error a user is meant to read: value, rule, way out, in one line."""

import errno


class UserError(ValueError):
  """Input that a person can mend. The command line prints it without a traceback and exits 2.

  The message names the value, the rule it breaks and a way out, in that order.
  """


def disk_is_full(error: BaseException | None) -> bool:
  """Whether a full disk is what lies behind an error, however deeply a library wrapped it."""
  while error is not None:
    if isinstance(error, OSError) and error.errno in (errno.ENOSPC, errno.EDQUOT):
      return True
    if "No space left on device" in str(error):
      return True
    error = error.__cause__ or error.__context__
  return False
