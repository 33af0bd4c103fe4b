"""Every number that the original codes of the published supernets computed, against ours: see `__main__`."""
