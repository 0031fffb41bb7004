"""What a step function computes with when it is traced: sums of symbols, which refuse everything that is not linear."""

from __future__ import annotations

from collections.abc import Callable
from numbers import Real
from typing import Any, NoReturn

import numpy as np
from torch import Tensor

from fastdiff.arguments import alone, described

_RULE = (
    "a solver's step must be linear: it may only add and subtract its quantities (x, x0, eps, noise) and scale them by "
    "numbers, since their values are not known when it is traced. A function of them is model.apply(name, x0, ...), "
    "with a name in fastdiff.program.TRANSFORMS; decisions and numbers come from the points, as s.sigma and t.lam"
)


def refused(what: str) -> TypeError:
    """The error for what a step did."""
    return TypeError(f"{what}: {_RULE}")


class LinearForm:
    """A sum of symbols with float64 coefficients."""

    __slots__ = ("terms",)

    def __init__(self, terms: dict[int, float]) -> None:
        self.terms = terms  # symbol -> coefficient

    def __add__(self, other: Any) -> LinearForm:
        if not isinstance(other, LinearForm):
            if _is_zero(other):
                return self  # as sum() begins
            raise refused(f"the step adds {described(other)} to a quantity")
        terms = dict(self.terms)
        for symbol, coefficient in other.terms.items():
            terms[symbol] = terms.get(symbol, 0.0) + coefficient
        return LinearForm(terms)

    __radd__ = __add__

    def __mul__(self, factor: Any) -> LinearForm:
        if type(factor) is not float:
            factor = _number(factor, "multiplies")
        return LinearForm({symbol: factor * coefficient for symbol, coefficient in self.terms.items()})

    __rmul__ = __mul__

    def __neg__(self) -> LinearForm:
        return self * -1.0

    def __pos__(self) -> LinearForm:
        return self

    def __sub__(self, other: Any) -> LinearForm:
        if not isinstance(other, LinearForm):
            if _is_zero(other):
                return self
            raise refused(f"the step subtracts {described(other)} from a quantity")
        return self + -other

    def __rsub__(self, other: Any) -> LinearForm:
        return -self + other

    def __truediv__(self, divisor: Any) -> LinearForm:
        return self * (1.0 / _number(divisor, "divides"))

    def __rtruediv__(self, other: Any) -> NoReturn:
        raise refused("the step divides by a quantity")

    def __bool__(self) -> NoReturn:
        raise refused("the step asks whether a quantity is true (`if`, `and`, `or`, `not`)")

    __hash__ = None  # type: ignore[assignment]

    def __getattr__(self, name: str) -> Any:
        if name.startswith("__"):  # protocols of Python, which look for what may be missing
            raise AttributeError(name)
        raise refused(f"the step asks for .{name} of a quantity, which is no tensor yet")

    @classmethod
    def __torch_function__(cls, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        """Called for functions of torch, and for operators with a tensor on the left."""
        name = getattr(function, "__name__", str(function))
        others = [value for value in args if isinstance(value, Tensor)]
        if name in _SCALING and len(args) == 2 and len(others) == 1 and others[0].numel() == 1:
            return args[1] * float(others[0])
        raise refused(f"the step calls torch's {name} on a quantity")

    def __array_ufunc__(self, function: Any, method: str, *inputs: Any, **kwargs: Any) -> Any:
        """Called for functions of NumPy, and for operators with a number of NumPy's on the left."""
        operator = _NUMPY.get(function)
        if operator is None or method != "__call__" or len(inputs) != 2 or inputs[1] is not self:
            raise refused(f"the step calls NumPy's {function.__name__} on a quantity")
        return operator(self, inputs[0])


_SCALING = ("mul", "__mul__", "__rmul__", "multiply")
_NUMPY: dict[Any, Callable[[LinearForm, Any], LinearForm]] = {
    np.multiply: LinearForm.__rmul__,
    np.add: LinearForm.__radd__,
    np.subtract: LinearForm.__rsub__,
    np.true_divide: LinearForm.__rtruediv__,
}


def _is_zero(value: Any) -> bool:
    return isinstance(value, Real) and value == 0


def _number(value: Any, does: str) -> float:
    if isinstance(value, LinearForm):
        raise refused(f"the step {does} a quantity by another one")
    found = alone(value)
    if not isinstance(found, Real):
        raise refused(f"the step {does} a quantity by {described(value)}")
    return float(found)


def _refuse(operator: str) -> Callable[..., NoReturn]:
    def refuse(self: LinearForm, *others: Any) -> NoReturn:
        raise refused(f"the step uses {operator} on a quantity")

    return refuse


# One by one, as Python looks them up on the class.
for _name, _operator in {
    "lt": "<", "le": "<=", "gt": ">", "ge": ">=", "eq": "==", "ne": "!=", "pow": "**", "rpow": "**", "floordiv": "//",
    "rfloordiv": "//", "mod": "%", "rmod": "%", "matmul": "@", "rmatmul": "@", "and": "&", "or": "|", "xor": "^",
    "invert": "~", "abs": "abs()", "round": "round()", "float": "float() or a function of math", "int": "int()",
    "index": "an index", "complex": "complex()", "len": "len()", "iter": "a loop", "getitem": "an index",
    "setitem": "an assignment", "contains": "in",
}.items():  # fmt: skip
    setattr(LinearForm, f"__{_name}__", _refuse(_operator))
