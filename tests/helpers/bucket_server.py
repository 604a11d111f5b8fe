"""Cloud Storage in memory behind its JSON API, for tests of several processes on one bucket.

Orbax, tensorstore, gcsfs and Google's own client all reach it, with the real code of each: only the
address differs. What is kept of the service: an object is there whole or not at all, each write
gives it a new generation, and a write under a condition on the generation is refused where the
condition does not hold.
"""

import dataclasses
import http.server
import json
import re
import threading
import urllib.parse

BUCKET = "mine"
OBJECT = re.compile(r"/(?:download/)?storage/v1/b/([^/]+)/o/([^/]+)")
COPY = re.compile(r"/storage/v1/b/([^/]+)/o/([^/]+)/(?:rewriteTo|copyTo)/b/([^/]+)/o/([^/]+)")
LISTING = re.compile(r"/storage/v1/b/([^/]+)/o")


@dataclasses.dataclass
class Stored:
  """One object of the bucket."""

  content: bytes
  generation: int


class BucketServer:
  """The service at `url`, holding `objects` by name; `stop` ends it."""

  def __init__(self):
    self.objects: dict[str, Stored] = {}
    self.lock, self._uploads, self._count = threading.RLock(), {}, 0
    self._server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), _Handler)
    self._server.daemon_threads, self._server.bucket = True, self
    self.url = f"http://127.0.0.1:{self._server.server_port}"
    self._thread = threading.Thread(target=self._server.serve_forever, daemon=True)
    self._thread.start()

  @property
  def environment(self) -> dict[str, str]:
    """Variables that lead a process's libraries here."""
    return {
      "STORAGE_EMULATOR_HOST": self.url,  # gcsfs and google-cloud-storage
      "TENSORSTORE_GCS_HTTP_URL": self.url,
      "GOOGLE_AUTH_TOKEN_FOR_TESTING": "anyone",  # tensorstore
      "FSSPEC_GS_TOKEN": "anon",
      "GCSFS_EXPERIMENTAL_ZB_HNS_SUPPORT": "false",  # asks another service, by gRPC
      "GOOGLE_CLOUD_PROJECT": "test",
      "NO_GCE_CHECK": "true",
    }

  def names(self, prefix: str = "") -> list[str]:
    """The objects whose names begin so."""
    with self.lock:
      return sorted(name for name in self.objects if name.startswith(prefix))

  def read(self, name: str) -> bytes:
    """An object's content."""
    with self.lock:
      return self.objects[name].content

  def write(self, name: str, content: bytes) -> Stored:
    """Makes or replaces an object."""
    with self.lock:
      self._count += 1
      self.objects[name] = Stored(content, self._count)
      return self.objects[name]

  def begin_upload(self, name: str) -> str:
    """A session for an upload in parts; its address."""
    with self.lock:
      key = f"{len(self._uploads)}"
      self._uploads[key] = (name, bytearray())
    return f"{self.url}/upload/session/{key}"

  def upload_of(self, key: str) -> tuple[str, bytearray]:
    """Name and content so far of an upload in parts."""
    return self._uploads[key]

  def stop(self) -> None:
    self._server.shutdown()
    self._server.server_close()
    self._thread.join()


class _Handler(http.server.BaseHTTPRequestHandler):
  protocol_version = "HTTP/1.1"
  disable_nagle_algorithm = True

  def log_message(self, *args: object) -> None:
    pass

  @property
  def bucket(self) -> BucketServer:
    return self.server.bucket

  def handle(self) -> None:
    try:
      super().handle()
    except ConnectionError:  # whoever asked was killed
      pass

  def _asked(self) -> tuple[str, dict[str, str], bytes]:
    parts = urllib.parse.urlsplit(self.path)
    query = dict(urllib.parse.parse_qsl(parts.query, keep_blank_values=True))
    if "chunked" in self.headers.get("Transfer-Encoding", ""):
      body = b""
      while size := int(self.rfile.readline(), 16):
        body += self.rfile.read(size)
        self.rfile.readline()
      self.rfile.readline()
    else:
      body = self.rfile.read(int(self.headers.get("Content-Length", 0)))
    return parts.path, query, body

  def _answer(self, status: int, body: object = b"", **headers: str) -> None:
    content = body if isinstance(body, bytes) else json.dumps(body).encode()
    self.send_response(status)
    for name, value in headers.items():
      self.send_header(name.replace("_", "-"), value)
    self.send_header("Content-Length", str(len(content)))
    self.end_headers()
    if self.command != "HEAD":
      self.wfile.write(content)

  def _missing(self) -> None:
    self._answer(404, {"error": {"code": 404, "message": "no such object"}})

  def _condition(self, query: dict, stored: Stored | None) -> int:
    """The status by which a condition on the generation refuses a request, 0 where it holds."""
    generation = stored.generation if stored else 0
    if "ifGenerationMatch" in query and int(query["ifGenerationMatch"]) != generation:
      return 412
    if "ifGenerationNotMatch" in query and int(query["ifGenerationNotMatch"]) == generation:
      return 304 if self.command == "GET" else 412
    return 0

  def do_GET(self) -> None:
    path, query, _ = self._asked()
    if match := OBJECT.fullmatch(path):
      self._read(urllib.parse.unquote(match[2]), query, path.startswith("/download"))
    elif LISTING.fullmatch(path):
      self._list(query)
    else:
      self._answer(200, {"kind": "storage#bucket", "name": BUCKET, "id": BUCKET, "location": "US"})

  do_HEAD = do_GET

  def _read(self, name: str, query: dict, is_download: bool) -> None:
    with self.bucket.lock:
      stored = self.bucket.objects.get(name)
    if stored is None:
      self._missing()
    elif status := self._condition(query, stored):
      self._answer(status)
    elif not is_download and query.get("alt") != "media":
      self._answer(200, _described(name, stored))
    else:
      content, status, more = stored.content, 200, {}
      if match := re.fullmatch(r"bytes=(\d+)-(\d*)", self.headers.get("Range", "")):
        first, last = int(match[1]), int(match[2] or len(content) - 1)
        if first >= len(content):
          self._answer(416)
          return
        more["Content_Range"] = f"bytes {first}-{min(last, len(content) - 1)}/{len(content)}"
        content, status = content[first : last + 1], 206
      self._answer(status, content, x_goog_generation=str(stored.generation), **more)

  def _list(self, query: dict) -> None:
    prefix, delimiter = query.get("prefix", ""), query.get("delimiter", "")
    first, last = query.get("startOffset", ""), query.get("endOffset", "")
    items, folders = [], set()
    with self.bucket.lock:
      for name in self.bucket.names(prefix):
        if name < first or (last and name >= last):
          continue
        rest = name[len(prefix) :]
        if delimiter and delimiter in rest:
          folders.add(prefix + rest.split(delimiter)[0] + delimiter)
        else:
          items.append(_described(name, self.bucket.objects[name]))
    self._answer(200, {"kind": "storage#objects", "items": items, "prefixes": sorted(folders)})

  def do_POST(self) -> None:
    path, query, body = self._asked()
    if path.startswith("/upload/session/"):
      self._go_on(path, query, body)
    elif match := COPY.fullmatch(path):
      source, target = (urllib.parse.unquote(match[i]) for i in (2, 4))
      with self.bucket.lock:
        if source not in self.bucket.objects:
          self._missing()
          return
        made = self.bucket.write(target, self.bucket.objects[source].content)
      self._answer(200, {"done": True, "resource": _described(target, made)})
    elif query.get("uploadType") == "resumable":
      name = query.get("name") or json.loads(body)["name"]
      self._answer(200, Location=self.bucket.begin_upload(name))
    elif query.get("uploadType") == "multipart":
      boundary = re.search(r'boundary="?([^";]+)', self.headers["Content-Type"])[1].encode()
      _, described, content, _ = body.split(b"--" + boundary)
      name = query.get("name") or json.loads(_after_headers(described))["name"]
      self._write(name, query, _after_headers(content))
    else:
      self._write(query["name"], query, body)

  def do_PUT(self) -> None:
    self._go_on(*self._asked())

  def _go_on(self, path: str, query: dict, body: bytes) -> None:
    name, content = self.bucket.upload_of(path.rsplit("/", 1)[1])
    content += body
    total = self.headers.get("Content-Range", "*/0").rsplit("/", 1)[1]
    if total == "*" or int(total) > len(content):
      self._answer(308, Range=f"bytes=0-{len(content) - 1}")
    else:
      self._write(name, query, bytes(content))

  def _write(self, name: str, query: dict, content: bytes) -> None:
    with self.bucket.lock:
      status = self._condition(query, self.bucket.objects.get(name))
      made = None if status else self.bucket.write(name, content)
    if status:
      self._answer(status, {"error": {"code": status, "message": "condition not met"}})
    else:
      self._answer(200, _described(name, made))

  def do_DELETE(self) -> None:
    path, query, _ = self._asked()
    name = urllib.parse.unquote(OBJECT.fullmatch(path)[2])
    with self.bucket.lock:
      stored = self.bucket.objects.get(name)
      status = self._condition(query, stored)
      if stored is not None and not status:
        del self.bucket.objects[name]
    if status:
      self._answer(status, {"error": {"code": status, "message": "condition not met"}})
    elif stored is None:
      self._missing()
    else:
      self._answer(204)


def _after_headers(part: bytes) -> bytes:
  """The content of a part of a multipart upload, between its headers and the next boundary."""
  ends = [(part.index(mark), mark) for mark in (b"\r\n\r\n", b"\n\n") if mark in part]
  place, mark = min(ends)
  content = part[place + len(mark) :]
  return content.removesuffix(b"\r\n" if content.endswith(b"\r\n") else b"\n")


def _described(name: str, stored: Stored) -> dict:
  """An object's metadata, as the JSON API has it."""
  when = "2026-01-01T00:00:00.000Z"
  return {
    "kind": "storage#object", "id": f"{BUCKET}/{name}/{stored.generation}", "name": name,
    "bucket": BUCKET, "generation": str(stored.generation), "metageneration": "1",
    "size": str(len(stored.content)), "contentType": "application/octet-stream",
    "timeCreated": when, "updated": when, "etag": str(stored.generation),
  }  # fmt: skip
