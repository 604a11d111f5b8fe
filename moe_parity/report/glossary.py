"""The paper's symbols and what each means: the table of docs/glossary.md, and on the report page a
hover text and a line where a symbol is first used."""

import html
import re
from collections.abc import Iterable
from typing import NamedTuple


class Symbol(NamedTuple):
  """A symbol with its names in code; `page`: the page explains it wherever it stands alone."""

  letters: str
  code: tuple[str, ...]
  meaning: str
  page: bool = False


TABLE = (
  Symbol(
    "N",
    ("num_params",),
    "parameters of attention, feed-forward layers and experts; the vocabulary's are left out, and "
    "the router's and the norms' unless the budget's convention counts them",
    True,
  ),
  Symbol("N_a", ("num_active_params",), "those of N that one token uses (active)", True),
  Symbol(
    "r_a",
    ("activation_rate",),
    "activation rate, N_a / N: the share of the parameters that a token uses; 100 % is dense",
    True,
  ),
  Symbol("M", ("forward_flops_per_token", "train_flops_per_token"),
         "FLOPs a token; of training 3 times those of the forward pass", True),
  Symbol("C", ("train_flops",),
         "training compute in FLOPs, counted by the budget's convention", True),
  Symbol("R_c", ("compute_ratio",),
         "M of an arm over M of dense; at equal C it trains on 1 / R_c times the tokens"),
  Symbol("D", ("num_tokens",), "training tokens read, repetitions included", True),
  Symbol("D^", ("num_unique_tokens",),
         "unique training tokens: each counted once, however often it is read; epochs = D / D^",
         True),
  Symbol("B", ("batch_sequences",), "sequences per optimizer step"),
  Symbol("S", ("seq_len",), "tokens per sequence"),
  Symbol("V", ("vocab_size",), "entries of the vocabulary"),
  Symbol("d", ("d_model",), "width of the residual stream"),
  Symbol("L", ("num_layers",), "layers", True),
  Symbol("L_e, L_d", ("num_moe_layers", "num_dense_layers"), "MoE layers, dense layers"),
  Symbol("H", ("num_heads",), "attention heads (the paper's H; not the hidden size)"),
  Symbol("f", ("d_ffn",), "hidden width of a dense feed-forward layer"),
  Symbol("E", ("num_experts",), "routed experts in a layer", True),
  Symbol("K", ("experts_per_token",), "routed experts that one token uses", True),
  Symbol("D_e", ("d_expert",), "hidden width of a routed expert"),
  Symbol("D_se", ("d_shared",), "hidden width of the shared expert; K D_e unless set"),
  Symbol("alpha", ("ffn_ratio",), "f / d"),
  Symbol("zeta", ("aspect_ratio",), "d / L"),
  Symbol("gamma", ("context_ratio",), "S / d"),
  Symbol("mu", ("total_ffn_ratio",),
         "(D_se + E D_e) / d: all feed-forward width of an MoE layer over d"),
  Symbol("beta", ("active_ffn_ratio",), "(D_se + K D_e) / d: the same for the active width"),
  Symbol("kappa", ("kappa",), "M / (2 N_a): what attention adds to the parameters' FLOPs"),
  Symbol("eta", ("peak_learning_rate",), "learning rate after warm-up, before the cosine"),
  Symbol("R*", ("token_decay",),
         "in Muennighoff's law: epochs over which repetition loses its worth"),
  Symbol("r_a*", ("optimum",), "activation rate at which the fitted curve is lowest"),
  Symbol("BPC", ("bpc",), "bits per character of held-out text, the score: lower is better", True),
  Symbol("BPB", ("bpb",), "bits per byte of held-out text", True),
  Symbol("CE", ("cross_entropy",), "cross-entropy on training text, in nats a token", True),
  Symbol("MaxVio", ("max_vio",),
         "load of the fullest expert over the even load, minus 1: 0 is even", True),
  Symbol("RMS", (), "root mean square over the numbers of a vector: its typical size", True),
)  # fmt: skip
SYMBOLS = {symbol.letters: symbol.meaning for symbol in TABLE if symbol.page}
_LONGEST_FIRST = sorted(SYMBOLS, key=len, reverse=True)
# A symbol stands alone: not a piece of a word, of an arm's name or of a path.
_SYMBOL = re.compile(
  r"(?<![\w&;/.\-^#])(" + "|".join(map(re.escape, _LONGEST_FIRST)) + r")(?![\w\-^]|/\w{2}|\.\w)"
)
_MARKED = re.compile(r'<abbr title="[^"]*">([^<]+)</abbr>')


def marked(text: str) -> str:
  """Escaped text in which every symbol explains itself on hover. `text` is plain."""
  return _SYMBOL.sub(
    lambda m: f'<abbr title="{html.escape(SYMBOLS[m[1]], quote=True)}">{m[1]}</abbr>',
    html.escape(text),
  )


def symbols_of(body: str) -> list[str]:
  """The symbols that HTML made by `marked` uses, in the order of their first use."""
  return list(dict.fromkeys(_MARKED.findall(body)))


def explained(symbols: Iterable[str]) -> str:
  """One line on these symbols, as HTML; "" for none."""
  entries = [f"<b>{html.escape(s)}</b> {html.escape(SYMBOLS[s])}" for s in symbols]
  return f'<p class="symbols">{"; ".join(entries)}.</p>\n' if entries else ""


class FirstUses:
  """Gives each part of a page, in order, the line on the symbols that no earlier part explained."""

  def __init__(self) -> None:
    self._explained: set[str] = set()

  def line(self, body: str) -> str:
    """The line on the symbols of `body` that are new."""
    new = [symbol for symbol in symbols_of(body) if symbol not in self._explained]
    self._explained |= set(new)
    return explained(new)
