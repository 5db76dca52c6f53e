"""Clips: videos in files, and embedded ones."""

from vitdense.data.clips import shapes_video as shapes_video
