"""Models for other runtimes: ONNX and torch.export, for any batch and size, checked against the model itself."""

import warnings
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor, nn
from torch.export import Dim

from vitdense.errors import UserError
from vitdense.model import Model

Target = Literal["onnx", "torch_export"]
SUFFIXES: Mapping[Target, str] = {"onnx": ".onnx", "torch_export": ".pt2"}
TOLERANCE = 1e-3
"""How far results may be apart, as a share of the largest: runtimes sum in orders of their own."""


class Deployed(nn.Module):
    """A model as other runtimes have it: floats in, tensors out, no lists of sizes."""

    def __init__(self, model: Model) -> None:
        super().__init__()
        self.model = model.eval()

    def forward(self, images: Tensor) -> dict[str, Tensor]:
        """images: (B, C, H, W), floats in [0, 1] -> the head's `deploy`."""
        outputs = self.model({"images": images})
        return self.model.head.deploy(outputs, (images.shape[-2], images.shape[-1]))


def export_model(
    model: Model, path: Path, to: Target, *, size: tuple[int, int], dynamic: bool = True
) -> dict[str, float]:
    """Write `path`, read it back, run it, and give how far its results are from the model's, by batch and size.

    `size` is the (H, W) it is traced at; with `dynamic` it takes any batch and size. UserError where it can't be
    exported so, or where what was written computes something else; then nothing is left at `path`.
    """
    deployed = Deployed(model)
    images = torch.rand(2 if dynamic else 1, len(model.backbone.mean), *size)
    shapes: Any = {0: Dim.DYNAMIC, 2: Dim.DYNAMIC, 3: Dim.DYNAMIC} if dynamic else None
    aside = path.with_name(f"{path.stem}.tmp{SUFFIXES[to]}")
    try:
        with torch.no_grad(), warnings.catch_warnings():
            warnings.simplefilter("ignore")
            _write(deployed, images, aside, to, {"images": shapes} if dynamic else None)
        distances = _compare(deployed, _reader(aside, to), _cases(images, size, dynamic=dynamic))
    except BaseException:
        aside.unlink(missing_ok=True)
        raise
    aside.rename(path)
    return distances


def _write(deployed: Deployed, images: Tensor, path: Path, to: Target, shapes: Any) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    try:
        program = torch.export.export(deployed, (images,), dynamic_shapes=shapes, strict=False)
    except Exception as error:  # torch.export raises what it comes upon, of a dozen types
        hint = "; --static exports it for one size" if shapes else ""
        raise UserError(f"this model can't be exported{hint}: {_first_line(error)}") from error
    if to == "torch_export":
        torch.export.save(program, path)
        return
    _import("onnxscript")
    names = list(deployed(images))
    try:
        torch.onnx.export(
            program, (), str(path), input_names=["images"], output_names=names, external_data=False, verbose=False
        )
    except torch.onnx.errors.OnnxExporterError as error:
        raise UserError(f"this model can't be told in ONNX: {_last_line(error)}") from error


def _reader(path: Path, to: Target) -> Callable[[Tensor], Sequence[Tensor]]:
    """What runs a written file."""
    if to == "torch_export":
        module = torch.export.load(path).module()
        return lambda images: list(module(images).values())
    session = _import("onnxruntime").InferenceSession(str(path), providers=["CPUExecutionProvider"])
    return lambda images: [torch.from_numpy(each) for each in session.run(None, {"images": images.numpy()})]


def _cases(images: Tensor, size: tuple[int, int], *, dynamic: bool) -> list[Tensor]:
    """Batches to compare on: the traced one, and for any size one picture, and sizes that don't divide."""
    if not dynamic:
        return [images]
    height, width = size
    others = [(1, height, width), (2, height + 37, width), (3, height, width + 23)]
    return [images] + [torch.rand(batch, images.shape[1], *sides) for batch, *sides in others]


def _compare(
    deployed: Deployed, run: Callable[[Tensor], Sequence[Tensor]], cases: Sequence[Tensor]
) -> dict[str, float]:
    distances = {}
    for images in cases:
        with torch.no_grad():
            expected = deployed(images)
        case = "x".join(map(str, images.shape))
        try:
            results = run(images)
        except Exception as error:  # the two runtimes raise a dozen types
            hint = "trace it at a larger --size, or with --static"
            raise UserError(f"the exported model doesn't take pictures {case}; {hint}: {_last_line(error)}") from error
        for (name, wanted), given in zip(expected.items(), results, strict=True):
            if given.shape != wanted.shape:
                raise UserError(f"the exported model gives {name} {tuple(given.shape)}, not {tuple(wanted.shape)}")
            scale = float(wanted.detach().abs().max().clamp_min(1))
            distances[f"{case} {name}"] = (
                float((given.detach().double() - wanted.detach().double()).abs().max()) / scale
            )
    worst = max(distances, key=distances.__getitem__)
    if not distances[worst] <= TOLERANCE:
        raise UserError(f"the exported model differs by {distances[worst]:.1e} at {worst}; allowed: {TOLERANCE:.0e}")
    return distances


def _import(name: str) -> Any:
    """An optional library."""
    import importlib

    try:
        return importlib.import_module(name)
    except ModuleNotFoundError as error:
        raise UserError(f"exporting to ONNX needs {name}: pip install 'vitdense[export]'") from error


def _first_line(error: Exception) -> str:
    return (str(error).strip().splitlines() or [type(error).__name__])[0]


def _last_line(error: Exception) -> str:
    return (str(error).strip().splitlines() or [type(error).__name__])[-1]
