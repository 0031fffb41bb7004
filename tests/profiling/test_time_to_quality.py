"""From the start to what was found, factor by factor."""

import json

import pytest
import torch
import toy

import fastdiff
from fastdiff.bench import records
from fastdiff.bench.time_to_quality import decode_seconds, ladder, measure, record
from fastdiff.bench.time_to_quality_page import write_page
from fastdiff.cli.main import main
from fastdiff.profiling import Subject, confirming
from fastdiff.profiling.drawing import Drawer
from fastdiff.profiling.settings import Setting


def test_a_factor_at_a_time():
    start = Setting("ddim", 50, guidance=2.0, backend="reference")
    best = Setting("unipc-3", 9, guidance=2.0, guidance_every=2, backend="optimize", precision="bfloat16")
    found = ladder(start, best)
    assert [factor for factor, _ in found] == ["start", "steps", "guidance", "kernels", "precision"]  # no reuse
    assert found[0][1] == start
    assert found[-1][1] == best
    assert found[1][1] == Setting("unipc-3", 9, guidance=2.0, backend="reference")


def test_factors_multiply_to_the_whole(tmp_path, monkeypatch):
    monkeypatch.setattr(confirming, "ROUNDS", 2)
    toy.Clock(monkeypatch)
    found = fastdiff.find(
        toy.subject, solvers=["dpmpp-2m"], steps=[6, 10], grids=[None], caches=[None], precisions=["float32"],
        intervals=[None], guidance_every=[1, 2], backends=["auto"], batches=[4], start_steps=20, guidance=2.0,
        own_times=False, minutes=1, out=tmp_path,
    )  # fmt: skip
    result = measure(found, tmp_path / "ladder", 0.0)
    assert result.rungs[0].factor == "start"
    product = 1.0
    for rung in result.rungs[1:]:
        product *= rung.times[0]
        assert rung.times[1] <= rung.times[0] <= rung.times[2]
    assert product == pytest.approx(result.whole[0])
    start, last = result.rungs[0].row, result.rungs[-1].row
    assert result.whole[0] == pytest.approx(start["evaluations"] / last["evaluations"], rel=0.05)
    assert last["ssim_interval"]["low"] <= last["ssim"] <= last["ssim_interval"]["high"]
    records.save(tmp_path / "rows.json", "time-to-quality", [record(result)])
    assert records.load(tmp_path / "rows.json")["rows"][0]["times_as_fast"] == list(result.whole)
    write_page(tmp_path / "page.html", [result])
    page = (tmp_path / "page.html").read_text(encoding="utf-8")
    assert page.count("data:image/png;base64,") == len(result.rungs) + 1
    assert f"{result.whole[0]:.1f} times as fast" in page
    assert json.dumps(record(result))


def test_decoding_is_timed_for_models_of_latents():
    subject = Subject("small", toy.Toy(), toy.SHAPE, toy.SCHEDULE, "eps", decode=torch.tanh)
    settings = [Setting("ddim", 2, backend=backend) for backend in ("reference", "auto")]
    found = decode_seconds(Drawer(subject, 0), settings)
    assert found.keys() == {"reference", "auto"}
    assert all(seconds > 0 for seconds in found.values())
    assert decode_seconds(Drawer(toy.subject(), 0), settings) == {"reference": 0.0, "auto": 0.0}


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--only", "emoji-unet-23"], "unknown model 'emoji-unet-23'; did you mean 'emoji-unet-32'"),
        (["--minutes", "0"], "--minutes must be positive, got 0"),
        (["--folder", "nowhere"], "unknown model 'nowhere'"),
    ],
)
def test_bad_arguments_are_said_in_one_line(arguments, message, capsys, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(SystemExit) as stopped:
        main(["bench", "time-to-quality", *arguments])
    assert stopped.value.code == 2
    assert message in capsys.readouterr().err
    assert not list(tmp_path.iterdir())
