"""The combinations of a sweep."""

import pytest

import fastdiff
from fastdiff.cli.profile import parse_axes
from fastdiff.profiling.settings import Axes, Setting, common, describe, varying


def test_combinations():
    axes = Axes(
        solvers=["ddim", "heun"], steps=[5, 10], guidance=[1.0, 2.0], intervals=[None, (-1, 2)],
        thresholds=[None, 1.0, fastdiff.Threshold(1, 0.99)],
    )  # fmt: skip
    found = axes.combinations()
    assert len(found) == 2 * 2 * 3 * 3  # an interval only with guidance
    assert len({setting.slug for setting in found}) == len(found)
    assert all(Setting.from_dict(setting.to_dict()) == setting for setting in found)
    assert varying(found) == ["guidance", "interval", "threshold", "percentile"]
    assert common(found) == {"precision": "float32", "batch": 16, "backend": "auto"}
    last = found[-1]
    assert describe(last, varying(found)) == (
        "heun, 10 steps, guidance 2, interval (-1, 2), threshold 1, percentile 0.99"
    )


def test_less_guidance_is_an_axis_with_guidance_alone():
    found = Axes(solvers=["ddim"], steps=[5], guidance=[1.0, 2.0], guidance_every=[1, 2]).combinations()
    assert [(setting.guidance, setting.guidance_every) for setting in found] == [(1, 1), (2, 1), (2, 2)]
    assert found[2].label == "ddim, 5 steps, guidance 2, guidance every 2"
    assert found[1].target == found[2].target


def test_times_of_a_setting_of_its_own():
    setting = Setting("ddim", 2, grid=[1.0, 0.5, 0.0])
    assert Setting.from_dict(setting.to_dict()) == setting
    assert describe(setting, ["grid"], steps=False) == "ddim, times of its own"
    assert setting.label == "ddim, 2 steps, times 3c69"  # its own are told apart by four digits


def test_names_of_work_that_is_done_stay():
    assert Setting("ddim", 5).slug == "ddim-5-c0c97ea825"


def test_an_adaptive_solver_chooses_its_own_steps():
    found = Axes(solvers=["rk45", "ddim"], steps=[5, 10]).combinations()
    assert [(setting.solver, setting.steps) for setting in found] == [("rk45", 5), ("ddim", 5), ("ddim", 10)]


def test_settings_that_approximate_the_same_share_a_target():
    a = Setting("ddim", 5, guidance=2.0, cache="deep:2", precision="bfloat16", grid="karras")
    assert a.target == Setting("heun", 9, guidance=2.0, batch=3).target
    assert a.target != Setting("ddim", 5, guidance=3.0).target


@pytest.mark.parametrize(
    ("axis", "message"),
    [
        ({"solvers": ["dimm"]}, "unknown solver 'dimm'; did you mean 'ddim'"),
        ({"steps": [0]}, "steps must be"),
        ({"batches": [0]}, "batch must be"),
        ({"precisions": ["fp8"]}, "unknown precision"),
        ({"grids": ["even"]}, "unknown grid"),
        ({"backends": ["gpu"]}, "unknown backend"),
        ({"caches": ["deep"]}, 'caching must be like "deep:3"'),
        ({"caches": ["deep:1"]}, "every must be"),
        ({"caches": ["shallow:2"]}, "unknown caching 'shallow'"),
        ({"thresholds": [-1.0]}, "threshold limit must be positive"),
        ({"guidance": [2.0], "intervals": [(2, 1)]}, "guidance interval"),
        ({"guidance": [2.0], "guidance_every": [0]}, "guidance_every must be a whole number >= 1, got 0"),
        ({"grids": [(1.0, 0.0)]}, "5 steps need as many times and one"),
        ({"steps": []}, "steps of the sweep must have a value"),
    ],
)
def test_bad_values(axis, message):
    with pytest.raises(ValueError, match=message):
        Axes(**{"solvers": ["ddim"], "steps": [5], **axis}).combinations()


def test_axes_from_the_command_line():
    axes = parse_axes({"solvers": "ddim, heun", "steps": "5,10,5", "caches": "none,deep:2", "thresholds": "none,1@0.9",
                       "intervals": "-1:2", "grids": None})  # fmt: skip
    assert axes == {"solvers": ["ddim", "heun"], "steps": [5, 10], "caches": [None, "deep:2"], "intervals": [(-1, 2)],
                    "thresholds": [None, fastdiff.Threshold(1, 0.9)]}  # fmt: skip
    with pytest.raises(ValueError, match="--steps '5,x'"):
        parse_axes({"steps": "5,x"})
    with pytest.raises(ValueError, match="--interval '3': an interval must be like -2:1"):
        parse_axes({"intervals": "3"})
