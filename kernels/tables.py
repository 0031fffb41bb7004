"""Makes the tables of the choice on GPUs from measured files: fastdiff/runtime/measured_tables.py.

    python -m fastdiff.kernels.tables [--check | --out FILE] measured.json [...]

Prints what did not count, with the reason, and the module, or writes it to FILE. --check: exit with 1 unless the
module that is installed is what these files give. The files are those of `fastdiff bench ops --sweep --out`.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

from fastdiff.bench import measured, tables
from fastdiff.bench.sweep_cases import names
from fastdiff.bench.tables import Tables
from fastdiff.files import replacing
from fastdiff.runtime import measured_tables
from fastdiff.runtime.candidates import Row
from fastdiff.runtime.shape_classes import MANY, Bounds

_HEAD = '''\
"""What was measured on GPUs, as tables: who computes a class of shapes, and tiles of attention.

Made by `python -m fastdiff.kernels.tables benchmarks/measured/*.json`, and not to be edited.
"""
# fmt: off

from __future__ import annotations

from fastdiff.runtime.candidates import Row
from fastdiff.runtime.shape_classes import MANY, Bounds

Numbers = tuple[int, int, int, int, bool]  # queries, keys, warps, stages; dk and dv apart
'''
_ROWS = """
ROWS: tuple[Row, ...] = (
{rows})
"""
_TILES = """
# Tiles of attention by architecture, class of dtype and kernel, for classes of shapes.
TILES: dict[tuple[str, str, str], tuple[tuple[Bounds, Numbers], ...]] = {{
{tiles}}}

# Tiles of the forward pass that were among the quickest somewhere, with the widest heads that they were right for.
TIMED: dict[tuple[str, str], tuple[tuple[int, Numbers], ...]] = {{
{timed}}}
"""


def text(made: Tables) -> str:
    """The module."""
    rows = "".join(map(_row, made.rows))
    tiles = "".join(
        f"    {_tuple(key)}: (\n" + "".join(f"        ({_bounds(b)}, {n}),\n" for b, n in found) + "    ),\n"
        for key, found in made.tiles.items()
    )
    timed = "".join(
        f"    {_tuple(key)}: (\n" + "".join(f"        ({dim}, {n}),\n" for dim, n in found) + "    ),\n"
        for key, found in made.timed.items()
    )
    return _HEAD + _ROWS.format(rows=rows) + _TILES.format(tiles=tiles, timed=timed)


def made_from(files: Sequence[str | Path]) -> Tables:
    """Of files' paths. Raises ValueError for a file that holds no measurements, OSError for one that is not there."""
    return tables.make([measured.load(path) for path in files], names)


def _row(row: Row) -> str:
    return (
        f"    Row(\n        {_tuple(row[:3])[1:-1]},\n        {_bounds(row.bounds)},\n"
        f"        {_quoted(row.candidate)}, {_quoted(row.measured)},\n"
        f"        {_quoted(row.source)}, {_tuple(row.compared)},\n    ),\n"
    )


def _bounds(bounds: Bounds) -> str:
    parts = [f"({_quoted(name)}, {least}, {'MANY' if below == MANY else below})" for name, least, below in bounds]
    return f"({', '.join(parts)}{',' if len(parts) == 1 else ''})"


def _tuple(words: Sequence[str]) -> str:
    return f"({', '.join(map(_quoted, words))}{',' if len(words) == 1 else ''})"


def _quoted(word: str) -> str:
    return '"' + word.replace("\\", "\\\\").replace('"', '\\"') + '"'


def main(arguments: Sequence[str] | None = None) -> int:
    """The command."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("files", nargs="+", help="measured files, as JSON")
    how = parser.add_mutually_exclusive_group()
    how.add_argument("--check", action="store_true", help="compare with the module that is installed")
    how.add_argument("--out", help="the module to write")
    options = parser.parse_args(arguments)
    try:
        made = made_from(options.files)
    except (ValueError, OSError) as error:
        parser.error(str(error))
    for line in made.left_out:
        print(f"left out: {line}", file=sys.stderr)
    module = text(made)
    if options.check:
        same = Path(measured_tables.__file__).read_text(encoding="utf-8") == module
        print(f"{measured_tables.__file__} is {'' if same else 'not '}what these files give")
        return 0 if same else 1
    if options.out:
        with replacing(options.out) as temporary:
            temporary.write_text(module, encoding="utf-8")
    else:
        print(module, end="")
    return 0


if __name__ == "__main__":
    sys.exit(main())
