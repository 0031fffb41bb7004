"""Tests that take minutes run when they are asked for."""

import pytest


def pytest_collection_modifyitems(config, items):
    if "long" not in config.option.markexpr:
        for item in items:
            if item.get_closest_marker("long"):
                item.add_marker(pytest.mark.skip(reason="takes minutes: python -m pytest tests/distributed -m long"))
