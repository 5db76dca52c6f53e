"""A look inside: where layers attend, what flows to the last one, and what features have in common, as maps."""

from vitdense.explaining.attention import attention_maps as attention_maps
from vitdense.explaining.attention import attention_rollout as attention_rollout
from vitdense.explaining.components import principal_components as principal_components
