"""A model for tests of CUDA graphs, and the ways in which it is changed."""

import pytest
import torch
import torch.nn.functional as F
from torch import nn

import fastdiff


class Net(nn.Module):
    """An image, a time and a prompt, of which keys are kept."""

    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.conv, self.norm = nn.Conv2d(4, 64, 3, padding=1), nn.GroupNorm(8, 64)
        self.key, self.out = nn.Linear(32, 64), nn.Conv2d(64, 4, 3, padding=1)
        self.register_buffer("scale", torch.tensor(1.5))

    def forward(self, x, t, text):
        h = F.silu(self.norm(self.conv(x))) * self.scale
        h = h + torch.sin(t)[:, None, None, None] + self.key(text).mean(1)[:, :, None, None]
        return self.out(h)


def inputs(seed, size=8, batch=1):
    generator = torch.Generator().manual_seed(seed)
    x = torch.randn(batch, 4, size, size, generator=generator)
    return x, torch.rand(batch, generator=generator), torch.randn(batch, 7, 32, generator=generator)


def lines(model):
    """What `explain` says of calls on a GPU, for each graph of the compiler."""
    found = [line.strip() for line in fastdiff.explain(model).model]
    return [line.removeprefix("on a GPU").strip() for line in found if line.startswith("on a GPU")]


def add_adapter(model):
    peft = pytest.importorskip("peft")
    config = peft.LoraConfig(r=4, lora_alpha=8, init_lora_weights=False, target_modules=["key"])
    peft.inject_adapter_in_model(config, model)


def set_scale(model):
    for part in model.modules():
        if isinstance(getattr(part, "scaling", None), dict):
            part.scaling.update({name: 3.0 * scale for name, scale in part.scaling.items()})


def set_data(model):
    model.conv.weight.data = 1.5 * model.conv.weight.data


def replace_part(model):
    torch.manual_seed(3)
    model.out = nn.Conv2d(64, 4, 3, padding=1)


def load(model, **options):
    model.load_state_dict({name: 1.5 * each for name, each in model.state_dict().items()}, **options)


CHANGES = {
    "nothing": lambda model: None,
    "a weight in place": lambda model: model.conv.weight.mul_(1.5),
    "a weight of what is kept, in place": lambda model: model.key.weight.mul_(1.5),
    "data in place": lambda model: model.conv.weight.data.mul_(1.5),
    "data =": set_data,
    "a buffer in place": lambda model: model.scale.mul_(2),
    "a buffer replaced": lambda model: setattr(model, "scale", torch.tensor(0.3)),
    "a parameter replaced": lambda model: setattr(model.conv, "weight", nn.Parameter(2 * model.conv.weight)),
    "a parameter of what is kept, replaced": lambda model: setattr(
        model.key, "weight", nn.Parameter(2 * model.key.weight)
    ),
    "load_state_dict": load,
    "load_state_dict(assign=True)": lambda model: load(model, assign=True),
    "dtype and back": lambda model: model.half().float(),
    "a hook": lambda model: model.conv.register_forward_hook(lambda module, x, y: y.tanh()),
    "a hook before": lambda model: model.conv.register_forward_pre_hook(lambda module, x: (x[0].tanh(),)),
    "a part replaced": replace_part,
    "an adapter": add_adapter,
    "optimized again": fastdiff.optimize,
    "restored": fastdiff.restore,
    "refreshed": fastdiff.refresh,
}
SAME = ("nothing", "dtype and back", "optimized again", "restored", "refreshed")  # with the same result as before
