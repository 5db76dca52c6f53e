"""All rows of the benchmark by name; a row of somebody else's is found as `package.module:NAME`."""

import difflib
import importlib
from collections.abc import Sequence

from vitdense.benchmarking.rows import OURS, Row
from vitdense.benchmarking.suite import (
    boxes_data,
    clip,
    clip_decoding,
    clips,
    coco,
    contrastive,
    deformable,
    detr,
    dpt,
    fusion,
    masks,
    pixels,
    rtdetr,
    swin,
    tiled_inference,
    upernet,
    vit,
    zero_shot,
)
from vitdense.errors import UserError

ROWS: dict[str, Row] = {
    row.name: row
    for rows in (
        swin,
        vit,
        clips,
        pixels,
        fusion,
        upernet,
        dpt,
        coco,
        detr,
        deformable,
        rtdetr,
        masks,
        boxes_data,
        zero_shot,
        clip,
        contrastive,
        clip_decoding,
        tiled_inference,
    )
    for row in rows.ROWS
}


def find_row(name: str) -> Row:
    """The row of a name; an unknown one raises with the nearest names."""
    if ":" in name:
        return _foreign(name)
    if name in ROWS:
        return ROWS[name]
    raise UserError(f"no benchmark row named {name!r}; {_hint(name, list(ROWS))}")


def check_peers(rows: Sequence[Row], peers: Sequence[str]) -> None:
    """Refuses a peer that no row knows."""
    known = sorted({peer.name for row in rows for peer in row.peers})
    for name in peers:
        if name not in known:
            raise UserError(f"no peer named {name!r} in {', '.join(row.name for row in rows)}; {_hint(name, known)}")


def _foreign(name: str) -> Row:
    place, _, attribute = name.partition(":")
    try:
        row = vars(importlib.import_module(place)).get(attribute)
    except ModuleNotFoundError as error:
        raise UserError(f"no benchmark row named {name!r}: {error}") from error
    if not isinstance(row, Row):
        raise UserError(f"no benchmark row named {name!r}: {attribute!r} is no Row of {place}")
    if OURS in {peer.name for peer in row.peers}:
        raise UserError(f"{name}: a peer can't be called {OURS!r}")
    return row


def _hint(name: str, known: list[str]) -> str:
    nearest = difflib.get_close_matches(name, known, n=3, cutoff=0.5)
    return f"did you mean {' or '.join(map(repr, nearest))}?" if nearest else f"known: {', '.join(known)}"
