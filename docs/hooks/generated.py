"""What the site takes from the code: the tables of solvers, schedules and grids, the list of notes."""

from __future__ import annotations

import inspect
import re
from pathlib import Path

NOTES_TITLE = "Notes on what was tried"
NOTES = Path(__file__).parents[1] / "notes"


def on_config(config):
    """The notes in the navigation, each under its own title."""
    entries = [f"notes/{path.name}" for path in sorted(NOTES.glob("*.md"))]
    config.nav = [{NOTES_TITLE: entries} if _only_key(item) == NOTES_TITLE else item for item in config.nav]
    return config


def _only_key(item):
    return next(iter(item)) if isinstance(item, dict) else None


def on_page_markdown(markdown, page, config, files):
    """Replace <!-- generated: NAME --> by what NAME says."""
    return re.sub(r"<!-- generated: (\w+) -->", lambda match: TABLES[match[1]](), markdown)


def solvers() -> str:
    """A row a solver, as `fastdiff solvers` prints it."""
    from fastdiff.cli.solvers import _noise
    from fastdiff.solvers import SOLVERS

    lines = ["| solver | order | model calls a step | noise | grid | source |", "|---|---|---|---|---|---|"]
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
    """A row a grid."""
    from fastdiff.grids import GRIDS

    rows = [f"| `{name}` | {_escaped(' '.join(inspect.getdoc(grid).split()))} |" for name, grid in GRIDS.items()]
    return "\n".join(["| grid | where the steps are |", "|---|---|", *rows])


def schedules() -> str:
    """A row a schedule."""
    from fastdiff.schedules import SCHEDULES

    rows = []
    for name, make in SCHEDULES.items():
        text = inspect.getdoc(type(make())) or ""
        rows.append(f"| `{name}` | {_escaped(' '.join(text.split(chr(10) * 2)[0].split()))} |")
    return "\n".join(["| schedule | what it is |", "|---|---|", *rows])


def models() -> str:
    """The cards of the bundled models, without their pictures."""
    from fastdiff.models import bundled

    parts = []
    for name in bundled.names():
        card = (bundled.folder() / f"{name}.md").read_text(encoding="utf-8")
        parts.append(re.sub(r"^# ", "## ", re.sub(r"!\[[^\]]*\]\([^)]*\)\n*", "", card)))
    return "\n\n".join(parts)


def _escaped(text: str) -> str:
    return text.replace("|", "\\|").replace("<", "&lt;")


TABLES = {
    "solvers": solvers, "solver_options": solver_options, "grids": grids, "schedules": schedules, "models": models,
}  # fmt: skip
