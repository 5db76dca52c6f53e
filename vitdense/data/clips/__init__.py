"""Clips: videos in files, and embedded ones."""

from vitdense.data.clips import clip_folder as clip_folder
from vitdense.data.clips import shapes_video as shapes_video
