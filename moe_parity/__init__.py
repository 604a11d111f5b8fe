"""Dense against Mixture-of-Experts language models at equal parameters, compute and data.

    import moe_parity as mp

    mp.plan("configs/demo.py")             # what every arm of a budget costs
    mp.predict("configs/paper_7b.py")      # what an arm will score before it is trained
    mp.open_study("runs/demo")             # results, differences, certificate, figures
    mp.open_run("runs/demo/runs/dense-s0") # one trained model

Each name is loaded when it is first used: importing the package costs nothing. Only `Run.model`,
`Run.routing` and `Run.generate` load JAX.
"""

import importlib

_MODULES = {
  "plan": "plans",
  "Plan": "plans",
  "predict": "predictions",
  "Prediction": "predictions",
  "open_study": "studies",
  "Study": "studies",
  "open_run": "runs",
  "Run": "runs",
}
__all__ = [*_MODULES]


def __getattr__(name: str):
  if name not in _MODULES:
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
  return getattr(importlib.import_module(f"{__name__}.api.{_MODULES[name]}"), name)


def __dir__():
  return sorted([*globals(), *_MODULES])
