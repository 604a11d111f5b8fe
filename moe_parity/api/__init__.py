"""What `import moe_parity as mp` offers; the names are in `moe_parity/__init__.py`.

Planning, reading and predicting load no JAX, so they work in a kernel whose JAX is another one's.
"""
