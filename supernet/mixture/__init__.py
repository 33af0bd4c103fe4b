"""Mixtures of subnets: one forward pass of the supernet for probabilities of the options instead of one choice."""

from supernet.mixture.mixture import Mixture

__all__ = ["Mixture"]
