"""Fewer weights in common: several supernets over one space, each training its own subnets."""
