"""Objects followed through files: masks, overlaid films and scores, and one clear message for each thing wrong."""

import csv
import json
from collections.abc import Callable
from fractions import Fraction
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from vitdense import cli
from vitdense.data.clips.moving import render_clip
from vitdense.data.images import read_mask
from vitdense.pictures import save_palette_png
from vitdense.videos import Film, read_frames

Tool = Callable[..., int]
PALETTE = [(0, 0, 0), (200, 0, 0), (0, 200, 0), (0, 0, 200), (200, 200, 0), (200, 0, 200)]
FROZEN = ("--backbone", "swin_nano", "--set", "short_side=null", "--set", "level=0")


def write_davis(root: Path, *, names: tuple[str, ...] = ("bear", "camel"), frames: int = 5) -> Path:
    """Clips of shapes in DAVIS's layout, whose objects are numbered from 1 on."""
    for seed, name in enumerate(names):
        clip = render_clip(seed + 20, 0, (64, 80), frames, plain=True)
        kinds = np.unique(clip.semantic[0])
        for number in range(frames):
            mask = np.searchsorted(kinds, np.where(np.isin(clip.semantic[number], kinds), clip.semantic[number], 0))
            for room, suffix in (("JPEGImages", "jpg"), ("Annotations", "png")):
                (root / room / "480p" / name).mkdir(parents=True, exist_ok=True)
                file = root / room / "480p" / name / f"{number:05d}.{suffix}"
                if suffix == "jpg":
                    Image.fromarray(clip.frames[number]).save(file, quality=95)
                else:
                    save_palette_png(mask, PALETTE, file)
    (root / "val.txt").write_text("\n".join(names) + "\n")
    return root


@pytest.fixture
def davis(tmp_path: Path) -> Path:
    return write_davis(tmp_path / "davis")


def output(capsys: pytest.CaptureFixture[str]) -> Any:
    return json.loads(capsys.readouterr().out)


def test_davis_is_followed_written_and_scored(
    run_tool: Tool, capsys: pytest.CaptureFixture[str], davis: Path, tmp_path: Path
) -> None:
    pytest.importorskip("av")
    out = tmp_path / "out"
    arguments = (davis, "--sequences", davis / "val.txt", *FROZEN, "--out", out, "--json")
    assert run_tool("propagate", *arguments) == cli.DONE
    printed = output(capsys)
    assert (printed["masks"], printed["sequences"], printed["frames"]) == (10, 2, 6)
    for name in ("bear", "camel"):
        masks = sorted((out / "masks" / name).iterdir())
        assert [path.name for path in masks] == [f"{number:05d}.png" for number in range(5)]
        with Image.open(masks[3]) as image:
            assert (image.mode, image.size, image.getpalette()[:18]) == (  # type: ignore[index]
                "P",
                (80, 64),
                [part for colour in PALETTE for part in colour],
            )
        first = davis / "Annotations" / "480p" / name / "00000.png"
        np.testing.assert_array_equal(read_mask(masks[0]), read_mask(first))
        assert [frame.shape for frame in read_frames(out / "overlays" / f"{name}.mp4")] == [(64, 80, 3)] * 5
    with (out / "objects.csv").open() as file:
        rows = list(csv.DictReader(file))
    assert len(rows) == 3 * printed["objects"]
    assert list(rows[0]) == ["sequence", "object", "frame", "J", "F"]
    assert {row["frame"] for row in rows} == {"00001", "00002", "00003"}
    # All objects have three frames here, so that the mean over objects is that over rows.
    assert printed["J-Mean"] == pytest.approx(np.mean([float(row["J"]) for row in rows]), abs=1e-12)
    assert printed["F-Mean"] == pytest.approx(np.mean([float(row["F"]) for row in rows]), abs=1e-12)
    truth = davis / "Annotations" / "480p"
    assert run_tool("score", "objects", truth, out / "masks", "--per-object", "--json") == cli.DONE
    again = output(capsys)
    assert {key: printed[key] for key in again} == again


def test_a_video_and_a_folder_of_frames_are_followed(
    run_tool: Tool, capsys: pytest.CaptureFixture[str], davis: Path, tmp_path: Path
) -> None:
    pytest.importorskip("av")
    frames, masks = (davis / room / "480p" / "bear" for room in ("JPEGImages", "Annotations"))
    with Film(tmp_path / "walk.mp4", Fraction(5)) as film:
        for file in sorted(frames.iterdir()):
            film.add(np.asarray(Image.open(file)))
    mask = ("--mask", masks / "00000.png", *FROZEN)
    assert run_tool("propagate", tmp_path / "walk.mp4", *mask, "--out", tmp_path / "a") == cli.DONE
    assert "5 masks" in (told := capsys.readouterr().out)
    assert "not scored" in told
    assert len(list((tmp_path / "a" / "masks" / "walk").glob("00000?.png"))) == 5
    assert len(list(read_frames(tmp_path / "a" / "overlays" / "walk.mp4"))) == 5
    scored = (*mask, "--truth", masks, "--out", tmp_path / "b", "--no-overlays")
    assert run_tool("propagate", frames, *scored) == cli.DONE
    assert "J&F-Mean 0." in capsys.readouterr().out
    assert not (tmp_path / "b" / "overlays").exists()
    assert (tmp_path / "b" / "objects.csv").exists()


def test_numbered_frames_are_in_the_order_of_their_numbers(run_tool: Tool, davis: Path, tmp_path: Path) -> None:
    frames = davis / "JPEGImages" / "480p" / "bear"
    (tmp_path / "clip").mkdir()
    for number, file in zip((1, 2, 9, 10, 11), sorted(frames.iterdir()), strict=True):
        file.rename(tmp_path / "clip" / f"{number}.jpg")
    mask = davis / "Annotations" / "480p" / "bear" / "00000.png"
    arguments = (tmp_path / "clip", "--mask", mask, *FROZEN, "--out", tmp_path / "out", "--no-overlays")
    assert run_tool("propagate", *arguments) == cli.DONE
    np.testing.assert_array_equal(read_mask(tmp_path / "out" / "masks" / "clip" / "1.png"), read_mask(mask))


def test_grey_first_masks_get_colours(run_tool: Tool, davis: Path, tmp_path: Path) -> None:
    grey = tmp_path / "grey.png"
    Image.fromarray(read_mask(davis / "Annotations" / "480p" / "bear" / "00000.png").astype(np.uint8)).save(grey)
    arguments = (davis / "JPEGImages" / "480p" / "bear", "--mask", grey, *FROZEN, "--out", tmp_path, "--no-overlays")
    assert run_tool("propagate", *arguments) == cli.DONE
    with Image.open(tmp_path / "masks" / "bear" / "00002.png") as image:
        palette = image.getpalette()
    assert palette is not None
    assert palette[:3] == [0, 0, 0]
    assert palette[3:6] != [0, 0, 0]


def test_mistakes_of_propagation_are_named(
    run_tool: Tool, capsys: pytest.CaptureFixture[str], davis: Path, tmp_path: Path
) -> None:
    frames, masks = (davis / room / "480p" / "bear" for room in ("JPEGImages", "Annotations"))

    def told(*arguments: str | Path) -> str:
        assert run_tool("propagate", *arguments, "--out", tmp_path / "out", "--no-overlays") == cli.MISTAKE
        return capsys.readouterr().err

    first = ("--mask", masks / "00000.png")
    assert "given 0" in told(frames, *first, *FROZEN, "--set", "topk=0")
    assert "unknown key, did you mean 'topk'" in told(frames, *first, *FROZEN, "--set", "topks=3")
    assert "its weights are --weights" in told(frames, *first, *FROZEN, "--set", "backbone.weights=x")
    assert "unknown key" in told(frames, *first, *FROZEN, "--set", "backbone.colour=3")
    assert "expected a folder of frames, or a video" in told(masks / "00000.png", *first, *FROZEN)
    assert "no frames in it" in told(tmp_path / "davis", *first, *FROZEN)
    assert "--weights belongs to --backbone" in told(frames, *first, "--checkpoint", "x", "--weights", "y")
    assert "--truth belongs to --mask" in told(davis, "--sequences", davis / "val.txt", *FROZEN, "--truth", masks)
    assert "vit_nothing" in told(frames, *first, "--backbone", "vit_nothing")
    Image.fromarray(np.full((64, 80), 255, np.uint8)).save(tmp_path / "white.png")
    assert "only 0 and 255, which are no object" in told(frames, "--mask", tmp_path / "white.png", *FROZEN)
    (tmp_path / "names.txt").write_text("bear\nwolf\n")
    assert "wolf: no such sequence" in told(davis, "--sequences", tmp_path / "names.txt", *FROZEN)
    (masks / "00000.png").unlink()
    assert "00000.png: no mask of the first frame" in told(davis, "--sequences", davis / "val.txt", *FROZEN)
    (tmp_path / "names.txt").write_text("\n")
    assert "no names of sequences" in told(davis, "--sequences", tmp_path / "names.txt", *FROZEN)


def test_mistakes_of_scoring_are_named(
    run_tool: Tool, capsys: pytest.CaptureFixture[str], davis: Path, tmp_path: Path
) -> None:
    truth, found = davis / "Annotations" / "480p", tmp_path / "found"

    def told(*arguments: str | Path) -> str:
        assert run_tool("score", "objects", *(arguments or (truth, found))) == cli.MISTAKE
        return capsys.readouterr().err

    assert "found is not a folder" in told()
    (found / "bear").mkdir(parents=True)
    assert "holds no predictions" in told()
    for number in range(3):
        save_palette_png(read_mask(truth / "bear" / f"{number:05d}.png"), PALETTE, found / "bear" / f"{number:05d}.png")
    assert "bear lacks 1 of 3 masks: 00003" in told()
    save_palette_png(np.full((64, 80), 5), PALETTE, found / "bear" / "00003.png")
    assert "holds the objects 5; the first true mask has 1" in told()
    save_palette_png(np.zeros((60, 80), int), PALETTE, found / "bear" / "00003.png")
    assert "is (60, 80)" in told()
    save_palette_png(np.zeros((64, 80), int), PALETTE, found / "bear" / "00003.png")
    assert run_tool("score", "objects", truth, found, "--csv", tmp_path / "rows.csv", "--per-object") == cli.DONE
    captured = capsys.readouterr()
    assert "only 1 of 2 sequences have predictions" in captured.err
    assert "J&F-Mean 0." in captured.out
    assert (tmp_path / "rows.csv").read_text().startswith("sequence,object,frame,J,F\nbear,1,00001,1.0,1.0\n")
    assert "found lacks 1 of 2 sequences: camel" in told(truth, found, "--sequences", davis / "val.txt")
    (found / "wolf").mkdir()
    save_palette_png(np.zeros((64, 80), int), PALETTE, found / "wolf" / "00001.png")
    assert "480p lacks 1 of 2 sequences: wolf" in told()
    for number in (0, 1, 2):
        (truth / "bear" / f"{number:05d}.png").unlink()
    assert "bear has 2 masks" in told(truth / "bear", found / "bear")


def test_an_object_that_is_lost_scores_nothing_and_is_no_error(
    run_tool: Tool, capsys: pytest.CaptureFixture[str], davis: Path, tmp_path: Path
) -> None:
    truth = davis / "Annotations" / "480p" / "bear"
    masks = [read_mask(truth / f"{number:05d}.png") for number in range(5)]
    for number, mask in enumerate(masks):
        save_palette_png(np.zeros(mask.shape, int), PALETTE, tmp_path / f"{number:05d}.png")
    objects = np.unique(masks[0])[1:]
    gone = np.mean([(mask != value).all() for value in objects for mask in masks[1:-1]])  # in the truth as well
    assert 0 < gone < 1
    assert run_tool("score", "objects", truth, tmp_path, "--json") == cli.DONE
    printed = output(capsys)
    assert printed["J-Mean"] == pytest.approx(gone)
    assert printed["F-Mean"] == pytest.approx(gone)
