"""Spaces whose subnets have known scores: for comparing search algorithms in seconds."""
