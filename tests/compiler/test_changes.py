"""Whatever is changed of a model, its next call is that of the changed model: each way to change weights, for each kind
of layer, at the sizes of the calls before and at others."""

from __future__ import annotations

import copy
import functools
import weakref

import pytest
import torch
import torch.nn.functional as F
from torch import nn
from torch.nn.utils import parametrizations, parametrize

import fastdiff
from fastdiff.compiler import stored
from fastdiff.compiler.report import reports_of
from fastdiff.runtime import contents


class Network(nn.Module):
    """One layer of each kind, whose results add up: an error in one stays visible."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(64, 96, 3, padding=1)
        self.point = nn.Conv2d(96, 64, 1)
        self.norm, self.batch = nn.GroupNorm(8, 64), nn.BatchNorm2d(64)
        self.linear, self.layer_norm = nn.Linear(64, 64), nn.LayerNorm(64)
        self.embedding = nn.Embedding(10, 64)
        self.key = nn.Linear(64, 64)  # of the prompt alone: kept
        self.register_buffer("table", torch.randn(64, 64))  # beside a folded constant
        self.period = 3.0
        for each in (*self.norm.parameters(), *self.layer_norm.parameters(), self.batch.running_var):
            nn.init.uniform_(each, 0.5, 1.5)

    def forward(self, x, text, label):
        h = self.point(F.silu(self.conv(x)))
        h = self.batch(self.norm(h)) + self.embedding(label)[:, :, None, None]
        tokens = h.flatten(2).transpose(1, 2)
        waves = torch.exp(-torch.arange(64, dtype=torch.float32) / self.period)
        tokens = self.layer_norm(tokens) + self.linear(tokens) + self.key(text).mean(1, keepdim=True)
        return tokens * (1 + waves @ self.table)


KINDS = {
    "conv": "weight",
    "point": "weight",
    "norm": "weight",
    "batch": "running_var",
    "linear": "weight",
    "layer_norm": "bias",
    "embedding": "weight",
    "key": "weight",
    "": "table",
}


def owner(model, kind):
    return model.get_submodule(kind)


def tensor(model, kind):
    return getattr(owner(model, kind), KINDS[kind])


def assign(model, kind, value):
    """The same as `module.weight = nn.Parameter(value)`, of a buffer too."""
    old = tensor(model, kind)
    setattr(owner(model, kind), KINDS[kind], nn.Parameter(value) if isinstance(old, nn.Parameter) else value)


def changed(model, kind):
    return tensor(model, kind).detach() * 1.5 + 0.2


def add_data(model, kind):
    tensor(model, kind).data += 0.3


def set_data(model, kind):
    tensor(model, kind).data = changed(model, kind)


def set_data_twice(model, kind):
    """The second time most likely to the address of the first."""
    before = changed(model, kind)
    tensor(model, kind).data = torch.zeros_like(before)
    tensor(model, kind).data = before


def transposed_data(model, kind):
    """Another layout of other numbers."""
    new = changed(model, kind)
    tensor(model, kind).data = new.transpose(0, -1).contiguous().transpose(0, -1)


def half_and_float(model, kind):
    owner(model, kind).half().float()


def load(model, kind, **options):
    name = f"{kind}.{KINDS[kind]}" if kind else KINDS[kind]
    model.load_state_dict(model.state_dict() | {name: changed(model, kind)}, **options)


def exchange(model, kind):
    """As averaged weights are exchanged with those in training."""
    other = changed(model, kind)
    mine = tensor(model, kind).data.clone()
    tensor(model, kind).data.copy_(other)
    other.copy_(mine)


def step(model, kind):
    with torch.enable_grad():
        parameter = tensor(model, kind)
        if not isinstance(parameter, nn.Parameter):
            parameter.mul_(1.5)
            return
        optimizer = torch.optim.Adam([parameter], lr=0.2)
        parameter.grad = torch.ones_like(parameter)
        optimizer.step()
        parameter.grad = None


def row(model, kind):
    tensor(model, kind).data[1] *= 9


def column(model, kind):
    numbers = tensor(model, kind).data
    numbers[..., 0 if numbers.ndim < 2 else 5].mul_(3) if numbers.ndim < 3 else numbers[:, 5].mul_(9)


def one_number(model, kind):
    numbers = tensor(model, kind).data.view(-1)
    numbers[min(74, len(numbers) - 1)] += 60


def by_numpy(model, kind):
    tensor(model, kind).detach().numpy()[1] *= 9


def replaced(model, kind):
    if kind:
        new = copy.deepcopy(owner(model, kind))
        getattr(new, KINDS[kind]).data.mul_(1.5).add_(0.2)
        setattr(model, kind, new)
    else:
        assign(model, kind, changed(model, kind))


class Larger(nn.Module):
    def forward(self, x):
        return 2 * x


def parametrization(model, kind):
    if isinstance(tensor(model, kind), nn.Parameter):
        parametrize.register_parametrization(owner(model, kind), KINDS[kind], Larger())
    else:
        tensor(model, kind).mul_(2)


def weight_norm(model, kind):
    if isinstance(tensor(model, kind), nn.Parameter):
        parametrizations.weight_norm(owner(model, kind), KINDS[kind], 0)
        owner(model, kind).parametrizations[KINDS[kind]].original0.mul_(1.7)
    else:
        tensor(model, kind).mul_(2)


@functools.cache
def torch_compile_lets_swap():
    """Older versions of PyTorch keep weak references to what was captured, and then swap nothing."""
    model = nn.Linear(2, 2)
    with torch.no_grad():
        torch.compile(model, backend="eager")(torch.zeros(1, 2))
    return not weakref.getweakrefs(model.weight)


def swapped(model, kind):
    if not torch_compile_lets_swap():
        pytest.skip("this PyTorch swaps nothing that was captured")
    new, old = changed(model, kind), tensor(model, kind)
    torch.utils.swap_tensors(old, nn.Parameter(new) if isinstance(old, nn.Parameter) else new)


def swapping(change):
    """The change with parameters that are swapped where they are converted or loaded."""

    def swapping_change(model, kind):
        if not torch_compile_lets_swap():
            pytest.skip("this PyTorch swaps nothing that was captured")
        torch.__future__.set_swap_module_params_on_conversion(True)
        try:
            change(model, kind)
        finally:
            torch.__future__.set_swap_module_params_on_conversion(False)

    return swapping_change


WAYS = {
    "in place": lambda model, kind: tensor(model, kind).mul_(1.5),
    "copy_": lambda model, kind: tensor(model, kind).copy_(changed(model, kind)),
    "data in place": lambda model, kind: tensor(model, kind).data.mul_(1.5),
    "data +=": add_data,
    "data =": set_data,
    "data = twice": set_data_twice,
    "data = transposed": transposed_data,
    "data of a row": row,
    "data of a column": column,
    "data of one number": one_number,
    "numpy": by_numpy,
    "half and float": half_and_float,
    "assigned": lambda model, kind: assign(model, kind, changed(model, kind)),
    "load_state_dict": load,
    "load_state_dict(assign=True)": lambda model, kind: load(model, kind, assign=True),
    "exchanged": exchange,
    "set_": lambda model, kind: tensor(model, kind).set_(changed(model, kind)),
    "optimizer": step,
    "replaced": replaced,
    "swapped": swapped,
    "load_state_dict by swaps": swapping(load),
    "half and float by swaps": swapping(half_and_float),
    "parametrization": parametrization,
    "weight norm": weight_norm,
}


def inputs(size):
    return (
        torch.randn(1, 64, size, size),
        torch.randn(1, 7, 64, generator=torch.Generator().manual_seed(5)),
        torch.tensor([10 % 3]),
    )


GROWING = ("in place", "data =", "load_state_dict", "set_", "parametrization")  # for the others it takes long


@pytest.mark.parametrize(
    ("way", "grow"),
    [
        *((way, False) for way in WAYS),
        *(pytest.param(way, True, marks=() if way in GROWING else pytest.mark.long) for way in WAYS),
    ],
)
def test_a_change_is_seen_at_the_next_call(way, grow):
    torch.manual_seed(0)
    model = Network().eval()
    fast, size = fastdiff.optimize(model), 8
    with torch.no_grad():
        for _ in range(3):
            fast(*inputs(size))
        assert any(n.name == "invariants" and n.matches for r in reports_of([*model.parameters()]) for n in r.passes)
        for kind in KINDS:
            size += 4 * grow
            given = inputs(size)
            before = model._call_impl(*given)
            WAYS[way](model, kind)
            found, right = fast(*given), model._call_impl(*given)
            error, unit = float((found - right).abs().max()), float(right.abs().max())
            difference = float((before - right).abs().max())
            assert error < 5e-6 * unit, (kind, error / unit)
            assert difference > (1e-5 if way.startswith("half and float") else 5e-5) * unit, (kind, difference / unit)
            torch.testing.assert_close(fast(*given), found)


def test_constants_follow_the_attributes_that_they_are_made_of():
    torch.manual_seed(0)
    model = Network().eval()
    fast, given = fastdiff.optimize(model), inputs(8)
    with torch.no_grad():
        before = fast(*given)
        model.period = 30.0
        torch.testing.assert_close(fast(*given), model._call_impl(*given), rtol=1e-4, atol=1e-4)
        assert not torch.allclose(fast(*given), before, rtol=1e-2, atol=1e-2)


def test_functional_call_takes_the_weights_that_it_is_given():
    torch.manual_seed(0)
    model = Network().eval()
    fast, given = fastdiff.optimize(model), inputs(8)
    with torch.no_grad():
        before = fast(*given)
        for factor in (1.5, -1.0):
            weights = {"conv.weight": factor * model.conv.weight, "key.weight": factor * model.key.weight}
            found = torch.func.functional_call(fast, weights, given)
            fastdiff.restore(model)
            right = torch.func.functional_call(model, weights, given)
            fastdiff.optimize(model)
            torch.testing.assert_close(found, right, rtol=1e-4, atol=1e-4)
        torch.testing.assert_close(fast(*given), before)


@pytest.fixture
def hurried(monkeypatch):
    """Calls that follow each other at once, with weights of which each call compares a little."""
    monkeypatch.setattr(stored, "_IN_A_PAUSE", 0)
    monkeypatch.setattr(stored, "_LEAST", 0)


def off_the_sample(weight):
    """A place whose change the sample does not see."""
    known = contents.Content(weight)
    numbers = weight.data.view(-1)
    for place in range(weight.numel() - 1, 0, -1):
        before = numbers[place].clone()
        numbers[place] += 100
        if known.holds(weight):
            return place
        numbers[place] = before
    raise AssertionError("the sample sees all")


@pytest.mark.parametrize("kind", ["conv", "key"])
def test_a_single_number_is_seen_within_64_calls(hurried, kind):
    torch.manual_seed(0)
    model = Network().eval()
    fast, given = fastdiff.optimize(model), inputs(8)
    with torch.no_grad():
        for _ in range(3):
            fast(*given)
        off_the_sample(tensor(model, kind))
        for _ in range(64):
            found = fast(*given)
        torch.testing.assert_close(found, model._call_impl(*given), rtol=1e-4, atol=1e-3)


def unseen(monkeypatch):
    """A model with a change that no call compares."""
    monkeypatch.setattr(contents, "look", lambda weights, share: None)
    torch.manual_seed(0)
    model = Network().eval()
    fast, given = fastdiff.optimize(model), inputs(8)
    for _ in range(3):
        fast(*given)
    off_the_sample(model.conv.weight)
    off_the_sample(model.key.weight)
    return fast, given


@torch.no_grad()
def test_verify_names_weights_that_were_changed_unseen(monkeypatch):
    fast, given = unseen(monkeypatch)
    found = fastdiff.verify(fast, fast, given)
    assert not found.ok
    assert sorted(found.stale) == ["conv.weight", "key.weight"]
    assert "changed unseen, call fastdiff.refresh: " in str(found)
    assert fastdiff.refresh(fast) is fast
    found = fastdiff.verify(fast, fast, given)
    assert found.ok, str(found)
    assert found.stale == []


@torch.no_grad()
def test_refresh_drops_what_was_made(monkeypatch):
    fast, given = unseen(monkeypatch)
    right = fast._call_impl(*given)
    assert not torch.allclose(fast(*given), right, rtol=1e-2, atol=1e-2)
    captures = len(reports_of([*fast.parameters()]))
    torch.testing.assert_close(fastdiff.refresh(fast)(*given), right, rtol=1e-4, atol=1e-3)
    assert len(reports_of([*fast.parameters()])) == captures
    with pytest.raises(TypeError, match=r"refresh\(\) takes a torch.nn.Module or a pipeline"):
        fastdiff.refresh(3)


LORAS = {"convolutions": ["conv1", "conv2"], "attention": ["to_k", "to_v", "to_q"], "both": ["conv1", "to_k", "to_v"]}


def denoiser():
    diffusers = pytest.importorskip("diffusers")
    torch.manual_seed(0)
    return diffusers.UNet2DConditionModel(
        sample_size=8,
        block_out_channels=(32, 64),
        layers_per_block=1,
        norm_num_groups=8,
        cross_attention_dim=32,
        attention_head_dim=8,
        down_block_types=("CrossAttnDownBlock2D", "DownBlock2D"),
        up_block_types=("UpBlock2D", "CrossAttnUpBlock2D"),
    ).eval()


@pytest.mark.parametrize("layers", [pytest.param(n, marks=() if n == "both" else pytest.mark.long) for n in LORAS])
def test_loras_are_loaded_fused_and_unfused(layers):
    peft = pytest.importorskip("peft")
    model = denoiser()
    fast = fastdiff.optimize(model)
    given = torch.randn(1, 4, 16, 16), torch.tensor(300), torch.randn(1, 7, 32)
    config = peft.LoraConfig(r=4, lora_alpha=8, init_lora_weights=False, target_modules=LORAS[layers])
    changes = {
        "loaded": lambda: model.add_adapter(config, "a"),
        "fused": model.fuse_lora,
        "unfused": model.unfuse_lora,
        "fused safely": lambda: model.fuse_lora(safe_fusing=True, lora_scale=0.5),
        "unfused again": model.unfuse_lora,
        "disabled": model.disable_adapters,
    }
    with torch.no_grad():
        for _ in range(3):
            before = fast(*given).sample
        for name, change in changes.items():
            change()
            for _ in range(2):
                found, right = fast(*given).sample, model._call_impl(*given).sample
                assert float((found - right).abs().max()) < 1e-4 * float(right.std()), name
        torch.testing.assert_close(found, before, rtol=1e-3, atol=1e-3)
