"""The whole model by the book: NumPy float64, one token, head and expert at a time."""

import numpy as np

from tests.helpers import reference


def softmax(x):
  e = np.exp(x - x.max(-1, keepdims=True))
  return e / e.sum(-1, keepdims=True)


def rms_norm(x, scale, epsilon=1e-6):
  return x / np.sqrt((x**2).mean(-1, keepdims=True) + epsilon) * scale


def swiglu(x, w):
  return (reference.silu(x @ w["gate"]) * (x @ w["up"])) @ w["down"]


def slopes(num_heads):
  """ALiBi slopes as its paper tells: geometric for powers of two, else the power below and every
  other one of twice that."""
  if num_heads & (num_heads - 1) == 0:
    return [2 ** (-8 / num_heads * (h + 1)) for h in range(num_heads)]
  below = 1
  while below * 2 < num_heads:
    below *= 2
  return slopes(below) + slopes(2 * below)[::2][: num_heads - below]


def attention(x, w, architecture, position, rope_base=10_000.0):
  """One sequence [S, D]."""
  S, H, N, Q = len(x), architecture.num_heads, architecture.num_kv_heads, architecture.d_head
  q = (x @ w["query"]).reshape(S, H, Q)
  k = (x @ w["key"]).reshape(S, N, Q)
  v = (x @ w["value"]).reshape(S, N, Q)
  if position == "rope":
    turn = np.exp(1j * np.arange(S)[:, None] * rope_base ** (-np.arange(Q // 2) / (Q // 2)))
    rotated = []
    for y in (q, k):
      z = (y[..., : Q // 2] + 1j * y[..., Q // 2 :]) * turn[:, None]
      rotated.append(np.concatenate([z.real, z.imag], -1))
    q, k = rotated
  out = np.zeros((S, H, Q))
  for h in range(H):
    n = h // (H // N)
    for i in range(S):
      score = k[: i + 1, n] @ q[i, h] / np.sqrt(Q)
      if position == "alibi":
        score -= slopes(H)[h] * (i - np.arange(i + 1))
      out[i, h] = softmax(score) @ v[: i + 1, n]
  return out.reshape(S, H * Q) @ w["out"]


def moe(x, w, k, normalize, routed_scale=1.0):
  """Returns the output and the chosen experts of each token, best first."""
  probability = softmax(x @ w["router"])
  chosen = np.argsort(-(probability + w["selection_bias"]), axis=-1, kind="stable")[:, :k]
  gate = np.take_along_axis(probability, chosen, -1)
  if normalize:
    gate = gate / gate.sum(-1, keepdims=True)
  y = reference.expert_ffn(x, chosen, routed_scale * gate, w["experts_in"], w["experts_out"])
  return (y + swiglu(x, w["shared"]) if "shared" in w else y), chosen, probability


def token_nats(
  weights, layers, architecture, inputs, targets, position, normalize, routed_scale=1.0,
  rope_base=10_000.0, norm_epsilon=1e-6,
):  # fmt: skip
  """-ln p of each target [B, S], and per MoE layer (chosen, probabilities) over all tokens."""
  nats, routed = [], []
  for row, target in zip(inputs, targets, strict=True):
    x, row_routed = weights["embedding"][row], []
    for w, is_moe in zip(layers, architecture.moe_layers, strict=True):
      normed = rms_norm(x, w["attention_norm"], norm_epsilon)
      x = x + attention(normed, w["attention"], architecture, position, rope_base)
      normed = rms_norm(x, w["feedforward_norm"], norm_epsilon)
      if is_moe:
        k = architecture.experts_per_token
        y, *what = moe(normed, w["feedforward"], k, normalize, routed_scale)
        row_routed.append(what)
      else:
        y = swiglu(normed, w["feedforward"])
      x = x + y
    logits = rms_norm(x, weights["final_norm"], norm_epsilon) @ weights["head"]
    nats.append(-np.log(softmax(logits)[np.arange(len(target)), target]))
    routed.append(row_routed)
  together = [tuple(np.concatenate(parts) for parts in zip(*layer, strict=True))
              for layer in zip(*routed, strict=True)]  # fmt: skip
  return np.stack(nats), together


def layer_sizes(weights, layers, architecture, inputs, position, routed_scale):
  """Root mean squares per MoE layer over all tokens of raw gates' routed sum, the shared expert and
  the residual stream before them, and the mean sum of the gates."""
  k, squares = architecture.experts_per_token, []
  for row in inputs:
    x, of_row = weights["embedding"][row], []
    for w, is_moe in zip(layers, architecture.moe_layers, strict=True):
      x = x + attention(rms_norm(x, w["attention_norm"]), w["attention"], architecture, position)
      normed, f = rms_norm(x, w["feedforward_norm"]), w["feedforward"]
      if is_moe:
        y, chosen, probability = moe(normed, f, k, False, routed_scale)
        shared = swiglu(normed, f["shared"])
        gates = routed_scale * np.take_along_axis(probability, chosen, -1).sum(-1)
        of_row.append([gates.mean(), *((part**2).mean() for part in (y - shared, shared, x))])
      else:
        y = swiglu(normed, f)
      x = x + y
    squares.append(of_row)
  gate_sum, *rest = np.mean(squares, axis=0).T
  names = ("routed_rms", "shared_rms", "residual_rms")
  return {"gate_sum": gate_sum} | {n: np.sqrt(v) for n, v in zip(names, rest, strict=True)}
