"""Engines run a Program: one holds the buffers and does the combines, the loop in `fastdiff.engine.loop` calls the model."""

from fastdiff.engine.loop import run

__all__ = ["run"]
