"""A capture takes seconds, and is said: by logging, on stderr if it is wanted, and by the commands."""

import logging
import re

import pytest
import torch
from commands import run_command
from torch import nn

import fastdiff
from fastdiff.runtime import telling


class Small(nn.Module):
    def __init__(self):
        super().__init__()
        self.linear = nn.Linear(64, 64)

    def forward(self, x):
        return self.linear(x).sin()


@pytest.fixture(autouse=True)
def _as_before():
    """The logger without what a test put there."""
    handlers, level = list(telling.log.handlers), telling.log.level
    telling.log.handlers.clear()
    telling.log.setLevel(logging.NOTSET)
    yield
    telling.log.handlers[:] = handlers
    telling.log.setLevel(level)


@torch.no_grad()
def test_a_capture_is_logged_once(caplog, capfd):
    caplog.set_level(logging.INFO, logger="fastdiff")
    model = fastdiff.optimize(Small().eval())
    assert caplog.messages == []
    for _ in range(3):
        model(torch.randn(2, 64))
    before, after = caplog.messages
    assert before == "capturing Small: its first call takes seconds"
    assert re.fullmatch(r"captured Small in \d+\.\d s", after)
    assert {record.levelno for record in caplog.records} == {logging.INFO}
    model(torch.randn(2, 3, 64))  # another rank: another capture
    assert [message.split(" in ")[0].split(":")[0] for message in caplog.messages[2:]] == [
        "capturing Small",
        "captured Small",
    ]
    assert capfd.readouterr().err == ""  # nobody asked for lines


@torch.no_grad()
def test_progress_shows_it(capfd):
    model = fastdiff.optimize(Small().eval(), progress=True)
    fastdiff.optimize(Small().eval(), progress=True)  # a second time: no second handler
    model(torch.randn(2, 64))
    lines = capfd.readouterr().err.splitlines()
    assert [line.split(" Small")[0] for line in lines] == ["fastdiff: capturing", "fastdiff: captured"]
    telling.log.setLevel(logging.WARNING)  # a program that wants none
    fastdiff.optimize(model, progress=True)
    model(torch.randn(2, 64))
    assert capfd.readouterr().err == ""
    with pytest.raises(TypeError, match="progress must be True or False, got 'yes'"):
        fastdiff.optimize(Small(), progress="yes")


def test_commands_show_it():
    found = run_command("verify", "--batch", 1)
    assert found.returncode == 0, found.stderr
    assert "capturing UNet: its first call takes seconds" in found.stderr
    assert "capturing" not in found.stdout
