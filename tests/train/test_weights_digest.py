"""The digest of a network's weights."""

import pytest
import torch
from torch import nn

from fastdiff.train.teacher import weights_digest


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_it_is_of_every_bit_in_every_dtype(dtype):
    network = nn.Sequential(nn.Linear(3, 2), nn.BatchNorm1d(2)).to(dtype)  # with a buffer of no dimensions
    before = weights_digest(network)
    assert weights_digest(network) == before
    with torch.no_grad():
        network[0].bias[1] += 1
    assert weights_digest(network) != before
