"""Layers that serve both as the supernet's and as an exported subnet's: see `supernet.layers.conv`."""
