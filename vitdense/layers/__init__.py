"""Pieces that backbones and heads are made of: attention, windows, blocks, embeddings, positions."""
