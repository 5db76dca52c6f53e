"""Whole published models: backbone, adapter and head of one checkpoint, a file for each family."""
