"""Measurements too long for tests: `python -m benchmarks.<name>`; their results are in RESULTS.md."""
