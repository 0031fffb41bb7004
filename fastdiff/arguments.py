"""Checks of what users give: one a kind of argument. Each names the argument, what was given and what was expected."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from numbers import Integral, Real
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from fastdiff.errors import expect, unknown
from fastdiff.runtime.offloading import HOLDERS

DTYPES = ("float32", "bfloat16", "float16")  # that a command's --dtype takes
STATES = (torch.float32, torch.float64, torch.bfloat16, torch.float16)


def described(value: Any, *, typed: bool = True) -> str:
    """A value in a message: tensors and arrays by dtype and shape, others as Python writes them, in short, and typed:
    with their type."""
    if isinstance(value, Tensor):
        return f"a tensor {str(value.dtype).removeprefix('torch.')} {tuple(value.shape)}"
    if isinstance(value, np.ndarray):
        return f"a NumPy array {value.dtype} {value.shape}"
    text = repr(value)
    text = text if len(text) <= 80 else text[:80] + "..."
    return f"{text} ({type(value).__name__})" if typed else text


def alone(value: Any) -> Any:
    """The number in a tensor or an array that holds one, else the value."""
    if isinstance(value, Tensor) and value.numel() == 1 and not value.is_meta:
        return value.item()
    return value.item() if isinstance(value, np.ndarray) and value.size == 1 else value


def number(name: str, value: Any) -> float:
    """A finite real number, also in a tensor or an array with one value. Raises TypeError for anything else (a bool is
    none), ValueError if it is not finite."""
    found = alone(value)
    if isinstance(found, (bool, np.bool_)) or not isinstance(found, Real):
        raise TypeError(f"{name} must be a finite number, got {described(value)}")
    expect(math.isfinite(found), f"{name} must be a finite number, got {found!r}")
    return float(found)


def whole(name: str, value: Any, least: int) -> int:
    """A whole number of at least that. Raises ValueError for anything else."""
    found = alone(value)
    if isinstance(found, (bool, np.bool_)) or not isinstance(found, Integral) or int(found) < least:
        raise ValueError(f"{name} must be a whole number >= {least}, got {described(value, typed=False)}")
    return int(found)


def flag(name: str, value: Any) -> bool:
    """True or False, of NumPy too. Raises TypeError for anything else."""
    if not isinstance(value, (bool, np.bool_)):
        raise TypeError(f"{name} must be True or False, got {described(value)}")
    return bool(value)


def names(name: str, value: Any) -> tuple[str, ...]:
    """A list of names. Raises TypeError for anything else, one name without its list among it."""
    listed = isinstance(value, Iterable) and not isinstance(value, (str, bytes, Tensor))
    found = tuple(value) if listed else ()
    if not listed or not all(isinstance(each, str) for each in found):
        raise TypeError(f"{name} must be a list of names, got {described(value)}")
    return found


def tolerances(rtol: Any, atol: Any) -> tuple[float, float]:
    """Of an error's size: neither negative, one positive. Raises TypeError or ValueError for anything else."""
    rtol, atol = number("rtol", rtol), number("atol", atol)
    expect(min(rtol, atol) >= 0, f"rtol and atol must not be negative, got {rtol!r} and {atol!r}")
    expect(max(rtol, atol) > 0, "rtol and atol must not both be 0: no error is as small as that")
    return rtol, atol


def interval(name: str, value: Any) -> tuple[float, float]:
    """Two numbers, the first below the second. Raises TypeError or ValueError for anything else."""
    if not isinstance(value, (tuple, list)) or len(value) != 2:
        raise TypeError(f"{name} must be two numbers, (low, high), got {described(value)}")
    low, high = (number(f"{name}[{k}]", each) for k, each in enumerate(value))
    expect(low < high, f"{name} must be increasing, got {described(value, typed=False)}")
    return low, high


def state(name: str, x: Any) -> Tensor:
    """A state (B, ...): raises TypeError for what is no tensor, ValueError for another dtype or no samples."""
    if isinstance(x, np.ndarray):
        raise TypeError(f"{name} must be a tensor (B, ...), got {described(x)}; torch.from_numpy makes a tensor of it")
    if not isinstance(x, Tensor):
        raise TypeError(f"{name} must be a tensor (B, ...), got {described(x)}")
    good = x.dtype in STATES and x.ndim >= 1 and len(x) > 0
    expect(good, f"{name} must be a floating-point tensor (B, ...), got {x.dtype} {tuple(x.shape)}")
    expect(x.layout is torch.strided, f"{name} must be a dense tensor, got {x.layout}; x.to_dense() makes one")
    return x


def shape(value: Any) -> tuple[int, ...]:
    """The shape (B, ...) of samples. Raises TypeError for what is neither that nor a state."""
    if isinstance(value, np.ndarray):
        raise TypeError(
            f"x_init must be a tensor (B, ...), got {described(value)}; torch.from_numpy makes a tensor of it"
        )
    if isinstance(value, (str, bytes, Mapping)) or not isinstance(value, Sequence):
        raise TypeError(
            f"x_init_or_shape must be a tensor (B, ...), or the shape of the samples, like (4, 3, 32, 32), got "
            f"{described(value)}"
        )
    good = len(value) >= 1 and all(isinstance(n, Integral) and not isinstance(n, bool) and int(n) > 0 for n in value)
    expect(good, f"the shape of the samples must be positive whole numbers, got {described(tuple(value))}")
    return tuple(map(int, value))


def network(model: Any) -> None:
    """Raise TypeError for what is no function."""
    if isinstance(model, str):
        raise TypeError(
            f"model must be a function model(x, t, **cond), got the name {model!r}; fastdiff.load(name) gives a "
            "bundled model, and fastdiff.models.load(path) one from a checkpoint"
        )
    if not callable(model):
        raise TypeError(f"model must be a function model(x, t, **cond), got {described(model)}")


def callback(function: Any) -> None:
    """Raise TypeError for what is no function."""
    if function is not None and not callable(function):
        raise TypeError(f"callback must be a function callback(step, state), got {described(function)}")


def conditions(name: str, value: Any, batch: int) -> Mapping[str, Any]:
    """The model's further arguments: a mapping, whose tensors have one row a sample, or one for all of them."""
    if value is None:
        return {}
    if not isinstance(value, Mapping):
        raise TypeError(
            f"{name} must hold the model's arguments by their names, like {{'y': y}}, got {described(value)}"
        )
    for key in value:
        if not isinstance(key, str):
            raise TypeError(f"{name} must hold the model's arguments by their names, got the name {described(key)}")
    _check_rows(name, value, batch)
    return value


def constants(name: str, value: Any, x: Tensor) -> Mapping[str, Tensor]:
    """Tensors by name, of the state's shape and device and in the precision of its sums. Raises TypeError for what is
    no mapping of tensors, ValueError for one that is not finite, is elsewhere or cannot be broadcast to the state."""
    if value is None:
        return {}
    if not isinstance(value, Mapping):
        raise TypeError(f"{name} must hold tensors by their names, got {described(value)}")
    found = {}
    for key, each in value.items():
        if not isinstance(each, Tensor):
            raise TypeError(f"{name}[{key!r}] must be a tensor, got {described(each)}")
        shapes = zip(reversed(each.shape), reversed(x.shape))
        fits = each.ndim <= x.ndim and all(own in (1, wanted) for own, wanted in shapes)
        expect(fits, f"{name}[{key!r}] must have the state's shape {tuple(x.shape)}, got {tuple(each.shape)}")
        expect(each.device == x.device, f"{name}[{key!r}] is on {each.device}, the state on {x.device}")
        expect(bool(torch.isfinite(each).all()), f"{name}[{key!r}] holds values that are NaN or infinite")
        found[key] = each.to(torch.promote_types(x.dtype, torch.float32)).expand(x.shape)
    return found


def _check_rows(name: str, value: Mapping[Any, Any], batch: int) -> None:
    for key, each in value.items():
        if isinstance(each, Mapping):
            _check_rows(f"{name}[{key!r}]", each, batch)
        elif isinstance(each, Tensor) and each.ndim > 0 and len(each) not in (1, batch):
            raise ValueError(
                f"{name}[{key!r}] must be ({batch}, ...), one row a sample, or (1, ...), got {tuple(each.shape)}; an "
                f"argument without samples goes into the model, as in functools.partial(model, {key}=...)"
            )


def seeds(seed: Any, batch: int) -> int | tuple[int, ...]:
    """One seed, or one a sample: whole numbers, also of NumPy and in arrays and tensors. Raises ValueError."""
    if isinstance(seed, torch.Generator):
        raise ValueError("seed must be a whole number or one a sample; a torch.Generator goes to noise=")
    given = seed
    if isinstance(seed, (Tensor, np.ndarray)):
        seed = seed.tolist()
    if isinstance(seed, Integral):
        return _seed(seed, given)
    what = "seed must be a whole number, one a sample, or None"
    expect(isinstance(seed, Sequence) and not isinstance(seed, (str, bytes)), f"{what}, got {described(given)}")
    expect(len(seed) == batch, f"seed must be one number or one a sample ({batch}), got {len(seed)}")
    return tuple(_seed(each, given) for each in seed)


def _seed(seed: Any, given: Any) -> int:
    seed = alone(seed)
    if isinstance(seed, (bool, np.bool_)) or not isinstance(seed, Integral) or not 0 <= int(seed) < 2**64:
        raise ValueError(f"seed must be whole numbers in [0, 2**64), got {described(given)}")
    return int(seed)


def scales(name: str, value: Any) -> float | tuple[float, ...]:
    """One number, or several, one a sample. Raises TypeError for anything else, ValueError if one is not finite."""
    if isinstance(value, (Tensor, np.ndarray)) and value.ndim == 1 and len(value) > 1:
        value = value.tolist()
    if isinstance(value, (list, tuple)):
        found = tuple(number(f"{name}[{k}]", each) for k, each in enumerate(value))
        expect(len(found) > 0, f"{name} must be a number, or one a sample, got none")
        return found[0] if len(found) == 1 else found
    return number(name, value)


def device(name: str, value: Any) -> torch.device:
    """Where to compute: "cpu", "cuda" or "cuda:N", or a torch.device; a GPU has its number then.

    Raises TypeError for anything else, ValueError for other kinds of devices and for a GPU that is not there.
    """
    known = "expected cpu, cuda or cuda:N"
    if not isinstance(value, (str, torch.device)):
        raise TypeError(f"{name} must be the name of a device, {known}, got {described(value)}")
    try:
        found = torch.device(value)
    except RuntimeError:  # whose message lists what PyTorch knows, over several lines
        found = None
    expect(found is not None and found.type in ("cpu", "cuda"), f"{name} {str(value)!r} cannot be used: {known}")
    assert found is not None
    if found.type == "cpu":
        expect(not found.index, f"{name} {str(value)!r} cannot be used: there is one CPU, {known}")
        return torch.device("cpu")
    built = torch.version.cuda is not None or torch.version.hip is not None
    why = "torch sees no GPU" if built else "this build of PyTorch has no CUDA"
    expect(torch.cuda.is_available(), f"{name} {str(value)!r} cannot be used: {why}")
    count = torch.cuda.device_count()
    index = torch.cuda.current_device() if found.index is None else found.index
    gpus = "there is 1 GPU, cuda:0" if count == 1 else f"there are {count} GPUs, cuda:0 to cuda:{count - 1}"
    expect(index < count, f"{name} {str(value)!r} cannot be used: {gpus}")
    return torch.device("cuda", index)


def dtype(name: str, value: Any) -> torch.dtype:
    """What a network computes in, by its name or itself: float32, bfloat16 or float16. Raises ValueError for others."""
    text = str(value).removeprefix("torch.")
    if text not in DTYPES:
        raise unknown(name, text, DTYPES)
    return getattr(torch, text)  # type: ignore[no-any-return]


def same_device(name: str, value: Mapping[str, Any], where: torch.device) -> None:
    """Raise ValueError for a tensor, in mappings too, that is not where the state is. One without dimensions may be on
    the CPU, as PyTorch takes it anywhere."""
    for key, each in value.items():
        if isinstance(each, Mapping):
            same_device(f"{name}[{key!r}]", each, where)
        elif isinstance(each, Tensor) and each.device != where and (each.ndim or not each.is_cpu):
            raise ValueError(
                f"{name}[{key!r}] is on {each.device}, the state on {where}; move it with .to({str(where)!r})"
            )


def beside_model(name: str, x: Tensor, model: Any) -> None:
    """Raise ValueError where the model's parameters are all on another device than x, and no hook moves them."""
    first = next(model.parameters(), None) if isinstance(model, nn.Module) else None
    if first is None or first.device == x.device:
        return
    moved = any(hasattr(part, holder) for part in model.modules() for holder in HOLDERS)
    if not moved and all(parameter.device == first.device for parameter in model.parameters()):
        raise ValueError(
            f"{name} is on {x.device}, the model on {first.device}; move one to the other with .to(device)"
        )
