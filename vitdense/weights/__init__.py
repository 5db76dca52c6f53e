"""Published checkpoints in and out: detect the family, convert its keys, load strictly, report."""
