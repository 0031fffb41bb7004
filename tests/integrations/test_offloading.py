"""Models whose weights are moved by hooks of accelerate and diffusers: right results, by launches, and why is said."""

import pytest
import torch
from graph_models import Net, inputs, lines
from graph_stand_in import cuda_graphs  # noqa: F401
from tape import take_the_place_of_cuda
from torch import nn

import fastdiff
from fastdiff.runtime import graphs
from fastdiff.runtime.offloading import moved

CPU = torch.device("cpu")
_, TIME, TEXT = inputs(0)


def of_model(model):
    """As `enable_model_cpu_offload` does."""
    accelerate = pytest.importorskip("accelerate", reason="its hooks need accelerate")
    accelerate.cpu_offload_with_hook(model, CPU)
    return lambda: accelerate.hooks.remove_hook_from_module(model)


def of_each_part(model):
    """As `enable_sequential_cpu_offload` does: weights are without memory between two calls of a part."""
    accelerate = pytest.importorskip("accelerate", reason="its hooks need accelerate")
    accelerate.cpu_offload(model, CPU, offload_buffers=True)
    assert model.conv.weight.is_meta
    return lambda: accelerate.hooks.remove_hook_from_module(model, recurse=True)


def of_groups(model):
    """As `enable_group_offload` does."""
    pytest.importorskip("diffusers", reason="group offloading needs diffusers")
    from diffusers.hooks import apply_group_offloading
    from diffusers.hooks.group_offloading import _GROUP_OFFLOADING, HookRegistry  # the name of the hooks

    apply_group_offloading(model, onload_device=CPU, offload_device=CPU, offload_type="leaf_level")
    return lambda: HookRegistry.check_if_exists_or_initialize(model).remove_hook(_GROUP_OFFLOADING, recurse=True)


def of_storage(model):
    """As `enable_layerwise_casting` does: weights have another dtype between two calls."""
    pytest.importorskip("diffusers", reason="layerwise casting needs diffusers")
    from diffusers.hooks import apply_layerwise_casting

    apply_layerwise_casting(model, torch.bfloat16, torch.float32, skip_modules_pattern=())
    assert model.conv.weight.dtype is torch.bfloat16  # and diffusers does not remove these hooks


HOOKS = {
    "CpuOffload": of_model,
    "AlignDevicesHook": of_each_part,
    "GroupOffloadingHook": of_groups,
    "LayerwiseCastingHook": of_storage,
}


def check(net, original, seed):
    found = net(inputs(seed)[0], TIME, TEXT)
    torch.testing.assert_close(found, original(inputs(seed)[0], TIME, TEXT), rtol=1e-4, atol=1e-5)


def rounded(net, to):
    """The same weights, so that casts of them lose nothing."""
    for weight in net.parameters():
        weight.data = weight.data.to(to).float()
    return net


@pytest.mark.filterwarnings("ignore:fastdiff")
@pytest.mark.parametrize("optimized_first", [False, True], ids=["hooked first", "optimized first"])
@pytest.mark.parametrize("name", HOOKS)
@torch.no_grad()
def test_calls_are_launched_while_hooks_move_the_weights(name, optimized_first, cuda_graphs):  # noqa: F811
    original, net = (rounded(Net().eval(), torch.bfloat16) for _ in range(2))
    if optimized_first:
        fastdiff.optimize(net)
        for seed in range(3):
            check(net, original, seed)
        assert len(cuda_graphs) == 1
        remove = HOOKS[name](net)
    else:
        remove = HOOKS[name](net)
        fastdiff.optimize(net)
    replays = [graph.replays for graph in cuda_graphs]
    for seed in range(4):
        check(net, original, seed)
    assert [graph.replays for graph in cuda_graphs] == replays
    said = [line for line in lines(net) if f"launches: {name}, a hook of " in line]
    assert said, lines(net)
    assert all("moves weights whenever it is called" in line for line in said)
    assert len(said) == len(lines(net)) - optimized_first

    if remove is None:
        return
    remove()
    assert moved(net.modules()) is None
    for seed in range(4):
        check(net, original, seed)
    assert sum(graph.replays for graph in cuda_graphs) >= sum(replays) + 3


@pytest.mark.filterwarnings("ignore:fastdiff")
@pytest.mark.parametrize("optimized", [False, True])
@pytest.mark.parametrize("name", HOOKS)
@torch.no_grad()
def test_a_loop_is_launched_while_hooks_move_the_weights(name, optimized, cuda_graphs, monkeypatch):  # noqa: F811
    take_the_place_of_cuda(monkeypatch)
    options = dict(schedule="scaled-linear", prediction="eps", steps=3, solver="ddim", cond={"text": TEXT}, seed=0)
    net = rounded(Net().eval(), torch.bfloat16)
    with fastdiff.use("reference"):
        expected = fastdiff.sample(net, (1, 4, 8, 8), **options)
    if optimized:
        fastdiff.optimize(net)
    remove = HOOKS[name](net)
    for _ in range(3):
        found = fastdiff.sample(net, (1, 4, 8, 8), **options)
        torch.testing.assert_close(found, expected, rtol=1e-3, atol=1e-4)
    assert cuda_graphs == []
    assert [name in line for line in graphs.explain(net)] == [True]
    if remove is None:
        return
    remove()
    for _ in range(3):
        found = fastdiff.sample(net, (1, 4, 8, 8), **options)
        torch.testing.assert_close(found, expected, rtol=1e-3, atol=1e-4)
    assert len(cuda_graphs) == 1
    assert "a CUDA graph" in graphs.explain(net)


def test_hooks_that_move_inputs_alone_are_no_reason():
    """As a model that is spread over devices has them."""
    accelerate = pytest.importorskip("accelerate", reason="its hooks need accelerate")
    net = nn.Sequential(nn.Linear(2, 2))
    hooks = accelerate.hooks
    hooks.add_hook_to_module(net, hooks.AlignDevicesHook(CPU, io_same_device=True))
    assert moved(net.modules()) is None
    hooks.add_hook_to_module(net[0], hooks.CpuOffload(CPU), append=True)
    hooks.add_hook_to_module(net[0], hooks.ModelHook(), append=True)
    assert moved(net.modules()) == "CpuOffload, a hook of Linear, moves weights whenever it is called"
