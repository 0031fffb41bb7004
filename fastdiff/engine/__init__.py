"""Engines do the combines of a Program on its buffers; the loop in `fastdiff.engine.loop` calls the model."""

from fastdiff.engine.loop import run

__all__ = ["run"]
