"""Tokenizers as sentencepiece's are written in a tokenizer.json, with a few merges."""

SPECIALS = ("<unk>", "<s>", "</s>")
MERGES = (("▁", "a"), ("t", "h"), ("th", "e"), ("▁", "the"), ("c", "a"), ("▁", "ca"))
SPACE = "▁"


def description(style="prepend", specials=SPECIALS):
  """
  Args:
    style: "prepend" as of Llama 2 and Mistral, "metaspace" as transformers writes them today, or
      "none": no space before a text.
    specials: names of ids 0, 1, 2: unknown, begins, ends.
  """
  vocab = {name: i for i, name in enumerate(specials)}
  vocab |= {f"<0x{byte:02X}>": 3 + byte for byte in range(256)}
  for piece in [*"▁abcdefghijklmnopqrstuvwxyz.:?", *("".join(pair) for pair in MERGES)]:
    vocab[piece] = len(vocab)
  replace = {"type": "Replace", "pattern": {"String": " "}, "content": SPACE}
  back = {"type": "Replace", "pattern": {"String": SPACE}, "content": " "}
  strip = {"type": "Strip", "content": " ", "start": 1, "stop": 0}
  decoders = [back, {"type": "ByteFallback"}, {"type": "Fuse"}] + [strip] * (style != "none")
  metaspace = {
    "type": "Metaspace", "replacement": SPACE, "split": False,
    "prepend_scheme": "first" if style == "metaspace" else "never",
  }  # fmt: skip
  prepend = {"type": "Sequence", "normalizers": [{"type": "Prepend", "prepend": SPACE}, replace]}
  is_prepend = style == "prepend"
  return {
    "version": "1.0", "truncation": None, "padding": None,
    "added_tokens": [
      {"id": i, "content": name, "single_word": False, "lstrip": False, "rstrip": False,
       "normalized": False, "special": True} for i, name in enumerate(specials)
    ],
    "normalizer": prepend if is_prepend else None,
    "pre_tokenizer": None if is_prepend else metaspace,
    "post_processor": None,
    "decoder": {"type": "Sequence", "decoders": decoders},
    "model": {
      "type": "BPE", "dropout": None, "unk_token": specials[0], "continuing_subword_prefix": None,
      "end_of_word_suffix": None, "fuse_unk": True, "byte_fallback": True, "ignore_merges": False,
      "vocab": vocab, "merges": [list(pair) for pair in MERGES],
    },
  }  # fmt: skip
