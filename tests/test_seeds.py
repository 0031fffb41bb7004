"""Seeds of other kinds than int are the same seeds."""

import numpy as np
import pytest
import torch

import fastdiff
from fastdiff import sample
from fastdiff.schedules import VPDiscrete

VP = VPDiscrete.linear()
COMMON = dict(schedule=VP, prediction="eps", steps=4, seed=0)
SHAPE = (2, 3, 8, 8)
X = torch.zeros(SHAPE)


def flat(x, t, c=None):
    return 0.3 * torch.tanh(x) + (0 if c is None else c[:, :1, None, None])


@pytest.mark.parametrize(
    "seeds",
    [
        np.array([3, 4]),
        np.array([3, 4], np.uint8),
        [np.int64(3), np.int64(4)],
        (3, np.uint64(4)),
        torch.tensor([3, 4]),
        [torch.tensor(3), torch.tensor(4)],
        [np.array(3), np.array([4])],
    ],
)
def test_seeds_of_numpy_and_tensors(seeds):
    expected = sample(flat, SHAPE, **{**COMMON, "seed": [3, 4]})
    assert torch.equal(sample(flat, SHAPE, **{**COMMON, "seed": seeds}), expected)
    assert torch.equal(fastdiff.diffuse(X, VP, 0.5, seed=seeds), fastdiff.diffuse(X, VP, 0.5, seed=[3, 4]))


@pytest.mark.parametrize("seed", [np.int64(3), np.array(3), torch.tensor(3), np.uint64(3)])
def test_a_seed_of_numpy_and_a_tensor(seed):
    expected = sample(flat, SHAPE, **{**COMMON, "seed": 3})
    assert torch.equal(sample(flat, SHAPE, **{**COMMON, "seed": seed}), expected)
    assert torch.equal(sample(flat, SHAPE, **{**COMMON, "seed": np.array([2**64 - 1, 0], np.uint64)}),
                       sample(flat, SHAPE, **{**COMMON, "seed": [2**64 - 1, 0]}))  # fmt: skip
