"""What open_clip knows by name: descriptions of its models, their published weights, and fresh ones."""

import json
from collections.abc import Mapping
from typing import Any

from torch import Tensor

from vitdense.contracts import BACKBONES
from vitdense.errors import UserError, WeightsError
from vitdense.weights.contents import Checkpoint
from vitdense.weights.opening import open_checkpoint
from vitdense.weights.whole.parts import count_of

LIBRARY = "open_clip"
_PREPROCESS = ("size", "mean", "std", "interpolation", "resize_mode", "fill_color")


def describe(name: str) -> dict[str, Any]:
    """open_clip's own description of a model; UserError names the nearest ones of a name that it doesn't know."""
    found: dict[str, Any] = _config(name).described()
    return found


def open_named(source: str, architecture: str | None) -> Checkpoint:
    """ "open_clip/<model>": open_clip's network with fresh weights; "open_clip/<model>/<tag>": with published ones."""
    from open_clip.pretrained import get_pretrained_cfg, list_pretrained_tags_by_model

    if architecture is not None:
        raise UserError(f"{source} names its model: architecture can't be set")
    name, _, tag = source.removeprefix(f"{LIBRARY}/").partition("/")
    described = describe(name)
    if not tag:
        tags = list_pretrained_tags_by_model(name)
        facts = get_pretrained_cfg(name, tags[0]) if tags else {}
        return Checkpoint(_fresh(source, name, described), source, config=_facts(name, described, facts))
    located = _config(name).locate(source)
    opened = open_checkpoint(located)
    return Checkpoint(opened.state, source, config=_facts(name, described, get_pretrained_cfg(name, tag)))


def named(checkpoint: Checkpoint, architecture: str) -> Checkpoint:
    """A file of a model that the user names; what open_clip_config.json beside it says of pixels stays."""
    name = architecture.removeprefix(f"{LIBRARY}/")
    pixels = checkpoint.config.get("preprocess_cfg", {})
    return Checkpoint(checkpoint.state, checkpoint.source, config=_facts(name, describe(name), pixels))


def recognised(checkpoint: Checkpoint) -> Checkpoint:
    """A file that says nothing of itself: described as the models of open_clip whose tensors have its shapes.

    What no shape shows is taken for granted, and the source says so: the activation is GELU, and where no model has
    these shapes heads have 64 channels, as most do.
    """
    import open_clip

    shape = _shape_of_state(checkpoint.state)
    fitting = {name: open_clip.get_model_config(name) for name in open_clip.list_models()}
    fitting = {name: each for name, each in fitting.items() if each and _shape_of_config(each) == shape}
    told = {
        json.dumps(_but_activation(each), sort_keys=True): name for name, each in sorted(fitting.items(), reverse=True)
    }
    if len(told) > 1:
        raise WeightsError(
            f"{checkpoint.source} may be {' or '.join(sorted(told.values()))} of open_clip, which differ in what its "
            f"tensors don't show; say which, as in architecture={min(told.values())}"
        )
    if not told and "text_decoder.text_projection" in checkpoint.state:
        raise WeightsError(
            f"{checkpoint.source} is a CoCa that says nothing of its heads, and none of open_clip's has its shapes: "
            "put open_clip_config.json beside open_clip_model.safetensors"
        )
    widths = len(checkpoint.state["visual.conv1.weight"]), _width_of_texts(checkpoint.state)
    if not told and any(width % 64 for width in widths):
        raise WeightsError(
            f"{checkpoint.source} says nothing of its heads, and no model of open_clip has widths of {widths[0]} and "
            f"{widths[1]} channels like it: put open_clip_config.json beside open_clip_model.safetensors, or say which "
            "model it is, as in architecture=ViT-B-32"
        )
    granted = "activation gelu" if told else "activation gelu, heads of 64 channels"
    source = f"{checkpoint.source} (taken for granted: {granted})"
    if not told:
        described = {"vision_cfg": {}, "text_cfg": {"heads": None}}
        return Checkpoint(checkpoint.state, source, config={"model_cfg": described})
    name = next(iter(told.values()))
    facts = _facts(name, {**_but_activation(fitting[name])}, {})
    return Checkpoint(checkpoint.state, source, config=facts)


def listed_with(vision: Mapping[str, Any], embed_dim: int | None) -> str | None:
    """The name of a model of open_clip's whose picture tower is described so, if there is one."""
    import open_clip

    for name in open_clip.list_models():
        described = open_clip.get_model_config(name) or {}
        if _network(described.get("vision_cfg", {})) == _network(vision) and described.get("embed_dim") == embed_dim:
            return str(name)
    return None


def _config(name: str) -> Any:
    """The image tower's config, which knows where open_clip's weights lie."""
    return BACKBONES.create(f"{LIBRARY}/{name}")


def _facts(name: str, described: Mapping[str, Any], published: Mapping[str, Any]) -> dict[str, Any]:
    pixels = {key: published[key] for key in _PREPROCESS if published.get(key) is not None}
    return {"name": name, "model_cfg": described, "preprocess_cfg": pixels}


def _fresh(source: str, name: str, described: Mapping[str, Any]) -> dict[str, Tensor]:
    """The tensors of a new network; UserError where open_clip would fetch a text model for it."""
    import open_clip

    if described.get("text_cfg", {}).get("hf_model_name"):
        raise UserError(
            f"{source} has the text tower {described['text_cfg']['hf_model_name']}, which is not taken here"
        )
    state: dict[str, Tensor] = open_clip.create_model(name, pretrained=None).state_dict()
    return state


def _network(vision: Mapping[str, Any]) -> dict[str, Any]:
    """What of a picture tower's description makes another network."""
    return {key: value for key, value in vision.items() if key != "timm_model_pretrained"}


def _width_of_texts(state: Mapping[str, Tensor]) -> int:
    return next(len(tensor) for key, tensor in state.items() if key.endswith("ln_final.weight"))


def _but_activation(described: Mapping[str, Any]) -> dict[str, Any]:
    """A description without what was chosen for a size or for an activation."""
    vision = {key: value for key, value in described["vision_cfg"].items() if key != "image_size"}
    return {**{key: value for key, value in described.items() if key != "quick_gelu"}, "vision_cfg": vision}


def _shape_of_state(state: Mapping[str, Tensor]) -> tuple[object, ...]:
    """Widths, depths, patch, table and vocabulary of both towers, as far as tensors show them."""
    text = {key.removeprefix("text."): tensor for key, tensor in state.items() if not key.startswith("visual.")}
    tower = {key: tensor for key, tensor in state.items() if key.startswith("visual.transformer.resblocks.")}
    kernel = state["visual.conv1.weight"]
    return (
        len(kernel),
        kernel.shape[-1],
        count_of(tower, r"visual\.transformer\.resblocks\.(\d+)\."),
        "visual.ln_pre.weight" in state,
        len(text["ln_final.weight"]),
        count_of(text, r"transformer\.resblocks\.(\d+)\."),
        len(text["positional_embedding"]) - ("cls_emb" in text),
        len(text["token_embedding.weight"]),
        state["visual.proj"].shape[1],
        "text_decoder.text_projection" in state,
    )


def _shape_of_config(described: Mapping[str, Any]) -> tuple[object, ...] | None:
    """The same of a description; None for towers that are no ViT of open_clip's own."""
    vision, text = described["vision_cfg"], described.get("text_cfg", {})
    if vision.get("timm_model_name") or isinstance(vision.get("layers"), list) or text.get("hf_model_name"):
        return None
    return (
        vision.get("width", 768),
        vision.get("patch_size", 16),
        vision.get("layers", 12),
        not vision.get("no_ln_pre", False),
        text.get("width", 512),
        text.get("layers", 12),
        text.get("context_length", 77),
        text.get("vocab_size", 49408),
        described.get("embed_dim"),
        "multimodal_cfg" in described,
    )
