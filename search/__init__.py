"""Searching a trained supernet: algorithms, budgets, and the runner behind `python search.py`."""
