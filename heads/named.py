"""A head as an option of another head: by its name, or as {"name": ..., options}."""

from typing import Annotated

from pydantic import SerializeAsAny

from vitdense.contracts import HEADS, HeadConfig
from vitdense.registry import by_name

NamedHead = Annotated[SerializeAsAny[HeadConfig], *by_name(HEADS)]
