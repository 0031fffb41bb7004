"""What both files of tests of group_norm_silu on the CPU are about."""

import pytest
import torch

# (shape, groups): of U-Nets, of the two ways through memory (at least 8 groups, or few), odd ones and one of each part.
CASES = [
    ((2, 320, 16, 16), 32),
    ((1, 6, 7, 5), 3),
    ((3, 5, 11), 1),
    ((1, 64, 33, 35), 4),
    ((4, 12, 1, 1), 12),
    ((2, 30, 3, 5, 2), 10),
    ((2, 8), 2),
    ((0, 8, 4, 4), 2),
    ((1, 3, 50, 50), 3),
]
# Of SiLU, and of its slope: an exponential, a sum, a quotient and a product, in both.
ROUNDINGS = 8 * torch.finfo(torch.float32).eps
VECTORS = ("weight", "bias", "scale", "shift")
LAST = pytest.mark.parametrize("last", [False, True], ids=["contiguous", "channels-last"])
