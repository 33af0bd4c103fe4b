"""Selection: from a trained mixture to one subnet."""
