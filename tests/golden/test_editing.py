"""Editing and inverse problems against numbers from the original authors' code (tests/data/golden, or the folder in
FASTDIFF_GOLDEN).

Cases are read from their metadata, never listed by name. The module beside this one that is named after a family,
`editing_FAMILY`, runs its cases: `run(case)` returns what it computed by the names of the stored arrays.
"""

import importlib

import pytest
import torch
from toys import EDITING, EditingCase

TOLERANCE = 1e-8  # of the text beside the data, for all families
# Stored for information: the picture that was measured, a result with a published fault, the intervals of a solver's
# library, matrices that average blocks (our operator does), and a text that score distillation does not use.
INFORMATION = {"x_true", "x_published", "step_times", "R_rows", "R_cols", "context_source"}


def runner(family):
    name = f"editing_{family.replace('-', '_')}"
    return importlib.import_module(name).run


@pytest.mark.parametrize("name", EDITING)
def test_case(name):
    case = EditingCase(name)
    found = runner(case.family)(case)
    assert found
    assert case.arrays - case.read - INFORMATION <= found.keys(), "neither read nor computed"
    for array, value in found.items():
        expected, value = case.expected(array), torch.as_tensor(value)
        assert value.shape == expected.shape, array
        if expected.is_floating_point():
            error = (value - expected).abs().max() / expected.square().mean().sqrt()
            assert error <= TOLERANCE, array
        else:
            assert torch.equal(value.to(expected.dtype), expected), array
