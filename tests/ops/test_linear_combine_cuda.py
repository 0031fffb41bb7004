"""The solver's step as a GPU does it: the same function a thread, run on the CPU; and what nvcc makes of it."""

import itertools
import math
import re
import shutil
import subprocess
from pathlib import Path

import pytest
import torch

from fastdiff.noise import CounterNoise
from fastdiff.ops import linear_combine
from fastdiff.program import KINDS
from fastdiff.runtime.native import core

ROOT = Path(__file__).parents[2]
BUFFER, COND, UNCOND, NOISE = range(len(KINDS))
TYPES = [
    (torch.float32, torch.float32),
    (torch.float32, torch.float16),
    (torch.float32, torch.bfloat16),
    (torch.float64, torch.float64),
]
NAMES = {torch.float64: "float64", torch.float32: "float32", torch.float16: "float16", torch.bfloat16: "bfloat16"}


class Step:
    """A step of random numbers on the CPU. kinds: of its inputs, as in a Program's tables."""

    def __init__(self, shape, kinds, outputs, state, model, *, copies=2, keep=True, offset=0, seed=(7, 2**40 + 3)):
        torch.manual_seed(0)
        self.shape, self.kinds, self.state, self.model = shape, kinds, state, model
        size = math.prod(shape)

        def make(dtype):
            return torch.randn(size + offset, dtype=torch.float64).to(dtype)[offset:].reshape(shape)

        self.values = [make(state if kind == BUFFER else model) for kind in kinds]
        self.counter = CounterNoise(seed[:1] * shape[0], tuple(range(seed[1], seed[1] + shape[0])))
        for k, kind in enumerate(kinds):
            if kind == NOISE:
                self.values[k] = self.counter.draw(k, shape, state)
        self.coefficients = torch.randn(outputs, len(kinds), dtype=torch.float64).to(state).tolist()
        nan = float("nan")
        self.states = [torch.full(shape, nan, dtype=state) if keep else None for _ in range(outputs)]
        self.copies = [[torch.full(shape, nan, dtype=model) for _ in range(copies)] for _ in range(outputs)]
        self.keys = torch.tensor([[s - (s >> 63 << 64), n] for s, n in zip(self.counter.seeds, self.counter.samples)])
        self.broken = torch.zeros(1, dtype=torch.int32)

    def run(self):
        table = torch.zeros(len(self.kinds), core.padded_outputs(len(self.states)), dtype=self.state)
        table[:, : len(self.states)] = torch.tensor(self.coefficients, dtype=self.state).t()
        plan = core.StepPlan(
            state=NAMES[self.state], model=NAMES[self.model], batch=self.shape[0],
            elements=math.prod(self.shape[1:]), keys=self.keys.data_ptr(), broken=self.broken.data_ptr(), launch=0,
            device=0,
        )  # fmt: skip
        addresses = {kind: value.data_ptr() for kind, value in zip(self.kinds, self.values)}
        numbers = [
            k if kind == NOISE else v.data_ptr() if kind == BUFFER else 0
            for k, (kind, v) in enumerate(zip(self.kinds, self.values))
        ]
        pad = [0, 0]
        outputs = [
            [0 if state is None else state.data_ptr(), *([c.data_ptr() for c in copies] + pad)[:2]]
            for state, copies in zip(self.states, self.copies)
        ]
        index = plan.add(self.kinds, numbers, outputs, table.data_ptr())
        plan.run(index, addresses.get(COND, 0), addresses.get(UNCOND, 0), 0)

    def check(self):
        """Products and sums rounded one by one in the order of the inputs, as torch does: the same bits."""
        expected = linear_combine.plain(self.coefficients, [value.to(self.state) for value in self.values])
        for state, copies, want in zip(self.states, self.copies, expected):
            assert state is None or torch.equal(state, want)
            assert all(torch.equal(copy, want.to(self.model)) for copy in copies)
        assert not self.broken.item()


KINDS_OF_STEPS = [
    [BUFFER],
    [BUFFER, COND],
    [COND, UNCOND, BUFFER],
    [BUFFER, COND, NOISE],
    [NOISE, BUFFER, NOISE, COND, UNCOND],
    [BUFFER] * 14 + [COND, UNCOND],
]


@pytest.mark.parametrize(("state", "model"), TYPES)
@pytest.mark.parametrize("kinds", KINDS_OF_STEPS, ids=str)
def test_steps(kinds, state, model):
    for shape, outputs in itertools.product([(1, 1), (2, 4, 8, 8), (3, 7, 5), (1, 1000)], (1, 2, 3, 5, 8)):
        step = Step(shape, kinds, outputs, state, model)
        step.run()
        step.check()


@pytest.mark.parametrize(("state", "model"), TYPES)
def test_places_that_are_not_aligned(state, model):
    for shape, offset in itertools.product([(2, 64), (3, 13)], (0, 1, 2, 3)):
        step = Step(shape, [BUFFER, COND], 2, state, model, offset=offset)
        step.run()
        step.check()


@pytest.mark.parametrize("copies", [0, 1])
@pytest.mark.parametrize("keep", [True, False])
def test_outputs_that_nobody_wants_are_not_written(copies, keep):
    step = Step((2, 64), [BUFFER, COND], 2, torch.float32, torch.float16, copies=copies, keep=keep)
    step.run()
    step.check()


def test_an_output_may_be_an_input():
    step = Step((2, 33), [BUFFER, COND, NOISE], 2, torch.float32, torch.float32)
    expected = linear_combine.plain(step.coefficients, step.values)
    step.states[1] = step.values[0]
    step.run()
    assert torch.equal(step.states[0], expected[0])
    assert torch.equal(step.values[0], expected[1])


@pytest.mark.parametrize("bad", [float("nan"), float("inf"), -float("inf")])
@pytest.mark.parametrize("shape", [(2, 64), (1, 13)])
def test_what_is_not_finite_is_reported(shape, bad):
    for place in range(math.prod(shape)):
        step = Step(shape, [BUFFER, COND], 2, torch.float32, torch.float32)
        step.values[1].view(-1)[place] = bad
        step.run()
        assert step.broken.item() == 1


def test_half_precision_is_rounded_as_torch_does():
    """All float16 and bfloat16 numbers, and what lies between them."""
    bits = torch.arange(-(2**15), 2**15, dtype=torch.int32).to(torch.int16)
    for model in (torch.float16, torch.bfloat16):
        exact = bits.view(model)
        exact = exact[exact.isfinite()][None]
        step = Step(exact.shape, [COND], 1, torch.float32, model)
        step.values, step.coefficients = [exact], [[1.0]]
        step.run()
        step.check()
        between = exact.float()[:, 1:] / 2 + exact.float()[:, :-1] / 2
        for shift in (1 - 2e-7, 1.0, 1 + 2e-7):
            step = Step(between.shape, [BUFFER], 1, torch.float32, model)
            step.values, step.coefficients = [(between * shift).clamp(-3e38, 3e38)], [[1.0]]
            step.run()
            step.check()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (([0] * (core.MAX_INPUTS + 1), [0] * (core.MAX_INPUTS + 1), [(0, 0, 0)], 0), "at most 16 inputs"),
        (([0], [0], [], 0), "1 to 8 outputs"),
        (([0, 1], [0], [(0, 0, 0)], 0), "each with a number"),
    ],
)
def test_bad_steps(arguments, message):
    plan = core.StepPlan(state="float32", model="float32", batch=1, elements=1, keys=0, broken=0, launch=0, device=0)
    with pytest.raises(ValueError, match=message):
        plan.add(*arguments)
    with pytest.raises(ValueError, match="needs an output"):
        plan.run(plan.add([1], [0], [(0, 0, 0)], 0), 0, 0, 0)
    with pytest.raises(ValueError, match="no step of"):
        core.StepPlan(state="float16", model="float32", batch=1, elements=1, keys=0, broken=0, launch=0, device=0)


def test_no_launch_is_too_large():
    with pytest.raises(ValueError, match="too large"):
        core.StepPlan(
            state="float32", model="float32", batch=2**20, elements=2**22, keys=0, broken=0, launch=0, device=0
        )


# ---- what nvcc makes of it -------------------------------------------------------------------------------------------

nvcc = pytest.mark.skipif(shutil.which("nvcc") is None, reason="no nvcc on the PATH")


@nvcc
@pytest.mark.parametrize("target", ["sm_80", "sm_90a", "sm_100"])
def test_nvcc_spills_nothing(target, tmp_path):
    code = f"arch={target.replace('sm', 'compute')},code={target}"
    result = subprocess.run(
        ["nvcc", "-std=c++17", "-O3", "--fmad=false", "-gencode", code, "-Xptxas", "-v", "-cubin",
         "-I", ROOT / "csrc" / "include", "-o", tmp_path / "out.cubin", ROOT / "csrc" / "cuda" / "linear_combine.cu"],
        capture_output=True, text=True, check=True,
    )  # fmt: skip
    frames = re.findall(r"(\d+) bytes stack frame, (\d+) bytes spill stores, (\d+) bytes spill loads", result.stderr)
    registers = [int(n) for n in re.findall(r"Used (\d+) registers", result.stderr)]
    assert len(frames) == len(registers) == 4 * 4 * 2  # types, outputs, layouts
    assert set(frames) == {("0", "0", "0")}
    assert max(registers) <= 128  # a block of 256 threads is resident twice on every target
