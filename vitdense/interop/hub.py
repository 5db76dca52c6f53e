"""Backbones on the Hugging Face Hub through huggingface_hub's PyTorchModelHubMixin: config, weights and a card."""

import os
from pathlib import Path
from typing import Any, Self

from huggingface_hub import ModelCard, PyTorchModelHubMixin, constants, hf_hub_download
from safetensors.torch import load_model, save_model
from torch import Tensor, nn

from vitdense.contracts import Backbone
from vitdense.errors import UserError, WeightsError
from vitdense.interop.blueprint import Blueprint

CARD = """---
{{ card_data }}
---

# {{ name }}{% if adapter %} with {{ adapter }}{% endif %}

A dense-prediction backbone of vitdense: pictures in, feature maps out.

```python
from vitdense.interop.hub import HubBackbone

backbone = HubBackbone.from_pretrained("{{ repo_id | default("<this repository or folder>", true) }}").backbone
maps = backbone(images)  # (B, {{ mean | length }}, H, W), normalised with backbone.mean and backbone.std
```

| map | channels | stride |
|---|---|---|
{%- for level in levels %}
| {{ loop.index0 }} | {{ level.channels }} | {{ level.stride }} |
{%- endfor %}

A map has ceil(H / stride) x ceil(W / stride) cells, for any H and W. Pixels in 0..1 are normalised with mean
{{ mean }} and standard deviation {{ std }}.
"""


class HubBackbone(
    nn.Module,
    PyTorchModelHubMixin,
    library_name="vitdense",
    tags=["image-feature-extraction", "backbone"],
    pipeline_tag="image-feature-extraction",
    model_card_template=CARD,
):
    """A backbone with save_pretrained, push_to_hub and from_pretrained; `.backbone` is the backbone itself.

    config.json holds its name, every option and its adapter; the weights stand under the backbone's own names.
    """

    def __init__(self, backbone: Backbone) -> None:
        super().__init__()
        self.backbone = backbone
        self._hub_mixin_config = Blueprint.of(backbone).to_json()

    def forward(self, images: Tensor) -> list[Tensor]:
        """images: (B, C, H, W), normalised -> the backbone's maps."""
        maps: list[Tensor] = self.backbone(images)
        return maps

    def generate_model_card(self, *_: Any, **fields: Any) -> ModelCard:
        """The card, with what the backbone is; `fields` of the template, such as repo_id, may be given."""
        blueprint = Blueprint.of(self.backbone)
        adapter = self.backbone.adapter_config
        return super().generate_model_card(
            name=blueprint.name,
            adapter=None if adapter is None else adapter.preset,
            levels=self.backbone.levels,
            mean=list(self.backbone.mean),
            std=list(self.backbone.std),
            **fields,
        )

    def _save_pretrained(self, save_directory: Path) -> None:
        save_model(self.backbone, str(save_directory / constants.SAFETENSORS_SINGLE_FILE))

    @classmethod
    def _from_pretrained(  # type: ignore[override]
        cls,
        *,
        model_id: str,
        revision: str | None,
        cache_dir: str | Path | None,
        force_download: bool,
        local_files_only: bool,
        token: str | bool | None,
        map_location: str = "cpu",
        config: dict[str, Any] | None = None,
    ) -> Self:
        """Strict, other than the mixin's own: a missing, unexpected or misshapen key raises WeightsError."""
        if config is None:
            raise UserError(f"{model_id} has no {constants.CONFIG_NAME}: it was not saved by HubBackbone")
        backbone = Blueprint.from_json(config, model_id).build()
        file = os.path.join(model_id, constants.SAFETENSORS_SINGLE_FILE)
        if not os.path.isdir(model_id):
            file = hf_hub_download(
                repo_id=model_id,
                filename=constants.SAFETENSORS_SINGLE_FILE,
                revision=revision,
                cache_dir=cache_dir,
                force_download=force_download,
                token=token,
                local_files_only=local_files_only,
            )
        try:
            load_model(backbone, file, strict=True, device=map_location)
        except RuntimeError as error:
            raise WeightsError(f"{file} doesn't fit {config['name']}: {error}") from error
        return cls(backbone.to(map_location)).eval()
