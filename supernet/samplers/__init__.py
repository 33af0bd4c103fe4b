"""Which subnets a training step trains: one sampler per file."""
