"""How weights and architecture parameters take turns: one file per rule."""
