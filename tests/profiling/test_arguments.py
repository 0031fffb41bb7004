"""What `fastdiff.profile` makes of its arguments before the sweep: the plan, and what is refused."""

import pytest
import toy

import fastdiff
from fastdiff.profiling import plan as planning
from fastdiff.profiling.drawing import Drawer
from fastdiff.profiling.settings import Axes


def test_the_time_decides_how_many_samples(tmp_path):
    plans = []
    options = dict(solvers=["ddim"], steps=[4], reference_steps=8, on_plan=lambda plan, count: plans.append(plan))
    fastdiff.profile(toy.subject, minutes=1e-6, out=tmp_path / "a", **options)
    fastdiff.profile(toy.subject, minutes=0.02, out=tmp_path / "b", **options)
    few, many = plans
    assert few.samples == 12
    assert many.samples > few.samples
    assert many.seconds <= 1.2


def test_more_time_than_was_asked_for_is_said_with_what_to_leave_out(tmp_path, monkeypatch):
    monkeypatch.setattr(planning, "row_seconds", lambda drawer, setting: 0.01)
    drawer = Drawer(toy.subject(), 0)

    def plan(minutes, **options):
        axes = Axes(**{"solvers": ["ddim", "heun"], "steps": [5, 10, 20]} | options)
        return planning.make_plan(drawer, axes.combinations(), samples=None, minutes=minutes, reference_steps=80)

    assert plan(60).advice == ""
    assert plan(1).seconds <= 60
    long = plan(0.25)
    assert long.seconds > 15
    assert long.advice == "--steps 5,10"
    kept = plan(0.25, steps=[5, 10])
    assert (kept.advice, kept.seconds <= 15) == ("", True)
    assert plan(0.1).advice == "--steps 5 --reference-steps 60"
    assert planning.make_plan(
        drawer, Axes(solvers=["ddim", "heun"], steps=[5]).combinations(), samples=None, minutes=0.1, reference_steps=60
    ).advice == ""  # fmt: skip
    assert plan(1e-6).advice == "--steps 5 --reference-steps 40 --solvers ddim (and even that takes longer)"


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"features": "vgg"}, "unknown feature extractor 'vgg'"),
        ({"features": "toy:nothing"}, "toy has no 'nothing'"),
        ({"data": "nowhere"}, "data must be a folder of pictures"),
        ({"reference_steps": 30}, "reference_steps must be a multiple of 4"),
        ({"budget": "soon"}, "a time must be like"),
        ({"solvers": ["dimm"]}, "unknown solver"),
        ({"samples": 0}, "samples must be >= 1"),
    ],
)
def test_bad_arguments_are_said_before_anything_is_done(options, message, tmp_path):
    toy.CALLS.clear()
    with pytest.raises(ValueError, match=message):
        fastdiff.profile(toy.subject, **{"out": tmp_path / "x", **options})
    assert not (tmp_path / "x").exists()
    assert not toy.CALLS


def test_guidance_needs_something_to_leave_out(tmp_path):
    with pytest.raises(ValueError, match="guidance 2 needs a model with a condition"):
        fastdiff.profile(toy.unconditional, solvers=["ddim"], steps=[4], guidance=[2.0], out=tmp_path / "x")
