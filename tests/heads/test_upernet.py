"""UperNet against transformers' heads, at sizes that don't divide, and the mistakes it names."""

import copy

import pytest
import torch
from torch import Tensor, nn
from transformers import ResNetConfig, UperNetConfig
from transformers.models.upernet.modeling_upernet import UperNetFCNHead, UperNetHead

from heads import create_head
from vitdense.contracts import Batch, Head, Level
from vitdense.errors import UserError

LEVELS = (Level(8, 4), Level(12, 8), Level(16, 16), Level(20, 32))


def maps(height: int, width: int, *, batch: int = 2, dtype: torch.dtype = torch.float32) -> list[Tensor]:
    return [
        torch.randn(batch, level.channels, -(-height // level.stride), -(-width // level.stride), dtype=dtype)
        for level in LEVELS
    ]


def randomise(module: nn.Module) -> None:
    """Weights that carry signal, and running statistics that are not 0 and 1."""
    for name, tensor in module.state_dict().items():
        if tensor.ndim > 1:
            tensor.normal_(std=tensor[0].numel() ** -0.5)
        elif tensor.is_floating_point():
            tensor.uniform_(0.5, 1.5) if name.endswith(("weight", "running_var")) else tensor.normal_(std=0.5)


class Reference(nn.Module):
    """transformers' two heads under the names that its whole model gives them."""

    def __init__(self, convs: int = 1) -> None:
        super().__init__()
        config = UperNetConfig(
            backbone_config=ResNetConfig(), hidden_size=24, auxiliary_channels=10, auxiliary_num_convs=convs
        )
        config.num_labels = 7
        channels = [level.channels for level in LEVELS]
        self.decode_head = UperNetHead(config, channels)  # type: ignore[no-untyped-call]
        self.auxiliary_head = UperNetFCNHead(config, channels)


def pair(dtype: torch.dtype, convs: int = 1) -> tuple[Head, Reference]:
    torch.manual_seed(0)
    reference = Reference(convs).to(dtype)
    randomise(reference)
    head = create_head(
        "upernet", LEVELS, num_classes=7, channels=24, auxiliary_channels=10, auxiliary_convs=convs, dropout=0.0
    ).to(dtype)
    head.load_state_dict(reference.state_dict())
    return head, reference


@pytest.mark.parametrize(("dtype", "bound"), [(torch.float32, 1e-5), (torch.float64, 1e-9)])
@pytest.mark.parametrize("size", [(250, 333), (64, 96), (33, 31)])
def test_equals_transformers_in_evaluation(dtype: torch.dtype, bound: float, size: tuple[int, int]) -> None:
    head, reference = pair(dtype)
    features = maps(*size, dtype=dtype)
    with torch.no_grad():
        got = head.eval()(features, {})
        expected = reference.eval().decode_head(features)
    assert list(got) == ["logits"]
    assert expected.abs().mean() > 0.1
    torch.testing.assert_close(got["logits"], expected, rtol=0, atol=bound)


@pytest.mark.parametrize(("dtype", "bound"), [(torch.float32, 1e-5), (torch.float64, 1e-9)])
@pytest.mark.parametrize("convs", [1, 2])
def test_equals_transformers_in_training_with_its_auxiliary_head(dtype: torch.dtype, bound: float, convs: int) -> None:
    head, reference = pair(dtype, convs)
    features = maps(250, 333, dtype=dtype)
    got = head.train()(features, {})
    reference.train()
    torch.testing.assert_close(got["logits"], reference.decode_head(features), rtol=0, atol=bound)
    torch.testing.assert_close(got["auxiliary_logits"], reference.auxiliary_head(features), rtol=0, atol=bound)
    for name, buffer in reference.named_buffers():
        torch.testing.assert_close(head.get_buffer(name), buffer, rtol=0, atol=bound)


def freeze_norms(module: nn.Module) -> None:
    for each in module.modules():
        if isinstance(each, nn.BatchNorm2d):
            each.eval()


@pytest.mark.parametrize("frozen_norms", [False, True])
def test_gradients_equal_those_of_transformers(frozen_norms: bool) -> None:
    head, reference = pair(torch.float64)
    features = maps(110, 130, dtype=torch.float64)
    reference.train()
    head.train()
    if frozen_norms:
        freeze_norms(reference)
        freeze_norms(head)
    outputs = head(features, {})
    (outputs["logits"].square().mean() + outputs["auxiliary_logits"].square().mean()).backward()
    loss = reference.decode_head(features).square().mean() + reference.auxiliary_head(features).square().mean()
    loss.backward()
    for name, parameter in reference.named_parameters():
        torch.testing.assert_close(head.get_parameter(name).grad, parameter.grad, rtol=1e-9, atol=1e-9)


def test_every_parameter_is_trained() -> None:
    head = create_head("upernet", LEVELS, num_classes=5, channels=8, auxiliary_channels=8)
    batch: Batch = {"masks": torch.randint(-1, 5, (2, 50, 67)), "images": torch.zeros(2, 3, 50, 67)}
    losses = head.losses(head(maps(50, 67), batch), batch)
    (losses["loss_ce"] + losses["loss_aux"]).backward()  # type: ignore[no-untyped-call]
    assert [name for name, parameter in head.named_parameters() if parameter.grad is None] == []


def test_runs_as_one_exported_graph() -> None:
    head = create_head("upernet", LEVELS, num_classes=5, channels=8).eval()
    features = maps(50, 67, batch=1)
    program = torch.export.export(head, (features, {}))
    torch.testing.assert_close(program.module()(features, {})["logits"], head(features, {})["logits"])


def test_runs_as_one_exported_graph_at_any_size() -> None:
    head = create_head("upernet", LEVELS, num_classes=5, channels=8).eval()
    free = {2: torch.export.Dim.DYNAMIC, 3: torch.export.Dim.DYNAMIC}
    program = torch.export.export(head, (maps(250, 333), {}), dynamic_shapes=([free] * 4, {}))
    larger = maps(301, 417)
    torch.testing.assert_close(program.module()(larger, {})["logits"], head(larger, {})["logits"], rtol=0, atol=1e-5)


def test_without_auxiliary_weight_there_is_no_auxiliary_head() -> None:
    head = create_head("upernet", LEVELS, num_classes=5, channels=8, auxiliary_weight=0.0)
    assert not [name for name, _ in head.named_parameters() if name.startswith("auxiliary")]
    assert list(head(maps(50, 67), {})) == ["logits"]


def test_plain_vit_maps_are_refused_with_an_adapter_that_helps() -> None:
    with pytest.raises(UserError, match=r"strides \[16, 16\].*adapter: \{name: simple_pyramid\}"):
        create_head("upernet", (Level(8, 16), Level(8, 16)), num_classes=5)


def test_one_level_is_refused() -> None:
    with pytest.raises(UserError, match="at least 2 levels"):
        create_head("upernet", (Level(8, 16),), num_classes=5)


def test_clips_are_refused() -> None:
    with pytest.raises(UserError, match="time stride"):
        create_head("upernet", (Level(8, 8, 2), Level(8, 16, 2)), num_classes=5)


def test_auxiliary_level_must_exist() -> None:
    with pytest.raises(UserError, match="auxiliary_level is 4, but there are 4 levels"):
        create_head("upernet", LEVELS, num_classes=5, auxiliary_level=4)


def test_training_on_one_picture_says_what_to_change() -> None:
    head = create_head("upernet", LEVELS, num_classes=5, channels=8)
    with pytest.raises(UserError, match="batch of at least 2 pictures per process, got 1"):
        head(maps(64, 64, batch=1), {})


def test_training_on_one_picture_works_with_frozen_norms_and_without_one_cell_pooling() -> None:
    head = create_head("upernet", LEVELS, num_classes=5, channels=8, pool_scales=(2, 3))
    assert head(maps(64, 64, batch=1), {})["logits"].isfinite().all()
    frozen = create_head("upernet", LEVELS, num_classes=5, channels=8)
    freeze_norms(frozen)
    assert frozen(maps(64, 64, batch=1), {})["logits"].isfinite().all()


def test_a_copy_gives_the_same_logits() -> None:
    head = create_head("upernet", LEVELS, num_classes=5, channels=8).eval()
    features = maps(50, 67)
    torch.testing.assert_close(copy.deepcopy(head)(features, {}), head(features, {}), rtol=0, atol=0)


def test_nothing_is_folded_where_somebody_listens() -> None:
    head = create_head("upernet", LEVELS, num_classes=5, channels=8, auxiliary_weight=0.0)
    randomise(head)
    features, seen = maps(50, 67), []
    with torch.no_grad():
        expected = head.eval()(features, {})["logits"]
        for name, module in head.named_modules():
            if isinstance(module, nn.Conv2d | nn.BatchNorm2d):
                module.register_forward_hook(lambda *_, name=name: seen.append(name))
        torch.testing.assert_close(head(features, {})["logits"], expected, rtol=0, atol=1e-5)
    assert set(seen) == {name.rpartition(".")[0] for name, each in head.named_parameters() if name.endswith("weight")}
