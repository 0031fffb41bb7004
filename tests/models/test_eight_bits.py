"""Weights as the bundled models ship: eight bits a number, with a scale for each output channel."""

import pytest
import torch
from torch import nn

from fastdiff.models.bundled.eight_bits import LEAST, packed, rounded, unpacked


def layers():
    torch.manual_seed(0)
    model = nn.Sequential(nn.Conv2d(40, 30, 3), nn.Linear(80, 70), nn.GroupNorm(2, 4), nn.Conv2d(3, 4, 3))
    with torch.no_grad():
        model[1].weight[3] *= 1000  # an outlier beside quiet rows
        model[1].weight[5] = 0
    return model.to(memory_format=torch.channels_last)


def test_each_weight_is_within_half_a_step_of_its_row():
    state = layers().state_dict()
    for name, value in unpacked(packed(state)).items():
        wanted = state[name].float()
        if value.ndim < 2 or value.numel() < LEAST:
            assert torch.equal(value.float(), wanted.half().float())
            continue
        step = wanted.flatten(1).abs().amax(1) / 127
        error = (value - wanted).flatten(1).abs().amax(1)
        # float16 rounds the scale by up to 2^-11, which 127 steps feel as 0.062 of one
        assert (error <= step * (0.5 + 127 * 2**-11)).all()


def test_a_row_of_zeros_stays_one():
    assert (unpacked(packed(layers().state_dict()))["1.weight"][5] == 0).all()


def test_packing_again_changes_no_bit():
    once = packed(layers().state_dict())
    again = packed(unpacked(once))
    assert once.keys() == again.keys()
    assert all(torch.equal(once[name], again[name]) for name in once)


def test_half_the_bytes_of_float16():
    state = {"weight": torch.randn(256, 1024)}
    size = sum(value.nbytes for value in packed(state).values())
    assert size == pytest.approx(state["weight"].numel(), rel=0.01)


def test_rounded_is_what_a_file_gives():
    model = layers()
    wanted = unpacked(packed(model.state_dict()))
    assert rounded(model) is model
    assert all(torch.equal(value, wanted[name].float()) for name, value in model.state_dict().items())
