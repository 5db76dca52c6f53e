"""Segments in COCO's panoptic form: what the colours say is what the list says, and what was found."""

import numpy as np
import torch

from vitdense.coco_panoptic_json import panoptic_categories, to_panoptic
from vitdense.contracts import Segments

PALETTE = ((0, 0, 0), (255, 255, 255), (10, 200, 90))


def ids_of(colours: np.ndarray[tuple[int, ...], np.dtype[np.uint8]]) -> np.ndarray[tuple[int, ...], np.dtype[np.int64]]:
    """panopticapi's rule (its rgb2id): red + 256 green + 256 * 256 blue."""
    red, green, blue = (colours[..., channel].astype(np.int64) for channel in range(3))
    return red + 256 * green + 256 * 256 * blue


def test_a_map_worked_by_hand() -> None:
    ids = torch.tensor([[0, 1, 1, 3], [2, 1, 3, 3], [2, 2, 0, 3]], dtype=torch.int32)
    found = Segments(ids, torch.tensor([0, 2, 2, 1]), torch.ones(4)).named([7, 90, 0])
    colours, segments = to_panoptic(found, PALETTE)
    assert colours.dtype == np.uint8
    painted = ids_of(colours)
    assert (painted[ids.numpy() == 0] == 0).all()
    # The fourth has no pixel. Black is no id: the first is next to it.
    assert [(each["category_id"], each["area"], each["bbox"]) for each in segments] == [
        (7, 3, [1, 0, 2, 2]),
        (0, 3, [0, 1, 2, 2]),
        (0, 4, [2, 0, 2, 3]),
    ]
    assert [set(painted[ids.numpy() == number].tolist()) for number in (1, 2, 3)] == [{each["id"]} for each in segments]
    assert segments[0]["id"] == 1
    assert segments[1]["id"] == 10 + 256 * 200 + 65536 * 90
    assert {each["iscrowd"] for each in segments} == {0}


def test_many_things_of_all_classes_have_ids_of_their_own() -> None:
    count = 600
    ids = torch.arange(count + 1, dtype=torch.int32).view(1, -1)
    labels = torch.arange(count) % 3
    colours, segments = to_panoptic(Segments(ids, labels, torch.ones(count)), PALETTE)
    numbers = [each["id"] for each in segments]
    assert len(set(numbers)) == count
    assert 0 < min(numbers) <= max(numbers) < 2**24
    assert ids_of(colours)[0].tolist() == [0, *numbers]
    assert [each["category_id"] for each in segments] == labels.tolist()


def test_a_picture_of_nothing() -> None:
    found = Segments(torch.zeros(4, 5, dtype=torch.int32), torch.zeros(0, dtype=torch.int64), torch.zeros(0))
    colours, segments = to_panoptic(found, PALETTE)
    assert segments == []
    assert colours.shape == (4, 5, 3)
    assert not colours.any()


def test_categories_have_the_data_sets_numbers_or_indices() -> None:
    given = panoptic_categories(["sky", "cat", "dog"], PALETTE, {0}, [7, 90, 0])
    assert given[1] == {"id": 90, "name": "cat", "isthing": 1, "color": [255, 255, 255]}
    assert [(each["id"], each["isthing"]) for each in given] == [(7, 0), (90, 1), (0, 1)]
    assert [each["id"] for each in panoptic_categories(["sky", "cat", "dog"], PALETTE, {0})] == [0, 1, 2]
