"""The parts of Deformable DETR: grids of levels, layers, proposals of its first stage, and the decoder."""
