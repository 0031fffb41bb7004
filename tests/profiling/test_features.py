"""The extractor that comes with the package."""

import numpy as np
import pytest
import torch

import fastdiff
from fastdiff.profiling import get_extractor


def test_the_bundled_extractor():
    extractor = get_extractor("emoji")
    data = extractor.data
    assert data.shape[1] == 64
    np.testing.assert_allclose(data.mean(0), 0, atol=0.01)
    np.testing.assert_allclose(data.std(0), 1, atol=0.01)
    x = torch.rand(3, 3, 32, 32) * 2 - 1
    assert extractor(x).shape == (3, 64)
    assert extractor(torch.nn.functional.interpolate(x, scale_factor=2)).shape == (3, 64)
    assert sum(extractor.class_shares) == pytest.approx(1, abs=1e-6)


def test_a_damaged_extractor_is_named(tmp_path):
    from fastdiff.profiling.features import emoji_extractor, weights_path

    path = tmp_path / "emoji-features.safetensors"
    path.write_bytes(weights_path().read_bytes()[:-100])
    with pytest.raises(fastdiff.WeightsError, match=r"emoji-features\.safetensors"):
        emoji_extractor(path)
