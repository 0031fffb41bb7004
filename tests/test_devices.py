"""Where a model computes: names of devices, conditions that follow the model, tensors that are elsewhere, and times."""

import ast
import copy
from pathlib import Path

import pytest
import torch
from small_network import Net

import fastdiff
from fastdiff import arguments, ops, sample
from fastdiff.bench import cases, timing
from fastdiff.process.noise import CounterNoise
from fastdiff.schedules import VPDiscrete

SOURCES = Path(__file__).parents[1]
OPTIONS = dict(schedule=VPDiscrete.linear(), prediction="eps", steps=4, seed=0)
HALVES = [torch.float16, torch.bfloat16]


def gpus(monkeypatch, count, current=0):
    """A machine with so many GPUs, as far as names of devices go."""
    monkeypatch.setattr(torch.version, "cuda", "13.0")
    monkeypatch.setattr(torch.cuda, "is_available", lambda: count > 0)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: count)
    monkeypatch.setattr(torch.cuda, "current_device", lambda: current)


def test_names_of_devices(monkeypatch):
    assert arguments.device("device", "cpu") == arguments.device("device", torch.device("cpu:0")) == torch.device("cpu")
    gpus(monkeypatch, 2, current=1)
    assert arguments.device("device", "cuda") == torch.device("cuda:1")  # PyTorch's own choice
    assert arguments.device("device", "cuda:0") == torch.device("cuda:0")
    with pytest.raises(ValueError, match="'cuda:2' cannot be used: there are 2 GPUs, cuda:0 to cuda:1"):
        arguments.device("device", "cuda:2")
    gpus(monkeypatch, 0)
    with pytest.raises(ValueError, match="--device 'cuda' cannot be used: torch sees no GPU"):
        arguments.device("--device", "cuda")
    monkeypatch.setattr(torch.version, "cuda", None)
    monkeypatch.setattr(torch.version, "hip", None)
    with pytest.raises(ValueError, match="this build of PyTorch has no CUDA"):
        arguments.device("--device", "cuda:1")


@pytest.mark.parametrize("name", ["mps", "meta", "gpu", "", "cuda:x", "cuda:-1", "cpu:1", "CUDA", "xpu", "cuda:0,1"])
def test_other_devices_are_refused(name, monkeypatch):
    gpus(monkeypatch, 1)
    with pytest.raises(ValueError, match="expected cpu, cuda or cuda:N"):
        arguments.device("device", name)
    for wrong in (0, None, ["cpu"]):
        with pytest.raises(TypeError, match="device must be the name of a device"):
            arguments.device("device", wrong)


def test_names_of_dtypes():
    assert arguments.dtype("--dtype", "bfloat16") is arguments.dtype("--dtype", torch.bfloat16) is torch.bfloat16
    for wrong in ("float61", "float64", "int8", "half"):
        with pytest.raises(ValueError, match=f"unknown --dtype '{wrong}'"):
            arguments.dtype("--dtype", wrong)


@pytest.mark.parametrize("name", ["emoji-unet-32", "emoji-dit-64", "emoji-ldm-64"])
def test_conditions_follow_the_model(name):
    model = fastdiff.load(name)
    chosen = model.info.classes[0] if model.info.classes else "red apple"
    here = model.info.condition(chosen, 2)
    assert {tensor.device.type for tensor in here.values()} == {"cpu"}
    moved = copy.deepcopy(model).to("meta")  # of a copy: the original's stay where they are
    for info, device, expected in ((moved.info, None, "meta"), (model.info, None, "cpu"), (model.info, "meta", "meta")):
        found = info.condition([chosen, None], 2, device=device)
        assert {tensor.device.type for tensor in found.values()} == {expected}
        assert {key: tensor.shape for key, tensor in found.items()} == {key: here[key].shape for key in here}
    half = model.half().info.condition(chosen, 2)
    assert {tensor.dtype for tensor in half.values()} <= {torch.float16, torch.int64}


@pytest.mark.parametrize("dtype", HALVES)
@pytest.mark.parametrize("name", ["emoji-unet-32", "emoji-dit-64", "emoji-ldm-64"])
def test_bundled_models_in_half_precision(name, dtype):
    exact, half = fastdiff.load(name), fastdiff.load(name, dtype=dtype)
    moved = fastdiff.load(name).to(dtype)
    chosen = exact.info.classes[0] if exact.info.classes else "red apple"
    noise = CounterNoise.of(0, 2).initial((2, *exact.info.shape), torch.float32)

    def pictures(model):
        like = next(model.parameters())
        found = sample(
            model, noise.to(like), steps=3, guidance=2.0, cond=model.info.condition(chosen, 2),
            uncond=model.info.condition(None, 2),
        )  # fmt: skip
        shown = fastdiff.models.bundled.to_pictures(model, found)
        assert found.dtype is shown.dtype is like.dtype
        return shown.float()

    expected, found = pictures(exact), pictures(half)
    assert torch.equal(pictures(moved), found)  # .to(dtype) afterwards is the same
    # Pixels are in [-1, 1]; measured: 0.1 to 1.5 units in the last place of 1.
    assert float((found - expected).square().mean().sqrt()) < 4 * torch.finfo(dtype).eps


def test_tensors_that_are_elsewhere_are_refused_before_anything_runs():
    class Counts(Net):
        calls = 0

        def forward(self, x, t, shift=None):
            self.calls += 1
            return super().forward(x, t, shift)

    net, x, shift = Counts(), torch.zeros(2, 3, 8, 8), torch.zeros(2)
    with pytest.raises(ValueError, match=r"x_init is on meta, the model on cpu; move one"):
        sample(net, x.to("meta"), **OPTIONS)
    for name in ("cond", "uncond"):
        both = {"cond": {"shift": shift}, "uncond": {"shift": shift}}
        both[name] = {"shift": shift.to("meta")}
        with pytest.raises(ValueError, match=rf"{name}\['shift'\] is on meta, the state on cpu"):
            sample(net, x, guidance=2.0, **both, **OPTIONS)
    with pytest.raises(ValueError, match=r"cond\['all'\]\['shift'\] is on meta"):
        sample(net, x, cond={"all": {"shift": shift.to("meta")}}, **OPTIONS)
    program = fastdiff.trace("ddim", OPTIONS["schedule"], [0.9, 0.5, 0.1], "eps")
    with pytest.raises(ValueError, match="x is on meta, the model on cpu"):
        fastdiff.run(program, net, x.to("meta"))
    assert net.calls == 0
    assert sample(net, x, cond={"shift": torch.zeros(())[None]}, **OPTIONS).device.type == "cpu"
    assert net.calls == 4


def test_models_that_hooks_move_are_not_refused():
    """accelerate keeps parameters elsewhere until a part is called."""
    net = Net()
    net.conv._hf_hook = object()
    arguments.beside_model("x", torch.zeros(2, 3, 8, 8, device="meta"), net)
    arguments.beside_model("x", torch.zeros(2, 3, 8, 8, device="meta"), lambda x, t: x)
    split = torch.nn.Sequential(torch.nn.Linear(2, 2), torch.nn.Linear(2, 2, device="meta"))  # over two devices
    arguments.beside_model("x", torch.zeros(2, 2, device="meta"), split)


@pytest.mark.parametrize("op", ops.OPS)
def test_operators_name_a_tensor_that_is_elsewhere(op):
    inputs = cases.of(op, "smallest")[0].make()
    names = [name for name, value in inputs.items() if isinstance(value, torch.Tensor)]
    for name in names[1:]:
        with pytest.raises(ValueError, match=rf"{name} is on meta, \w+ on cpu"):
            ops.OPS[op](**inputs | {name: inputs[name].to("meta")})
    if not names:  # linear_combine has lists
        pair = [inputs["inputs"][0], inputs["inputs"][0].to("meta")]
        with pytest.raises(ValueError, match=r"on meta, inputs\[0\] is .* on cpu"):
            ops.OPS[op]([[1.0, 1.0]], pair)


class Stream:
    """A stand-in for a CUDA stream: work that is launched adds to its time."""

    def __init__(self):
        self.now, self.log = 5.0, []

    def synchronize(self):
        self.log.append("wait")

    def launch(self, milliseconds):
        self.now += milliseconds
        self.log.append("work")


def events(monkeypatch, stream):
    """Stand-ins for CUDA's events, which read the stream's time."""

    class Event:
        def __init__(self, enable_timing=False):
            assert enable_timing
            self.at = None

        def record(self, where):
            assert where is stream
            self.at = stream.now
            stream.log.append("event")

        def synchronize(self):
            assert self.at is not None
            stream.log.append("wait")

        def elapsed_time(self, other):
            assert stream.log[-1] == "wait"  # else it would raise
            return other.at - self.at

    monkeypatch.setattr(torch.cuda, "Event", Event)
    monkeypatch.setattr(torch.cuda, "current_stream", lambda device: stream)


def test_a_device_is_timed_by_events(monkeypatch):
    stream = Stream()
    events(monkeypatch, stream)
    with timing.timed("cuda:0") as elapsed:
        stream.launch(1.5)
        stream.launch(0.5)
    assert elapsed.seconds == pytest.approx(2e-3)
    assert stream.log == ["wait", "event", "work", "work", "event", "wait"]
    found = timing.interleave(
        {"slow": lambda: stream.launch(4.0), "fast": lambda: stream.launch(1.0)}, rounds=3, device="cuda"
    )
    assert found["slow"].median == pytest.approx(4e-3)
    assert found["fast"].median == pytest.approx(1e-3)
    assert stream.log.count("work") == 2 + (3 + 1 + 3 * 1) + (3 + 1 + 3 * 2)  # rounds of 2 ms


def test_the_cpu_is_timed_by_the_clock(monkeypatch):
    monkeypatch.setattr(torch.cuda, "Event", None)
    with timing.timed() as elapsed:
        sum(range(20000))
    assert 1e-5 < elapsed.seconds < 10
    with pytest.raises(ZeroDivisionError), timing.timed("cpu") as elapsed:
        1 / 0  # noqa: B018
    assert elapsed.seconds == 0


FOLLOWING = ("cli", "profiling", "bench", "models/bundled")
MAKING = {"arange", "empty", "eye", "full", "linspace", "ones", "rand", "randint", "randn", "tensor", "zeros"}


def test_what_follows_a_model_names_its_device():
    """No tensor of these modules is made on the CPU because nobody said where."""
    places = {}
    for folder in FOLLOWING:
        for path in (SOURCES / "fastdiff" / folder).rglob("*.py"):
            tree = ast.parse(path.read_text(encoding="utf-8"))
            made_with_module = {
                id(call)
                for function in ast.walk(tree)
                if isinstance(function, ast.FunctionDef) and function.name == "__init__"
                for call in ast.walk(function)
            }  # buffers go where the module is made, as those of torch.nn do
            for node in ast.walk(tree):
                if not isinstance(node, ast.Call) or not isinstance(node.func, ast.Attribute):
                    continue
                owner = node.func.value
                if isinstance(owner, ast.Name) and owner.id == "torch" and node.func.attr in MAKING:
                    named = "device" in {keyword.arg for keyword in node.keywords} or id(node) in made_with_module
                    places[f"{path.relative_to(SOURCES)}:{node.lineno}"] = named
    assert len(places) > 10
    training = "fastdiff/profiling/train_features.py"  # on the CPU, minutes
    assert [place for place, named in places.items() if not named and not place.startswith(training)] == []


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
def test_a_gpu_that_is_not_there_is_said_before_weights_are_read(monkeypatch):
    monkeypatch.setattr(Path, "read_bytes", lambda path: pytest.fail(f"read {path}"))
    with pytest.raises(ValueError, match="device 'cuda' cannot be used: "):
        fastdiff.load("emoji-unet-32", device="cuda")


def test_the_likelihood_of_what_is_elsewhere_is_refused():
    net, x = Net(), torch.zeros(2, 3, 8, 8)
    common = dict(schedule=OPTIONS["schedule"], prediction="eps")
    with pytest.raises(ValueError, match="x is on meta, the model on cpu"):
        fastdiff.log_likelihood(net, x.to("meta"), **common)
    with pytest.raises(ValueError, match=r"cond\['shift'\] is on meta, the state on cpu"):
        fastdiff.log_likelihood(net, x, cond={"shift": torch.zeros(2, device="meta")}, **common)
