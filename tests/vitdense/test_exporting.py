"""Exported models give what the model gives, at any batch and size, or nothing is left behind."""

from pathlib import Path

import pytest
import torch
from torch import nn

import heads
from vitdense.build import create_backbone
from vitdense.errors import UserError
from vitdense.exporting import SUFFIXES, TOLERANCE, Target, export_model
from vitdense.model import Model


def fcn(**options: object) -> Model:
    backbone = create_backbone("vit_nano_patch8", image_size=64, out_indices=(1, 3))
    return Model(backbone, heads.create_head("fcn", backbone.levels, num_classes=4, level=0, channels=8, **options))


@pytest.mark.parametrize("to", ["torch_export", "onnx"])
def test_any_batch_and_size_give_the_models_own_logits(to: Target, tmp_path: Path) -> None:
    path = tmp_path / f"model{SUFFIXES[to]}"
    distances = export_model(fcn(), path, to, size=(80, 96))
    assert path.stat().st_size > 10_000
    assert len(distances) == 4
    assert {name.split()[1] for name in distances} == {"logits"}
    assert max(distances.values()) < 1e-5 < TOLERANCE
    assert [file.name for file in tmp_path.iterdir()] == [path.name]


def test_one_size_alone(tmp_path: Path) -> None:
    path = tmp_path / "model.pt2"
    assert len(export_model(fcn(), path, "torch_export", size=(50, 70), dynamic=False)) == 1
    program = torch.export.load(path).module()
    assert program(torch.rand(1, 3, 50, 70))["logits"].shape == (1, 4, 7, 9)


def test_what_cannot_be_traced_is_said_and_nothing_is_left(tmp_path: Path) -> None:
    class Counts(nn.Module):
        def forward(self, features: list[torch.Tensor], batch: object) -> dict[str, torch.Tensor]:
            return {"logits": features[0][:, : int(features[0].sum())]}

    model = fcn()
    model.head.forward = Counts().forward  # type: ignore[method-assign]
    with pytest.raises(UserError, match="this model can't be exported"):
        export_model(model, tmp_path / "model.pt2", "torch_export", size=(64, 64))
    assert not list(tmp_path.iterdir())


def test_other_numbers_are_refused(tmp_path: Path) -> None:
    model, calls = fcn(), []
    plain = model.head.deploy

    def drifting(outputs: dict[str, torch.Tensor], size: tuple[int, int]) -> dict[str, torch.Tensor]:
        calls.append(size)
        return {name: each + len(calls) for name, each in plain(outputs, size).items()}

    model.head.deploy = drifting  # type: ignore[method-assign]
    with pytest.raises(UserError, match=r"differs by .* allowed: 1e-03"):
        export_model(model, tmp_path / "model.pt2", "torch_export", size=(64, 64))
    assert not list(tmp_path.iterdir())
