"""Faults injected into real runs, and what became of each: `python -m tests.campaign --help`."""
