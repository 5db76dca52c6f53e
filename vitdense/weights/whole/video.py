"""transformers' classifiers of clips: TimeSformer, ViViT and VideoMAE, each a backbone and one linear layer."""

from collections.abc import Mapping
from typing import Any

from vitdense.errors import WeightsError
from vitdense.weights.contents import Checkpoint
from vitdense.weights.whole.clip import ratio
from vitdense.weights.whole.parts import Part, Parts, Whole, expect, first, named_classes, square

_PRESETS = {
    "timesformer": "timesformer_base_patch16",
    "vivit": "vivit_base_patch16",
    "videomae": "videomae_base_patch16",
}
_FRAMES = {"timesformer": 8, "vivit": 32, "videomae": 16}


def read(checkpoint: Checkpoint) -> Whole:
    """The parts of a *ForVideoClassification; WeightsError where there is no classifier."""
    kind, config = checkpoint.config["model_type"], checkpoint.config
    expect(checkpoint.source, {"use_mean_pooling": True, **config}, {"use_mean_pooling": True})
    parts = Parts(checkpoint.source, dict(checkpoint.state))
    state = parts.take("classifier.", strip="classifier.", put="fc.")
    if "fc.weight" not in state:
        raise WeightsError(
            f"{checkpoint.source} is a {kind} without a classifier: it has {first(checkpoint.state)}; weights of a "
            f'backbone go to create_backbone("{_PRESETS[kind]}", weights=...)'
        )
    tower = parts.take(f"{kind}.", strip=f"{kind}.") | parts.take("fc_norm.")
    parts.finish()
    weights = Checkpoint(tower, checkpoint.source, config=config, preprocessor=checkpoint.preprocessor)
    classes = len(state["fc.weight"])
    return Whole(
        checkpoint.source,
        backbone=_PRESETS[kind],
        options=_options(checkpoint.source, kind, config),
        weights=weights,
        head=Part("classify", {"num_classes": classes}, state),
        classes=named_classes(config, classes),
    )


def _options(source: str, kind: str, config: Mapping[str, Any]) -> dict[str, Any]:
    """How the backbone was built, beside what its dialect reads from the same config."""
    if kind == "vivit":
        tubelet, *patch = config.get("tubelet_size", (2, 16, 16))
    else:
        tubelet, patch = config.get("tubelet_size", 2) if kind == "videomae" else 1, config.get("patch_size", 16)
    width = config.get("hidden_size", 768)
    biases = "qv" if kind == "videomae" else config.get("qkv_bias", True)
    return {
        "embed_dim": width,
        "depth": config.get("num_hidden_layers", 12),
        "num_heads": config.get("num_attention_heads", 12),
        "mlp_ratio": ratio(config.get("intermediate_size", 3072), width),
        "in_channels": config.get("num_channels", 3),
        "patch_size": square(source, patch),
        "image_size": square(source, config.get("image_size", 224)),
        "frames": config.get("num_frames", _FRAMES[kind]),
        "tubelet": tubelet,
        "qkv_bias": biases,
    }
