"""Launches of Triton kernels whose arguments are prepared once: what a call still gives are pointers.

Triton's own path takes a call's arguments apart, asks each for its type and whether 16 divides it, makes a key of that
and looks up what it compiled, which takes longer the more arguments there are (docs/notes/op-call.md). A `Launch` goes
that path once per device and alignment of its pointers, keeps what was compiled, and then calls Triton's launcher.

Triton's own path is still taken where somebody watches launches (hooks of profilers), where nothing is launched on a
GPU (the interpreter, compilation ahead of time), and under a Triton whose launcher is not known here.
"""

from __future__ import annotations

import functools
import os
import re
from collections.abc import Callable, Sequence
from operator import attrgetter
from typing import Any, NamedTuple

import triton
from torch import Tensor
from triton.compiler import CompiledKernel
from triton.runtime.driver import driver

from fastdiff.runtime.triton import INTERPRETED

ALIGNMENT = 16  # bytes: Triton compiles a kernel anew where a pointer is not a multiple
MAX_KEPT = 16  # compiled kernels of a launch, for other devices and alignments
MAX_LAUNCHES = 1024  # that `launch` keeps
# The Triton releases, first and last, whose launchers take what `Launch` gives them.
KNOWN = (3, 2), (3, 9)
_VERSION = tuple(int(part) for part in re.findall(r"\d+", triton.__version__)[:2])


def unknown_launcher() -> str | None:
    """Why every launch takes Triton's own path, or None."""
    if KNOWN[0] <= _VERSION <= KNOWN[1]:
        return None
    first, last = (".".join(map(str, version)) for version in KNOWN)
    return f"Triton {triton.__version__} is none of {first} to {last}, and launches by its own, slower path"


def on_gpu(tensor: Tensor) -> bool:
    """Whether a kernel that is given this tensor is launched on a GPU."""
    return tensor.is_cuda and not INTERPRETED


class Prepared(NamedTuple):
    """What Triton's launcher is given beside the pointers; driver and settings: those of the compilation."""

    run: Callable[..., None]
    function: Any
    metadata: Any
    constants: tuple[Any, ...]
    device: int
    driver: Any
    settings: Any


class Launch:
    """A kernel with its grid and all arguments but the pointers, which are its first parameters.

    grid: one to three numbers. arguments: the others, and options of the launch, by name. It is called with the tensors
    of the pointers, in order, all on one device, and launches on that device's current stream. In a place the dtype is
    always the same. It keeps no tensor.
    """

    __slots__ = ("_arguments", "_descriptors", "_grid", "_kept", "_kernel", "_latest", "pointers")

    def __init__(self, kernel: Any, grid: Sequence[int], **arguments: Any) -> None:
        names = list(kernel.arg_names)
        count = len(names) - sum(name in arguments for name in names)
        missing = [name for name in names[count:] if name not in arguments]
        assert not missing, f"{kernel.__name__} lacks {missing}, or has pointers behind other parameters"
        self._kernel, self._arguments, self.pointers = kernel, arguments, names[:count]
        self._grid = (*grid, *(1,) * (3 - len(grid)))
        self._descriptors: list[tuple[int, Callable[[Tensor], Any]]] = []
        self._latest: Prepared | None = None  # where all pointers are aligned
        self._kept: dict[tuple[Any, ...], Prepared] = {}

    def with_descriptors(self, **descriptors: Callable[[Tensor], Any]) -> Launch:
        """The same, with what these make of some tensors in their place, by name: Triton's tensor descriptors."""
        self._descriptors = [(self.pointers.index(name), describe) for name, describe in descriptors.items()]
        return self

    def __call__(self, *tensors: Tensor) -> None:
        prepared = self._latest
        if prepared is not None:
            pointers = [tensor.data_ptr() for tensor in tensors]
            together = 0
            for pointer in pointers:
                together |= pointer
            active, device = driver.active, prepared.device
            if (
                not together % ALIGNMENT
                and tensors[0].get_device() == device == active.get_current_device()
                and prepared.driver is active
                and prepared.settings == _settings()
                and not _watched(self._kernel)
            ):
                x, y, z = self._grid
                run, function, metadata, constants = prepared[:4]
                stream = active.get_current_stream(device)
                given = self._given(tensors, pointers) if self._descriptors else pointers
                run(x, y, z, stream, function, metadata, None, None, None, *given, *constants)
                return
        self._launch(tensors)

    def _launch(self, tensors: tuple[Tensor, ...]) -> None:
        """The same on another device than the latest, with other alignments, or for the first time."""
        assert len(tensors) == len(self.pointers), f"expected tensors for {self.pointers}, got {len(tensors)}"
        if not on_gpu(tensors[0]):
            self._by_triton(tensors)
            return
        active, device = driver.active, tensors[0].get_device()
        before = active.get_current_device()
        if before == device:
            self._on_device(active, device, tensors)
            return
        active.set_current_device(device)
        try:
            self._on_device(active, device, tensors)
        finally:
            active.set_current_device(before)

    def _on_device(self, active: Any, device: int, tensors: tuple[Tensor, ...]) -> None:
        if unknown_launcher() or _watched(self._kernel):
            self._by_triton(tensors)
            return
        pointers = [tensor.data_ptr() for tensor in tensors]
        settings = _settings()
        key = (device, *(pointer % ALIGNMENT == 0 for pointer in pointers))
        prepared = self._kept.get(key)
        if prepared is not None and prepared.driver is active and prepared.settings == settings:
            stream = active.get_current_stream(device)
            prepared.run(
                *self._grid, stream, prepared.function, prepared.metadata, None, None, None,
                *self._given(tensors, pointers), *prepared.constants,
            )  # fmt: skip
        else:
            compiled = self._by_triton(tensors)
            if not isinstance(compiled, CompiledKernel):  # a hook took the compilation over, or it is under way
                return
            constants = self._constants()
            prepared = Prepared(
                compiled.run, compiled.function, compiled.packed_metadata, constants, device, active, settings
            )
            if len(self._kept) >= MAX_KEPT:
                self._kept.clear()
            self._kept[key] = prepared
        if all(key[1:]):
            self._latest = prepared

    def _by_triton(self, tensors: tuple[Tensor, ...]) -> Any:
        """Launch by Triton's own path; what was compiled."""
        return self._kernel[self._grid](**dict(zip(self.pointers, self._given(tensors, tensors))), **self._arguments)

    def _given(self, tensors: Sequence[Tensor], otherwise: Sequence[Any]) -> Sequence[Any]:
        """What the launcher takes for the pointers."""
        if not self._descriptors:
            return otherwise
        given = list(otherwise)
        for place, describe in self._descriptors:
            given[place] = describe(tensors[place])
        return given

    def _constants(self) -> tuple[Any, ...]:
        """The parameters behind the pointers, as the launcher takes them: until Triton 3.2 without constexprs."""
        parameters = self._kernel.params[len(self.pointers) :]
        wanted = [p.name for p in parameters if _VERSION > (3, 2) or not p.is_constexpr]
        return tuple(self._arguments[name] for name in wanted)


def launch(kernel: Any, grid: Sequence[int], **arguments: Any) -> None:
    """Launch a kernel with all arguments by name, the pointers among them. For where nobody keeps a `Launch`: it is
    found by the other arguments, which takes half the time of Triton's own path (docs/notes/op-call.md)."""
    key = (id(kernel), *grid, *[value.dtype if isinstance(value, Tensor) else value for value in arguments.values()])
    known = _launches.get(key)
    if known is None:
        named = {name: value for name, value in arguments.items() if not isinstance(value, Tensor)}
        known = Launch(kernel, grid, **named)
        while len(_launches) >= MAX_LAUNCHES:
            _launches.pop(next(iter(_launches)), None)
        _launches[key] = known
    known(*[arguments[name] for name in known.pointers])


_launches: dict[tuple[Any, ...], Launch] = {}


def _watched(kernel: Any) -> bool:
    """Whether somebody is told of launches, of all or of this kernel's."""
    if kernel.pre_run_hooks:
        return True
    before, after = _hooks(_holder)
    # A chain of hooks has `calls`, a list; before Triton 3.5 it is None or one hook.
    return bool(
        (before is not None and getattr(before, "calls", True)) or (after is not None and getattr(after, "calls", True))
    )


_holder: Any
if hasattr(triton, "knobs"):
    _holder = triton.knobs
    _hooks = attrgetter("runtime.launch_enter_hook", "runtime.launch_exit_hook")
    # What Triton makes part of the key of what it compiled, beside a call's arguments; not each release has all.
    _names = [
        f"{group}.{name}"
        for group, name in (
            ("runtime", "debug"), ("runtime", "add_stages_inspection_hook"), ("compilation", "instrumentation_mode"),
            ("compilation", "fpsan_homomorphic_casts"),
        )
        if hasattr(getattr(_holder, group), name)
    ]  # fmt: skip
    _settings: Callable[[], Any] = functools.partial(attrgetter(*_names), _holder)
else:  # Triton 3.2 and 3.3
    _holder = CompiledKernel
    _hooks = attrgetter("launch_enter_hook", "launch_exit_hook")
    _settings = functools.partial(os.environ.get, "TRITON_DEBUG")
