"""EoMT under its authors' names: modules that are put together as theirs are, on timm's ViT, and loaded whole."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import timm
import torch
from timm.layers.mlp import SwiGLUPacked
from timm.layers.norm import LayerNorm2d
from torch import Tensor, nn

import vitdense
from vitdense.errors import WeightsError

Apart = Callable[[list[Tensor], list[Tensor]], float]
WIDTH = 128


class Encoder(nn.Module):
    """models/vit.py of tue-mps/eomt: timm's network, and the statistics of pictures."""

    pixel_mean: Tensor
    pixel_std: Tensor

    def __init__(self, size: int, patch: int, **options: Any) -> None:
        super().__init__()
        self.backbone: Any = timm.create_model(
            "vit_small_patch14_reg4_dinov2", img_size=size, patch_size=patch, num_classes=0, embed_dim=WIDTH, depth=3,
            num_heads=WIDTH // 64, **options,
        )  # fmt: skip
        self.register_buffer("pixel_mean", torch.tensor([0.4, 0.5, 0.6]).view(1, -1, 1, 1))
        self.register_buffer("pixel_std", torch.tensor([0.2, 0.25, 0.3]).view(1, -1, 1, 1))


class ScaleBlock(nn.Module):
    """models/scale_block.py."""

    def __init__(self) -> None:
        super().__init__()
        self.conv1 = nn.ConvTranspose2d(WIDTH, WIDTH, kernel_size=2, stride=2)
        self.act = nn.GELU()
        self.conv2 = nn.Conv2d(WIDTH, WIDTH, kernel_size=3, padding=1, groups=WIDTH, bias=False)
        self.norm = LayerNorm2d(WIDTH)

    def forward(self, maps: Tensor) -> Tensor:
        out: Tensor = self.norm(self.conv2(self.act(self.conv1(maps))))
        return out


class Network(nn.Module):
    """models/eomt.py, as it is in evaluation, when no mask limits the queries any more."""

    attn_mask_probs: Tensor

    def __init__(self, encoder: Encoder, classes: int, queries: int, blocks: int, upscale: int) -> None:
        super().__init__()
        self.encoder, self.blocks = encoder, blocks
        self.register_buffer("attn_mask_probs", torch.zeros(blocks))
        self.q = nn.Embedding(queries, WIDTH)
        self.class_head = nn.Linear(WIDTH, classes + 1)
        layers = (nn.Linear(WIDTH, WIDTH), nn.GELU(), nn.Linear(WIDTH, WIDTH), nn.GELU(), nn.Linear(WIDTH, WIDTH))
        self.mask_head = nn.Sequential(*layers)
        self.upscale = nn.Sequential(*(ScaleBlock() for _ in range(upscale)))

    def forward(self, images: Tensor) -> tuple[Tensor, Tensor]:
        """images: (B, 3, H, W) in 0..1, of the trained size -> logits (B, Q, K + 1), masks (B, Q, h, w)."""
        network = self.encoder.backbone
        tokens = network.patch_embed((images - self.encoder.pixel_mean) / self.encoder.pixel_std)
        tokens = network._pos_embed(tokens)
        before = len(network.blocks) - self.blocks
        for block in network.blocks[:before]:
            tokens = block(tokens)
        tokens = torch.cat([self.q.weight.expand(len(images), -1, -1), tokens], dim=1)
        for block in network.blocks[before:]:
            tokens = block(tokens)
        tokens = network.norm(tokens)
        count = self.q.num_embeddings
        queries, patches = tokens[:, :count], tokens[:, count + network.num_prefix_tokens :]
        maps = patches.mT.unflatten(2, network.patch_embed.grid_size)
        masks = torch.einsum("bqc,bchw->bqhw", self.mask_head(queries), self.upscale(maps))
        return self.class_head(queries), masks


class Training(nn.Module):
    """training/lightning_module.py: what files are saved from."""

    def __init__(self, network: Network, classes: int) -> None:
        super().__init__()
        self.network, self.criterion = network, nn.Module()
        self.criterion.register_buffer("empty_weight", torch.ones(classes + 1))


def training(
    *, size: int = 64, patch: int = 16, classes: int = 5, blocks: int = 2, upscale: int = 2, **options: Any
) -> Training:
    torch.manual_seed(0)
    made = Training(Network(Encoder(size, patch, **options), classes, 7, blocks, upscale), classes).eval()
    with torch.no_grad():
        for name, tensor in made.named_parameters():
            scale = 0.2 if tensor.ndim == 1 else tensor[0].numel() ** -0.5
            centre = 1.0 if tensor.ndim == 1 and name.endswith(("weight", "gamma")) else 0.0
            tensor.copy_(centre + (1.0 if ".q." in name else scale) * torch.randn_like(tensor))
    return made.double()  # what float32 holds, so that loading rounds nothing


def saved(theirs: Training, folder: Path, **changed: Tensor) -> Path:
    torch.save({**theirs.state_dict(), **changed}, folder / "pytorch_model.bin")
    return folder / "pytorch_model.bin"


KINDS: dict[str, dict[str, Any]] = {
    "patches of 16": {},
    "patches of 8": {"patch": 8, "size": 48, "blocks": 3, "upscale": 1},
    "gated": {"mlp_ratio": 3.0, "mlp_layer": SwiGLUPacked, "act_layer": nn.SiLU},
}


@torch.no_grad()
@pytest.mark.parametrize("name", KINDS)
def test_logits_are_the_authors(name: str, apart: Apart, tmp_path: Path) -> None:
    theirs = training(**KINDS[name])
    ours = vitdense.load_model(saved(theirs, tmp_path))
    size = KINDS[name].get("size", 64)
    images = torch.rand(2, 3, size, size, dtype=torch.float64)
    logits, masks = theirs.network(images)
    assert masks.std() > 0.3
    assert logits.std() > 0.3
    for dtype, bound in ((torch.float64, 1e-9), (torch.float32, 1e-5)):
        found = ours.to(dtype)({"images": images.to(dtype)})
        assert apart([found["logits"]], [logits.to(dtype)]) < bound
        assert apart([found["masks"]], [masks.to(dtype)]) < bound


def test_what_the_file_says_by_its_tensors(tmp_path: Path) -> None:
    theirs = training(classes=133)
    model: Any = vitdense.load_model(saved(theirs, tmp_path))
    assert model.head.stuff == set(range(80, 133))
    assert model.backbone.mean == pytest.approx((0.4, 0.5, 0.6), abs=1e-6)
    assert (model.inference.short_side, model.inference.long_max) == (64, 64)
    assert len(model.classes) == 133
    assert model.head.config.masking == "annealed"
    assert model.predict([torch.zeros(40, 70, 3, dtype=torch.uint8).numpy()])[0].ids.shape == (40, 70)
    early = {"network.attn_mask_probs": torch.ones(2, dtype=torch.float64)}
    other: Any = vitdense.load_model(saved(theirs, tmp_path, **early), ["task=semantic"])
    assert (other.head.config.masking, other.head.config.task, other.head.blocks) == ("always", "semantic", 2)


def test_files_in_wrappers_and_without_the_first_name(tmp_path: Path) -> None:
    state = training().state_dict()
    torch.save({"state_dict": state}, tmp_path / "last.ckpt")
    bare = {key.removeprefix("network."): value for key, value in state.items() if key.startswith("network.")}
    torch.save(bare, tmp_path / "bare.pt")
    first, second = (vitdense.load_model(tmp_path / name).state_dict() for name in ("last.ckpt", "bare.pt"))
    assert first.keys() == second.keys()
    assert all(torch.equal(first[key], second[key]) for key in first)


def test_what_does_not_belong_is_named(tmp_path: Path) -> None:
    theirs = training()
    with pytest.raises(WeightsError, match=r"belong to no part of its model: more\.weight"):
        vitdense.load_model(saved(theirs, tmp_path, **{"network.more.weight": torch.zeros(2)}))
    with pytest.raises(WeightsError, match=r"1 unexpected: blocks\.2\.attn\.gate"):
        vitdense.load_model(saved(theirs, tmp_path, **{"network.encoder.backbone.blocks.2.attn.gate": torch.zeros(2)}))
    shown = {"network.encoder.backbone.pos_embed": torch.zeros(1, 15, WIDTH)}
    with pytest.raises(WeightsError, match=r"positions for 15 patches; known here: squares"):
        vitdense.load_model(saved(theirs, tmp_path, **shown))
    delta = {
        key.replace("patch_embed.proj.", "patch_embed.patch_embeddings."): value
        for key, value in theirs.state_dict().items()
    }
    torch.save(delta, tmp_path / "delta.bin")
    with pytest.raises(WeightsError, match=r"EoMT on DINOv3.*differences from DINOv3's own weights"):
        vitdense.load_model(tmp_path / "delta.bin")
