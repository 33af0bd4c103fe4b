"""How long subnets take on a device: measured there, modelled over the whole space, or read from tables of others."""
