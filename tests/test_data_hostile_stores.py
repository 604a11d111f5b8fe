"""Stores of strangers and damaged ones: one line, nothing written outside, nothing unpickled."""

import copy
import hashlib
import io
import json
import os
import pickle

import numpy as np
import pytest

from moe_parity.cli import main
from moe_parity.commands.data.show import print_store
from moe_parity.data import shards, storage
from moe_parity.data.audit import audit_run
from moe_parity.data.checked_json import parse
from moe_parity.data.ledger import Ledger
from moe_parity.data.loader import Loader
from moe_parity.data.shards import write_index
from moe_parity.data.token_store import open_store
from moe_parity.errors import UserError
from moe_parity.stored.shape import mismatch
from tests.helpers.bucket import install
from tests.helpers.small_store import small_store

PLAIN = ("a", -1, 3.5, None, [], {}, True, "x" * 5000, "\ud83d", float("nan"), 10**30)
NAMES = ("../../x", "/tmp/x", "..", ".", "", "a/b.bin", "a\\b", "train-00000.bin\0", "CON\n")


@pytest.fixture(scope="module")
def made(tmp_path_factory):
  """Manifest and files of a small store of several shards."""
  folder = tmp_path_factory.mktemp("made")
  with pytest.MonkeyPatch.context() as patch:
    patch.setattr(shards, "SHARD_TOKENS", 900)
    store = small_store(folder)
  return store.manifest, {path.name: path.read_bytes() for path in store.folder.iterdir()}


@pytest.fixture
def folder(made, tmp_path):
  for name, data in made[1].items():
    (tmp_path / "st").mkdir(exist_ok=True)
    (tmp_path / "st" / name).write_bytes(data)
  return tmp_path / "st"


def places(value, here=()):
  """The path of every field below a JSON value."""
  items = value.items() if isinstance(value, dict) else enumerate(value)
  for key, inner in items:
    yield (*here, key)
    if isinstance(inner, dict | list):
      yield from places(inner, (*here, key))


def changed(manifest, place, value):
  copied = copy.deepcopy(manifest)
  inner = copied
  for key in place[:-1]:
    inner = inner[key]
  if value is ...:
    del inner[place[-1]]
  else:
    inner[place[-1]] = value
  return copied


def refused(folder, verify=True):
  """Opens, uses and shows a store; whether it was refused, always in one line."""
  try:
    store = open_store(str(folder), verify=verify)
    store.fingerprint()
    next(iter(Loader(store.train, 2, 8, prefetch=0)))
    print_store(store)
  except UserError as error:
    assert "\n" not in str(error) and len(str(error)) < 1000, str(error)
    return True
  json.dumps(store.manifest)
  return False


def test_any_field_of_a_manifest_may_be_anything(made, folder):
  """Every field replaced by every kind of value, or removed: used as it is, or one line."""
  places_of = list(places(made[0]))
  assert len(places_of) > 150
  counted = 0
  for place in places_of:
    for value in (*PLAIN, ...):
      (folder / "manifest.json").write_text(json.dumps(changed(made[0], place, value)))
      counted += refused(folder, verify=False)
  assert counted > 1000


@pytest.mark.parametrize("place", [
  ("splits", "train", "num_tokens"), ("splits", "validation", "num_documents"),
  ("splits", "train", "num_bytes"), ("splits", "validation", "num_chars"),
  ("splits", "train", "sha256"), ("splits", "train", "shards", 0, "num_tokens"),
  ("tokenizer", "fingerprint"), ("tokenizer", "eos_id"), ("tokenizer", "vocab_size"),
  ("splits", "train", "files", "train-00000.bin", "sha256"),
])  # fmt: skip
def test_numbers_and_hashes_that_are_not_of_the_files_are_found(made, folder, place):
  before = made[0]
  for key in place:
    before = before[key]
  after = before + 1 if isinstance(before, int) else "0" * 64
  (folder / "manifest.json").write_text(json.dumps(changed(made[0], place, after)))
  assert refused(folder)


@pytest.mark.parametrize("text", [
  "", "{", "[]", "3", "[" * 200_000, '{"format": NaN}', '{"a": "\\ud83d"}', "\xff", "null",
])  # fmt: skip
def test_a_manifest_that_is_no_manifest_is_one_line(folder, text, capsys):
  (folder / "manifest.json").write_text(text, "latin-1")
  assert refused(folder, verify=False)
  assert main(["data", "show", str(folder)]) == 2
  assert capsys.readouterr().err.count("\n") == 1


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("what", ["shard", "file"])
def test_a_name_that_leads_out_writes_nothing(made, tmp_path, monkeypatch, name, what):
  monkeypatch.setenv("MOE_PARITY_CACHE", str(tmp_path / "deep" / "cache"))
  bucket = install(monkeypatch)
  manifest = copy.deepcopy(made[0])
  split = manifest["splits"]["train"]
  if what == "shard":  # consistently: its files have the same name
    split["shards"][0]["name"] = name
    for ending in (".bin", ".idx"):
      split["files"][name + ending] = split["files"].pop(f"train-00000{ending}")
  else:
    split["files"][name] = split["files"].pop("train-00000.bin")
  for key, data in made[1].items():
    bucket.pipe_file(f"gs://mine/st/{key}", data)
  bucket.pipe_file("gs://mine/st/manifest.json", json.dumps(manifest).encode())
  before = sorted(tmp_path.rglob("*"))
  with pytest.raises(UserError, match="damaged"):
    open_store("gs://mine/st")
  assert sorted(tmp_path.rglob("*")) == before


@pytest.mark.parametrize("name", NAMES)
def test_download_and_listing_check_names_themselves(tmp_path, monkeypatch, name):
  bucket = install(monkeypatch)
  bucket.pipe_file("gs://mine/st/x", b"x")
  if name not in ("CON\n", "a/b.bin"):
    with pytest.raises(UserError, match="outside of its folder"):
      storage.download("gs://mine/st", ["x", name], tmp_path / "in")
    assert not (tmp_path / "in").exists()
  hostile = {"mine/st/x": {"size": 1}, "mine/st/a/../../y": {"size": 1}}
  monkeypatch.setattr(type(bucket), "find", lambda *_, **__: hostile)
  with pytest.raises(UserError, match="outside of its folder"):
    storage.names("gs://mine/st")


def test_a_name_no_file_system_takes_is_refused(tmp_path, monkeypatch):
  """An object of such a name ended a study on a bucket in an OSError."""
  bucket = install(monkeypatch)
  assert storage.inside(tmp_path, "x" * 255).name == "x" * 255
  for name in ("a/" + "x" * 256, "\u20ac" * 86):
    with pytest.raises(UserError, match="longer than the 255 bytes"):
      storage.inside(tmp_path, name)
    bucket.pipe_file(f"gs://mine/st/{name}", b"x")
    with pytest.raises(UserError, match="longer than the 255 bytes"):
      storage.names("gs://mine/st")


def test_a_link_on_the_way_out_is_no_way(tmp_path):
  (tmp_path / "in").mkdir()
  (tmp_path / "in" / "link").symlink_to(tmp_path)
  assert storage.inside(tmp_path / "in", "a/b").name == "b"
  with pytest.raises(UserError, match="outside"):
    storage.inside(tmp_path / "in", "link/x")


class Bomb:
  def __reduce__(self):
    return (os.mkdir, ("exploded",))


def npz_of(arrays):
  file = io.BytesIO()
  np.savez(file, **arrays)
  return file.getvalue()


def npy_of(array):
  file = io.BytesIO()
  np.save(file, array)
  return file.getvalue()


@pytest.mark.parametrize(
  "kind", ["npz", "npy", "pickle", "object in npz", "empty", "cut", "flipped"]
)
def test_documents_that_are_pickled_or_damaged_are_refused(made, folder, kind, monkeypatch):
  monkeypatch.chdir(folder.parent)
  path = folder / "train.documents.npz"
  data = made[1][path.name]
  with np.load(path) as stored:
    arrays = dict(stored)
  bomb = np.array([Bomb()], object)
  path.write_bytes({
    "npz": npz_of({"a": np.zeros(3)}), "npy": npy_of(np.zeros(3)), "empty": b"",
    "pickle": pickle.dumps(Bomb()),
    "object in npz": npz_of(arrays | {"domain": bomb, "names": bomb}),
    "cut": data[: len(data) // 2], "flipped": data[:200] + bytes([data[200] ^ 255]) + data[201:],
  }[kind])  # fmt: skip
  assert refused(folder)
  manifest = json.loads((folder / "manifest.json").read_text())
  manifest["splits"]["train"]["files"][path.name]["size"] = path.stat().st_size
  (folder / "manifest.json").write_text(json.dumps(manifest))
  assert refused(folder, verify=False)
  assert not os.path.exists("exploded")


@pytest.mark.parametrize("key, value", [
  ("domain", -1), ("domain", 99), ("source", 10**6), ("num_bytes", -5), ("num_chars", None),
  ("num_bytes", 1.5), ("origin", -1),
])  # fmt: skip
def test_documents_out_of_range_are_refused(folder, key, value):
  path = folder / "train.documents.npz"
  with np.load(path) as stored:
    arrays = dict(stored)
  arrays[key] = arrays[key][:-1] if value is None else np.full_like(
    arrays[key], value, dtype=None if isinstance(value, int) else np.float64)  # fmt: skip
  path.write_bytes(npz_of(arrays))
  manifest = json.loads((folder / "manifest.json").read_text())
  manifest["splits"]["train"]["files"][path.name]["size"] = path.stat().st_size
  (folder / "manifest.json").write_text(json.dumps(manifest))
  with pytest.raises(UserError, match="train.documents.npz is damaged"):
    _ = open_store(str(folder)).train.documents


def rehashed(folder, stream=True, split="train"):
  """A manifest with the sizes and hashes that the files have now: a consistent liar."""
  manifest = json.loads((folder / "manifest.json").read_text())
  entry = manifest["splits"][split]
  for name, file in entry["files"].items():
    file |= {"size": (folder / name).stat().st_size, "sha256": storage.sha256_of(folder / name)}
  if stream:
    parts = (folder / f"{shard['name']}.bin" for shard in entry["shards"])
    entry["sha256"] = hashlib.sha256(b"".join(part.read_bytes() for part in parts)).hexdigest()
  (folder / "manifest.json").write_text(json.dumps(manifest))
  return manifest, entry


@pytest.mark.parametrize("what", ["ids", "separators", "lengths", "negative", "more", "stream"])
def test_a_consistent_liar_is_found_by_the_full_check(folder, what):
  """Hashes of files fit; ids beyond the vocabulary, lost separators, odd lengths, other tokens."""
  name = folder / "train-00000"
  tokens = np.fromfile(f"{name}.bin", np.uint16)
  lengths, dtype = shards.read_index(f"{name}.idx")
  if what == "ids":
    tokens[3] = 60_000
  elif what == "separators":
    tokens[lengths[0] - 1] = 20
  elif what == "stream":
    tokens[2] += 1
  elif what == "more":
    lengths[0] += 1
  elif what in ("lengths", "negative"):
    lengths[:2] += [-1, 1] if what == "lengths" else [-int(lengths[0]) - 1, int(lengths[0]) + 1]
  tokens.tofile(f"{name}.bin")
  write_index(f"{name}.idx", lengths, dtype)
  rehashed(folder, stream=what != "stream")
  assert refused(folder)


def test_ledgers_of_strangers_are_one_line(tmp_path, made, folder):
  store = open_store(str(folder))
  ledger = Ledger.for_loader(Loader(store.train, 2, 8, prefetch=0))
  (tmp_path / "run").mkdir()
  path = tmp_path / "run" / "ledger.npz"
  ledger.save(path)
  good = path.read_bytes()
  with np.load(path) as stored:
    arrays = dict(stored)
  meta = json.loads(arrays["meta"].tobytes())

  def with_meta(value):
    return arrays | {"meta": np.frombuffer(json.dumps(value).encode(), np.uint8)}

  def with_order(changes):
    order = meta["data"]["order"] | changes
    return with_meta(meta | {"data": meta["data"] | {"order": order}})

  hostile = [
    b"", good[:100], pickle.dumps(Bomb()), npz_of(arrays | {"counts": np.array([Bomb()], object)}),
    npz_of(arrays | {"row": np.array([1, 2])}), npz_of(arrays | {"digest": np.zeros(3)}),
    npz_of(arrays | {"counts": np.zeros(3)}), npz_of(arrays | {"domain_ids": np.zeros(3, int)}),
    npz_of({key: arrays[key] for key in ("meta", "counts")}), npz_of(with_meta([])),
    npz_of(with_meta(meta | {"seq_len": -1})), npz_of(with_meta(meta | {"data": 3})),
    npz_of(with_meta({"seq_len": 8, "data": {}})),
    *(npz_of(with_order({name: None})) for name in ("num_windows", "num_unique", "seed")),
    npz_of(with_order({"num_windows": ledger.counts.size + 1})), npz_of(with_order({"seed": "x"})),
    npz_of(with_order({"groups": ["prose"], "shares": [1], "unique_by_group": [1]})),
    npz_of(
      with_order({"groups": ["prose"], "shares": [], "unique_by_group": [1]})
      | {"domain_ids": np.zeros(ledger.counts.size, int)}
    ),
    npz_of(with_meta(meta | {"data": meta["data"] | {"split": "__class__"}})),
    npz_of(arrays | {"meta": np.frombuffer(b"[" * 100_000, np.uint8)}),
  ]  # fmt: skip
  for data in hostile:
    path.write_bytes(data)
    with pytest.raises(UserError) as raised:
      audit_run(tmp_path / "run")
    assert "\n" not in str(raised.value)


def test_shapes_say_where_a_value_does_not_fit():
  shape = {"a": [{"b?": int, "c": str}], "d": {str: float}}
  assert mismatch({"a": [{"c": "x"}, {"b": 3, "c": ""}], "d": {"e": 1}, "more": 1}, shape) == ""
  for value, words in [
    ([], "it is a list, not an object"), ({"a": []}, "d is missing"),
    ({"a": {}, "d": {}}, "a is an object, not a list"),
    ({"a": [{"c": "", "b": -1}], "d": {}}, "a[0].b is -1, not an integer of at least 0"),
    ({"a": [{"c": "", "b": True}], "d": {}}, "a[0].b is True"),
    ({"a": [{"c": 3}], "d": {}}, "a[0].c is 3, not a string"),
    ({"a": [], "d": {"x": "y"}}, "d['x'] is 'y', not a finite number"),
  ]:  # fmt: skip
    assert words in mismatch(value, shape)
  with pytest.raises(UserError, match="x is damaged .it is 3, not a string.; mend it"):
    parse(b"3", str, "x", "mend it")
