"""ViT-Adapter against a second writing of the paper's equations: loops over levels, heads and points, in pixels."""

from collections.abc import Callable

import pytest
import torch
from torch import nn

from tests.vitdense.adapters.vit_adapter_by_hand import (
    HEADS,
    POINTS,
    Weights,
    centres,
    extract,
    grids_of,
    inject,
    part,
    spatial_prior,
    whole,
)
from vitdense.adapters.interaction import reference_points
from vitdense.adapters.vit_adapter import ViTAdapter, ViTAdapterConfig
from vitdense.contracts import ADAPTERS, BACKBONES, Backbone, Level
from vitdense.errors import UserError

TOLERANCES = [(torch.float32, 1e-5), (torch.float64, 1e-9)]
OPTIONS = {"conv_dim": 4, "deform_num_heads": HEADS, "deform_num_points": POINTS, "deform_ratio": 0.5}
Plain = Callable[..., Backbone]
Enliven = Callable[[nn.Module], nn.Module]


def build(patch: int, stages: int = 4, **options: object) -> ViTAdapter:
    adapter = ADAPTERS.create("vit_adapter", {**OPTIONS, **options}).build((Level(24, patch),) * stages)
    assert isinstance(adapter, ViTAdapter)
    return adapter


# ---------------------------------------------------------------- the second writing


# ---------------------------------------------------------------- equality


@torch.no_grad()
@pytest.mark.parametrize(("dtype", "tolerance"), TOLERANCES)
@pytest.mark.parametrize(
    ("patch", "size"), [(16, (64, 96)), (16, (75, 98)), (14, (75, 98)), (8, (50, 70)), (32, (75, 98))]
)
def test_maps_equal_the_equations(
    patch: int, size: tuple[int, int], dtype: torch.dtype, tolerance: float, plain: Plain, enliven: Enliven
) -> None:
    adapter, backbone = enliven(build(patch)).to(dtype), enliven(plain(patch)).to(dtype)
    assert isinstance(adapter, ViTAdapter)
    assert isinstance(backbone, Backbone)
    images = torch.randn(2, 3, *size, dtype=dtype)
    expected = whole(backbone, images, patch, adapter.state_dict())
    for own, other in zip(adapter.adapt(backbone, images), expected, strict=True):
        torch.testing.assert_close(own, other, atol=tolerance, rtol=0)


@torch.no_grad()
@pytest.mark.parametrize(("dtype", "tolerance"), TOLERANCES)
@pytest.mark.parametrize("size", [(64, 96), (75, 98)])
def test_the_spatial_prior_equals_the_equations(
    size: tuple[int, int], dtype: torch.dtype, tolerance: float, enliven: Enliven
) -> None:
    module = enliven(build(16).spm).to(dtype)
    images = torch.randn(2, 3, *size, dtype=dtype)
    for own, other, grid in zip(
        module(images), spatial_prior(images, module.state_dict()), grids_of(size, (4, 8, 16, 32)), strict=True
    ):
        assert own.shape == (2, 24, grid.height, grid.width)
        torch.testing.assert_close(own, other, atol=tolerance, rtol=0)


@pytest.mark.parametrize(("dtype", "tolerance"), TOLERANCES)
@pytest.mark.parametrize("patch", [14, 16])
def test_injector_and_extractor_equal_the_equations_with_gradients(
    patch: int, dtype: torch.dtype, tolerance: float, enliven: Enliven
) -> None:
    block = enliven(build(patch).interactions[3]).to(dtype)
    (patch_grid,), grids = grids_of((75, 98), [patch]), grids_of((75, 98), (8, 16, 32))
    patches = torch.randn(2, len(centres([patch_grid])), 24, dtype=dtype, requires_grad=True)
    prior = torch.randn(2, len(centres(grids)), 24, dtype=dtype, requires_grad=True)
    shapes, shape = [(each.height, each.width) for each in grids], [(patch_grid.height, patch_grid.width)]
    p: Weights = dict(block.named_parameters())
    injector, extractor = block.get_submodule("injector"), block.get_submodule("extractor")
    pairs = [
        (
            injector(patches, reference_points([patch_grid], grids, patches), prior, shapes),
            inject(patches, patch_grid, prior, grids, part(p, "injector")),
        ),
        (
            extractor(prior, reference_points(grids, [patch_grid], patches), patches, shape, shapes),
            extract(prior, grids, patches, patch_grid, part(p, "extractor")),
        ),
    ]
    for (own, other), module in zip(pairs, (injector, extractor), strict=True):
        torch.testing.assert_close(own, other, atol=tolerance, rtol=0)
        leaves = [patches, prior, *module.parameters()]
        gradients = [torch.autograd.grad(each.square().mean(), leaves) for each in (own, other)]
        for one, two in zip(*gradients, strict=True):
            torch.testing.assert_close(one, two, atol=tolerance, rtol=0)


# ---------------------------------------------------------------- alignment and start


def test_references_are_the_published_ones_where_strides_divide() -> None:
    """In the authors' words: linspace(0.5, n - 0.5, n) / n of the query's own grid, the same for every level."""
    grids = grids_of((128, 192), (8, 16, 32))
    published = []
    for height, width, _ in grids:
        y, x = (torch.linspace(0.5, n - 0.5, n, dtype=torch.float64) / n for n in (height, width))
        y, x = torch.meshgrid(y, x, indexing="ij")
        published.append(torch.stack((x.reshape(-1), y.reshape(-1)), -1))
    expected = torch.cat(published)[None, :, None].expand(-1, -1, 3, -1)
    ours = reference_points(grids, grids, torch.zeros(1, dtype=torch.float64))
    torch.testing.assert_close(ours, expected, atol=1e-12, rtol=0)


def test_references_are_never_below_single_precision() -> None:
    grids = grids_of((128, 192), (8,))
    assert reference_points(grids, grids, torch.zeros(1, dtype=torch.bfloat16)).dtype == torch.float32


def test_the_backbone_starts_as_it_was_trained(plain: Plain) -> None:
    backbone, images = plain(16), torch.randn(1, 3, 50, 70)
    adapter = build(16).eval()
    seen = []
    adapter.interactions[0].get_submodule("injector").register_forward_hook(
        lambda _, given, out: seen.append((given[0], out))
    )
    adapter.adapt(backbone, images)
    assert torch.equal(*seen[0])


# ---------------------------------------------------------------- names and options


def names_of_the_authors(extractors: dict[int, int]) -> set[str]:
    """The parameters and buffers of the authors' ViTAdapter that are not the backbone's."""

    def layers(prefix: str, *names: str) -> set[str]:
        return {f"{prefix}{name}.{kind}" for name in names for kind in ("weight", "bias")}

    def norms(prefix: str, *names: str) -> set[str]:
        state = ("running_mean", "running_var", "num_batches_tracked")
        return layers(prefix, *names) | {f"{prefix}{name}.{kind}" for name in names for kind in state}

    deformable = ("sampling_offsets", "attention_weights", "value_proj", "output_proj")
    keys = {"level_embed"} | layers("", "up") | norms("", "norm1", "norm2", "norm3", "norm4")
    keys |= {f"spm.stem.{i}.weight" for i in (0, 3, 6)} | norms("spm.stem.", "1", "4", "7")
    for i in (2, 3, 4):
        keys |= {f"spm.conv{i}.0.weight"} | norms(f"spm.conv{i}.", "1")
    keys |= layers("spm.", "fc1", "fc2", "fc3", "fc4")
    for stage, extra in extractors.items():
        at = f"interactions.{stage}."
        keys |= {f"{at}injector.gamma"} | layers(f"{at}injector.", "query_norm", "feat_norm")
        keys |= layers(f"{at}injector.attn.", *deformable)
        for name in ["extractor", *(f"extra_extractors.{i}" for i in range(extra))]:
            keys |= layers(f"{at}{name}.attn.", *deformable)
            keys |= layers(
                f"{at}{name}.", "query_norm", "feat_norm", "ffn_norm", "ffn.fc1", "ffn.dwconv.dwconv", "ffn.fc2"
            )
    return keys


def test_parameters_are_named_as_the_authors_name_them() -> None:
    assert set(build(16).state_dict()) == names_of_the_authors({0: 0, 1: 0, 2: 0, 3: 2})


def test_the_light_form_has_one_interaction_and_no_more() -> None:
    options = {"cffn_ratio": 0.0, "extra_extractors": 0, "add_vit_feature": False}
    adapter = build(16, 1, **options)
    assert not any("ffn" in key or "extra_extractors" in key for key in adapter.state_dict())
    assert len(adapter.interactions) == 1


@pytest.mark.parametrize(("dim", "heads", "ratio"), [(192, 6, 1.0), (384, 6, 1.0), (768, 12, 0.5), (1024, 16, 0.5)])
def test_heads_and_ratio_are_the_papers_for_its_widths(dim: int, heads: int, ratio: float) -> None:
    options = ViTAdapterConfig().options(dim)
    assert (options.num_heads, options.ratio) == (heads, ratio)


@pytest.mark.parametrize("dim", [16, 24, 64, 1152, 1280, 1408, 1536, 4096])
def test_the_default_heads_fit_any_width(dim: int) -> None:
    options = ViTAdapterConfig().options(dim)
    assert int(dim * options.ratio) % options.num_heads == 0


def test_recomputing_gives_equal_gradients(plain: Plain) -> None:
    images, gradients = torch.randn(1, 3, 40, 56, dtype=torch.float64), []
    for again in (False, True):
        torch.manual_seed(0)
        backbone, adapter = plain(16).double(), build(16, grad_checkpointing=again, drop_path=0.3).double().train()
        nn.init.ones_(adapter.interactions[1].get_parameter("injector.gamma"))
        torch.autograd.backward([each.square().mean() for each in adapter.adapt(backbone, images)])
        gradients.append([parameter.grad for parameter in adapter.parameters()])
    torch.testing.assert_close(gradients[0], gradients[1])


@pytest.mark.parametrize(
    ("options", "stages", "message"),
    [
        ({"deform_num_heads": 5}, 4, r"12 channels, 0\.5 of 24, don't divide by deform_num_heads 5"),
        ({}, 3, r"vit_adapter adds 4 maps to its result, and the backbone gives 3.*simple_pyramid"),
    ],
)
def test_options_that_do_not_fit_are_named(options: dict[str, object], stages: int, message: str) -> None:
    with pytest.raises(UserError, match=message):
        build(16, stages, **options)


def test_other_channels_than_promised_are_refused(plain: Plain) -> None:
    with pytest.raises(UserError, match=r"vit_adapter reads pictures of 1 channels, given 3: set its in_channels"):
        build(16, in_channels=1).adapt(plain(16), torch.zeros(1, 3, 32, 32))


def test_a_backbone_without_stages_is_refused() -> None:
    backbone = BACKBONES.create("swin_nano", {"out_indices": (3,)}).build()
    adapter = ADAPTERS.create("vit_adapter", {"add_vit_feature": False}).build(backbone.levels)
    with pytest.raises(UserError, match=r"Swin has no stages of one stride .* simple_pyramid"):
        adapter.eval().adapt(backbone, torch.zeros(1, 3, 32, 32))


def test_maps_alone_are_too_late() -> None:
    with pytest.raises(UserError, match=r"works between the stages of a backbone: call adapt\(backbone, images\)"):
        build(16)([torch.zeros(1, 24, 2, 2)] * 4, torch.zeros(1, 3, 32, 32))
