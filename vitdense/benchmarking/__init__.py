"""Ours and the peers side by side: the same weights, numerics first, then time and memory as ratios."""
