"""Adapters that are put on after the first call, changed and taken off: each state gives the original's numbers."""

from __future__ import annotations

import warnings

import pytest
import torch
from torch import nn

import fastdiff
from fastdiff.compiler.optimize import reports_of_module

peft = pytest.importorskip("peft")


class Network(nn.Module):
    """A convolution, and layers of the image and of the prompt alone."""

    def __init__(self):
        super().__init__()
        self.conv = nn.Conv2d(64, 64, 3, padding=1)
        self.image, self.prompt = nn.Linear(64, 64), nn.Linear(64, 64)

    def forward(self, x, text):
        h = self.conv(x)
        tokens = self.image(h.flatten(2).transpose(1, 2)) + self.prompt(text).mean(1, keepdim=True)
        return h + tokens.transpose(1, 2).view(h.shape)


LAYERS = ["conv", "image", "prompt"]
CONFIGS = {
    "LoRA": lambda: peft.LoraConfig(r=4, lora_alpha=8, init_lora_weights=False, target_modules=LAYERS),
    "DoRA": lambda: peft.LoraConfig(r=4, lora_alpha=8, init_lora_weights=False, use_dora=True, target_modules=LAYERS),
    "LoHa": lambda: peft.LoHaConfig(r=4, alpha=8, init_weights=False, target_modules=LAYERS),
    "LoKr": lambda: peft.LoKrConfig(r=4, alpha=8, init_weights=False, target_modules=LAYERS),
    "OFT": lambda: peft.OFTConfig(r=0, oft_block_size=8, init_weights=False, target_modules=LAYERS),
    "IA3": lambda: peft.IA3Config(target_modules=LAYERS, feedforward_modules=[], init_ia3_weights=False),
    "HRA": lambda: peft.HRAConfig(r=4, init_weights=False, target_modules=LAYERS),
}


def network(config, name="a"):
    """An optimized network that was called, with an adapter put on afterwards; and its layers with the adapter."""
    torch.manual_seed(0)
    model = fastdiff.optimize(Network().eval())
    call(model)
    return model, put_on(model, config, name)


def put_on(model, config, name):
    peft.inject_adapter_in_model(config, model, name)
    model.eval().requires_grad_(False)
    for key, parameter in model.named_parameters():
        if f".{name}" in key:  # as trained: some kinds begin at zero or one
            parameter.data += 0.05 * torch.randn_like(parameter)
    return [each for each in model.modules() if isinstance(each, peft.tuners.tuners_utils.BaseTunerLayer)]


def inputs():
    generator = torch.Generator().manual_seed(0)
    return torch.randn(1, 64, 8, 8, generator=generator), torch.randn(1, 7, 64, generator=generator)


@torch.no_grad()
def call(model):
    """Twice: what is kept of the weights is used from the second call on."""
    right = model._call_impl(*inputs())
    for _ in range(2):
        found = model(*inputs())
        assert float((found - right).abs().max()) < 1e-4 * float(right.std())
    return right


@pytest.mark.filterwarnings("ignore:Unmerge result can be inaccurate")
@pytest.mark.filterwarnings("ignore:Already unmerged")
@pytest.mark.parametrize("kind", CONFIGS)
def test_every_state_of_an_adapter(kind):
    model, layers = network(CONFIGS[kind]())
    states = [call(model)]
    changes = [
        lambda layer: [p.data.mul_(1.3) for name, p in layer.named_parameters() if ".a" in f".{name}"],
        lambda layer: layer.set_scale("a", 0.5) if hasattr(layer, "scaling") else None,
        lambda layer: layer.merge(),
        lambda layer: layer.enable_adapters(False),  # the call takes them out of the weights
        lambda layer: layer.enable_adapters(True),
        lambda layer: layer.merge(safe_merge=True),
        lambda layer: layer.unmerge(),
        lambda layer: layer.delete_adapter("a"),
    ]
    with warnings.catch_warnings():
        warnings.filterwarnings("error", message="fastdiff")
        for change in changes:
            for layer in layers:
                change(layer)
            states.append(call(model))
    assert not torch.allclose(states[0], states[-1], rtol=0.01, atol=0.01)
    assert max(each.calls for each in reports_of_module(model)) > 1


@pytest.mark.parametrize("kind", CONFIGS)
def test_an_adapter_leaves_the_model_in_one_graph(kind):
    model, _ = network(CONFIGS[kind]())
    before = len(reports_of_module(model))
    with warnings.catch_warnings():
        warnings.filterwarnings("error", message="fastdiff")
        call(model)
    reports = reports_of_module(model)
    assert len(reports) == before + 1
    assert [each.fallback for each in reports] == [None] * len(reports)


def test_sixteen_states_of_two_adapters_are_all_accelerated():
    model, layers = network(CONFIGS["LoRA"](), "a")
    layers = put_on(model, CONFIGS["LoRA"](), "b")
    results = []
    with warnings.catch_warnings():
        warnings.filterwarnings("error", message="fastdiff")
        for state in range(16):
            for layer in layers:
                layer.set_adapter([["a"], ["a", "b"]][state % 2])
                layer.set_scale("a", 0.1 * (1 + state))
            before = sum(each.calls for each in reports_of_module(model))
            results.append(call(model))
            assert sum(each.calls for each in reports_of_module(model)) == before + 2
    assert len({float(each.std()) for each in results}) == 16
