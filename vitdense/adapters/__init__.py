"""Levels in, levels out; importing this package registers the adapters."""

from vitdense.adapters.simple_pyramid import SimplePyramid, SimplePyramidConfig

__all__ = ["SimplePyramid", "SimplePyramidConfig"]
