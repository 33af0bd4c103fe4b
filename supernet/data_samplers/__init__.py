"""Which training images an epoch visits, and with what weight: one data sampler per file."""
