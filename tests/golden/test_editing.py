"""Editing and inverse problems against numbers from the original authors' code (tests/data/golden, or the folder in
FASTDIFF_GOLDEN).

Cases are read from their metadata, never listed by name. The module beside this one that is named after a family,
`editing_FAMILY`, runs its cases: `run(case)` returns what it computed by the names of the stored arrays.
"""

import importlib
import importlib.util

import pytest
import torch
from toys import EDITING, EditingCase

TOLERANCE = 1e-8  # of the text beside the data, for all families


def runner(family):
    name = f"editing_{family.replace('-', '_')}"
    if importlib.util.find_spec(name) is None:
        pytest.skip(f"there is nothing that runs the family {family} yet")
    return importlib.import_module(name).run


@pytest.mark.parametrize("name", EDITING)
def test_case(name):
    case = EditingCase(name)
    found = runner(case.family)(case)
    assert found
    for array, value in found.items():
        expected, value = case[array], torch.as_tensor(value)
        assert value.shape == expected.shape, array
        if expected.is_floating_point():
            error = (value - expected).abs().max() / expected.square().mean().sqrt()
            assert error <= TOLERANCE, array
        else:
            assert torch.equal(value.to(expected.dtype), expected), array
