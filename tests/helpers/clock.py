"""A clock that a test sets."""


class Clock:
  """Seconds since some moment; `now` is set by hand."""

  now = 0.0

  def __call__(self):
    return self.now
