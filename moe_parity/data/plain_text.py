"""Plain text files: the whole file is one document."""

from collections.abc import Iterator

from moe_parity.data.compressed import DamagedFileError, chunks
from moe_parity.data.readers import BadRecords, Document, Fields, document
from moe_parity.errors import UserError
from moe_parity.files import parse_json


def read_text(path: str, fields: Fields, bad: BadRecords) -> Iterator[Document]:
  """The document of a text file; bytes are kept as they are, line ends included.

  Raises:
    UserError: the archive is damaged, or the file holds JSON records under the name of text.
  """
  try:
    data = b"".join(chunks(path))
  except DamagedFileError as error:
    bad.stop(path, 1, f"the file is damaged or cut off ({error})")
  if not fields.format and _is_json_lines(data):
    raise UserError(
      f"{path} is named as plain text and its first line is a JSON record; state the format of the"
      f" source, json:{path} for its records or text:{path} for the text as it is"
    )
  try:
    text = data.decode("utf-8")
  except UnicodeDecodeError as error:
    bad.report(path, 1, f"not UTF-8 at byte {error.start}", len(data))
    return
  if found := document({"text": text}, path, 1, fields.of_plain_text(), bad, len(data)):
    yield found


def _is_json_lines(data: bytes) -> bool:
  first, _, rest = data.partition(b"\n")
  if not first.lstrip().startswith(b'{"') or not rest.strip():
    return False
  try:
    found = (parse_json(line, strict=False) for line in (first, rest.split(b"\n", 1)[0]))
    return all(isinstance(value, dict) for value in found)
  except ValueError:
    return False
