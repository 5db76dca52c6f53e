"""Pairs of pictures of one place at two times: in files, and embedded ones."""

from vitdense.data.changes import change_folder as change_folder
from vitdense.data.changes import shapes_change as shapes_change
