"""A sweep by worker processes has the table of one process, but for the times."""

import json
import os
from pathlib import Path

import pytest

import fastdiff
from fastdiff import distributed
from fastdiff.cli.main import main
from fastdiff.profiling.store import Store

pytest.importorskip("plotly", reason="belongs to the profile extra")
pytest.importorskip("skimage", reason="belongs to the profile extra")

TOY = f"{Path(__file__).parents[1] / 'profiling' / 'toy.py'}:subject"
SWEEP = dict(solvers=["ddim", "dpmpp-2m"], steps=[4, 8], samples=12, reference_steps=64)
MEASURED = ("label", "error", "samples", "rounds", "calls", "evaluations", "rmse", "psnr", "ssim", "note")


def table(rows):
    return [{name: row[name] for name in MEASURED} for row in rows]


def test_workers_measure_what_one_process_does(tmp_path, monkeypatch):
    expected = fastdiff.profile(TOY, **SWEEP, out=tmp_path / "one")
    told = []
    found = distributed.profile(
        TOY, **SWEEP, out=tmp_path / "two", workers=2, threads=1, on_progress=lambda *progress: told.append(progress)
    )
    assert table(found.rows) == table(expected.rows)
    assert found.complete
    assert ("2 workers: settings", 5, 5) in told
    assert all(row["seconds"]["median"] > 0 for row in found.rows)

    monkeypatch.setattr(distributed.sweeping, "make_pool", None)  # nothing is left to do for one
    again = distributed.profile(None, out=tmp_path / "two", resume=True, workers=2)
    assert table(again.rows) == table(expected.rows)


def test_a_setting_that_kills_its_workers_is_a_row_with_its_reason(tmp_path, monkeypatch):
    (tmp_path / "deadly.py").write_text(DEADLY.format(folder=str(Path(TOY).parent)), encoding="utf-8")
    monkeypatch.setenv("DRIVER", str(os.getpid()))
    found = distributed.profile(
        f"{tmp_path}/deadly.py:subject", solvers=["ddim"], steps=[4], batches=[4, 2], samples=12, reference_steps=64,
        out=tmp_path / "out", workers=1, threads=1, limits=distributed.Limits(deaths=1),
    )  # fmt: skip
    errors = {row["setting"]["batch"]: row["error"] for row in found.rows}
    assert errors[4] == ""
    assert not Path("tried").exists()  # by this process
    assert "worker 0 ended with status 9 (0 failures, 1 deaths)" in errors[2]
    assert Store(tmp_path / "out").load(found.rows[1]["slug"], 0).error == errors[2]


DEADLY = """
import os, sys
sys.path.insert(0, {folder!r})
import toy

class Deadly(toy.Toy):
    def forward(self, x, t, shift=None):
        if len(x) == 2:
            if str(os.getpid()) != os.environ["DRIVER"]:
                os._exit(9)
            open("tried", "w").close()
        return super().forward(x, t, shift)

def subject():
    return toy.Subject("deadly", Deadly(), toy.SHAPE, toy.SCHEDULE, "eps", toy.conditions, features="pixels")
"""


def test_models_without_a_name_and_calls_without_workers_are_refused(tmp_path):
    with pytest.raises(ValueError, match="model must be a name that workers can load"):
        distributed.profile(lambda: None, workers=1, out=tmp_path)
    with pytest.raises(ValueError, match="give workers or cluster"):
        distributed.profile(TOY, out=tmp_path)


@pytest.mark.parametrize("command", [["profile"], ["distribute", "profile"]])
def test_the_commands_take_workers(tmp_path, capsys, command):
    options = ["--solvers", "ddim", "--steps", "4", "--samples", "6", "--reference-steps", "16", "--json"]
    with pytest.raises(SystemExit) as ended:
        main([*command, "--model", TOY, *options, "--workers", "1", "--out", str(tmp_path)])
    assert ended.value.code == 0
    captured = capsys.readouterr()
    assert json.loads(captured.out)["samples"] == 6
    assert "1 worker: settings" in captured.err
