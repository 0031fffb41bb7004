"""Searches on the toy, whose calls all take as long by the clock of these tests."""

import json
from itertools import combinations, pairwise
from types import SimpleNamespace

import numpy as np
import pytest
import torch
import toy

import fastdiff
from fastdiff.cli.main import main
from fastdiff.profiling import confirming
from fastdiff.profiling.confirming import times_as_fast
from fastdiff.profiling.distances import Data
from fastdiff.profiling.features import Extractor
from fastdiff.profiling.search import Search
from fastdiff.profiling.settings import Axes, Setting
from fastdiff.profiling.step_times import best_times, moved, step_costs
from fastdiff.profiling.store import Unit
from fastdiff.profiling.targets import Target
from fastdiff.schedules import VPDiscrete

SMALL = dict(
    solvers=["dpmpp-2m", "unipc-2"], steps=[4, 6, 10], grids=[None], caches=[None], precisions=["float32"],
    intervals=[None], guidance_every=[1, 2], backends=["auto"], batches=[4], start_steps=20, guidance=2.0,
)  # fmt: skip


@pytest.fixture
def clock(monkeypatch):
    monkeypatch.setattr(confirming, "ROUNDS", 2)
    return toy.Clock(monkeypatch)


def test_the_start_is_beaten_at_its_own_quality(clock, tmp_path, monkeypatch):
    monkeypatch.syspath_prepend(str(tmp_path))
    told = []
    found = fastdiff.find(
        "toy:subject", **SMALL, minutes=1.5, out=tmp_path / "out", on_progress=lambda *p: told.append(p)
    )
    best, start = found.best, found.start
    assert start["label"].startswith("ddim, 20 steps")
    assert best["calls"] < 20
    assert best["ssim"] >= start["ssim"] or found.sure >= 0.5
    factor, low, high = found.faster
    assert factor == pytest.approx(start["evaluations"] / best["evaluations"], rel=0.05)
    assert low <= factor <= high
    assert factor > 2
    assert best["samples"] == start["samples"] >= 8
    assert "resampled sets of fresh samples" in found.reason
    searched = {row["slug"] for row in found.profile.rows}
    assert best["slug"] in searched
    assert any(row["setting"]["guidance_every"] == 2 for row in found.profile.rows)
    assert any(isinstance(row["setting"]["grid"], list) for row in found.profile.rows)
    space = {"fastdiff": fastdiff}
    exec(f"import torch; {found.line}", space)
    assert space["x"].shape == (9, *toy.SHAPE)
    facts = json.loads((tmp_path / "out" / "results.json").read_text())["facts"]["find"]
    assert facts["target"] == Target().words
    page = (tmp_path / "out" / "index.html").read_text(encoding="utf-8")
    assert "measured on samples that the search had not seen" in page
    assert told[-1][1] <= told[-1][2] == 90

    done = {path: path.stat().st_mtime_ns for path in (tmp_path / "out").rglob("work/*.npz")}
    again = fastdiff.find(None, out=tmp_path / "out", resume=True, minutes=1)
    assert again.best["slug"] in {row["slug"] for row in again.finalists}
    assert len(done) > 20
    assert all(path.stat().st_mtime_ns == when for path, when in done.items())
    with pytest.raises(ValueError, match=r"was made with guidance 2\.0, not 3\.0"):
        fastdiff.find(None, out=tmp_path / "out", resume=True, guidance=3.0)


def test_a_target_that_nothing_reaches_names_the_nearest(clock, tmp_path):
    found = fastdiff.find(
        toy.subject, **{**SMALL, "steps": [4]}, own_times=False, target_rmse=1e-7, minutes=1, out=tmp_path
    )
    assert found.best is None
    assert found.line == ""
    assert (
        "no setting that was tried has a RMSE to the converged trajectory of 1e-07 or less; the nearest, "
        in found.reason
    )


def test_an_interrupted_search_keeps_what_is_done(clock, tmp_path):
    def stop(what, done, total):
        if what.startswith("6 settings"):
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        fastdiff.find(toy.subject, **SMALL, minutes=1, out=tmp_path, on_progress=stop)
    facts = json.loads((tmp_path / "results.json").read_text())
    assert not facts["facts"]["complete"]
    assert len(facts["rows"]) == 5
    done = {path: path.stat().st_mtime_ns for path in (tmp_path / "work").iterdir()}
    found = fastdiff.find(toy.subject, out=tmp_path, resume=True, minutes=1)
    assert found.best is not None
    assert all(path.stat().st_mtime_ns == when for path, when in done.items())


def test_the_command_prints_what_to_take(clock, tmp_path, capsys):
    options = {
        "--solvers": "dpmpp-2m,unipc-2", "--steps": "4,6,10", "--grid": "none", "--cache": "none", "--minutes": "1",
        "--precision": "float32", "--interval": "none", "--guidance-every": "1,2", "--backend": "auto", "--batch": "4",
        "--start-steps": "20", "--guidance": "2", "--out": str(tmp_path / "out"),
    }  # fmt: skip
    given = [word for option in options.items() for word in option]
    with pytest.raises(SystemExit) as stopped:
        main(["profile", "--find", "--model", "toy:subject", *given, "--json"])
    assert stopped.value.code == 0
    printed = capsys.readouterr()
    facts = json.loads(printed.out)
    text = " ".join(printed.err.split())
    assert f"{facts['faster'][0]:.1f} times as fast as the start" in text
    assert f"take {facts['best']['label']}: the fastest found with a SSIM" in text
    assert " ".join(facts["line"].split()) in text
    assert facts["report"] in text


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"target_ssim": 1.5}, r"target_ssim must be in \(0, 1\), got 1.5"),
        ({"target_ssim": 0.9, "target_rmse": 0.1}, "one target at most, got target_ssim and target_rmse"),
        ({"target_frechet": 3.0}, "target_frechet needs data to compare with"),
        ({"solvers": ["dimm"]}, "unknown solver 'dimm'; did you mean 'ddim'"),
        ({"caches": ["shallow:2"]}, "unknown caching 'shallow'"),
        ({"start": "heum"}, "unknown solver 'heum'; did you mean 'heun'"),
        ({"minutes": 0}, "minutes must be positive"),
        (
            {"minutes": 1e-3},
            "minutes=0.001 is too short: speeds, the converged pictures and the 20 steps of the start alone take",
        ),
        ({"batches": [3]}, "no backend can run the model; auto, batch 3: .*batches of 3 are too much"),
        ({"guidance_every": [0]}, "guidance_every must be a whole number >= 1"),
    ],
)
def test_bad_arguments(options, message, clock, tmp_path):
    with pytest.raises(ValueError, match=message):
        fastdiff.find(toy.subject, **{**SMALL, **options}, out=tmp_path)


def test_step_times_are_where_the_trajectory_bends():
    """y is bent about r = 1 only, so that more of the steps are there; the least sum is that of all choices."""
    schedule = VPDiscrete.linear()
    times = np.linspace(1, 0, 13)
    points = schedule.points(times)
    states = [torch.full((2, 3), p.alpha * np.tanh(3 * np.log(max(p.sigma / p.alpha, 1e-3)))) for p in points]
    costs = step_costs(schedule, times, states)
    assert (costs[np.tril_indices(13)] == np.inf).all()
    chosen = best_times(times.tolist(), costs, 4)
    assert (chosen[0], chosen[-1], len(chosen)) == (1.0, 0.0, 5)
    index = {t: k for k, t in enumerate(times.tolist())}

    def cost(path):
        at = [index[t] for t in path]
        return sum(costs[i, j] for i, j in pairwise(at))

    every = [cost([1.0, *times[list(inner)].tolist(), 0.0]) for inner in combinations(range(1, 12), 3)]
    assert cost(chosen) == pytest.approx(min(every))
    assert best_times(times.tolist(), costs, 12) == tuple(times.tolist())
    with pytest.raises(ValueError, match="steps must lie in"):
        best_times(times.tolist(), costs, 13)
    nearer = moved(schedule, chosen, 1, 0.5)
    assert chosen[0] > chosen[1] > nearer[1] > chosen[2]
    assert moved(schedule, chosen, 3, 0.5) is None  # the next one is the data


def units_of(values):
    return [Unit(rmse=np.array(values), ssim=1 - np.array(values))]


def test_how_sure_a_target_is_reached(data):
    extractor = Extractor("none", lambda x: x.flatten(1))
    rng = np.random.default_rng(0)
    start = rng.uniform(0.1, 0.3, 32)
    near, far, even = units_of(start - 0.02), units_of(start + 0.02), units_of(start)
    target = Target()
    assert target.sure(near, units_of(start), extractor) == 1
    assert target.sure(far, units_of(start), extractor) == 0
    assert target.sure(even, units_of(start), extractor) == 1  # not below
    mean = float(1 - start.mean())
    assert 0.3 < Target("ssim", mean).sure(even, units_of(start), extractor) < 0.7
    assert target.gap(near, units_of(start), units_of(start), extractor, 1.0) < 0
    assert target.gap(far, units_of(start), units_of(start), extractor, 1.0) > 0
    assert target.gap(near, units_of(start), units_of(start), extractor, -1.0) < 0  # all are lower by as much
    uneven = units_of(start - 0.02 + rng.normal(0, 0.2, 32))
    loose, mean, strict = (target.gap(uneven, units_of(start), units_of(start), extractor, e) for e in (1.0, 0.0, -1.0))
    assert loose < mean < strict
    assert mean - loose == pytest.approx(strict - mean)
    assert Target("rmse", 0.05).gap(even, even, even, extractor, 1.0) > 0
    features = data.mean((2, 3)).double().numpy()
    known = Extractor("means", lambda x: x.mean((2, 3)), features)
    own = [Unit(features=features[:30] + 1)]  # a distance of about 3
    assert Target("frechet", 10.0).sure(own, own, known) == 1
    assert Target("frechet", 1.0).sure(own, own, known) == 0
    assert Data(features).compare(features[:30]).keys() >= {"frechet"}


def search_of(found):
    """A search that knows these SSIMs of a first block of four samples, by steps; a step takes a second."""
    settings = {steps: Setting("dpmpp-2m", steps) for steps in found}
    start = Setting("ddim", 50)
    units = {settings[steps]: {0: Unit(ssim=np.array(values))} for steps, values in found.items()}
    units[start] = {0: Unit(ssim=np.array([0.9, 0.92, 0.94, 0.96]))}
    speeds = SimpleNamespace(seconds=lambda setting, _: float(setting.steps))
    nothing = Extractor("none", lambda x: x.flatten(1))
    search = Search(None, None, nothing, None, 2, start, Target(), speeds, Axes(), None, lambda: 1.0, 1.0, print, units)
    return search, lambda *arguments, **options: [s.steps for s in search.survivors(*arguments, **options)]


def test_what_goes_on_has_a_setting_that_reaches_the_target_with_room_to_spare():
    """Of four samples many may reach it, and on more they do not."""
    uncertain = {steps: [0.80, 0.99, 0.87, 0.99] for steps in (6, 7, 8, 9, 10)}
    _, left = search_of({5: [0.7, 0.7, 0.7, 0.71], **uncertain, 14: [0.95, 0.96, 0.97, 0.98], 20: [0.99] * 4})
    assert left(5, 1) == [5, 6, 7, 8, 14]
    assert left(3, 1, near=False) == [6, 7, 14]
    _, left = search_of(uncertain)  # none has room to spare
    assert len(left(3, 1, near=False)) == 3
    _, left = search_of({4: [0.5] * 4, 5: [0.6] * 4, 6: [0.4] * 4})
    assert left(2, 1) == [5, 4]  # none reaches it: the nearest first


def test_a_factor_has_the_noise_of_both_times():
    row = lambda seconds, noise: {"seconds": {"median": seconds, "noise": noise}}  # noqa: E731
    factor, low, high = times_as_fast(row(10, 0.03), row(1, 0.04))
    assert factor == 10
    assert low == pytest.approx(10 * np.exp(-1.645 * 0.05))
    assert high == pytest.approx(10 * np.exp(1.645 * 0.05))
