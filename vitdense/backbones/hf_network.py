"""From a name to one of transformers' networks: its config, the network, weights through transformers' own loader."""

import difflib
import inspect
import json
import re
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from vitdense.backbones.external import ExternalConfig
from vitdense.backbones.probing import first_line
from vitdense.errors import UserError, WeightsError

# Where the config of a whole model keeps that of its picture part.
_PARTS = ("backbone_config", "vision_config")
# What the config of a network derives from its other fields, or says of whole models only.
_DERIVED = {"stage_names", "out_features", "out_indices", "_out_features", "_out_indices"}
_HOUSEKEEPING = _DERIVED | {
    "architectures",
    "dtype",
    "torch_dtype",
    "transformers_version",
    "id2label",
    "label2id",
    "_name_or_path",
}
# Whole models, and networks for video or text, in transformers' lists of backbones and picture models.
_NO_BACKBONES = [
    "cohere2_vision",
    "conditional_detr",
    "dab-detr",
    "deformable_detr",
    "depth_pro",
    "detr",
    "imagegpt",
    "llama4",
    "mlcd",
    "mllama",
    "swin2sr",
    "table-transformer",
    "timesformer",
    "timm_backbone",
    "timm_wrapper",
    "tipsv2",
    "videomae",
    "videoprism_vision_model",
    "vivit",
]
_CHANNELS = ("num_channels", "stem_num_channels", "in_channels", "in_chans")


def is_folder(name: str) -> bool:
    """Whether a name is a path, and no model type or repository."""
    return name.startswith((".", "/", "~")) or (Path(name) / "config.json").is_file()


def is_model_type(name: str) -> bool:
    """Whether a name is one of transformers' model types."""
    from transformers import CONFIG_MAPPING

    return name in CONFIG_MAPPING


def picture_types() -> list[str]:
    """Model types with a default config whose networks see pictures."""
    from transformers.models.auto import modeling_auto as lists

    towers = {name for name in lists.MODEL_MAPPING_NAMES if name.endswith("vision_model")}
    known = towers | set(lists.MODEL_FOR_IMAGE_MAPPING_NAMES) | set(lists.MODEL_FOR_BACKBONE_MAPPING_NAMES)
    return sorted(known - set(_NO_BACKBONES))


def network_config(config: ExternalConfig) -> Any:
    """transformers' config of the picture part, with the user's options in it."""
    theirs = picture_part(_whole_config(config.architecture))
    fields = json.loads(theirs.to_json_string(use_diff=False))
    unknown = sorted(config.config.keys() - fields.keys())
    if unknown:
        nearest = difflib.get_close_matches(unknown[0], fields, n=3)
        hint = f"; did you mean {' or '.join(nearest)}?" if nearest else f"; it has {', '.join(sorted(fields))}"
        raise UserError(f"{config.label}: config has no field {unknown[0]!r}{hint}")
    from huggingface_hub.errors import StrictDataclassError

    options = {**config.config, **_common_options(config, fields)}
    try:
        return type(theirs)(**{**{k: v for k, v in fields.items() if k not in _DERIVED}, **options})
    except (TypeError, ValueError, StrictDataclassError) as error:
        raise UserError(f"{config.label} refuses {options}: {first_line(error)}") from error


def picture_part(theirs: Any) -> Any:
    """The config of a backbone or a vision tower inside that of a whole model."""
    parts = [part for name in _PARTS if (part := getattr(theirs, name, None)) is not None]
    return parts[0] if parts else theirs


def build_network(config: ExternalConfig) -> nn.Module:
    """The network with fresh weights."""
    theirs = network_config(config)
    try:
        return _made(network_class(config, theirs)._from_config(theirs))
    except ImportError as error:
        raise UserError(f"{config.label}: {first_line(error)}") from error


def network_class(config: ExternalConfig, theirs: Any) -> Any:
    """AutoBackbone's class for networks in stages, whose maps AutoModel's gives downsampled; AutoModel's for others."""
    from transformers import MODEL_MAPPING
    from transformers.models.auto.modeling_auto import MODEL_FOR_BACKBONE_MAPPING

    if "timm_backbone" in theirs.model_type:
        raise UserError(f"{config.label} is built by timm: take timm/{theirs.backbone}")
    staged = "depths" in theirs.to_dict() and type(theirs) in MODEL_FOR_BACKBONE_MAPPING
    if not staged and type(theirs) in MODEL_MAPPING:
        found: Any = MODEL_MAPPING[type(theirs)]
        kind: Any = found[0] if isinstance(found, tuple) else found
    elif type(theirs) in MODEL_FOR_BACKBONE_MAPPING:
        kind = MODEL_FOR_BACKBONE_MAPPING[type(theirs)]
    else:
        raise UserError(f"{config.label}: transformers has no model for {type(theirs).__name__} by itself")
    if "pixel_values" not in inspect.signature(kind.forward).parameters:
        raise UserError(f"{config.label} is {kind.__name__}, which takes no pictures")
    if gives_maps(kind):
        # A norm is made for each map asked for, and the first stage stands for the stem.
        theirs.out_indices = [i for i, stage in enumerate(theirs.stage_names) if stage != "stem"]
    return kind


def gives_maps(network: Any) -> bool:
    """Whether a network, or its class, is one of AutoBackbone's, which return `feature_maps`."""
    from transformers.backbone_utils import BackboneMixin

    kind = network if isinstance(network, type) else type(network)
    return issubclass(kind, BackboneMixin)


def _made(network: Any) -> nn.Module:
    """Without BERT's pooler, which published vision weights lack, and without the random masks of MAE."""
    if getattr(getattr(network, "pooler", None), "dense", None) is not None:
        network.pooler = None
    if getattr(getattr(network, "embeddings", None), "random_masking", None) is not None:
        network.embeddings.random_masking = _keep_all
    if gives_maps(network) and getattr(network, "hidden_states_norms", None) is None:
        # FocalNet's stages give maps after downsampling, so that the finest is its stem's.
        network.out_features = network.stage_names
    module: nn.Module = network
    return module


def load_network(config: ExternalConfig, state: Mapping[str, Tensor]) -> tuple[nn.Module, set[str], set[str]]:
    """The network that holds `state`, the keys it lacks and the keys it has no place for.

    A checkpoint for three channels is loaded for three, so that its first kernel can be adapted and isn't dropped.
    """
    network, found = _from_pretrained(config, state)
    if found["mismatched_keys"] and config.in_channels != 3:
        network, found = _from_pretrained(config.model_copy(update={"in_channels": 3}), state)
    if found["mismatched_keys"]:
        shown = "; ".join(f"{key} {tuple(a)} for {tuple(b)}" for key, a, b in sorted(found["mismatched_keys"])[:6])
        raise WeightsError(
            f"{len(found['mismatched_keys'])} tensors are of another shape than {config.label}'s: {shown}"
        )
    own, prefix = set(network.state_dict()), f"{network.base_model_prefix}."
    shapes = {_without_numbers(key) for key in own}
    extra = sorted(k for k in found["unexpected_keys"] if _without_numbers(k.removeprefix(prefix)) in shapes)
    if extra:
        raise WeightsError(
            f"{config.label} is smaller than the network of these weights, which has {', '.join(extra[:6])}"
        )
    return network, set(found["missing_keys"]) & own, set(found["unexpected_keys"])


def _from_pretrained(config: ExternalConfig, state: Mapping[str, Tensor]) -> tuple[Any, dict[str, Any]]:
    theirs = network_config(config)
    kind = network_class(config, theirs)
    with _silence():
        network, found = kind.from_pretrained(
            None,
            config=theirs,
            state_dict=dict(state),
            dtype=torch.float32,
            output_loading_info=True,
            ignore_mismatched_sizes=True,
        )
    return _made(network), found


def facts_for(config: ExternalConfig, facts: Mapping[str, Any]) -> dict[str, Any]:
    """Of a config.json beside weights, the fields of this network's config."""
    theirs = picture_part(_whole_config(config.architecture))
    for part in (facts, *(facts.get(name) for name in _PARTS)):
        if isinstance(part, Mapping) and part.get("model_type") == theirs.model_type:
            return {k: v for k, v in part.items() if k in theirs.to_dict() and k not in _HOUSEKEEPING | {"model_type"}}
    return {}


def _whole_config(name: str) -> Any:
    from transformers import CONFIG_MAPPING, AutoConfig

    if not is_folder(name) and name in CONFIG_MAPPING:
        try:
            return CONFIG_MAPPING[name]()
        except (TypeError, ValueError) as error:
            raise UserError(
                f"hf/{name} has no default config ({first_line(error)}); give a repository or folder"
            ) from error
    if not is_folder(name) and "/" not in name:
        nearest = difflib.get_close_matches(name, CONFIG_MAPPING, n=3, cutoff=0.5)
        hint = (
            f"did you mean {' or '.join(f'hf/{each}' for each in nearest)}?"
            if nearest
            else "a repository is owner/name"
        )
        raise UserError(f"transformers has no model type {name!r}; {hint}")
    try:
        with _silence():
            return AutoConfig.from_pretrained(str(Path(name).expanduser()) if is_folder(name) else name)
    except (OSError, ValueError, KeyError) as error:
        raise UserError(_no_config(name, first_line(error))) from error


def _no_config(name: str, why: str) -> str:
    if is_folder(name):
        return f"hf/{name}: {name} is no folder with a config.json of transformers ({why})"
    return (
        f"hf/{name}: its config can't be fetched ({why}); on a machine with network run `hf download {name} "
        "--local-dir FOLDER` and give hf/FOLDER"
    )


def _common_options(config: ExternalConfig, fields: Mapping[str, Any]) -> dict[str, Any]:
    """in_channels, image_size and drop_path under the names that this config has for them."""
    options: dict[str, Any] = {}
    channels = next((name for name in _CHANNELS if name in fields), None)
    if channels is not None:
        options[channels] = config.in_channels
    elif config.in_channels != 3:
        raise UserError(f"{config.label} takes 3 channels only: its config has none of {', '.join(_CHANNELS)}")
    if config.built_for is not None:
        if "image_size" not in fields:
            raise UserError(f"{config.label} has no image_size: leave it out")
        height, width = config.built_for
        square = height == width and not isinstance(fields["image_size"], list)
        options["image_size"] = height if square else [height, width]
    rate = fields.get("drop_path_rate")
    if isinstance(rate, int | float) and rate != config.drop_path:
        options["drop_path_rate"] = config.drop_path
    elif rate != config.drop_path and config.drop_path:
        raise UserError(f"{config.label} has no single drop_path: leave it out")
    return options


def _keep_all(sequence: Tensor, noise: Tensor | None = None) -> tuple[Tensor, None, None]:
    """In the place of MAE's masking: all patches, in their order."""
    return sequence, None, None


def _without_numbers(key: str) -> str:
    return re.sub(r"\d+", "#", key)


@contextmanager
def _silence() -> Iterator[None]:
    """transformers prints tables and bars while it loads; our report says it all."""
    from transformers.utils import logging as theirs

    logging: Any = theirs
    verbosity, bars = logging.get_verbosity(), logging.is_progress_bar_enabled()
    logging.set_verbosity_error()
    logging.disable_progress_bar()
    try:
        yield
    finally:
        logging.set_verbosity(verbosity)
        if bars:
            logging.enable_progress_bar()
