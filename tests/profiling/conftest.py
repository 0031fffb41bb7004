"""Data for the toy model."""

import pytest
import torch
import toy


@pytest.fixture
def data():
    """Pictures of the toy's distribution."""
    generator = torch.Generator().manual_seed(1)
    signs = torch.randint(0, 2, (60, *toy.SHAPE), generator=generator) * 2 - 1
    return 0.6 * signs + 0.2 * torch.randn(signs.shape, generator=generator)
