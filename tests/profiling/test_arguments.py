"""What `fastdiff.profile` makes of its arguments before the sweep: the plan, and what is refused."""

import pytest
import toy

import fastdiff


def test_the_time_decides_how_many_samples(tmp_path):
    plans = []
    options = dict(solvers=["ddim"], steps=[4], reference_steps=8, on_plan=lambda plan, count: plans.append(plan))
    fastdiff.profile(toy.subject, minutes=1e-6, out=tmp_path / "a", **options)
    fastdiff.profile(toy.subject, minutes=0.02, out=tmp_path / "b", **options)
    few, many = plans
    assert few.samples == 12
    assert many.samples > few.samples
    assert many.seconds <= 1.2


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
