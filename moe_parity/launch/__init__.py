"""What launch/*.sh run: pure functions that return commands, and a little code that runs them.

Only the standard library of Python 3.10 and `moe_parity.errors` are imported, so that a laptop, a
login node or a fresh virtual machine can launch a study before anything is installed.

An engine (Slurm, GKE, SkyPilot, the supervisor here) starts and restarts workers; a worker decides
which run is next. They meet in the worker's exit code, see `exit_codes`.
"""
