"""No circles of imports in the package: of two modules, one can be read, moved and tested without the other."""

import ast
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]


def modules(root):
    """Name -> syntax tree of every module of the package."""
    found = {}
    for path in sorted((root / "fastdiff").rglob("*.py")):
        name = ".".join(path.relative_to(root).with_suffix("").parts).removesuffix(".__init__")
        found[name] = ast.parse(path.read_text(encoding="utf-8"))
    return found


def executed(tree):
    """Every node but those in `if TYPE_CHECKING:`; bodies of functions count, their imports run too."""
    waiting = [tree]
    while waiting:
        node = waiting.pop()
        yield node
        if isinstance(node, ast.If) and ast.unparse(node.test) in ("TYPE_CHECKING", "typing.TYPE_CHECKING"):
            waiting += node.orelse
        else:
            waiting += ast.iter_child_nodes(node)


def imported(trees):
    """Module -> the modules that it imports. A package that the module is in counts not: it is always loaded first."""
    graph = {}
    for name, tree in trees.items():
        targets = set()
        for node in executed(tree):
            if isinstance(node, ast.Import):
                targets |= {alias.name for alias in node.names}
            elif isinstance(node, ast.ImportFrom):
                assert node.level == 0, f"{name} imports by a relative name, which this test does not follow"
                for alias in node.names:
                    module = f"{node.module}.{alias.name}"
                    targets.add(module if module in trees else node.module)
        graph[name] = {target for target in targets & trees.keys() if not f"{name}.".startswith(f"{target}.")}
    return graph


def circles(graph):
    """The sets of modules in which each imports, through others, each other (Tarjan's components of two and more)."""
    number, lowest, stack, found = {}, {}, [], []

    def visit(name):
        number[name] = lowest[name] = len(number)
        stack.append(name)
        for target in sorted(graph[name]):
            if target not in number:
                visit(target)
            if target in stack:
                lowest[name] = min(lowest[name], lowest[target])
        if lowest[name] == number[name]:
            at = stack.index(name)
            found.append(sorted(stack[at:]))
            del stack[at:]

    for name in graph:
        if name not in number:
            visit(name)
    return [names for names in found if len(names) > 1]


def test_no_module_imports_itself_through_others():
    graph = imported(modules(ROOT))
    assert len(graph) > 150
    said = [
        "\n".join(f"  {name} imports {', '.join(sorted(graph[name] & set(names)))}" for name in names)
        for names in circles(graph)
    ]
    assert not said, "circles of imports:\n" + "\n\n".join(said)


@pytest.mark.parametrize(
    ("b", "expected"),
    [
        ("import fastdiff.a", [["fastdiff.a", "fastdiff.b"]]),
        ("def f():\n    from fastdiff import a", [["fastdiff.a", "fastdiff.b"]]),
        ("from fastdiff.c import x", [["fastdiff.a", "fastdiff.b", "fastdiff.c"]]),
        ("if TYPE_CHECKING:\n    from fastdiff.a import x", []),
        ("import fastdiff", []),
        ("from fastdiff import sample", []),
    ],
)
def test_what_is_a_circle(b, expected):
    texts = {"fastdiff": "from fastdiff.a import sample", "fastdiff.c": "from fastdiff.a import y"}
    texts |= {"fastdiff.a": "from fastdiff.b import x", "fastdiff.b": b}
    assert circles(imported({name: ast.parse(text) for name, text in texts.items()})) == expected
