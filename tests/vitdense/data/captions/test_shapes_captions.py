"""Embedded captions: full sentences to score by, phrasings to learn from that say nothing false."""

import numpy as np
import pytest
import torch

from vitdense.data.phrases import Words, describe, rephrase
from vitdense.data.scenes import CLASSES, render
from vitdense.data.shapes import STREAMS
from vitdense.data.textures import COLOURS

from .conftest import build

NEAR = Words("large", "striped", "orange", "circle", 0.2, 0.5, 0.2)
FAR = Words("", "plain", "red", "star", 0.8, 0.4, 0.2)


def test_a_sentence_tells_where_the_second_thing_is() -> None:
    assert describe([NEAR, FAR]) == "a large striped orange circle to the left of a plain red star"
    assert describe([FAR, NEAR]) == "a plain red star to the right of a large striped orange circle"
    assert describe([NEAR]) == "a large striped orange circle"
    assert describe([]) == "hills of paper"


def test_phrasings_leave_out_and_add_nothing() -> None:
    generator = np.random.default_rng(0)
    told = {rephrase([NEAR, FAR], generator) for _ in range(3000)}
    assert {describe([NEAR, FAR]), "an orange circle", "an orange shape", "a circle"} <= told
    known = set(describe([NEAR, FAR]).split()) | {"an", "a", "shape"}
    assert set(" ".join(told).split()) == known


def test_validation_says_all_of_the_nearest_two() -> None:
    samples = build("shapes_captions", "val", val_size=20)
    assert len(samples) == 20
    for index in range(20):
        scene = render(0, index, 16, stream=STREAMS["val"])
        assert samples[0, index]["captions"] == [scene.caption]
        assert len(scene.words) == len(scene.labels)
        assert [CLASSES.index(word.kind) for word in scene.words] == scene.labels.tolist()


def test_training_pictures_come_again_for_the_same_epoch_and_index_alone() -> None:
    samples = build("shapes_captions", train_size=50, alone=0.5)
    first, again, other = samples[1, 7], samples[1, 7], samples[2, 7]
    assert torch.equal(first["image"], again["image"])
    assert first["captions"] == again["captions"]
    assert not torch.equal(first["image"], other["image"])


def test_so_many_pictures_show_one_shape() -> None:
    lone = build("shapes_captions", train_size=40, alone=1.0, rephrase=False)
    text = [lone[0, index]["captions"][0] for index in range(40)]
    assert not any(word in sentence for sentence in text for word in ("above", "below", "front", " of "))
    assert all(any(colour in sentence for colour in COLOURS) for sentence in text)


@pytest.mark.parametrize("name", ["shapes_captions", "shapes_kinds"])
def test_a_plain_backdrop_changes_no_shape(name: str) -> None:
    hills, plain = (build(name, "val", size=48, backdrop=kind) for kind in ("hills", "plain"))
    for index in range(6):
        one, other = hills[0, index], plain[0, index]
        assert {key: one.get(key) for key in ("captions", "label")} == {
            key: other.get(key) for key in ("captions", "label")
        }
        colours = other["image"].float()
        # Grey has no hue: most of the picture is backdrop, and the camera tints it a little.
        assert ((colours.amax(0) - colours.amin(0)) < 40).float().mean() > 0.4
        assert not torch.equal(one["image"], other["image"])
