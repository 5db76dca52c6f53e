"""Pictures with captions: lists, folders, tar shards and tables, the views that models read, and their audit."""

from vitdense.data.captions import files as files
from vitdense.data.captions import hugging_face as hugging_face
from vitdense.data.captions import shapes_captions as shapes_captions
from vitdense.data.captions import webdataset as webdataset
