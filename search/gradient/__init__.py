"""Gradient-based search: probabilities of the options are learned together with, or after, the weights."""
