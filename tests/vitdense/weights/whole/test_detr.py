"""DETR, loaded whole from what save_pretrained wrote and from the authors' names, equals transformers'."""

import json
from collections.abc import Callable
from copy import deepcopy
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from transformers import DetrConfig, DetrForObjectDetection, DetrForSegmentation, ResNetConfig, SwinConfig

import vitdense
from tests.vitdense.weights.whole.detr_of_authors import original
from vitdense.contracts import Batch
from vitdense.errors import UserError, WeightsError
from vitdense.layers.frozen import FrozenBatchNorm2d

Config: Any = DetrConfig  # typed by their fields, which are not all they take
ResNet: Any = ResNetConfig
Apart = Callable[[list[Tensor], list[Tensor]], float]
STAGES = ["stage1", "stage2", "stage3", "stage4"]
RESNET: Any = {"depths": [1, 1, 2, 1], "hidden_sizes": [8, 12, 16, 24], "embedding_size": 8, "out_features": STAGES}
SWIN: Any = {
    "embed_dim": 16,
    "depths": [1, 2, 1, 1],
    "num_heads": [1, 2, 2, 4],
    "window_size": 5,
    "out_features": STAGES,
}
SMALL: Any = {
    "d_model": 32,
    "encoder_layers": 2,
    "decoder_layers": 2,
    "encoder_ffn_dim": 24,
    "decoder_ffn_dim": 24,
    "encoder_attention_heads": 4,
    "decoder_attention_heads": 4,
    "num_queries": 9,
    "num_labels": 6,
}
# The masks' channels, a 16th of these in the end, must divide by 8 or be fewer.
MASKED: Any = {"d_model": 64, "encoder_attention_heads": 8, "decoder_attention_heads": 8, "num_queries": 5}


def detector(backbone: Any = None, **options: Any) -> Any:
    config = Config(backbone_config=backbone or ResNet(**RESNET), **{**SMALL, **options})
    return DetrForObjectDetection(config)


def of_timm(name: str = "resnet18", **options: Any) -> Any:
    config = Config(use_timm_backbone=True, use_pretrained_backbone=False, backbone=name, **{**SMALL, **options})
    return DetrForObjectDetection(config)


def segmenter(timm: str | None = None, **options: Any) -> Any:
    network: Any = {} if "backbone_config" in options else {"backbone_config": ResNet(**RESNET)}
    if timm is not None:
        network = {"use_timm_backbone": True, "use_pretrained_backbone": False, "backbone": timm}
    return DetrForSegmentation(Config(**network, **{**SMALL, **MASKED, **options}))


MODELS: dict[str, Callable[[], Any]] = {
    "resnet": detector,
    "resnet, one map": lambda: detector(ResNet(**{**RESNET, "out_features": ["stage4"]}), d_model=48, num_queries=13),
    "resnet, blocks of two": lambda: detector(ResNet(**RESNET, layer_type="basic"), encoder_layers=1, num_labels=11),
    "resnet, auxiliary losses": lambda: detector(auxiliary_loss=True, decoder_layers=3),
    "timm": of_timm,
    "timm, auxiliary losses": lambda: of_timm(
        auxiliary_loss=True, encoder_attention_heads=2, decoder_attention_heads=2
    ),
    "timm, bottlenecks": lambda: of_timm("resnet50", encoder_layers=1),
    "timm, dilated": lambda: of_timm("resnet26", dilation=True),
    "swin": lambda: detector(SwinConfig(**SWIN), encoder_layers=1, decoder_layers=1),
    "masks": segmenter,
    "masks, swin": lambda: segmenter(backbone_config=SwinConfig(**SWIN), encoder_layers=1, decoder_layers=1),
    "masks, timm, auxiliary losses": lambda: segmenter("resnet18", auxiliary_loss=True),
}


def alive(module: nn.Module) -> Any:
    """Random weights that carry a signal, running statistics that are not 0 and 1, and queries that stay apart."""
    generator = torch.Generator().manual_seed(4)
    with torch.no_grad():
        for name, tensor in (*module.named_parameters(), *module.named_buffers()):
            kind = name.rpartition(".")[2]
            if not tensor.is_floating_point():  # counters, and the tables of where windows' pairs lie
                continue
            if kind == "running_var":
                tensor.copy_(0.5 + torch.rand(tensor.shape, generator=generator))
                continue
            scale = 0.12 if tensor.ndim == 1 else tensor[0].numel() ** -0.5
            scale = 2.0 if "query_position" in name else scale
            scale *= 2.0 if "decoder" in name and name.endswith(("q_proj.weight", "k_proj.weight")) else 1.0
            centre = 1.0 if tensor.ndim == 1 and kind == "weight" else 0.0
            tensor.copy_(centre + scale * torch.randn(tensor.shape, generator=generator))
    return module.eval()


def published(theirs: Any, folder: Path) -> Any:
    alive(theirs).save_pretrained(folder)
    return theirs


def check(ours: Any, theirs: Any, apart: Apart, sizes: list[tuple[int, int]]) -> None:
    """A batch of two pictures that are both padded, and one alone, in both precisions; theirs is always run in double,
    so that what differs in single precision is ours alone."""
    theirs, twins = theirs.double(), {torch.float64: deepcopy(ours).double(), torch.float32: ours.float()}
    for height, width in sizes:
        images = torch.rand(2, 3, height, width, generator=torch.Generator().manual_seed(2), dtype=torch.float64)
        extents = torch.tensor([[height, width - 31], [height - 25, width]])
        mask = torch.zeros(2, height, width, dtype=torch.long)
        blank = twins[torch.float64].normalise(images)
        for index, (tall, wide) in enumerate(extents.tolist()):
            mask[index, :tall, :wide] = 1
            blank[index, :, tall:] = 0
            blank[index, :, :, wide:] = 0
        padded = theirs(blank, pixel_mask=mask)
        alone = theirs(twins[torch.float64].normalise(images[:1]))
        for dtype, bound in ((torch.float64, 1e-9), (torch.float32, 1e-5)):
            batches: list[Batch] = [{"images": images.to(dtype), "extents": extents}, {"images": images[:1].to(dtype)}]
            for batch, expected in zip(batches, (padded, alone), strict=True):
                assert expected.logits.std(dim=1).mean() > 0.05
                found, names = twins[dtype](batch), {"logits": "logits", "boxes_cxcywh": "pred_boxes"}
                if "pred_masks" in expected:
                    assert expected.pred_masks.std() > 0.1
                    names["masks"] = "pred_masks"
                assert found.keys() == names.keys()
                for name, called in names.items():
                    assert apart([found[name]], [expected[called].to(dtype)]) < bound, name


@torch.no_grad()
@pytest.mark.parametrize("name", MODELS)
def test_answers_equal_transformers(name: str, apart: Apart, tmp_path: Path) -> None:
    theirs = published(MODELS[name](), tmp_path)
    check(vitdense.load_model(tmp_path), theirs, apart, [(96, 128), (107, 139)])


@torch.no_grad()
@pytest.mark.parametrize("name", ["timm", "resnet", "masks"])
def test_names_of_models_in_memory_are_read_too(name: str, apart: Apart, tmp_path: Path) -> None:
    theirs = published(MODELS[name](), tmp_path)
    state = {key: each.clone() for key, each in theirs.state_dict().items()}
    saved = load_file(tmp_path / "model.safetensors")
    assert any("self_attn.o_proj" in key for key in state)
    assert any("self_attn.out_proj" in key for key in saved)
    save_file(state, tmp_path / "model.safetensors", metadata={"format": "pt"})
    check(vitdense.load_model(tmp_path), theirs, apart, [(96, 128)])


@torch.no_grad()
@pytest.mark.parametrize("dilation", [False, True])
def test_older_files_name_a_network_of_timm_beside_the_rest(dilation: bool, apart: Apart, tmp_path: Path) -> None:
    theirs = published(of_timm("resnet26", dilation=dilation), tmp_path)
    config = json.loads((tmp_path / "config.json").read_text())
    config |= {"backbone_config": None, "use_timm_backbone": True, "backbone": "resnet26"}
    (tmp_path / "config.json").write_text(json.dumps(config))
    check(vitdense.load_model(tmp_path), theirs, apart, [(96, 128)])


@torch.no_grad()
@pytest.mark.parametrize("masks", [False, True])
def test_files_of_the_authors_are_read(masks: bool, apart: Apart, tmp_path: Path) -> None:
    heads: Any = {"encoder_attention_heads": 8, "decoder_attention_heads": 8}
    theirs = alive(segmenter("resnet18") if masks else of_timm("resnet50", **heads, num_labels=91))
    state = original(theirs.state_dict())
    root = "detr." if masks else ""
    assert {f"{root}class_embed.weight", f"{root}transformer.decoder.layers.1.multihead_attn.in_proj_bias"} <= set(
        state
    )
    torch.save({"model": state}, tmp_path / "checkpoint.pth")
    ours = vitdense.load_model(tmp_path / "checkpoint.pth")
    check(ours, theirs, apart, [(107, 139)])


def test_every_tensor_and_setting_is_accounted_for(tmp_path: Path) -> None:
    published(detector(), tmp_path)
    file, settings = tmp_path / "model.safetensors", tmp_path / "config.json"
    state, config = load_file(file), json.loads(settings.read_text())

    def refused(state: dict[str, Tensor], config: dict[str, Any], message: str) -> None:
        save_file(state, file, metadata={"format": "pt"})
        settings.write_text(json.dumps(config))
        with pytest.raises(WeightsError, match=message):
            vitdense.load_model(tmp_path)

    refused({**state, "surprise": torch.ones(1)}, config, "belong to no part of its model: surprise")
    refused({**state, "model.encoder.surprise": torch.ones(1)}, config, "unexpected encoder.surprise")
    for name in ("model.query_position_embeddings.weight", "model.decoder.layernorm.bias"):
        lacking = {key: each for key, each in state.items() if key != name}
        refused(lacking, config, name.removeprefix("model."))
    refused(state, {**config, "activation_function": "gelu"}, "activation_function 'gelu'; known here: 'relu'")
    refused(state, {**config, "position_embedding_type": "learned"}, "position_embedding_type 'learned'")
    refused(state, {**config, "encoder_ffn_dim": 48}, "encoder_ffn_dim 48 and decoder_ffn_dim 24")
    refused(state, {**config, "backbone_config": None, "use_timm_backbone": False}, "has no backbone_config")


def test_norms_of_other_networks_of_timm_are_refused(tmp_path: Path) -> None:
    """transformers freezes them with another epsilon than theirs, and forgets their activations."""
    published(of_timm("tf_mobilenetv3_small_minimal_100"), tmp_path)
    with pytest.raises(WeightsError, match="known here: its ResNets"):
        vitdense.load_model(tmp_path)


def test_settings_of_training_are_kept(tmp_path: Path) -> None:
    published(detector(eos_coefficient=0.25, giou_cost=7, bbox_loss_coefficient=3, auxiliary_loss=True), tmp_path)
    model = vitdense.load_model(tmp_path)
    config: Any = model.head.config
    assert (config.nothing_weight, config.matcher.giou, config.box_weight) == (0.25, 7, 3)
    assert config.layer_losses
    assert config.chained_norm
    norms = [each for each in model.backbone.modules() if isinstance(each, nn.BatchNorm2d | FrozenBatchNorm2d)]
    assert norms
    assert all(isinstance(each, FrozenBatchNorm2d) for each in norms)


@torch.no_grad()
def test_a_picture_is_detected_in_at_the_size_of_the_processor(tmp_path: Path) -> None:
    import numpy as np

    published(segmenter(), tmp_path)
    config = json.loads((tmp_path / "config.json").read_text())
    config["id2label"] = {str(i): f"thing {i}" for i in range(6) if i != 4}
    (tmp_path / "config.json").write_text(json.dumps(config))
    model = vitdense.load_model(tmp_path)
    assert model.classes == ("thing 0", "thing 1", "thing 2", "thing 3", "LABEL_4", "thing 5")
    assert (model.inference.short_side, model.inference.long_max) == (800, 1333)
    facts = {"size": {"shortest_edge": 96, "longest_edge": 120}, "image_mean": [0.1, 0.2, 0.3]}
    (tmp_path / "preprocessor_config.json").write_text(json.dumps(facts))
    model = vitdense.load_model(tmp_path)
    assert (model.inference.short_side, model.inference.long_max) == (96, 120)
    picture = np.random.default_rng(0).integers(0, 256, (75, 98, 3), dtype=np.uint8)
    (found,) = model.predict([picture])
    assert len(found) == 5
    assert (found.boxes >= 0).all()
    assert (found.boxes[:, 2] <= 98).all()
    assert (found.boxes[:, 3] <= 75).all()


SIZES: list[tuple[Any, dict[str, Any]]] = [
    ({"size": {"height": 64, "width": 96}}, {"size": (64, 96)}),
    ({"size": {"shortest_edge": 64}}, {"short_side": 64}),
    ({"size": 64, "max_size": 90}, {"short_side": 64, "long_max": 90}),
    ({"do_resize": False, "size": {"height": 64, "width": 96}}, {}),
]


@pytest.mark.parametrize(("facts", "expected"), SIZES)
def test_sizes_of_processors_are_read(facts: Any, expected: dict[str, Any], tmp_path: Path) -> None:
    published(detector(), tmp_path)
    (tmp_path / "preprocessor_config.json").write_text(json.dumps(facts))
    nothing = {"size": None, "short_side": None, "long_max": None}
    inference = vitdense.load_model(tmp_path).inference.model_dump()
    assert {name: inference[name] for name in nothing} == {**nothing, **expected}


def test_a_users_size_stands_for_the_publishers(tmp_path: Path) -> None:
    published(detector(), tmp_path)
    stretched = vitdense.load_model(tmp_path, ["inference.size=64"]).inference
    assert (stretched.size, stretched.short_side, stretched.long_max) == (64, None, None)
    sliding = vitdense.load_model(tmp_path, ["inference.mode=sliding"]).inference
    assert (sliding.mode, sliding.short_side, sliding.long_max) == ("sliding", 800, 1333)
    with pytest.raises(UserError, match=r"inference\.size"):
        vitdense.load_model(tmp_path, ["inference.size=none"])


def test_sizes_that_are_unknown_are_refused(tmp_path: Path) -> None:
    published(detector(), tmp_path)
    (tmp_path / "preprocessor_config.json").write_text(json.dumps({"size": {"max_height": 64, "max_width": 96}}))
    with pytest.raises(WeightsError, match="resizes pictures to"):
        vitdense.load_model(tmp_path)
