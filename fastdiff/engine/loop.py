"""The sampling loop: model call, one combine, repeat."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from fastdiff.backends import pick
from fastdiff.engine import cpu
from fastdiff.engine.calls import call_network, join
from fastdiff.engine.cpu import CpuEngine
from fastdiff.engine.reference import ReferenceEngine
from fastdiff.errors import SamplingError
from fastdiff.guidance import Classifier
from fastdiff.noise import CounterNoise, NoiseFunction
from fastdiff.program import Apply, Call, Combine, Program
from fastdiff.transforms import TRANSFORMS

Callback = Callable[[int, Tensor], None]
# Of a call: the network and its name, x, t, its further arguments, and the shape of what it must return.
_Arguments = tuple[Callable[..., Any], str, Tensor, Tensor, Mapping[str, Any], torch.Size]


@torch.no_grad()
def run(
    program: Program,
    model: Callable[..., Any],
    x: Tensor,
    *,
    cond: Mapping[str, Any] | None = None,
    uncond: Mapping[str, Any] | None = None,
    classifier: Classifier | None = None,
    counter: CounterNoise,
    draw: NoiseFunction | None = None,
    callback: Callback | None = None,
) -> Tensor:
    """Run a Program from the state x and return the sample, in x's shape and dtype.

    model(x, t, **cond) gets x (B, ...) in x's dtype and t (B,); in guided calls cond and uncond go in together as one
    batch of 2B. States and times are float32 where x is of a half precision, which has no room for 999. callback(step,
    state) follows every step of a program that keeps its states. Raises SamplingError, naming the step, if the model
    returns another shape or a value that is not finite, or raises an exception itself.
    """
    state_dtype = torch.promote_types(x.dtype, torch.float32)
    batch = len(x)
    guided_inputs = {call.input for call in program.calls if call.guided}
    buffers = [
        torch.empty((2 * batch if slot in guided_inputs else batch, *x.shape[1:]), dtype=state_dtype, device=x.device)
        for slot in range(program.num_slots)
    ]
    for part in buffers[0].split(batch):
        part.copy_(x)

    engine: CpuEngine | ReferenceEngine
    if pick(cpu.supports(program, buffers[0])) == "cpu":
        engine = CpuEngine(program, buffers, batch, counter, draw)
    else:
        draw = draw or (lambda n: counter.draw(n, x.shape, state_dtype).to(x.device, non_blocking=True))
        engine = ReferenceEngine(program, buffers, batch, draw, deferred=x.device.type != "cpu")
    if not torch.isfinite(x).all():
        raise SamplingError("the initial state holds values that are NaN or infinite")
    evaluate = _Evaluator(program, model, classifier, buffers, batch, x.dtype, cond or {}, uncond or {})

    after: dict[int, list[tuple[int, int]]] = {}  # instruction -> (step, buffer of its state)
    for step, (index, slot) in enumerate(program.states if callback else ()):
        after.setdefault(index, []).append((step, slot))
    combine = engine.combine
    outputs: tuple[Tensor | None, Tensor | None] = (None, None)
    call: Call | Apply | None = None
    for index, instruction in enumerate(program.instructions):
        if isinstance(instruction, Call):
            call, outputs = instruction, evaluate(instruction)
        elif isinstance(instruction, Apply):
            inputs = (buffers[slot][:batch] for slot in instruction.inputs)
            result = TRANSFORMS[instruction.function](*inputs, **dict(instruction.parameters))
            call, outputs = instruction, (result.contiguous(), None)
        elif not combine(index, *outputs):
            raise _not_finite(program, call, outputs)
        if after:
            for step, slot in after.get(index, ()):
                callback(step, buffers[slot][:batch])  # type: ignore[misc]
    bad = engine.first_not_finite()
    if bad is not None:
        call = next(i for i in reversed(program.instructions[:bad]) if not isinstance(i, Combine))
        raise _not_finite(program, call, ())
    return buffers[program.result][:batch].to(x.dtype, copy=program.result in guided_inputs)


class _Evaluator:
    """Calls the model for a Call: all that can be made before the loop is made here."""

    def __init__(
        self,
        program: Program,
        model: Callable[..., Any],
        classifier: Classifier | None,
        buffers: list[Tensor],
        batch: int,
        dtype: torch.dtype,
        cond: Mapping[str, Any],
        uncond: Mapping[str, Any],
    ) -> None:
        self.program, self.batch = program, batch
        self.dtype, self.state_dtype = dtype, buffers[0].dtype
        guided = any(call.guided for call in program.calls)
        both = join(cond, uncond, batch) if guided else {}
        alone = dict(cond)
        times = torch.tensor([call.model_time for call in program.calls], dtype=torch.float64)
        table = (
            times.to(buffers[0].device, self.state_dtype)[:, None]
            .expand(-1, 2 * batch if guided else batch)
            .contiguous()
        )
        halves = [buffer[:batch] for buffer in buffers]
        self.halves = halves
        whole = torch.Size((2 * batch, *buffers[0].shape[1:]))
        self.arguments: dict[int, _Arguments] = {}
        for call, t in zip(program.calls, table.unbind()):
            x, shape = (buffers[call.input], whole) if call.guided else (halves[call.input], halves[0].shape)
            t = t[:batch] if guided and not call.guided else t
            if call.network == "classifier":
                assert classifier is not None
                self.arguments[id(call)] = (classifier.gradient, "classifier", x, t, {}, shape)
                continue
            if program.split_output:
                shape = torch.Size((shape[0], 2 * shape[1], *shape[2:]))
            self.arguments[id(call)] = (model, "model", x, t, both if call.guided else alone, shape)

    def __call__(self, call: Call) -> tuple[Tensor, Tensor | None]:
        """(conditional output, unconditional output or None), contiguous and in the state's dtype."""
        network, name, x, t, conditions, shape = self.arguments[id(call)]
        if self.dtype is not self.state_dtype:
            x = x.to(self.dtype)
        out = call_network(network, name, x, t, conditions, shape, self.state_dtype, lambda: where(self.program, call))
        if self.program.split_output and call.network == "model":
            out, variance = out.chunk(2, dim=1)
            if call.variance is not None:
                self.halves[call.variance].copy_(variance[: self.batch])
        if not out.is_contiguous():
            out = out.contiguous()
        if call.guided:
            return out[: self.batch], out[self.batch :]
        return out, None


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
