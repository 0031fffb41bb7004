"""Environment variables with what they may not hold: one message that names variable, value and what is expected."""

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
import torch

import fastdiff
from fastdiff.runtime import environment

GOOD = {
    "FASTDIFF_BACKEND": ("auto", "reference", "cpu"),
    "FASTDIFF_ISA": ("amx", "avx512", "baseline"),
    "FASTDIFF_POOL_LIMIT": ("0", "64", "007"),
    "FASTDIFF_WEIGHT_BUDGET": ("0", "1", "1.5", "1e9", ".5"),
    "FASTDIFF_TUNE": ("0", "1", "all"),
    "FASTDIFF_TUNE_FILE": ("times.json", "/new/folder/times.json"),
}
BAD = ("abc", "-1", "0x10", "1,5", "nan", " ", " 1 ", "1e9", "1_0", "\u0661", "9" * 40, "inf", "/tmp", "True", "1\n2")
FLAGS = {"FASTDIFF_EXACT", "FASTDIFF_GRAPH", "FASTDIFF_MEASURE", "FASTDIFF_DEBUG"}
CASES = [
    (name, value)
    for name in environment.VARIABLES
    for value in BAD
    if (name != "FASTDIFF_WEIGHT_BUDGET" or value not in ("1e9", "9" * 40))
    and (name != "FASTDIFF_TUNE_FILE" or value in (" ", "/tmp"))
]  # fmt: skip


def test_every_variable_of_the_page_is_checked():
    page = (Path(__file__).parents[1] / "docs" / "configuration.md").read_text(encoding="utf-8")
    table = re.findall(r"^\| `(FASTDIFF_\w+)` \|", page.partition("Variables of others")[0], flags=re.MULTILINE)
    assert sorted(table) == sorted(environment.VARIABLES)
    assert set(environment.VARIABLES) == FLAGS | set(GOOD)


@pytest.mark.parametrize("name", environment.VARIABLES)
def test_good_values(name, monkeypatch):
    monkeypatch.delenv(name, raising=False)
    assert environment.read(name, "default") == "default"
    monkeypatch.setenv(name, "")
    assert environment.read(name, "default") == "default"
    for value in GOOD.get(name, ("0", "1")):
        monkeypatch.setenv(name, value)
        assert environment.read(name) == (value == "1" if name in FLAGS else type(environment.read(name))(value))


@pytest.mark.parametrize(("name", "value"), CASES)
def test_bad_values(name, value, monkeypatch):
    monkeypatch.setenv(name, value)
    message = f"the environment variable {name} must be {environment.VARIABLES[name][1]}, got {value!r}"
    for act in (lambda: environment.read(name), environment.check, lambda: fastdiff.optimize(torch.nn.Identity())):
        with pytest.raises(ValueError, match=f"^{re.escape(message)}$"):
            act()


@pytest.mark.parametrize("name", environment.VARIABLES)
def test_a_command_ends_with_one_line(name):
    value = "/" if name == "FASTDIFF_TUNE_FILE" else "abc"
    found = _python("import sys; from fastdiff.cli.main import main; main(['solvers'])", **{name: value})
    assert (found.returncode, found.stdout) == (2, "")
    expected = environment.VARIABLES[name][1]
    assert found.stderr == f"fastdiff: the environment variable {name} must be {expected}, got '{value}'\n"


@pytest.mark.parametrize(
    ("name", "use"),
    [
        ("FASTDIFF_POOL_LIMIT", "fastdiff.ops.group_norm_silu(torch.ones(1, 2, 1024, 1024), 1)"),
        ("FASTDIFF_POOL_LIMIT", "fastdiff.memory.statistics()"),
        ("FASTDIFF_BACKEND", "fastdiff.ops.group_norm_silu(torch.ones(1, 2, 4, 4), 1)"),
        ("FASTDIFF_EXACT", "fastdiff.ops.group_norm_silu(torch.ones(1, 2, 4, 4), 1)"),
        ("FASTDIFF_EXACT", "fastdiff.ops.conv2d(torch.ones(1, 64, 9, 9), torch.ones(64, 64, 3, 3), padding=1)"),
        ("FASTDIFF_MEASURE", "fastdiff.ops.conv2d(torch.ones(1, 64, 9, 9), torch.ones(64, 64, 3, 3), padding=1)"),
    ],
)
def test_the_import_is_no_error_the_use_is(name, use):
    found = _python(f"import torch, fastdiff; print('imported'); {use}", **{name: "abc"})
    assert (found.returncode, found.stdout) == (1, "imported\n")
    assert found.stderr.splitlines()[-1].startswith(f"ValueError: the environment variable {name} must be ")
    assert found.stderr.splitlines()[-1].endswith(", got 'abc'")


def test_a_limit_set_by_hand_replaces_the_bad_one():
    code = "import torch, fastdiff; fastdiff.memory.set_limit(1 << 20); print(fastdiff.memory.statistics().limit)"
    assert _python(code, FASTDIFF_POOL_LIMIT="abc").stdout == "1048576\n"


def _python(code, **variables):
    return subprocess.run(
        [sys.executable, "-c", code], env=os.environ | variables, capture_output=True, text=True, check=False, cwd="/"
    )
