"""Benchmarks: what a trained run knows, item by item, with an interval for every score."""
