"""TensorBoard events of a run: the numbers of metrics.jsonl, a series a number and layer."""

import functools
import pathlib
import time

FOLDER = "tensorboard"


class Events:
  """Writer of one run's events, in a file made with the first; files made before are removed.

  Written in the caller's thread, so that a full disk is an error of the caller.
  """

  def __init__(self, run_folder: pathlib.Path):
    self.folder = run_folder / FOLDER
    for path in self.folder.glob("*tfevents*"):
      path.unlink()

  def write(self, line: dict) -> None:
    """The numbers of one line of metrics.jsonl."""
    values = []
    for name, value in line.items():
      if name in ("kind", "step"):
        continue
      numbers = value if isinstance(value, list) else [value]
      for index, number in enumerate(numbers):
        suffix = f"/layer_{index}" if isinstance(value, list) else ""
        tag = f"{line['kind']}/{name}{suffix}"
        values.append(self._proto.summary_pb2.Summary.Value(tag=tag, simple_value=number))
    summary = self._proto.summary_pb2.Summary(value=values)
    self._add(step=line["step"], summary=summary)
    self._file.flush()

  def close(self) -> None:
    """All events are on disk; may be called again."""
    if (file := vars(self).pop("_file", None)) is not None:
      file.close()

  @functools.cached_property
  def _proto(self):
    from tensorboardX import proto  # its 0.07 s come after the first loss
    from tensorboardX.proto import event_pb2, summary_pb2  # noqa: F401

    return proto

  @functools.cached_property
  def _file(self):
    from tensorboardX.event_file_writer import EventsWriter

    self.folder.mkdir(exist_ok=True)
    return EventsWriter(str(self.folder / "events"))

  def _add(self, **content) -> None:
    is_first = "_file" not in vars(self)
    event = self._proto.event_pb2.Event
    if is_first:  # tells a TensorBoard that has read the files before to forget them
      session = self._proto.event_pb2.SessionLog
      start = session(status=session.START)
      self._file.write_event(event(wall_time=time.time(), step=1, session_log=start))
    self._file.write_event(event(wall_time=time.time(), **content))
