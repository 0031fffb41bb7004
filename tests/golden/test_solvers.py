"""Solvers against numbers from the original authors' code (tests/data/golden, or the folder in FASTDIFF_GOLDEN).

Cases are read from their metadata, never listed by name: a folder with other cases of the same form works as it is. A
family's metadata are interpreted by `case(name, meta)` of the module beside this one that is named after it.
"""

import importlib
from itertools import pairwise

import numpy as np
import pytest
import torch
from case import ARRAYS, CASES, Case, Mixture
from folder import FOLDER

import fastdiff


def interpret(name: str) -> Case:
    family = name.split("/", maxsplit=1)[0]
    return importlib.import_module(f"family_{family.replace('-', '_')}").case(name, CASES[name])


def without_retries(times, calls_a_step):
    """The originals call the model again, with the same x, at the start of a step that was rejected."""
    steps = [times[i : i + calls_a_step] for i in range(0, len(times), calls_a_step)]
    retried = [False, *(step[0] == before[0] for before, step in pairwise(steps))]
    return np.concatenate([step[int(again) :] for again, step in zip(retried, steps)])


@pytest.mark.parametrize("name", CASES)
def test_case(name):
    case = interpret(name)
    expected = torch.from_numpy(ARRAYS[f"{name}/x_out"])
    x = case.scale * torch.from_numpy(ARRAYS[f"{name}/x_init"]).reshape(expected.shape)
    noise = torch.from_numpy(ARRAYS[f"{name}/noise"]) if f"{name}/noise" in ARRAYS else None
    calls: list[float] = []
    classifier_calls: list[float] = []
    mixture = Mixture()
    guidance = {} if case.classifier is None else {"guidance": mixture.classifier(case, classifier_calls)}
    result = fastdiff.sample(
        mixture.network(case, calls),
        x,
        schedule=case.schedule,
        prediction=case.prediction,
        solver=case.solver,
        grid=np.asarray(case.times),
        noise=None if noise is None else noise.reshape(len(noise), *expected.shape),
        seed=0,
        **guidance,
        **case.arguments,
    )
    error = (result - expected).abs().max() / expected.square().mean().sqrt()
    assert error <= case.tolerance
    expected_calls = ARRAYS[f"{name}/model_times"]
    if case.solver.adaptive:
        expected_calls = without_retries(expected_calls, case.solver.options.get("order", case.solver.evaluations))
    assert np.allclose(calls, expected_calls, rtol=1e-6)
    if classifier_calls:
        assert np.allclose(classifier_calls, ARRAYS[f"{name}/classifier_times"])


def test_the_families_are_those_of_the_data():
    """Every family has its interpreter, and every case in the folder is run: nothing is skipped."""
    assert all(isinstance(interpret(name), Case) for name in CASES), FOLDER
