"""Options that do not exist are refused by name, before the model is called."""

import pytest

from fastdiff.prediction import get_prediction
from fastdiff.program.tracing import trace
from fastdiff.schedules import VPLinear
from fastdiff.solvers import get_solver


@pytest.mark.parametrize(
    ("name", "option", "value"),
    [
        ("lms", "order", 0),
        ("lms", "order", 9),
        ("lms", "order", 2.0),
        ("ipndm", "order", 5),
        ("unipc-2", "variant", "bh3"),
        ("unipc-2", "space", "v"),
        ("unipc-2", "lower_order_final", 1),
        ("deis-3", "order", 2),
    ],
)
def test_a_wrong_option_is_named(name, option, value):
    with pytest.raises(ValueError, match=option):
        trace(get_solver(name, **{option: value}), VPLinear(), [1.0, 0.5, 0.1], get_prediction("eps"))
