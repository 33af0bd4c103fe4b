"""One file per family: its space, its units and its module."""
