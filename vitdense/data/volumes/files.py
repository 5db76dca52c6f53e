"""Volumes in files: arrays of numpy, and NIfTI through nibabel, which is no dependency."""

from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from vitdense.errors import DataError, UserError

SUFFIXES = (".npy", ".nii", ".nii.gz")

Voxels = NDArray[Any]
Spacing = tuple[float, float, float]


class Stored(NamedTuple):
    """voxels (D, H, W), or (C, D, H, W) of several channels, in the file's own numbers and perhaps still on the disk;
    spacing: millimetres between slices, rows and columns, where the file says so."""

    voxels: Voxels
    spacing: Spacing | None = None


def has_suffix(path: Path) -> bool:
    """Whether a file's name is that of a volume."""
    return path.name.lower().endswith(SUFFIXES)


def stem(path: Path) -> str:
    """The name without its suffix, of which NIfTI has two."""
    name = path.name
    suffix = next(suffix for suffix in sorted(SUFFIXES, key=len, reverse=True) if name.lower().endswith(suffix))
    return name[: -len(suffix)]


def open_volume(path: Path) -> Stored:
    """A volume, whose voxels are read from the disk where they are used; DataError names what can't be used.

    NIfTI is turned to its closest canonical axes and gives slices from the feet up, rows from back to front and columns
    from left to right; channels come first.
    """
    if not path.is_file():
        raise DataError(f"{path}: no such file")
    stored = _open_array(path) if path.name.lower().endswith(".npy") else _open_nifti(path)
    if stored.voxels.ndim not in (3, 4) or 0 in stored.voxels.shape:
        raise DataError(f"{path}: expected (D, H, W) or (C, D, H, W), found {stored.voxels.shape}")
    if stored.voxels.dtype.kind not in "iufb":
        raise DataError(f"{path}: expected numbers, found {stored.voxels.dtype}")
    return stored


def as_labels(path: Path, values: Voxels, num_classes: int) -> NDArray[np.int16]:
    """Class indices of a part of a file; DataError names a value that is none."""
    found = np.asarray(values)
    whole = found.astype(np.int64, copy=False) if found.dtype.kind in "iub" else np.rint(found).astype(np.int64)
    if found.dtype.kind == "f" and not np.array_equal(whole, found):
        raise DataError(f"{path}: a label is a whole number, found {found[whole != found].flat[0]}")
    if whole.size and (whole.min() < 0 or whole.max() >= num_classes):
        wrong = int(whole.max() if whole.max() >= num_classes else whole.min())
        raise DataError(f"{path}: holds class {wrong}; allowed are 0..{num_classes - 1}")
    return whole.astype(np.int16)


def _open_array(path: Path) -> Stored:
    try:
        return Stored(np.load(path, mmap_mode="r", allow_pickle=False))
    except (OSError, ValueError, EOFError) as fault:
        reason = "the file is empty" if path.stat().st_size == 0 else f"no array that numpy can read ({fault})"
        raise DataError(f"{path}: {reason}") from None


def _open_nifti(path: Path) -> Stored:
    try:
        import nibabel
    except ImportError:
        raise UserError(f"{path}: volumes in NIfTI need nibabel; `pip install nibabel`, or save .npy") from None
    try:
        image: Any = nibabel.as_closest_canonical(nibabel.load(path))
        voxels = np.asarray(image.dataobj)
        across, down, deep = (float(size) for size in image.header.get_zooms()[:3])
    except (nibabel.filebasedimages.ImageFileError, OSError, ValueError, EOFError) as fault:
        raise DataError(f"{path}: damaged NIfTI file, or none ({fault})") from None
    return Stored(voxels.T, (deep, down, across))
