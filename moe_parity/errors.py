"""The one error a user is meant to read: value, rule, way out, in one line."""


class UserError(ValueError):
  """Input that a person can mend. The command line prints it without a traceback and exits 2.

  The message names the value, the rule it breaks and a way out, in that order.
  """
