"""Eight simulated CPU devices and strict shapes, for every test that touches JAX.

Options go through the environment, so tests of plain Python never pay for importing JAX.
"""

import os

os.environ.setdefault("JAX_PLATFORMS", "cpu")
os.environ["JAX_NUM_CPU_DEVICES"] = "8"
os.environ["JAX_NUMPY_RANK_PROMOTION"] = "raise"
