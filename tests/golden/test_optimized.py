"""Models that stay diffusers' classes, under `optimize`, against outputs of the original code.

Their modules beside this one say which passes must find something in them (PASSES).
"""

import importlib
import importlib.util

import pytest
from conftest import relative_error
from test_models import MODELS, TOLERANCE, family, read

import fastdiff


def passes_of(meta):
    """The passes that the module for a case names; none if it has no module or its model is fastdiff's."""
    if not meta["source"].startswith("huggingface/diffusers"):
        return ()
    words = [word.strip(";,").lower() for word in meta["source"].split()]
    found = [name for name in words if name.isidentifier() and importlib.util.find_spec(f"models_diffusers_{name}")]
    return getattr(importlib.import_module(f"models_diffusers_{found[0]}"), "PASSES", ()) if found else ()


CASES = {name: passes_of(meta) for name, meta in MODELS.items()}


@pytest.mark.parametrize("name", [name for name, passes in CASES.items() if passes])
def test_optimized_classes_agree_with_the_original(name):
    meta = MODELS[name]
    state, inputs, expected = read(name)
    module = family(meta["source"])
    model = module.load(meta, state)
    fastdiff.optimize(model)
    found = module.outputs(model, inputs, meta)
    for output, value in expected.items():
        assert relative_error(found[output], value) <= TOLERANCE, output
    counts = {line.split()[0]: int(line.split()[1]) for line in str(fastdiff.explain(model)).splitlines()
              if len(line.split()) == 2 and line.split()[1].isdigit()}  # fmt: skip
    for each in CASES[name]:
        assert counts[each] > 0, each
