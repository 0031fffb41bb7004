"""huggingface/diffusers: one module beside this one for each class, models_diffusers_controlnetmodel and so on."""

import importlib


def _of(meta):
    """The module for the class, which is the word after the file in the source."""
    words = meta["source"].split()
    name = words[next(i for i, word in enumerate(words) if word.endswith(".py")) + 1].strip(";,")
    return importlib.import_module(f"models_diffusers_{name.lower()}")


def load(meta, state):
    return _of(meta).load(meta, state)


def outputs(model, inputs, meta):
    return _of(meta).outputs(model, inputs, meta)
