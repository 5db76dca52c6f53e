"""`coco`: average precision and recall of boxes and masks (https://cocodataset.org/#detection-eval), as pycocotools."""

from collections.abc import Callable, Mapping
from typing import Any, Literal

from pydantic import Field, field_validator
from torch import Tensor

from vitdense.contracts import METRICS, Batch, Detections, Metric, MetricConfig, Predictions, Samples, Target
from vitdense.errors import UserError
from vitdense.metrics.coco.curves import Curves, evaluate
from vitdense.metrics.coco.records import Records, by_masks
from vitdense.metrics.coco.things import MAX_DETECTIONS

Kind = Literal["bbox", "segm"]
PREFIXES: dict[Kind, str] = {"bbox": "", "segm": "mask_"}


@METRICS.register("coco")
class CocoConfig(MetricConfig):
    """`iou_type`: boxes are compared, or masks, or first these and then those. `max_detections`: of a class and picture
    so many count, the surest; precision is told for the last, recall for each.
    """

    iou_type: Literal["bbox", "segm", "both"] = "bbox"
    max_detections: tuple[int, ...] = Field(default=MAX_DETECTIONS, min_length=1)

    @field_validator("max_detections")
    @classmethod
    def _check(cls, numbers: tuple[int, ...]) -> tuple[int, ...]:
        if numbers[0] < 1 or list(numbers) != sorted(set(numbers)):
            raise ValueError(f"max_detections must be 1 or more and ascend, given {list(numbers)}")
        return numbers

    def build(self, samples: Samples) -> "Coco":
        """A metric for this data set's classes; UserError where it has none."""
        if not samples.classes:
            raise UserError("metric 'coco' needs a data set with classes")
        kinds: tuple[Kind, ...] = ("bbox", "segm") if self.iou_type == "both" else (self.iou_type,)
        return Coco(samples.classes, kinds=kinds, max_detections=self.max_detections)


class Coco(Metric):
    """Keeps what is found and what is true, in float64 and run lengths, and evaluates all of it at the end.

    Equal scores are told apart by the pictures' ids, and a picture that is seen twice counts once, so that neither the
    order of batches nor the number of processes matters.
    """

    def __init__(
        self,
        classes: tuple[str, ...],
        *,
        kinds: tuple[Kind, ...] = ("bbox",),
        max_detections: tuple[int, ...] = MAX_DETECTIONS,
    ) -> None:
        self.classes, self.kinds, self.max_detections = classes, kinds, max_detections
        self.records = Records(masks="segm" in kinds)
        self._curves: dict[Kind, Curves] | None = None

    def update(self, predictions: Predictions, batch: Batch) -> None:
        """predictions: Detections for each of batch["targets"], both in pixels of the picture."""
        if "targets" not in batch:
            raise UserError("metric 'coco' needs a data set of things, with boxes or masks")
        for index, (found, target) in enumerate(zip(predictions, batch["targets"], strict=True)):
            name = batch["ids"][index] if "ids" in batch else None
            self._check(name or f"picture {index}", found, target)
            self.records.add(name, found, target)
        self._curves = None

    def reduce(self, sum_over_processes: Callable[[Tensor], Tensor]) -> None:
        """Nothing adds up: see `gather`."""

    def gather(self, gather_from_processes: Callable[[Tensor], Tensor]) -> None:
        """Replace the records by those of all processes."""
        self.records.gather(gather_from_processes)
        self._curves = None

    def compute(self) -> dict[str, float]:
        """AP, AP50, AP75, APs, APm, APl, AR1, AR10, AR100, ARs, ARm, ARl in 0..1, of masks as mask_AP and so on; -1
        where nothing of the kind is there to be found."""
        curves = self.curves()
        return {PREFIXES[kind] + name: value for kind in self.kinds for name, value in curves[kind].stats().items()}

    def details(self) -> Mapping[str, Any]:
        """Columns by class, NaN where absent: class_AP, class_AP50, class_AP75 and class_AR, of masks class_mask_AP and
        so on; other names than those of `compute`, since the two are printed as one object."""
        columns = {
            f"class_{PREFIXES[kind]}{name}": column
            for kind, curves in self.curves().items()
            for name, column in curves.by_class().items()
        }
        return {"classes": list(self.classes), **columns}

    def curves(self) -> dict[Kind, Curves]:
        """Precision and recall of all that was counted, by what was compared."""
        if self._curves is None:
            truth, found, pictures = self.records.things()
            self._curves = {}
            for kind in self.kinds:
                compared = by_masks(found) if kind == "segm" else found.without_masks()
                self._curves[kind] = evaluate(
                    truth,
                    compared,
                    num_pictures=pictures,
                    num_classes=len(self.classes),
                    max_detections=self.max_detections,
                )
        return self._curves

    def _check(self, name: str, found: object, target: Target) -> None:
        """A message for what can't be compared."""
        if not isinstance(found, Detections):
            raise UserError("metric 'coco' needs a head that finds things; for masks of classes take metric: miou")
        for side, labels in (("prediction", found.labels), ("truth", target["labels"])):
            if labels.numel() and not 0 <= int(labels.min()) <= int(labels.max()) < len(self.classes):
                allowed = f"allowed are 0..{len(self.classes) - 1}"
                raise UserError(f"{name}: the {side} has labels {labels.min()}..{labels.max()}; {allowed}")
        if "segm" not in self.kinds:
            return
        if found.masks is None or "masks" not in target:
            which = "head that gives" if found.masks is None else "data set with"
            raise UserError(f"{name}: metric 'coco' with iou_type {'/'.join(self.kinds)} needs a {which} masks")
        if found.masks.shape[1:] != target["masks"].shape[1:]:
            sizes = tuple(found.masks.shape[1:]), tuple(target["masks"].shape[1:])
            raise UserError(f"{name}: the predicted masks are {sizes[0]} and the true ones {sizes[1]} (H, W)")
