"""Which candidate is the quickest, by architecture and class of shapes: what was measured, row by row.

The rows come from benchmarks/measured/ (`python -m fastdiff.kernels.tables`). bfloat16 has float16's cost and rows.
docs/notes/gpu-choice.md says how the table is made.
"""

from __future__ import annotations

from fastdiff.runtime.candidates import Row
from fastdiff.runtime.measured_tables import ROWS


def find(op: str, architecture: str, kind: str, features: dict[str, int]) -> tuple[Row | None, Row | None]:
    """The row of the architecture that holds for a call, or None; then one of another architecture of NVIDIA's."""
    rows = [row for row in ROWS if row.holds(op, kind, features)]
    own = next((row for row in rows if row.architecture == architecture), None)
    if own is not None or not architecture.startswith("sm_"):
        return own, None
    return None, next(iter(rows), None)
