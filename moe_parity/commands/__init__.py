"""The commands of the `moe-parity` command, a file each.

A command has `HELP` (one line), `arguments(parser)` where it takes any, and `run(args)`, which
returns the exit status: 0 done, 1 it ran and the answer is no. Heavy imports stand inside `run`, so
that `plan` and `account` answer without loading JAX.
"""
