"""Pictures larger than memory: predicted in strips of windows, written in tiles, and pooled to one vector a slide."""
