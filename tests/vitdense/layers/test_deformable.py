"""The deformable attention module: transformers' with the same weights, and its published start."""

import math

import pytest
import torch
from torch import Tensor, nn

from vitdense.layers.deformable import DeformableAttention

SHAPES = ((6, 5), (3, 3))


def pair(dtype: torch.dtype) -> tuple[DeformableAttention, nn.Module]:
    """Ours and transformers', with the same weights that carry a signal."""
    from transformers import DeformableDetrConfig
    from transformers.models.deformable_detr.modeling_deformable_detr import DeformableDetrMultiscaleDeformableAttention

    config = DeformableDetrConfig(d_model=16, num_feature_levels=2)
    theirs = DeformableDetrMultiscaleDeformableAttention(config, num_heads=4, n_points=3).to(dtype)
    with torch.no_grad():
        for parameter in theirs.parameters():
            parameter.normal_(0.0, 0.3)
    ours = DeformableAttention(16, num_heads=4, num_levels=2, num_points=3).to(dtype)
    ours.load_state_dict(theirs.state_dict())
    return ours, theirs


@pytest.mark.parametrize("coordinates", [2, 4])
@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float32, 1e-5), (torch.float64, 1e-9)])
def test_it_equals_transformers(dtype: torch.dtype, tolerance: float, coordinates: int) -> None:
    ours, theirs = pair(dtype)
    queries = torch.randn(2, 7, 16, dtype=dtype, requires_grad=True)
    features = torch.randn(2, 39, 16, dtype=dtype, requires_grad=True)
    references = torch.rand(2, 7, 2, coordinates, dtype=dtype, requires_grad=True)

    def derive(result: Tensor, module: nn.Module) -> tuple[Tensor, ...]:
        leaves = [queries, features, references, *(module.get_parameter(name) for name, _ in ours.named_parameters())]
        return torch.autograd.grad(result.square().mean(), leaves)

    own = ours(queries, references, features, SHAPES)
    other = theirs(
        queries,
        encoder_hidden_states=features,
        reference_points=references,
        spatial_shapes=torch.tensor(SHAPES),
        spatial_shapes_list=list(SHAPES),
    )[0]
    torch.testing.assert_close(own, other, atol=tolerance, rtol=0)
    for one, two in zip(derive(own, ours), derive(other, theirs), strict=True):
        torch.testing.assert_close(one, two, atol=tolerance, rtol=tolerance)


def test_points_start_as_a_star() -> None:
    module = DeformableAttention(16, num_heads=8, num_levels=2, num_points=3)
    star = module.sampling_offsets(torch.randn(1, 16)).view(8, 2, 3, 2)
    for head in range(8):
        angle = 2 * math.pi * head / 8
        direction = torch.tensor([math.cos(angle), math.sin(angle)])
        for level in range(2):
            for point in range(3):
                expected = direction / direction.abs().max() * (point + 1)
                torch.testing.assert_close(star[head, level, point], expected)
    assert not module.attention_weights(torch.randn(1, 16)).any()


def test_values_may_be_narrower_than_queries() -> None:
    module = DeformableAttention(16, num_heads=4, num_levels=2, ratio=0.5)
    assert module.value_proj.out_features == module.output_proj.in_features == 8
    out = module(torch.randn(2, 7, 16), torch.rand(1, 7, 2, 2), torch.randn(2, 39, 16), SHAPES)
    assert out.shape == (2, 7, 16)


def test_autocast_does_not_move_the_points() -> None:
    """bf16 knows 256 places between 0.5 and 1: on a grid of 500 cells a rounded place would read other cells."""
    module = DeformableAttention(16, num_heads=4, num_levels=1)
    inputs = (torch.randn(2, 7, 16), torch.rand(1, 7, 1, 2), torch.randn(2, 2500, 16), ((5, 500),))
    exact = module(*inputs)
    with torch.autocast("cpu", torch.bfloat16):
        half = module(*inputs)
    assert half.dtype == torch.bfloat16
    torch.testing.assert_close(half.float(), exact, atol=0.02, rtol=0.02)
