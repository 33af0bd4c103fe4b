"""How probabilities of options are drawn from architecture parameters: one file per rule."""
