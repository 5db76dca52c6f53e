"""EoMT against transformers' on DINOv2 with registers and on DINOv3, encoder and all: logits, masks, every loss."""

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from transformers import AttentionInterface, EomtConfig, EomtForUniversalSegmentation
from transformers.models.eomt.image_processing_eomt import EomtImageProcessor
from transformers.models.eomt_dinov3.configuration_eomt_dinov3 import EomtDinov3Config
from transformers.models.eomt_dinov3.modeling_eomt_dinov3 import EomtDinov3ForUniversalSegmentation

from heads import create_head
from heads.eomt import Eomt
from tests.precision import default_dtype
from vitdense.build import AdaptedBackbone, fill_backbone
from vitdense.contracts import ADAPTERS, BACKBONES, HEADS, Batch, Target
from vitdense.errors import UserError
from vitdense.layers.rotary import rotary_tables
from vitdense.model import Model
from vitdense.weights.contents import Checkpoint
from vitdense.weights.whole import eomt as weights

TOLERANCES = [(torch.float32, 1e-5), (torch.float64, 1e-9)]
SIDE, CLASSES, QUERIES = 64, 5, 7
SMALL: dict[str, Any] = {
    "hidden_size": 32,
    "num_hidden_layers": 4,
    "num_attention_heads": 2,
    "num_blocks": 3,
    "num_queries": QUERIES,
    "image_size": SIDE,
    "patch_size": 16,
    "num_labels": CLASSES,
    "train_num_points": 60,
    "attn_implementation": "exact",
}


def exact_attention(
    module: nn.Module, q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None, scaling: float, **_: Any
) -> tuple[Tensor, None]:
    """transformers' own, which rounds to float32 whatever the precision."""
    weights = q @ k.mT * scaling
    weights = weights if mask is None else weights + mask
    return (weights.softmax(-1) @ v).transpose(1, 2), None


AttentionInterface.register("exact", exact_attention)
V2: Any = EomtConfig  # typed by their fields, which are not all they take
V3: Any = EomtDinov3Config
# In training transformers stretches DINOv3's places at random, which is not known here.
PLACES: Any = {"intermediate_size": 48, "pos_embed_rescale": None}
KINDS: dict[str, Callable[[], Any]] = {
    "dinov2": lambda: EomtForUniversalSegmentation(V2(**SMALL)),
    "dinov2, gated": lambda: EomtForUniversalSegmentation(V2(**SMALL, use_swiglu_ffn=True, num_upscale_blocks=1)),
    "dinov3": lambda: EomtDinov3ForUniversalSegmentation(V3(**SMALL, **PLACES)),
    "dinov3, gated": lambda: EomtDinov3ForUniversalSegmentation(V3(**SMALL, **PLACES, use_gated_mlp=True)),
}


class Turns(nn.Module):
    """DINOv3's angles in double precision; transformers' are float32 always."""

    def forward(self, images: Tensor) -> tuple[Tensor, Tensor]:
        grid = (images.shape[-2] // 16, images.shape[-1] // 16)
        return rotary_tables("unit", 16, grid, stored_grid=1, num_prefix=0, like=images)


def apart(ours: Tensor, theirs: Tensor) -> float:
    """The largest difference, in units of the reference's mean size where that is above one."""
    assert ours.shape == theirs.shape
    return float(((ours - theirs).abs().max() / theirs.abs().mean().clamp(min=1)).detach())


def randomise(module: nn.Module) -> None:
    """Weights that carry signal."""
    torch.manual_seed(5)
    for name, tensor in module.named_parameters():
        if tensor.ndim > 1:
            table = "embeddings." in name or name.startswith("query")
            tensor.data.normal_(std=0.5 if table else 1.5 * tensor[0].numel() ** -0.5)
        else:
            scale = "norm" in name or "lambda1" in name
            tensor.data.uniform_(0.5, 1.5) if scale and "bias" not in name else tensor.data.normal_(std=0.3)


def pair_of(kind: str, dtype: torch.dtype, chances: tuple[float, ...]) -> tuple[Any, Model]:
    """transformers' model, and ours with its weights; `chances` are those of its masks before each of the blocks."""
    theirs = KINDS[kind]()
    randomise(theirs)
    theirs.attn_mask_probs.fill_(float(min(chances) == 1))
    read = weights.read_dinov3 if "dinov3" in kind else weights.read
    whole = read(Checkpoint(theirs.state_dict(), "here", theirs.config.to_dict()))
    theirs.attn_mask_probs.copy_(torch.tensor(chances))
    if "dinov3" in kind and dtype == torch.float64:
        theirs.rope_embeddings = Turns()
    config = BACKBONES.create(whole.backbone, whole.options)
    backbone = fill_backbone(config, whole.read_backbone(config))
    head = create_head("eomt", backbone, **whole.head.options)
    head.load_state_dict(whole.head.state)
    return theirs.to(dtype), Model(backbone, head).to(dtype)


def batch_of(dtype: torch.dtype) -> Batch:
    generator = torch.Generator().manual_seed(4)
    targets = [
        Target(
            labels=torch.randint(CLASSES, (count,), generator=generator),
            masks=nn.functional.interpolate(torch.rand(count, 1, 4, 5, generator=generator), (SIDE, SIDE))[:, 0] > 0.6,
        )
        for count in (4, 2)
    ]
    images = torch.rand(2, 3, SIDE, SIDE, generator=generator, dtype=dtype)
    return {"images": images, "targets": targets, "sizes": [(SIDE, SIDE)] * 2}


@pytest.mark.parametrize(("dtype", "tolerance"), TOLERANCES)
@pytest.mark.parametrize("chance", [0.0, 1.0])
@pytest.mark.parametrize("kind", KINDS)
def test_logits_and_masks_are_those_of_transformers(
    kind: str, chance: float, dtype: torch.dtype, tolerance: float
) -> None:
    theirs, ours = pair_of(kind, dtype, (chance,) * 3)
    batch = batch_of(dtype)
    with torch.no_grad():
        expected = theirs.eval()(ours.normalise(batch["images"]))
        outputs = ours.eval()(batch)
    assert expected.masks_queries_logits.std() > 0.5
    assert apart(outputs["logits"], expected.class_queries_logits) < tolerance
    assert apart(outputs["masks"], expected.masks_queries_logits) < tolerance


@pytest.mark.parametrize(("dtype", "tolerance"), TOLERANCES)
@pytest.mark.parametrize("progress", [None, 0.65])
@pytest.mark.parametrize("kind", ["dinov2", "dinov3"])
def test_losses_and_gradients_are_those_of_transformers(
    kind: str, progress: float | None, dtype: torch.dtype, tolerance: float
) -> None:
    chances: tuple[float, ...] = (1.0,) * 3
    if progress is not None:  # the first two blocks' masks have gone in part or whole, the last one's begin to
        chances = tuple(min(max(1 - (progress - (i + 1) / 5) * 5, 0), 1) ** 0.9 for i in range(3))
        assert chances[:2] == (0, 0)
        assert 0 < chances[2] < 1
    theirs, ours = pair_of(kind, dtype, chances)
    batch = batch_of(dtype)
    assert isinstance(ours.head, Eomt)
    ours.head.annealed = progress is not None
    if progress is not None:
        batch["progress"] = torch.tensor(progress, dtype=torch.float64)
    labels = [target["labels"] for target in batch["targets"]]
    masks = [target["masks"].to(dtype) for target in batch["targets"]]
    with default_dtype(dtype):
        torch.manual_seed(11)
        expected = theirs.train()(ours.normalise(batch["images"]), masks, labels).loss
        torch.manual_seed(11)
        losses = ours.train().head.losses(ours(batch), batch)
    assert len(losses) == 3 * 4
    total = torch.stack(list(losses.values())).sum()
    assert apart(total, expected) < tolerance
    expected.backward()
    total.backward()  # type: ignore[no-untyped-call]
    pairs = (
        (ours.head.query.weight, theirs.query.weight),
        (ours.head.get_parameter("upscale.0.conv1.weight"), theirs.upscale_block.block[0].conv1.weight),
        (ours.backbone.get_parameter("blocks.0.mlp.fc1.bias"), theirs.layers[0].mlp.get_parameter(
            "fc1.bias" if kind == "dinov2" else "up_proj.bias")),
    )  # fmt: skip
    for found, true in pairs:
        assert found.grad is not None
        assert float((found.grad - true.grad).abs().max() / true.grad.abs().max()) < tolerance * 10


def test_segments_are_those_of_transformers() -> None:
    theirs, ours = pair_of("dinov2", torch.float32, (0.0,) * 3)
    batch = batch_of(torch.float32)
    for weight in (theirs.class_predictor.weight, ours.head.get_parameter("class_predictor.weight")):
        weight.data *= 4.0  # surer, as trained ones are
    with torch.no_grad():
        expected = theirs.eval()(ours.normalise(batch["images"]))
        outputs = ours.eval()(batch)
    settings: Any = {"threshold": 0.3, "overlap_mask_area_threshold": 0.4}
    processor: Any = EomtImageProcessor(size={"shortest_edge": SIDE, "longest_edge": SIDE}, do_pad=True)
    wanted = processor.post_process_panoptic_segmentation(
        expected, [(SIDE, SIDE)] * 2, stuff_classes=[0, 1], **settings
    )
    head = HEADS.create(
        "eomt",
        {"num_classes": CLASSES, "blocks": 3, "stuff": (0, 1), "threshold": 0.3, "overlap_threshold": 0.4},
    ).build_for(ours.backbone)
    assert sum(len(each["segments_info"]) for each in wanted) > 2
    for found, true in zip(head.predict(outputs, batch), wanted, strict=True):
        labels = {each["id"]: each["label_id"] for each in true["segments_info"]}
        assert found.labels.tolist() == list(labels.values())
        assert torch.equal(found.ids, true["segmentation"].to(torch.int32) + 1)


def test_masks_fade_from_block_to_block() -> None:
    head = Eomt(HEADS.create("eomt", {"num_classes": 2}), width=8, patch=16)  # type: ignore[arg-type]
    shares = [[float(head.chance(block, torch.tensor(share / 6))) for block in range(4)] for share in range(7)]
    assert shares[0] == shares[1] == [1, 1, 1, 1]
    assert shares[2] == pytest.approx([0, 1, 1, 1], abs=1e-4)
    assert shares[4] == pytest.approx([0, 0, 0, 1], abs=1e-4)
    assert shares[5] == pytest.approx([0, 0, 0, 0], abs=1e-4)
    assert float(head.chance(0, torch.tensor(0.25))) == pytest.approx(0.5**0.9)


def test_any_size_gives_masks_of_its_own() -> None:
    backbone = BACKBONES.create("vit_nano_patch8", {}).build()
    head = create_head("eomt", backbone, num_classes=3, num_queries=5, blocks=2)
    model = Model(backbone, head)
    outputs = model.train()({"images": torch.rand(2, 3, 75, 98)})
    assert outputs["pixel_embeddings_0"].shape == (2, 64, 20, 26)
    torch.stack([each.square().mean() for each in outputs.values()]).sum().backward()  # type: ignore[no-untyped-call]
    still = {name for name, each in model.named_parameters() if each.requires_grad and each.grad is None}
    assert not still
    found = model.predict([torch.randint(0, 256, (75, 98, 3), dtype=torch.uint8).numpy()])[0]
    assert found.ids.shape == (75, 98)


def test_users_mistakes_are_told() -> None:
    config = HEADS.create("eomt", {"num_classes": 2, "blocks": 4})
    for name in ("swin_nano", "beit_base_patch16", "vitdet_base_patch16"):
        with torch.device("meta"):
            backbone = BACKBONES.create(name, {}).build()
        with pytest.raises(UserError, match=r"eomt needs 4 blocks .* there are 0: take a plain ViT"):
            config.build_for(backbone)
    backbone = BACKBONES.create("vit_nano_patch8", {}).build()
    with pytest.raises(UserError, match=r"eomt needs 4 blocks .* behind an adapter there are 0"):
        config.build_for(AdaptedBackbone(backbone, ADAPTERS.create("simple_pyramid", {"channels": 8})))
    with pytest.raises(UserError, match=r"eomt needs 5 blocks .* there are 4"):
        HEADS.create("eomt", {"num_classes": 2, "blocks": 5}).build_for(backbone)
    with pytest.raises(UserError, match="build it for the backbone"):
        config.build(backbone.levels)
