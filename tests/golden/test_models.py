"""Models against outputs of the original authors' code (tests/data/golden, or the folder in FASTDIFF_GOLDEN).

Cases are read from their metadata, never listed by name. The module beside this one that is named after the original's
repository says how its models are loaded and called: `load(meta, state)` and `outputs(model, inputs, meta)`.
"""

import importlib
import zlib

import numpy as np
import pytest
import torch
from conftest import relative_error
from folder import FOLDER, cases

MODELS = cases("models")
TOLERANCE = 2e-5  # of the README beside the data: the originals ran in float32


def family(source):
    """openai/guided-diffusion unet.py UNetModel -> models_guided_diffusion."""
    repository = source.split()[0].split("/")[1]
    return importlib.import_module(f"models_{repository.lower().replace('-', '_')}")


def seeded(key, shape, seed):
    """The recipe of the README beside the data, so that nothing large is stored."""
    z = np.random.RandomState((zlib.crc32(key.encode()) + seed) % 2**32).standard_normal(shape)
    if len(shape) > 1:
        z = z / np.sqrt(np.prod(shape[1:]))
    elif key.endswith("weight"):
        z = 1 + 0.2 * z
    else:
        z = 0.1 * z
    return torch.from_numpy(z.astype(np.float32))


def read(name):
    """The state dict, the inputs and the outputs of a case."""
    meta = MODELS[name]
    with np.load(FOLDER / "models" / f"{name}.npz") as arrays:
        stored = {key: torch.from_numpy(arrays[key]) for key in arrays.files}
    state = {
        key: stored[f"weights/{key}"] if about.get("stored") else seeded(key, about["shape"], meta["seed"])
        for key, about in meta["state_dict"].items()
    }
    inputs, outputs = ({key: stored[f"{group}/{key}"] for key in meta[f"{group}puts"]} for group in ("in", "out"))
    return state, inputs, outputs


@pytest.mark.parametrize("name", MODELS)
def test_case(name):
    """Loading also checks that every key of the original state dict is consumed."""
    meta = MODELS[name]
    state, inputs, expected = read(name)
    module = family(meta["source"])
    model = module.load(meta, state)
    found = module.outputs(model, inputs, meta)
    assert found.keys() == expected.keys()
    for output, value in expected.items():
        assert relative_error(found[output].detach(), value) <= TOLERANCE, output


@pytest.mark.parametrize("name", MODELS)
def test_the_number_of_parameters(name):
    """Of the weights made here; EDM's buffers are in its state dict and are not parameters."""
    keys = {key: about["shape"] for key, about in MODELS[name]["state_dict"].items()}
    buffers = ("resample_filter", "freqs", "u")
    sizes = [np.prod(shape) for key, shape in keys.items() if key.split(".")[-1] not in buffers]
    assert sum(sizes) == MODELS[name]["params"]
