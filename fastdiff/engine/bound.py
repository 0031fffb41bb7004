"""A Program bound to memory and to a model: model call, one combine, repeat."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.utils import _pytree as pytree

from fastdiff.engine import cpu, device
from fastdiff.engine.calls import call_network, join
from fastdiff.engine.cpu import CpuEngine
from fastdiff.engine.device import DeviceEngine
from fastdiff.engine.inputs import Inputs
from fastdiff.engine.reference import ReferenceEngine
from fastdiff.errors import SamplingError, expect
from fastdiff.program import Apply, Call, Combine, Program
from fastdiff.program.transforms import TRANSFORMS
from fastdiff.runtime import choice, runs

Callback = Callable[[int, Tensor], None]
# Of a call: the network and its name, x, t, its further arguments, and the shape of what it must return.
_Arguments = tuple[Callable[..., Any], str, Tensor, Tensor, Mapping[str, Any], torch.Size]


def choose_engine(program: Program, x: Tensor) -> str:
    """ "cpu", "device" or "reference" for a run from the state x, under the backend in force."""
    reason = cpu.supports(program, x.device, torch.promote_types(x.dtype, torch.float32))
    picked = choice.pick(reason, triton=lambda: device.supports(program, x), op="sampling loop")
    return "device" if picked == "triton" else picked


class Bound:
    """engine: what choose_engine says; the other arguments are those of fastdiff.engine.run."""

    def __init__(self, engine: str, program: Program, model: Callable[..., Any], x: Tensor, inputs: Inputs) -> None:
        self.program, self.dtype, self.batch = program, x.dtype, len(x)
        batch, state_dtype = self.batch, torch.promote_types(x.dtype, torch.float32)
        doubled = {call.input for call in program.calls if call.guided}
        # A device's engine whose model has another type keeps what the model reads apart.
        with_copies = doubled if engine != "device" or x.dtype == state_dtype else set()
        self.buffers = buffers = [
            torch.empty((2 * batch if slot in with_copies else batch, *x.shape[1:]), dtype=state_dtype, device=x.device)
            for slot in range(program.num_slots)
        ]
        self.engine: CpuEngine | DeviceEngine | ReferenceEngine
        read, output_dtype = buffers, state_dtype
        if engine == "cpu":
            self.engine = CpuEngine(program, buffers, batch, inputs)
        elif engine == "device":
            self.engine = DeviceEngine(program, buffers, x.dtype, batch, inputs, doubled)
            read, output_dtype = self.engine.read, x.dtype
        else:
            self.engine = ReferenceEngine(program, buffers, batch, inputs, deferred=x.device.type != "cpu")
        self.read = read
        self.copied = program.result in with_copies
        self.evaluate = _Evaluator(program, model, buffers, read, batch, x.dtype, output_dtype, inputs)

    def start(self, x: Tensor, inputs: Inputs) -> None:
        """From this state, with these constant tensors. Raises SamplingError if it is not finite."""
        for slot, value in ((0, x), *((slot, inputs.tensors[name]) for name, slot in self.program.tensors)):
            for target in {id(t): t for t in (self.buffers[slot], self.read[slot])}.values():
                for part in target.split(self.batch):
                    part.copy_(value)
        if not torch.isfinite(x).all():
            raise SamplingError("the initial state holds values that are NaN or infinite")

    def loop(self, callback: Callback | None = None) -> None:
        """All instructions. callback(step, state): after every step of a program that keeps its states."""
        program, buffers, batch, evaluate = self.program, self.buffers, self.batch, self.evaluate
        after: dict[int, list[tuple[int, int]]] = {}  # instruction -> (step, buffer of its state)
        for step, (index, slot) in enumerate(program.states if callback else ()):
            after.setdefault(index, []).append((step, slot))
        combine = self.engine.combine
        outputs: tuple[Tensor | None, Tensor | None] = (None, None)
        call: Call | Apply | None = None
        for index, instruction in enumerate(program.instructions):
            if isinstance(instruction, Call):
                call, outputs = instruction, evaluate(instruction)
            elif isinstance(instruction, Apply):
                quantities = (buffers[slot][:batch] for slot in instruction.inputs)
                result = TRANSFORMS[instruction.function](*quantities, **dict(instruction.parameters))
                call, outputs = instruction, (result.contiguous(), None)
            elif not combine(index, *outputs):
                raise _not_finite(program, call, outputs)
            if after:
                for step, slot in after.get(index, ()):
                    callback(step, buffers[slot][:batch])  # type: ignore[misc]

    def finish(self) -> Tensor:
        """The sample. Raises SamplingError, naming the step, if something was not finite and it was not said yet."""
        bad, program = self.engine.first_not_finite(), self.program
        if bad is not None:
            call = next((i for i in reversed(program.instructions[:bad]) if not isinstance(i, Combine)), None)
            raise _not_finite(program, call, ())
        return self.buffers[program.result][: self.batch].to(self.dtype, copy=self.copied)

    def memory(self) -> list[Tensor]:
        """All tensors that a graph of the loop reads and writes, apart from its activations and the model's."""
        held = [self.buffers, self.read, vars(self.engine), vars(self.evaluate)]
        return [each for each in pytree.tree_leaves(held) if isinstance(each, Tensor)]


class _Evaluator:
    """Calls the model for a Call: all that can be made before the loop is made here."""

    def __init__(
        self,
        program: Program,
        model: Callable[..., Any],
        buffers: list[Tensor],
        read: list[Tensor],
        batch: int,
        dtype: torch.dtype,
        output_dtype: torch.dtype,
        inputs: Inputs,
    ) -> None:
        self.program, self.batch = program, batch
        self.device = buffers[0].device
        self.dtype, self.state_dtype, self.output_dtype = dtype, buffers[0].dtype, output_dtype
        guided = program.guided
        both = join(inputs.cond, inputs.uncond, batch) if guided else {}
        alone = dict(inputs.cond)
        self.conditions, self.both, self.uncond = alone, both, dict(inputs.uncond) if both is None else {}
        width = 2 * batch if guided else batch
        self.times = table = self._times(program).expand(-1, width).contiguous()
        halves = [buffer[:batch] for buffer in read]
        self.halves = [buffer[:batch] for buffer in buffers]
        whole = torch.Size((2 * batch, *buffers[0].shape[1:]))
        self.arguments: dict[int, _Arguments] = {}
        for call, t in zip(program.calls, table.unbind()):
            in_one = call.guided and both is not None
            x, shape = (read[call.input], whole) if in_one else (halves[call.input], halves[0].shape)
            t = t if in_one or width == batch else t[:batch]  # a view takes a microsecond
            if call.network != "model":
                name, known = call.network, inputs.gradients
                expect(name in known, f"the program calls {name!r}, got gradients {sorted(known)}")
                self.arguments[id(call)] = (known[name], name, x, t, {}, shape)
                continue
            if program.split_output:
                shape = torch.Size((shape[0], 2 * shape[1], *shape[2:]))
            self.arguments[id(call)] = (model, "model", x, t, alone if both is None or not call.guided else both, shape)

    def _times(self, program: Program) -> Tensor:
        """(calls, 1)."""
        times = torch.tensor([call.model_time for call in program.calls], dtype=torch.float64, device="cpu")
        return times.to(self.device, self.state_dtype)[:, None]

    def load(self, program: Program, inputs: Inputs) -> None:
        """Other times and conditions of the same shapes, in the same places."""
        self.program = program
        self.times.copy_(self._times(program).expand_as(self.times))
        if self.both:
            _copy_into(self.both, join(inputs.cond, inputs.uncond, self.batch) or {})
        _copy_into(self.conditions, inputs.cond)
        _copy_into(self.uncond, inputs.uncond)

    def release(self) -> None:
        """Let the model go: a captured graph calls it no more."""
        self.arguments.clear()

    def __call__(self, call: Call) -> tuple[Tensor, Tensor | None]:
        """(conditional output, unconditional output or None), contiguous and in the state's dtype."""
        network, name, x, t, conditions, shape = self.arguments[id(call)]
        if x.dtype is not self.dtype:
            x = x.to(self.dtype)
        at = (shape, self.output_dtype, lambda: where(self.program, call))
        out = call_network(network, name, x, t, conditions, *at)
        if call.guided and self.both is None:
            with runs.branch("uncond"):
                out = torch.cat([out, call_network(network, name, x, t, self.uncond, *at)])
        if self.program.split_output and call.network == "model":
            out, variance = out.chunk(2, dim=1)
            if call.variance is not None:
                self.halves[call.variance].copy_(variance[: self.batch])
        if not out.is_contiguous():
            out = out.contiguous()
        if call.guided:
            return out[: self.batch], out[self.batch :]
        return out, None


def _copy_into(targets: Mapping[str, Any], values: Mapping[str, Any]) -> None:
    for key, target in targets.items():
        if isinstance(target, Tensor):
            target.copy_(values[key])
        elif isinstance(target, Mapping):
            _copy_into(target, values[key])


def where(program: Program, call: Call | Apply) -> str:
    """For messages: the solver, and the step that a call belongs to."""
    time = f" (t={call.point.t:.6g})" if isinstance(call, Call) else f" ({call.function})"
    return f"{program.name}, step {call.step + 1} of {program.calls[-1].step + 1}{time}"


def _not_finite(program: Program, call: Call | Apply | None, outputs: Sequence[Tensor | None]) -> SamplingError:
    """What to say of a combine whose results are not all finite; outputs: of the call before it, if they are still
    known."""
    if call is None:
        return SamplingError("the initial state overflowed when it was scaled for the first call of the model")
    bad = sum(int((~torch.isfinite(out)).sum()) for out in outputs if out is not None)
    if bad:
        name = call.network if isinstance(call, Call) else call.function
        return SamplingError(f"{where(program, call)}: the {name} returned {bad} values that are NaN or infinite")
    if not outputs:
        return SamplingError(f"{where(program, call)}: the state or the model's output is NaN or infinite")
    return SamplingError(f"{where(program, call)}: the state overflowed, though the model's output is finite")
