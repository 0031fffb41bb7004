"""What stops the backend from taking a graph."""

from __future__ import annotations


class Unsupported(Exception):
    """The graph, or a part of it, must run as it was written; the message says why."""
