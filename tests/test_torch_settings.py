"""PyTorch's global settings change no result: default dtype and device, gradients, autocast, determinism, threads."""

import ast
import contextlib
from pathlib import Path

import pytest
import torch
from small_network import Net

import fastdiff
from fastdiff import ops
from fastdiff.bench import cases
from fastdiff.models.dit import DiT, DiTConfig
from fastdiff.models.unet import UNet, UNetConfig
from fastdiff.schedules import VPDiscrete
from fastdiff.solvers import SOLVERS

SOURCES = Path(__file__).parents[1]
COMMON = dict(schedule=VPDiscrete.linear(), prediction="eps", steps=5)


def pointwise(x, t):
    return torch.tanh(x) * (1 + t[:, None, None, None] / 2000)


@contextlib.contextmanager
def default_dtype(dtype):
    before = torch.get_default_dtype()
    torch.set_default_dtype(dtype)
    try:
        yield
    finally:
        torch.set_default_dtype(before)


@contextlib.contextmanager
def default_device(name):
    torch.set_default_device(name)
    try:
        yield
    finally:
        torch.set_default_device(None)


@contextlib.contextmanager
def deterministic():
    before = torch.are_deterministic_algorithms_enabled()
    torch.use_deterministic_algorithms(True)  # fills what torch.empty gives with NaN besides
    try:
        yield
    finally:
        torch.use_deterministic_algorithms(before)


@contextlib.contextmanager
def threads(count):
    before = torch.get_num_threads()
    torch.set_num_threads(count)
    try:
        yield
    finally:
        torch.set_num_threads(before)


SETTINGS = {
    "float64": lambda: default_dtype(torch.float64),
    "float16": lambda: default_dtype(torch.float16),
    "bfloat16": lambda: default_dtype(torch.bfloat16),
    "meta": lambda: default_device("meta"),
    "no_grad": torch.no_grad,
    "inference_mode": torch.inference_mode,
    "deterministic": deterministic,
    "three threads": lambda: threads(3),
}


@pytest.fixture(params=SETTINGS)
def setting(request):
    return SETTINGS[request.param]


def assert_same(run, setting):
    expected = run()
    with setting():
        found = run()
    if isinstance(expected, torch.Tensor):
        expected, found = [expected], [found]
    for ours, right in zip(found, expected, strict=True):
        assert ours.dtype is right.dtype
        assert ours.device == right.device
        assert torch.equal(ours, right)


@pytest.mark.parametrize("backend", ["reference", "cpu"])
@pytest.mark.parametrize("solver", ["ddim", "ddpm", "dpmpp-2m", "heun", "dpmpp-2m-sde"])
def test_samples(setting, solver, backend):
    with fastdiff.use(backend):
        assert_same(lambda: fastdiff.sample(pointwise, (2, 3, 8, 9), solver=solver, seed=4, **COMMON), setting)


@pytest.mark.parametrize("solver", [name for name, s in SOLVERS.items() if s.adaptive])
def test_samples_of_adaptive_solvers(setting, solver):
    assert_same(lambda: fastdiff.sample(pointwise, (2, 3, 4, 4), solver=solver, seed=4, **COMMON), setting)


@pytest.mark.parametrize("dtype", [torch.float64, torch.float16, torch.bfloat16])
def test_samples_of_other_dtypes(setting, dtype):
    x = torch.ones(2, 3, 4, 4, dtype=dtype)
    assert_same(lambda: fastdiff.sample(lambda x, t: torch.tanh(x), x, solver="ddpm", seed=1, **COMMON), setting)


def test_samples_of_a_seed_that_is_drawn(setting):
    def run():
        torch.manual_seed(3)
        return fastdiff.sample(pointwise, (2, 3, 4, 4), **COMMON)

    assert_same(run, setting)


def test_samples_with_guidance_thresholds_and_a_generator(setting):
    noise = torch.Generator("cpu")

    def run():
        noise.manual_seed(5)
        shift = {"shift": torch.ones(2, device="cpu", dtype=torch.float32)}
        other = {"shift": torch.zeros(2, device="cpu", dtype=torch.float32)}
        return fastdiff.sample(
            net, (2, 3, 8, 8), solver="ddpm", seed=4, noise=noise, guidance=fastdiff.CFG(3.0, rescale=0.5),
            threshold=fastdiff.Threshold(1.0, percentile=0.9), cond=shift, uncond=other, **COMMON
        )  # fmt: skip

    net = Net()
    assert_same(run, setting)


def test_samples_with_a_classifier(setting):
    labels, net = torch.tensor([1, 2]), Net()
    classifier = fastdiff.Classifier.from_logits(lambda x, t: x.flatten(1)[:, :4], labels, 2.0)
    assert_same(lambda: fastdiff.sample(net, (2, 3, 8, 8), guidance=classifier, seed=4, **COMMON), setting)


def test_encoding_diffusing_and_likelihood(setting):
    x = torch.rand(2, 3, 4, 4)
    common = dict(schedule=COMMON["schedule"], prediction="eps")
    assert_same(lambda: fastdiff.encode(pointwise, x, steps=5, **common), setting)
    assert_same(lambda: fastdiff.diffuse(x, common["schedule"], 0.5, seed=1), setting)
    assert_same(lambda: fastdiff.log_likelihood(pointwise, x, seed=1, rtol=1e-2, atol=1e-2, **common), setting)


@pytest.mark.parametrize("backend", ["auto", "cpu"])
@pytest.mark.parametrize("op", ops.OPS)
def test_operators_and_their_gradients(setting, op, backend):
    operator, case = getattr(ops, op), cases.of(op, "smallest")[0]
    inputs = case.make()
    if backend == "cpu" and operator.unsupported(operator.arguments(**inputs)):
        pytest.skip(operator.unsupported(operator.arguments(**inputs)))

    def run():
        leaves = cases.wanting_gradients(inputs)
        results = cases.results(operator(**leaves))
        if torch.is_grad_enabled():
            results += torch.autograd.grad(results, cases.tensors(leaves), results)
        return [result.detach() for result in results]

    with fastdiff.use(backend):
        if setting in (torch.no_grad, torch.inference_mode):
            expected = cases.results(operator(**inputs))
            with setting():
                found = run()
            assert all(torch.equal(ours, right) for ours, right in zip(found, expected, strict=True))
            return
        assert_same(run, setting)


@pytest.mark.parametrize("mask", [None, torch.bool, torch.float32])
def test_attention_with_masks_and_maps(setting, mask):
    q, k, v = torch.randn(3, 1, 2, 9, 8)
    mask = None if mask is None else torch.ones(1, 1, 9, 9).tril().to(mask)
    assert_same(lambda: ops.attention(q, k, v, mask=mask, return_maps=True), setting)
    with fastdiff.use("reference"):
        assert_same(lambda: ops.attention(q, k, v, mask=mask, return_maps=True), setting)


NETWORKS = {
    "unet": lambda: UNet(UNetConfig(channels=32, num_classes=3, multipliers=(1, 1), attention=(False, True), blocks=1)),
    "dit": lambda: DiT(DiTConfig(input_size=4, hidden_size=32, depth=1, num_heads=2, num_classes=3)),
}


@pytest.mark.parametrize("name", ["emoji-unet-32", "emoji-dit-64"])
def test_bundled_models(setting, name):
    def run():
        model = fastdiff.load(name)
        cond = model.info.condition(model.info.classes[0], 1)
        return fastdiff.sample(model, (1, *model.info.shape), steps=1, cond=cond, seed=2)

    if setting is SETTINGS["three threads"]:  # torch's own sums are divided among them
        expected = run()
        with setting():
            torch.testing.assert_close(run(), expected, rtol=1e-3, atol=1e-3)
        return
    assert_same(run, setting)


def test_prompts(setting):
    model = fastdiff.load("emoji-ldm-64")
    assert_same(lambda: tuple(model.info.condition(["red apple", None], 2).values()), setting)
    z = torch.zeros(1, *model.info.shape)
    assert_same(lambda: model.decode(z).detach(), setting)


@pytest.mark.parametrize("dynamic", [False, True])
def test_optimized_models(setting, dynamic):
    torch.manual_seed(0)
    model = torch.nn.Sequential(torch.nn.Conv2d(3, 64, 3, padding=1), torch.nn.GroupNorm(8, 64), torch.nn.SiLU()).eval()
    x = torch.randn(2, 3, 8, 8)
    with torch.no_grad():
        expected = model(x)
    fast = fastdiff.optimize(model)
    with torch.no_grad(), setting():
        if dynamic:
            fast(x[:, :, :4])
        fast(x)
        found = fast(x)
    assert found.dtype is expected.dtype
    torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("op", ops.OPS)
def test_operators_compute_in_their_own_type_under_autocast(op):
    inputs = cases.of(op, "smallest")[0].make()
    expected = cases.results(getattr(ops, op)(**inputs))
    with torch.autocast("cpu", dtype=torch.bfloat16):
        found = cases.results(getattr(ops, op)(**inputs))
    assert all(torch.equal(ours, right) for ours, right in zip(found, expected, strict=True))


@pytest.mark.parametrize("op", [op for op in ops.OPS if op != "linear_combine"])
def test_operators_take_what_autocast_mixes(op):
    """A half beside a float32 is an error otherwise, and both are what a network has under autocast."""
    inputs = cases.of(op, "smallest")[0].make()
    halved = {name: inputs[name] for name in list(inputs)[:1]}
    halved = {name: value.bfloat16() for name, value in halved.items()}
    exact = {name: value.float() for name, value in halved.items()}
    with pytest.raises(TypeError):
        getattr(ops, op)(**inputs | halved)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        found = cases.results(getattr(ops, op)(**inputs | halved))
    for ours, right in zip(found, cases.results(getattr(ops, op)(**inputs | exact)), strict=True):
        assert torch.equal(ours, right)


def test_optimized_models_under_autocast():
    torch.manual_seed(0)
    norm, conv = torch.nn.GroupNorm(8, 64), torch.nn.Conv2d(64, 64, 3, padding=1)
    model = torch.nn.Sequential(norm, torch.nn.SiLU(), conv, norm, conv).eval()
    x = torch.randn(2, 64, 8, 8)
    fast = fastdiff.optimize(model)
    plain, original = torch.no_grad()(fast), torch.no_grad()(fast._call_impl)
    expected = original(x)
    torch.testing.assert_close(plain(x), expected, rtol=1e-5, atol=1e-5)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        right = original(x)
        found = plain(x)
    assert right.dtype is found.dtype is torch.bfloat16
    assert torch.equal(found, right)
    torch.testing.assert_close(plain(x), expected, rtol=1e-5, atol=1e-5)


def test_autocast_runs_the_sampler_as_without():
    """What the network computes under autocast is PyTorch's affair; the solver's own arithmetic stays in float32."""
    plain = fastdiff.sample(pointwise, (2, 3, 8, 8), seed=4, solver="ddpm", **COMMON)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert torch.equal(fastdiff.sample(pointwise, (2, 3, 8, 8), seed=4, solver="ddpm", **COMMON), plain)


ALLOCATING = {
    "arange", "empty", "eye", "full", "linspace", "logspace", "ones", "rand", "randint", "randn", "randperm",
    "scalar_tensor", "tensor", "zeros", "as_tensor",
}  # fmt: skip
# Parameters follow the settings, as those of torch.nn do.
FREE = {"models", "train", "bench", "cli", "profiling"}


def allocations():
    """Calls in the sources that make a tensor from nothing: file, line, and whether it names dtype and device."""
    files = [
        p for p in (SOURCES / "fastdiff").rglob("*.py") if p.relative_to(SOURCES / "fastdiff").parts[0] not in FREE
    ]
    for path in [*files, *(SOURCES / "kernels").rglob("*.py"), SOURCES / "fastdiff" / "models" / "info.py"]:
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if not isinstance(node, ast.Call) or not isinstance(node.func, ast.Attribute):
                continue
            owner = node.func.value
            if isinstance(owner, ast.Name) and owner.id == "torch" and node.func.attr in ALLOCATING:
                named = {keyword.arg for keyword in node.keywords}
                yield f"{path.relative_to(SOURCES)}:{node.lineno}", {"dtype", "device"} <= named


def test_every_new_tensor_names_its_dtype_and_device():
    found = dict(allocations())
    assert len(found) > 20
    assert [place for place, named in found.items() if not named] == []
