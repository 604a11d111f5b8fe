"""The text of depth.py: four domains from Debian packages, which apt fetches and nothing installs.

  python configs/texts/depth.py --out texts/depth           # Debian 12; 170 MB to fetch, a minute
  moe-parity prepare --source texts/depth/train --held-out source:texts/depth/held_out --store=depth

Every domain holds as many bytes, and 40 held-out works, each cut to its first 2,000 characters: so
validation counts as many documents, none of which outweighs the others. Which works are held out
is decided by a hash of their names. The licences are free (GPL, BSD, public domain, Apache, PSF);
texts.json says which version of which package was read."""

import argparse
import gzip
import hashlib
import json
import pathlib
import re
import subprocess
import tempfile
from collections.abc import Iterator

DOMAIN_BYTES = 28_000_000  # of training text, each
HELD_OUT_WORKS, HELD_OUT_CHARS = 40, 2_000
LEAST_CHARS = 2_000  # of a work
PACKAGES = {
  "prose": ("anarchism", "dict-gcide"),
  "tech": ("linux-doc-6.1", "llvm-14-doc", "python3.11-doc"),
  "math": ("metamath-databases", "python-sympy-doc"),
  "code": ("golang-1.19-src", "rust-src"),
}
FILES = {  # package: a regular expression of the files that are read
  "anarchism": r"/markdown/.*\.md\.gz$",
  "dict-gcide": r"\.dict\.dz$",
  "linux-doc-6.1": r"/_sources/(?!translations/).*\.txt(\.gz)?$",
  "llvm-14-doc": r"/_sources/.*\.txt(\.gz)?$",
  "python3.11-doc": r"/_sources/.*\.txt(\.gz)?$",
  "metamath-databases": r"/set\.mm$",
  "python-sympy-doc": r"/_sources/.*\.txt(\.gz)?$",
  "golang-1.19-src": r"(?<!_test)\.go$",
  "rust-src": r"/(library|compiler)/.*\.rs$",
}
# Files that hold many works, and where the next one begins.
WORKS = {
  "dict-gcide": r"(?s).{1,20000}.*?(?=\n\S|\Z)",
  "metamath-databases": r"(?s).+?(?=\n\$\(\s*\n(?:#\*#\*|=-=-|-\.-\.)|\Z)",
}


def fetch(package: str, folder: pathlib.Path) -> tuple[pathlib.Path, str]:
  """Fetches and unpacks a package; returns where its files are, and its version."""
  subprocess.run(["apt-get", "download", package], cwd=folder, check=True, capture_output=True)
  archive = next(folder.glob(f"{package}_*.deb"))
  unpacked = folder / package
  subprocess.run(["dpkg-deb", "-x", archive, unpacked], check=True)
  asked = subprocess.run(
    ["dpkg-deb", "-f", archive, "Version"], check=True, capture_output=True, text=True
  )
  return unpacked, asked.stdout.strip()


def works(package: str, folder: pathlib.Path) -> Iterator[tuple[str, str]]:
  """(name, text) of every work of a package that is long enough, in the order of their names."""
  wanted = re.compile(FILES[package])
  for path in sorted(folder.rglob("*")):
    name = path.relative_to(folder).as_posix()
    if not (wanted.search(name) and path.is_file() and not path.is_symlink()):
      continue
    data = path.read_bytes()
    text = (gzip.decompress(data) if data[:2] == b"\x1f\x8b" else data).decode("utf-8", "replace")
    text = re.sub(r"[ \t]+\n", "\n", text.replace("\r\n", "\n").replace("\0", ""))
    parts = re.findall(WORKS[package], text) if package in WORKS else [text]
    for i, part in enumerate(parts):
      if len(part := part.strip()) >= LEAST_CHARS:
        yield f"{package}/{name}" + (f"#{i}" if package in WORKS else ""), part


def rank(name: str) -> str:
  """What decides which works are held out, and which are read where there are too many."""
  return hashlib.sha256(name.encode()).hexdigest()


def split(
  found: dict[str, str], domain_bytes: int = DOMAIN_BYTES
) -> tuple[dict[str, str], dict[str, str]]:
  """(training works, held-out works): the first of all by rank are held out, the next are read
  until there are bytes enough. A text is read once, whatever names it has."""
  once = {text: name for name, text in sorted(found.items(), reverse=True)}
  ranked = sorted(((name, text) for text, name in once.items()), key=lambda work: rank(work[0]))
  held_out = {name: text[:HELD_OUT_CHARS] for name, text in ranked[:HELD_OUT_WORKS]}
  train, size = {}, 0
  for name, text in ranked[HELD_OUT_WORKS:]:
    if size >= domain_bytes:
      break
    train[name] = text
    size += len(text.encode())
  return train, held_out


def write(path: pathlib.Path, domain: str, texts: dict[str, str]) -> dict:
  """Writes works as JSON lines; returns how many there are, and of how many bytes."""
  path.parent.mkdir(parents=True, exist_ok=True)
  with open(path, "w", encoding="utf-8") as file:
    for name in sorted(texts):
      record = {"text": texts[name], "domain": domain, "source": name}
      file.write(json.dumps(record, ensure_ascii=False) + "\n")
  return {"works": len(texts), "bytes": sum(len(text.encode()) for text in texts.values())}


def main() -> None:
  parser = argparse.ArgumentParser(description=__doc__.split("\n", 1)[0])
  parser.add_argument("--out", required=True, type=pathlib.Path)
  parser.add_argument(
    "--bytes", type=int, default=DOMAIN_BYTES, help="of training text of each domain"
  )
  args = parser.parse_args()
  out = args.out
  versions, sizes = {}, {}
  for domain, packages in PACKAGES.items():
    found: dict[str, str] = {}
    for package in packages:
      with tempfile.TemporaryDirectory() as scratch:
        folder, versions[package] = fetch(package, pathlib.Path(scratch))
        found |= works(package, folder)
    train, held_out = split(found, args.bytes)
    sizes[domain] = {
      "train": write(out / "train" / f"{domain}.jsonl", domain, train),
      "held_out": write(out / "held_out" / f"{domain}.jsonl", domain, held_out),
    }
    print(domain, json.dumps(sizes[domain]))
  about = {"packages": versions, "domains": sizes}
  (out / "texts.json").write_text(json.dumps(about, indent=1) + "\n")


if __name__ == "__main__":
  main()
