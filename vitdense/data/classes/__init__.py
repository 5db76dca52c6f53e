"""Pictures with one class each: folders and tables of files, and embedded ones."""

from vitdense.data.classes import class_folder as class_folder
from vitdense.data.classes import shapes_classes as shapes_classes
