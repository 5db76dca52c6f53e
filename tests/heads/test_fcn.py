"""The fully convolutional head against transformers' UperNetFCNHead, and the mistakes it names."""

from typing import Any

import pytest
import torch
from transformers import ResNetConfig, UperNetConfig
from transformers.models.upernet.modeling_upernet import UperNetFCNHead

from heads import create_head
from vitdense.contracts import Level
from vitdense.errors import UserError

LEVELS = (Level(8, 4), Level(12, 8), Level(16, 16))


@pytest.mark.parametrize(("dtype", "bound"), [(torch.float32, 1e-5), (torch.float64, 1e-9)])
@pytest.mark.parametrize(
    ("convs", "concat_input", "dilation"), [(1, False, 1), (2, True, 1), (0, False, 1), (2, True, 6)]
)
def test_equals_transformers(dtype: torch.dtype, bound: float, convs: int, concat_input: bool, dilation: int) -> None:
    torch.manual_seed(0)
    config = UperNetConfig(
        backbone_config=ResNetConfig(),
        auxiliary_channels=16 if convs == 0 else 10,
        auxiliary_num_convs=convs,
        auxiliary_concat_input=concat_input,
    )
    config.num_labels = 7
    reference = UperNetFCNHead(config, [level.channels for level in LEVELS], dilation=dilation).to(dtype)
    for tensor in reference.state_dict().values():
        if tensor.is_floating_point():
            tensor.uniform_(0.5, 1.5) if tensor.ndim == 1 else tensor.normal_(std=tensor[0].numel() ** -0.5)
    options: dict[str, Any] = {"convs": convs, "concat_input": concat_input, "dilation": dilation}
    head = create_head("fcn", LEVELS, num_classes=7, channels=config.auxiliary_channels, dropout=0.0, **options)
    head.to(dtype).get_submodule("decode_head").load_state_dict(reference.state_dict())
    features = [torch.randn(2, level.channels, 16, 21, dtype=dtype) for level in LEVELS]
    got, expected = head(features, {})["logits"], reference(features)
    torch.testing.assert_close(got, expected, rtol=0, atol=bound * max(1.0, float(expected.detach().abs().mean())))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"level": 3}, r"level is 3, but the backbone gives 3 levels"),
        ({"kernel_size": 4}, r"kernel_size must be odd, so that maps keep their size; got 4"),
    ],
)
def test_mistakes_are_named(options: dict[str, Any], message: str) -> None:
    with pytest.raises(UserError, match=message):
        create_head("fcn", LEVELS, num_classes=7, **options)
