"""Gradients of several networks at once, beside classifier-free guidance."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from numbers import Real

from torch import Tensor

from fastdiff.arguments import described
from fastdiff.errors import expect
from fastdiff.guidance.classifier import Classifier
from fastdiff.guidance.classifier_free import CFG

Gradient = Callable[[Tensor, Tensor], Tensor]


@dataclass(frozen=True)
class Gradients:
    """The sum of any number of gradients takes the place of a classifier's, and cfg holds beside it.

    terms: by name, a Classifier, which has a scale, or a function gradient(x, t) -> (B, ...). cfg: CFG, or its scale;
    None for none. A Program calls the gradients by their names. Raises ValueError for no terms and for the name
    "model", TypeError for what is neither function nor Classifier.
    """

    terms: Mapping[str, Classifier | Gradient] | tuple[tuple[str, Classifier], ...]
    cfg: CFG | float | None = None

    def __post_init__(self) -> None:
        if not isinstance(self.terms, (Mapping, tuple)):
            raise TypeError(f"terms must map names to gradients, got {described(self.terms)}")
        given = dict(self.terms)
        expect(bool(given), "terms must hold at least one gradient")
        expect("model" not in given, "a gradient cannot be called 'model', which is the network's name")
        for name in given:
            if not isinstance(name, str):
                raise TypeError(f"gradients need names, got {described(name)}")
        made = tuple((n, g if isinstance(g, Classifier) else Classifier(g)) for n, g in given.items())
        object.__setattr__(self, "terms", made)  # hashable: solvers' Programs are kept by it
        if isinstance(self.cfg, Real) and not isinstance(self.cfg, bool):
            object.__setattr__(self, "cfg", CFG(float(self.cfg)))
        if self.cfg is not None and not isinstance(self.cfg, CFG):
            raise TypeError(f"cfg must be fastdiff.CFG or a scale, got {described(self.cfg)}")


def cfg_of(guidance: CFG | Classifier | Gradients | None) -> CFG | None:
    """The classifier-free part of any guidance."""
    if isinstance(guidance, Gradients):
        assert guidance.cfg is None or isinstance(guidance.cfg, CFG)
        return guidance.cfg
    return guidance if isinstance(guidance, CFG) else None


def gradients_of(guidance: CFG | Classifier | Gradients | None) -> dict[str, Classifier]:
    """The gradients of any guidance, by the names that a Program calls them."""
    if isinstance(guidance, Classifier):
        return {"classifier": guidance}
    return dict(guidance.terms) if isinstance(guidance, Gradients) else {}  # type: ignore[arg-type]


def without_functions(guidance: CFG | Classifier | Gradients | None) -> CFG | Classifier | Gradients | None:
    """What a Program has of it: names and scales. The functions may hold networks, which a cache must not keep."""
    if isinstance(guidance, Classifier):
        return replace(guidance, gradient=_given_when_it_runs)
    if isinstance(guidance, Gradients):
        terms = gradients_of(guidance).items()
        return Gradients({n: replace(g, gradient=_given_when_it_runs) for n, g in terms}, guidance.cfg)
    return guidance


def without_cfg(guidance: CFG | Classifier | Gradients | None) -> Classifier | Gradients | None:
    """The gradients alone."""
    if isinstance(guidance, Gradients):
        return replace(guidance, cfg=None)
    return guidance if isinstance(guidance, Classifier) else None


def _given_when_it_runs(x: Tensor, t: Tensor) -> Tensor:
    raise NotImplementedError("the gradient is given to the engine")
