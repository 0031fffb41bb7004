"""Which candidate is the quickest, by architecture and class of shapes: what was measured, row by row.

All times are of one H100 80GB HBM3, PyTorch 2.11, Triton 3.6, cuDNN 9, in float16; bfloat16 has the same cost. "In a
graph" means inside a CUDA graph, without launches; a row of single launches is here only where launches do not decide.
docs/notes/gpu-choice.md says how the table was made.
"""

from __future__ import annotations

from fastdiff.runtime.candidates import Row

_GRAPH, _SINGLE = "one H100, in a graph", "one H100, launched singly"
_MANY = 1 << 31


def _attention(dim: tuple[int, int], queries: tuple[int, int], keys: tuple[int, int], candidate: str, said: str) -> Row:
    bounds = (("dim", *dim), ("queries", *queries), ("keys", *keys))
    return Row("attention", "sm_90", "half", bounds, candidate, said, _GRAPH)


def _group_norm(last: int, least: int, below: int, said: str, source: str = _GRAPH) -> Row:
    bounds = (("numbers", least, below), ("channels_last", last, last + 1), ("adaptive", 0, 1))
    return Row("group_norm_silu", "sm_90", "half", bounds, "triton", said, source)


ROWS: tuple[Row, ...] = (
    _attention((33, 41), (2048, _MANY), (2048, _MANY), "cudnn", "cudnn 153 us, triton 183, flash 273"),
    _attention((57, 65), (2048, _MANY), (2048, _MANY), "cudnn", "cudnn 180 us, triton 203, flash 297"),
    _attention((121, 129), (2048, _MANY), (2048, _MANY), "cudnn", "cudnn 695 us, triton 867, flash 1203"),
    _attention((73, 81), (513, 2048), (513, 2048), "cudnn", "cudnn 18.0 us, triton 19.3, flash 29.8"),
    _attention((65, 73), (513, 2048), (513, 2048), "cudnn", "cudnn 33.7 us, triton 33.9, flash 49.3"),
    _attention((33, 41), (2048, _MANY), (65, 129), "cudnn", "cudnn 13.6 us, flash 15.8"),
    _attention((129, 161), (129, 513), (129, 513), "triton 64x64/4/2", "triton 7.9 us, cudnn 10.6, flash 14.3"),
    _group_norm(1, 100_000, 300_000, "triton 4.2 us, torch 10.4"),
    _group_norm(1, 300_000, 1_000_000, "triton 5.7 us, torch 15.2"),
    _group_norm(1, 1_000_000, 2_000_000, "triton 12.4 us, torch 22.8"),
    _group_norm(1, 2_000_000, 3_500_000, "triton 18.0 us, torch 37.3"),
    _group_norm(1, 3_500_000, 6_000_000, "triton 17.7 us, torch 51.0"),
    _group_norm(1, 6_000_000, 12_000_000, "triton 27 to 29 us, torch 95 to 166"),
    _group_norm(1, 12_000_000, 25_000_000, "triton 88 us, torch 508"),
    _group_norm(1, 25_000_000, _MANY, "triton 298 us, torch 1054"),
    _group_norm(0, 8_000_000, 25_000_000, "triton 82 to 104 us, torch 167 to 217", _SINGLE),
    _group_norm(0, 25_000_000, _MANY, "triton 215 us, torch 1002", _SINGLE),
    Row("ada_layer_norm", "sm_90", "half", (("numbers", 8_000_000, 15_000_000),), "triton", "triton 51 us, torch 130",
        _SINGLE),
    Row("ada_layer_norm", "sm_90", "half", (("numbers", 15_000_000, _MANY),), "triton", "triton 183 us, torch 313",
        _SINGLE),
)  # fmt: skip


def find(op: str, architecture: str, kind: str, features: dict[str, int]) -> tuple[Row | None, Row | None]:
    """The row of the architecture that holds for a call, or None; then one of another architecture of NVIDIA's."""
    rows = [row for row in ROWS if row.holds(op, kind, features)]
    own = next((row for row in rows if row.architecture == architecture), None)
    if own is not None or not architecture.startswith("sm_"):
        return own, None
    return None, next(iter(rows), None)
