"""What the gallery says of its pictures holds, here with fewer steps than it takes."""

from pathlib import Path
from runpy import run_path

import pytest
import torch
from PIL import Image

FOLDER = Path(__file__).parents[1] / "docs" / "gallery"


@pytest.fixture(scope="module")
def make():
    return run_path(str(FOLDER / "make.py"))


def test_known_pixels_are_kept_and_mouths_are_not(make):
    rows = make["faces"](steps=6)
    changed, known = make["changed"](rows)
    assert (changed, known) == (0, 2 * 6 * 3 * (32 * 32 - 11 * 20))
    hole = (make["mask"] == 0).expand_as(rows["picture"])
    assert torch.equal(rows["known"][~hole], rows["picture"][~hole])
    assert not rows["known"][hole].any()
    assert (rows["filled"] - rows["filled again"])[hole].abs().mean() > 0.05
    for name in ("filled", "filled again"):
        assert (rows[name] - rows["picture"])[hole].abs().mean() > 0.05


def test_an_edit_keeps_the_shape_and_changes_the_colour(make):
    hearts = make["edits"](("red heart", "blue heart"), steps=8)
    assert make["overlap"](hearts, "edited") > 0.9
    inside = (hearts["first prompt"].amin(1) < 0.7) & (hearts["edited"].amin(1) < 0.7)
    red, _, blue = (hearts["edited"] - hearts["first prompt"]).unbind(1)
    assert red[inside].mean() < -0.5
    assert blue[inside].mean() > 0.5
    cars = make["edits"](("automobile", "blue automobile"), "refine", steps=8)
    assert make["overlap"](cars, "edited") > make["overlap"](cars, "second prompt alone") + 0.03


def test_dps_is_nearer_to_the_measurement_than_bicubic_interpolation(make):
    rows = make["enlarged"](steps=60, count=2)
    shrink = make["AveragePooling"](4)
    assert torch.equal(rows["measured"][..., ::4, ::4], shrink(rows["picture"]))
    assert make["error"](rows, "DPS", shrink) < make["error"](rows, "bicubic", shrink)


def test_the_classifier_is_right_again_after_the_purification(make):
    rows = make["purified"](steps=4)
    assert (rows["attacked"] - rows["picture"]).abs().max() <= 16 / 255 + 1e-6
    before, attacked, after = (make["right"](rows, name) for name in ("picture", "attacked", "purified"))
    assert before >= 30
    assert attacked <= before - 15
    assert after >= attacked + 8


def test_the_page_shows_pictures_that_are_there_and_small():
    page = (FOLDER.parent / "gallery.md").read_text(encoding="utf-8")
    shown = sorted(path.name for path in FOLDER.glob("*.png"))
    assert shown == ["edits.png", "enlarged.png", "faces.png", "purified.png"]
    for name in shown:
        assert f"(gallery/{name})" in page
        assert (FOLDER / name).stat().st_size < 300_000
        with Image.open(FOLDER / name) as picture:
            assert min(picture.size) > 200
