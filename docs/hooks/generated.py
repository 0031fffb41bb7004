"""What the site takes from the code: solvers, schedules, grids, passes, operators, model cards; the list of notes."""

from __future__ import annotations

import importlib
import inspect
import re
import sys
from pathlib import Path

from mkdocs.structure.files import File
from parameters import listed

NOTES_TITLE = "Notes on what was tried"
NOTES = Path(__file__).parents[1] / "notes"


def on_config(config):
    """The notes in the navigation, each under its own title."""
    entries = [f"notes/{path.name}" for path in sorted(NOTES.glob("*.md"))]
    config.nav = [{NOTES_TITLE: entries} if _only_key(item) == NOTES_TITLE else item for item in config.nav]
    return config


def on_files(files, config):
    """The pictures of the bundled models, under models/."""
    from fastdiff.models import bundled

    for path in sorted(bundled.folder().glob("*.png")):
        files.append(File.generated(config, f"models/{path.name}", abs_src_path=str(path)))
    return files


def _only_key(item):
    return next(iter(item)) if isinstance(item, dict) else None


def on_page_markdown(markdown, page, config, files):
    """Replace <!-- generated: NAME --> by what NAME says."""
    return re.sub(r"<!-- generated: (\w+) -->", lambda match: TABLES[match[1]](), markdown)


def solvers() -> str:
    """One row per solver, as `fastdiff solvers` prints it."""
    from fastdiff.cli.solvers import _noise
    from fastdiff.solvers import SOLVERS

    lines = ["| solver | order | model calls per step | noise | grid | source |", "|---|---|---|---|---|---|"]
    for name, found in sorted(SOLVERS.items()):
        calls = "adaptive" if found.adaptive else str(found.evaluations)
        lines.append(f"| `{name}` | {found.order} | {calls} | {_noise(found)} | `{found.grid}` | {found.source} |")
    return "\n".join(lines)


def solver_options() -> str:
    """What each solver says of itself and its options, where it has any."""
    from fastdiff.solvers import SOLVERS

    parts = []
    for name, found in sorted(SOLVERS.items()):
        text = inspect.getdoc(found.step)
        if found.options and text:
            options = ", ".join(f"`{key}={value!r}`" for key, value in found.options.items())
            parts.append(f"**`{name}`**: {options}\n\n{_escaped(text)}\n")
    return "\n".join(parts)


def grids() -> str:
    """One row per grid."""
    from fastdiff.grids import GRIDS

    rows = [f"| `{name}` | {_escaped(' '.join(inspect.getdoc(grid).split()))} |" for name, grid in GRIDS.items()]
    return "\n".join(["| grid | where the steps are |", "|---|---|", *rows])


def schedules() -> str:
    """One row per schedule."""
    from fastdiff.schedules import SCHEDULES

    rows = []
    for name, make in SCHEDULES.items():
        text = inspect.getdoc(type(make())) or ""
        rows.append(f"| `{name}` | {_escaped(' '.join(text.split(chr(10) * 2)[0].split()))} |")
    return "\n".join(["| schedule | what it is |", "|---|---|", *rows])


def passes() -> str:
    """One row per pass of the graph compiler: the first sentence of its module."""
    from fastdiff.compiler.passes import PASSES

    rows = []
    for name, apply in PASSES.items():
        text = " ".join((sys.modules[apply.__module__].__doc__ or "").split())
        rows.append(f"| `{name}` | {_escaped(re.split(r'(?<=[.]) ', text)[0])} |")
    return "\n".join(["| pass | what it looks for |", "|---|---|", *rows])


def ops() -> str:
    """The public operators."""
    from fastdiff import ops

    return "\n\n".join(_documented("fastdiff.ops", name) for name in ops.__all__ if callable(getattr(ops, name)))


def explain() -> str:
    """`fastdiff.explain`, whose name a module has as well."""
    return _documented("fastdiff", "explain")


def _documented(package: str, name: str) -> str:
    """Heading, signature and docstring of something callable as Python has it, where the sources say less."""
    thing = getattr(importlib.import_module(package), name)
    signature = inspect.signature(thing)
    given = [str(each).replace("'", "") for each in signature.parameters.values()]
    kinds = [each.kind for each in signature.parameters.values()]
    if inspect.Parameter.KEYWORD_ONLY in kinds:
        given.insert(kinds.index(inspect.Parameter.KEYWORD_ONLY), "*")
    lines = "".join(f"    {each},\n" for each in given)
    result = str(signature.return_annotation).replace("'", "")
    result = "" if signature.return_annotation in (inspect.Signature.empty, None) else f" -> {result}"
    text = inspect.getdoc(thing if inspect.isfunction(thing) or inspect.isclass(thing) else type(thing).__call__) or ""
    heading = f"### `{package}.{name}` {{ #{package}.{name} }}"
    return f"{heading}\n\n```python\n{name}(\n{lines}){result}\n```\n\n{listed(text, signature.parameters)}"


def models() -> str:
    """The cards of the bundled models."""
    from fastdiff.models import bundled

    parts = []
    for name in bundled.names():
        card = (bundled.folder() / f"{name}.md").read_text(encoding="utf-8")
        parts.append(re.sub(r"^# ", "### ", re.sub(r"(!\[[^\]]*\]\()", r"\1models/", card)))
    return "\n\n".join(parts)


def changes() -> str:
    """CHANGELOG.md of the repository."""
    return _outside("CHANGELOG.md")


def contributing() -> str:
    """CONTRIBUTING.md of the repository."""
    return _outside("CONTRIBUTING.md")


def _outside(name: str) -> str:
    """A file of the repository's folder, with its links as they are from docs/."""
    text = (NOTES.parents[1] / name).read_text(encoding="utf-8").replace("](docs/", "](")
    return text.replace("](CHANGELOG.md)", "](changes.md)").replace("](CONTRIBUTING.md)", "](contributing.md)")


def _escaped(text: str) -> str:
    return text.replace("|", "\\|").replace("<", "&lt;")


TABLES = {
    table.__name__: table
    for table in (solvers, solver_options, grids, schedules, passes, ops, explain, models, changes, contributing)
}  # fmt: skip
