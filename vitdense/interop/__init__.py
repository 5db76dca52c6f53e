"""Backbones of ours in other people's code: one module for each library, which is imported only there."""
