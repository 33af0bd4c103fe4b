"""What changes while a run goes on: which subnets may be drawn, with what weight, at what rate. One file each."""
