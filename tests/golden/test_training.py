"""Training against numbers from the original authors' code (tests/data/golden, or the folder in FASTDIFF_GOLDEN).

A family's metadata are interpreted by the function of its name in a module `training_SUBJECT.py` beside this one. What
the function does not read of a case's arrays it must return, and all is compared at the tolerance of the data.
"""

import importlib
from pathlib import Path

import pytest
import torch
from training_case import CASES, TrainingCase

MODULES = [importlib.import_module(path.stem) for path in sorted(Path(__file__).parent.glob("training_*.py"))]


def interpreter(name):
    """The function of the case's family."""
    function = name.split("/")[0].replace("-", "_")
    return next(getattr(module, function) for module in MODULES if hasattr(module, function))


@pytest.mark.parametrize("name", CASES)
def test_case(name):
    case = TrainingCase(name)
    results = interpreter(name)(case)
    asked = set(case.meta["arrays"]) - case.inputs
    assert asked, "every array was read, nothing is left to compare"
    assert asked <= set(results), f"not computed: {sorted(asked - set(results))}"
    for array in sorted(asked):
        expected = case.expected(array).double()
        found = results[array]
        found = torch.as_tensor(found, dtype=None if isinstance(found, torch.Tensor) else torch.float64).detach()
        assert found.shape == expected.shape, array
        error = (found - expected).abs()
        limit = case.meta["tolerance"] * (expected.abs() + 1e-4 * expected.square().mean().sqrt())
        assert bool((error <= limit).all()), f"{array}: {float((error / limit).max()):.3g} times the tolerance"
