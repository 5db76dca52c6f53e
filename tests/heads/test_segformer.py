"""SegFormer's head against transformers' SegformerDecodeHead, at sizes that don't divide."""

import pytest
import torch
from torch import Tensor
from transformers import SegformerConfig
from transformers.models.segformer.modeling_segformer import SegformerDecodeHead

from heads import create_head
from vitdense.contracts import Level

LEVELS = (Level(8, 4), Level(12, 8), Level(16, 16), Level(20, 32))


def maps(size: tuple[int, int], dtype: torch.dtype) -> list[Tensor]:
    return [
        torch.randn(2, level.channels, *(-(-side // level.stride) for side in size), dtype=dtype) for level in LEVELS
    ]


@pytest.mark.parametrize(("dtype", "bound"), [(torch.float32, 1e-5), (torch.float64, 1e-9)])
@pytest.mark.parametrize("size", [(250, 333), (64, 96)])
def test_equals_transformers(dtype: torch.dtype, bound: float, size: tuple[int, int]) -> None:
    torch.manual_seed(0)
    channels = [level.channels for level in LEVELS]
    config = SegformerConfig(hidden_sizes=channels, decoder_hidden_size=24, classifier_dropout_prob=0.0)
    config.num_labels = 7
    reference = SegformerDecodeHead(config).to(dtype)  # type: ignore[no-untyped-call]
    for tensor in reference.state_dict().values():
        if tensor.is_floating_point():
            tensor.uniform_(0.5, 1.5) if tensor.ndim == 1 else tensor.normal_(std=tensor[0].numel() ** -0.5)
    head = create_head("segformer", LEVELS, num_classes=7, channels=24, dropout=0.0).to(dtype)
    head.load_state_dict(reference.state_dict())
    features = [each.requires_grad_() for each in maps(size, dtype)]
    got, expected = head(features, {})["logits"], reference(features)
    assert expected.abs().mean() > 0.1
    torch.testing.assert_close(got, expected, rtol=0, atol=bound)
    wanted = [*features, *head.parameters()]
    theirs = dict(reference.named_parameters())
    given = torch.autograd.grad(got.square().mean(), wanted)
    hoped = torch.autograd.grad(
        expected.square().mean(), [*features, *(theirs[name] for name, _ in head.named_parameters())]
    )
    for mine, other in zip(given, hoped, strict=True):
        torch.testing.assert_close(mine, other, rtol=0, atol=bound * max(1.0, float(other.abs().mean())))
