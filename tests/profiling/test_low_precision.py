"""bf16 and int8 of `fastdiff.optimize` as a precision of the sweep."""

import pytest
import torch

from fastdiff.profiling import get_subject
from fastdiff.profiling.drawing import Drawer
from fastdiff.profiling.settings import Setting
from fastdiff.profiling.usage import python_line


@pytest.fixture(scope="module")
def subject():
    return get_subject("emoji-dit-64")


def test_samples_are_near_those_of_float32(subject):
    drawer = Drawer(subject, 0)
    options = dict(solver="ddim", steps=2, batch=2)
    exact = drawer.draw(Setting(**options), 0, 2).samples
    errors = {}
    for precision in ("bf16", "int8"):
        low = drawer.draw(Setting(**options, precision=precision, backend="optimize"), 0, 2).samples
        errors[precision] = ((low - exact).square().mean().sqrt() / exact.square().mean().sqrt()).item()
    assert 1e-5 < errors["bf16"] < 0.02
    assert errors["bf16"] < errors["int8"] < 0.1
    assert next(subject.model.parameters()).dtype == torch.float32


def test_it_is_part_of_optimize(subject):
    with pytest.raises(ValueError, match=r"precision bf16 is part of optimize\(\): profile it with the backend"):
        Drawer(subject, 0).draw(Setting("ddim", 2, precision="bf16"), 0, 1)
    line = python_line(subject, Setting("ddim", 2, precision="bf16", backend="optimize"))
    assert "fastdiff.optimize((m := fastdiff.load('emoji-dit-64')), precision='bf16')" in line
