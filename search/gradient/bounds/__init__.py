"""How a budget acts while probabilities are learned: one file per rule."""
