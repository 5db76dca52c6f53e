"""Weights of backbones that another library builds: their keys stay, below the name `model`."""

from collections.abc import Mapping
from dataclasses import asdict
from typing import Any

from torch import Tensor

from vitdense.contracts import BackboneConfig
from vitdense.errors import UserError
from vitdense.weights.contents import Weights
from vitdense.weights.dialect import without_wrappers
from vitdense.weights.opening import Source, open_checkpoint


def architecture_of(config: BackboneConfig) -> str | None:
    """The other library's name of the network, or None for a backbone of our own."""
    name: str | None = config.model_dump().get("architecture")
    return name


def read_external(source: Source, config: BackboneConfig) -> Weights:
    """timm's weights from "default" (timm downloads them), or from a checkpoint under timm's names or ours."""
    name = architecture_of(config)
    assert name is not None
    published, classifiers = _published(name)
    if source == "default":
        state, described = _download(name, config.in_channels), f"timm/{name}"
    else:
        checkpoint = open_checkpoint(source)
        state, described = without_wrappers(checkpoint.state), checkpoint.source
        published = {**published, **checkpoint.config.get("pretrained_cfg", {})}
    if all(key.startswith("model.") for key in state):
        state = {key.removeprefix("model."): tensor for key, tensor in state.items()}
    left_out = tuple(key for key in state if key.startswith(classifiers))
    return Weights(
        {f"model.{key}": tensor for key, tensor in state.items() if key not in left_out},
        source=described,
        family="timm",
        architecture=name,
        options={key: tuple(published[key]) for key in ("mean", "std") if key in published},
        left_out=left_out,
    )


def _published(name: str) -> tuple[Mapping[str, Any], tuple[str, ...]]:
    """timm's record of a network, and the prefixes of its classifier's keys."""
    import timm

    record = timm.get_pretrained_cfg(name)
    if record is None:
        return {}, ("head.", "fc.", "classifier.")
    named = record.classifier or ()
    names = (named,) if isinstance(named, str) else tuple(named)
    return asdict(record), tuple(f"{each}." for each in names)


def _download(name: str, in_channels: int) -> dict[str, Tensor]:
    """timm's own pretrained weights, adapted to the input channels by timm."""
    import timm
    from huggingface_hub.errors import HfHubHTTPError

    try:
        model = timm.create_model(name, pretrained=True, num_classes=0, in_chans=in_channels)
    except (HfHubHTTPError, OSError, RuntimeError) as error:
        raise UserError(
            f"timm can't fetch its weights for {name!r} ({str(error).splitlines()[0]}); give the path of a checkpoint "
            "file, or leave weights out"
        ) from error
    state: dict[str, Tensor] = model.state_dict()
    return state
