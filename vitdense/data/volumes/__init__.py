"""Volumes: files of CT, MRI and arrays, and embedded ones."""

from vitdense.data.volumes import shapes_volume as shapes_volume
from vitdense.data.volumes import volume_folder as volume_folder
