"""How the random subnets of a training step are drawn: one path sampler per file."""
