"""What torch.fx writes into the code of a captured graph as something else than was captured.

Dynamo's graphs run as the Python code that torch.fx generates. `operator.pow(-1, n)` becomes `-1 ** n` there, which is
-(1 ** n). `operator.iadd(n, 1)` becomes `n += 1; m = n`, after which n is another number for all who use it.
"""

from __future__ import annotations

import operator
from typing import Any

from torch import Tensor, fx

from fastdiff.compiler.functions import power
from fastdiff.compiler.nodes import Node, value

# The operators that torch.fx writes as statements, by those that give a result of their own.
STATEMENTS = {
    getattr(operator, "i" + name.strip("_")): getattr(operator, name)
    for name in (
        "add", "and_", "floordiv", "lshift", "matmul", "mod", "mul", "or_", "pow", "rshift", "sub", "truediv", "xor",
    )
}  # fmt: skip


def mend(module: fx.GraphModule) -> None:
    """Let the code of a graph, and of the graphs in it, compute what was captured."""
    for each in module.modules():
        if isinstance(each, fx.GraphModule) and any([_mended(node) for node in each.graph.nodes]):
            each.recompile()


def _mended(node: Node) -> bool:
    target = node.target
    if node.op == "call_method" and not isinstance(node.args[0], fx.Node):
        node.op, node.args = "call_function", (node.args[0], target, *node.args[1:])
        node.target = _method
        return True
    if node.op != "call_function":
        return False
    if target in STATEMENTS and not isinstance(value(node.args[0]), Tensor):
        target = STATEMENTS[target]
    if target is operator.pow and not isinstance(node.args[0], fx.Node):
        target = power
    if target is node.target:
        return False
    node.target = target
    return True


def _method(x: Any, name: str, *args: Any, **kwargs: Any) -> Any:
    """A method of a constant, which cannot always be written with a dot: 2.bit_length()."""
    return getattr(x, name)(*args, **kwargs)
