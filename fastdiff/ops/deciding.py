"""Who computes a call on a GPU when no gradient is wanted: the operator's candidates, and the decision among them."""

from __future__ import annotations

import threading
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from fastdiff.ops.candidates import FINDERS, Found, default
from fastdiff.ops.candidates.attention import oracle
from fastdiff.runtime import agreement, choice, gpu_table, tuning
from fastdiff.runtime.candidates import TORCH, Candidate
from fastdiff.runtime.device import properties
from fastdiff.runtime.triton import convolution_precision, precision

_settled: dict[tuple[Any, ...], Candidate] = {}
_failed: dict[tuple[str, torch.dtype], str] = {}  # (operator, type): why its Triton kernel did not run
_lock = threading.Lock()


def found(op: Any, a: Any) -> Found:
    """The candidates for a call, by name in order of preference, and what the table asks of it."""
    return FINDERS.get(op.name, default)(op, a)


def decide(op: Any, a: Any) -> Candidate:
    """The candidate for a call: by the table, by times kept, or by timing now. Checked arguments on a GPU.

    The answer for the same signature (shapes, strides, types, settings) comes from a dictionary, unless the candidate
    is not `settled`. Raises ValueError for a FASTDIFF_TUNE that is no setting.
    """
    if not op.timed:
        return replace(found(op, a).candidates[0], settled=False)
    key = (op.name, *signature(op, a))
    known = _settled.get(key)
    if known is not None:
        return known
    candidate = tuning.tuner.decide(problem(op, a, key))
    if candidate.settled:
        with _lock:
            _settled[key] = candidate
    return candidate


def instead(op: Any, a: Any, candidate: Candidate, error: Exception) -> Any:
    """The results by the next best candidates, after one failed in a call. Raises the error if nothing is left to try,
    or if another candidate would fare no better: memory is spent, or the device is lost."""
    while True:
        if candidate.name == TORCH or isinstance(error, torch.OutOfMemoryError) or tuning.is_fatal(error):
            raise error
        if op.timed:
            key = (op.name, *signature(op, a))
            with _lock:
                _settled.pop(key, None)
            tuning.tuner.drop(problem(op, a, key), candidate.name, error)
        else:
            triton_failed(op, op.first(a), error)
        candidate = decide(op, a)
        try:
            return candidate.run(a)
        except Exception as another:
            error = another


def triton_failed(op: Any, x: Tensor, error: Exception) -> None:
    """Keep that an operator's Triton kernel did not run with a gradient or under torch.compile, so that PyTorch takes
    its place for this type. Raises the error if PyTorch would fare no better, or Triton was insisted on."""
    if choice.current() == "triton" or isinstance(error, torch.OutOfMemoryError) or tuning.is_fatal(error):
        raise error
    reason = tuning.said(error)
    _failed[op.name, x.dtype] = reason
    tuning.tuner.warn(f"{op.name}: Triton's kernel failed ({reason}); PyTorch takes its place")


def why_triton_failed(op: Any, x: Tensor) -> str | None:
    """What triton_failed kept, or None."""
    return _failed.get((op.name, x.dtype)) if _failed else None


def forget() -> None:
    """Drop all decisions, for tests."""
    with _lock:
        _settled.clear()
        _failed.clear()


def signature(op: Any, a: Any) -> tuple[Any, ...]:
    """What decides which candidate is the quickest: shapes, strides and alignment, types, options; of numbers the
    sign."""
    return (op.first(a).device, *(_of_value(value) for value in a), *_settings(op.first(a).dtype))


def _of_value(value: Any) -> Any:
    if isinstance(value, Tensor):
        return value.dtype, value.shape, value.stride(), value.data_ptr() % 16 == 0
    if isinstance(value, float):
        return value > 0
    return tuple(map(_of_value, value)) if isinstance(value, (list, tuple)) else value


def _settings(dtype: torch.dtype) -> tuple[Any, ...]:
    """Those of PyTorch that decide which kernels run, or how exact they must be."""
    exact = () if dtype != torch.float32 else (precision(), convolution_precision())
    return (torch.are_deterministic_algorithms_enabled(), torch.backends.cudnn.benchmark, *exact)


def problem(op: Any, a: Any, key: tuple[Any, ...]) -> tuning.Problem:
    """What is to be decided for a call; key: (op.name, *signature(op, a))."""
    x = op.first(a)
    candidates, features, absent = found(op, a)
    device = properties(x.device)
    kind = {2: "half", 4: "single"}.get(x.element_size(), "double")
    row, nearest = gpu_table.find(op.name, device.exact, kind, features) if features is not None else (None, None)
    name = torch.cuda.get_device_name(x.device) if x.is_cuda else x.device.type
    whole = " ".join([name, device.exact, tuning.versions(), *map(_text, (op.name, *key[2:]))])
    return tuning.Problem(
        key=whole, title=_title(op, a), device=x.device, candidates=candidates, row=row, nearest=nearest,
        make=lambda: agreement.random_like(a), reference=lambda b: op.plainly(b, False),
        oracle=lambda b: _exact(op, agreement.widened(b)), absent={**_absent(op, a), **absent}, features=features,
    )  # fmt: skip


def _absent(op: Any, a: Any) -> dict[str, str]:
    """Why there is no kernel of ours for a call, where the operator has one."""
    reason = op.unsupported_by_triton(a) if op.has_triton else None
    return {} if reason is None else {"triton": reason}


def _exact(op: Any, wide: Any) -> Any:
    """The operator's reference for arguments in float64."""
    if op.name == "attention" and not wide.return_maps:
        return oracle(op, wide)
    return op.plainly(wide, False)


def _text(value: Any) -> str:
    return str(value).replace("torch.", "").replace(" ", "")


def _title(op: Any, a: Any) -> str:
    """An operator with the shapes of its tensors and what else is particular, for the reader."""
    words = [op.name, _text(op.first(a).dtype)]
    for name, value in zip(a._fields, a):
        shapes = ["x".join(map(str, t.shape)) for t in agreement.tensors(value)]
        if shapes:
            words.append(f"{name} {' '.join(shapes)}")
        elif isinstance(value, (bool, str, int)) and value not in (False, "none"):
            words.append(f"{name}={value}")
    return " ".join(words)
