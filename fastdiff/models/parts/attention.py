"""The attention of all models, and controllers that see and change its maps (Hertz et al. 2022, Prompt-to-Prompt).

class Sharper(Controller):
    def wants(self, place):
        return place.kind == "cross" and place.size == (16, 16)

    def edit(self, place, maps):
        return (2 * maps.log()).softmax(-1)

with controlled(model, Sharper()):
    samples = fastdiff.sample(model, ...)
"""

from __future__ import annotations

import sys
import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass
from typing import NamedTuple

from torch import Tensor, nn

from fastdiff.models.parts.diffusers_attention import through
from fastdiff.ops.attention import attention
from fastdiff.runtime import eager


@dataclass(frozen=True)
class Place:
    """Which attention it is.

    name: of the layer in the model that is controlled, as in `named_modules`, e.g. "down.1.1.blocks.0.attn2". kind:
    "self"; "cross", where the keys are a context's; "joint", where a context's keys come before the layer's own. size:
    (H, W) of the queries, row by row, which tokens of a condition may follow; () where they are no grid.
    """

    name: str
    kind: str
    size: tuple[int, ...]


class Controller:
    """Sees the attention of the layers that it wants, and may change it: override `wants`, and `edit` or `attend`."""

    def wants(self, place: Place) -> bool:
        """Whether the controller is given this call of this layer. Other layers run the fused operator, as always."""
        return True

    def edit(self, place: Place, maps: Tensor) -> Tensor:
        """The maps to use. maps: (B, heads, queries, keys), each row of sum 1, in the dtype of the queries; B is twice
        the batch in guided calls, the conditional half first."""
        return maps

    def attend(self, place: Place, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        """The result, (B, heads, queries, D), from q (B, heads, queries, D), k and v (B, heads, keys, D): the edited
        maps times v. To be overridden where more than the maps changes, as in IP-Adapter and MasaCtrl, or where the
        result needs no maps. It is not asked where there is a mask: there a controller needs `edit`."""
        return self._edited(place, q, k, v, None)

    def _edited(self, place: Place, q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None) -> Tensor:
        _, maps = attention(q, k, v, mask=mask, return_maps=True)
        edited = self.edit(place, maps)
        if not isinstance(edited, Tensor) or edited.shape != maps.shape:
            got = tuple(edited.shape) if isinstance(edited, Tensor) else type(edited).__name__
            raise ValueError(f"edit must return maps of the shape {tuple(maps.shape)} at {place.name}, got {got}")
        return edited @ v


@contextmanager
def controlled(model: nn.Module, controller: Controller) -> Iterator[None]:
    """Inside the block, and in this thread, the model's attention asks the controller.

    Attention of diffusers networks is seen as well, where its processor is a usual one: not that of an IP-Adapter, and
    not that with added keys. Blocks may be nested: a layer goes to the innermost controller that wants it. The model
    runs as it is written, also after `fastdiff.optimize`, and its sampling loop is not captured as a CUDA graph.
    """
    eager.leave_untraced(sys.modules[__name__], "_by_controller")
    names = {module: name for name, module in model.named_modules()}
    token = _controllers.set((*_controllers.get(), (controller, names)))
    _count(1)
    try:
        with eager.as_written("a controller sees the attention"), through(model, attend):
            yield
    finally:
        _count(-1)
        _controllers.reset(token)


def attend(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    *,
    layer: nn.Module,
    kind: str,
    size: Sequence[int] = (),
    mask: Tensor | None = None,
    scale: float | None = None,
) -> Tensor:
    """Attention with its heads put together: (B, heads, S, D), (B, heads, T, D) twice -> (B, S, heads D).

    Every attention of a model goes through this. layer: the module that calls. kind, size: see `Place`. mask, scale: as
    of `fastdiff.ops.attention`.
    """
    if _anywhere:
        out = _by_controller(q, k, v, layer, kind, size, mask, scale)
    else:
        out = attention(q, k, v, mask=mask, scale=scale)
    return out.transpose(1, 2).flatten(2)


def linear_attention(q: Tensor, k: Tensor, v: Tensor, scale: float) -> Tensor:
    """Attention without maps, whose cost is linear in S: scale softmax(q) (softmax(k)^T v), the softmaxes over the
    channels and over the keys (Shen et al. 2021, Efficient Attention, Eq. 3).

    (B, heads, S, D), (B, heads, T, D) twice -> (B, heads, S, D).
    """
    return scale * q.softmax(-1) @ (k.softmax(-2).transpose(2, 3) @ v)


class Masked(NamedTuple):
    """A context of which some tokens are left out. tokens: (B, T, C). mask: (B, T) boolean, True where one counts."""

    tokens: Tensor
    mask: Tensor


def unmasked(context: Context) -> tuple[Tensor, Tensor | None]:
    """The tokens of a context (B, T, C), and its mask as attention takes it, (B, 1, 1, T), if it has one."""
    return (context.tokens, context.mask[:, None, None].bool()) if isinstance(context, Masked) else (context, None)


Context = Tensor | Masked


def split_heads(tokens: Tensor, count: int, num_heads: int) -> tuple[Tensor, ...]:
    """(B, S, count heads D), as one projection gives it, to `count` views (B, heads, S, D)."""
    batch, length, channels = tokens.shape
    heads = tokens.reshape(batch, length, count, num_heads, channels // (count * num_heads))
    return heads.permute(2, 0, 3, 1, 4).unbind(0)


_controllers: ContextVar[tuple[tuple[Controller, dict[nn.Module, str]], ...]] = ContextVar("controllers", default=())
# Whether any thread has a controller. torch.compile guards on a plain global and cannot trace a context variable.
_anywhere = False
_blocks = 0
_lock = threading.Lock()


def _count(change: int) -> None:
    global _anywhere, _blocks  # noqa: PLW0603
    with _lock:
        _blocks += change
        _anywhere = _blocks > 0


def _by_controller(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    layer: nn.Module,
    kind: str,
    size: Sequence[int],
    mask: Tensor | None,
    scale: float | None,
) -> Tensor:
    for controller, names in reversed(_controllers.get()):
        if layer in names:
            place = Place(names[layer], kind, tuple(size))
            if controller.wants(place):
                return _asked(controller, place, q, k, v, mask, scale)
    return attention(q, k, v, mask=mask, scale=scale)


def _asked(
    controller: Controller, place: Place, q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None, scale: float | None
) -> Tensor:
    """The controller's result. It sees queries whose scores need no other scale than 1 / sqrt(D)."""
    if scale is not None:
        q = q * (scale * q.shape[-1] ** 0.5)
    if mask is None:
        return controller.attend(place, q, k, v)
    if type(controller).attend is not Controller.attend and type(controller).edit is Controller.edit:
        raise ValueError(f"{type(controller).__name__} replaces the attention of {place.name}, which has a mask")
    return controller._edited(place, q, k, v, mask)
