"""Slow and obvious versions of what the project computes fast: the oracles of the tests."""

import numpy as np


def silu(a):
  return a / (1 + np.exp(-a))


def expert_ffn(x, expert, gate, w_in, w_down):
  """Routed SwiGLU experts by a loop over tokens and choices, in float64.

  Shapes as in `moe_parity.experts.expert_ffn`; an expert id of E adds nothing.
  """
  x, gate, w_in, w_down = (np.asarray(a, np.float64) for a in (x, gate, w_in, w_down))
  y = np.zeros_like(x)
  for t, chosen in enumerate(np.asarray(expert)):
    for k, e in enumerate(chosen):
      if e < w_in.shape[0]:
        hidden = silu(x[t] @ w_in[e, 0].T) * (x[t] @ w_in[e, 1].T)
        y[t] += gate[t, k] * (hidden @ w_down[e])
  return y


def expert_ffn_gradients(x, expert, gate, w_in, w_down, dy):
  """Gradients of sum(dy * expert_ffn(...)) for x, gate, w_in, w_down: the chain rule by hand,
  one token and one choice at a time, in float64."""
  x, gate, w_in, w_down, dy = (np.asarray(a, np.float64) for a in (x, gate, w_in, w_down, dy))
  dx, dgate, dw_in, dw_down = (np.zeros_like(a) for a in (x, gate, w_in, w_down))
  for t, chosen in enumerate(np.asarray(expert)):
    for k, e in enumerate(chosen):
      if e == w_in.shape[0]:
        continue
      g, u = w_in[e, 0] @ x[t], w_in[e, 1] @ x[t]
      sigmoid = 1 / (1 + np.exp(-g))
      hidden = g * sigmoid * u
      dgate[t, k] = dy[t] @ (hidden @ w_down[e])
      dhidden = gate[t, k] * (w_down[e] @ dy[t])
      dg = dhidden * u * sigmoid * (1 + g * (1 - sigmoid))
      du = dhidden * g * sigmoid
      dw_down[e] += gate[t, k] * np.outer(hidden, dy[t])
      dw_in[e, 0] += np.outer(dg, x[t])
      dw_in[e, 1] += np.outer(du, x[t])
      dx[t] += dg @ w_in[e, 0] + du @ w_in[e, 1]
  return dx, dgate, dw_in, dw_down
