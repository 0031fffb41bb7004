"""fastdiff bench: rows, comparisons, exponents and convergence."""

import json
import math
import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from browser import NEEDS_BROWSER, browse
from commands import run_command

from fastdiff.bench import convergence, records, scaling, suites
from fastdiff.bench.cases import Case
from fastdiff.bench.page import write_page
from fastdiff.bench.timing import Timing
from fastdiff.cli import bench_gpu
from fastdiff.cli import bench_suites as command
from fastdiff.cli.main import main
from fastdiff.schedules import VPLinear

ROOT = Path(__file__).parents[1]


def bench(*arguments, **options):
    return run_command("bench", *arguments, **options)


def timing(median, spread=0.02):
    return {"median": median, "p20": median * (1 - spread), "p80": median * (1 + spread)}


def row(name, ours, torch_seconds=None, **more):
    seconds = {"ours": timing(ours)} | ({"torch": timing(torch_seconds)} if torch_seconds else {})
    return {"name": name, "seconds": seconds, "baseline": "torch" if torch_seconds else None, **more}


def test_a_row_is_slower_only_beyond_the_spread_and_not_with_the_machine():
    before = {"rows": [row("a", 1.0, 2.0), row("b", 1.0, 2.0), row("c", 1.0, 2.0), row("d", 1.0), row("gone", 1.0)]}
    after = {"rows": [row("a", 1.2, 2.0), row("b", 1.03, 2.0), row("c", 3.0, 6.0), row("d", 0.5), row("new", 9.0)]}
    changes = {change.name: change for change in records.compare(before, after)}
    assert [name for name, change in changes.items() if change.slower] == ["a"]
    assert [name for name, change in changes.items() if change.faster] == ["d"]
    assert changes["a"].factor == pytest.approx(1 / 1.2)
    assert changes["c"].factor == pytest.approx(1)  # three times as slow a machine
    assert set(changes) == {"a", "b", "c", "d"}
    with pytest.raises(ValueError, match="no row in common"):
        records.compare({"rows": [row("a", 1.0)]}, {"rows": [row("b", 1.0)]})


def test_compare_exits_with_1_when_something_became_slower(tmp_path):
    files = [tmp_path / name for name in ("a.json", "b.json")]
    for file, ours in zip(files, (1.0, 1.3)):
        records.save(file, "ops", [row("attention 8x8", ours, 2.0)])
    worse = bench("compare", *files)
    assert worse.returncode == 1
    assert "slower: attention 8x8" in worse.stderr
    assert "0.77x" in worse.stdout
    command.compare(str(files[0]), str(files[0]))  # returns


def entry(ours, torch_seconds, heap="default"):
    """A row as pytest-benchmark keeps it."""
    info = {
        "shape": [2, 16, 64], "dtype": "float32", "detail": "", "backward": False, "bytes": 1, "flops": 0, "share": 0.5,
        "ratio": torch_seconds / ours, "matmul_flops": None, "heap": heap,
        "ours": timing(ours), "torch": timing(torch_seconds), "copy": timing(ours / 2),
    }  # fmt: skip
    name = "test_ada_layer_norm[2x16x64-float32]"
    return {"name": name, "fullname": f"benchmarks/bench_ada_layer_norm.py::{name}", "extra_info": info, "stats": {}}


def test_compare_reads_what_the_benchmarks_write(tmp_path):
    """pytest-benchmark's files: what is compared is fastdiff over torch, not the seconds."""
    files = {}
    for name, rows in {
        "before": [entry(1e-5, 4e-5), entry(1e-5, 3e-5, "raised")],
        "after": [entry(3e-5, 6e-5), entry(2e-5, 6e-5, "raised")],  # a slower machine
    }.items():
        files[name] = tmp_path / f"{name}.json"
        files[name].write_text(json.dumps({"machine_info": {}, "benchmarks": rows}))
    worse = bench("compare", files["before"], files["after"])
    assert worse.returncode == 1
    assert "2 rows, slower: ada_layer_norm 2x16x64 float32\n" in worse.stderr
    assert "0.50x" in worse.stdout
    suite = tmp_path / "suite.json"
    records.save(suite, "ops", [records.op_row("ada_layer_norm", entry(1e-5, 4e-5))])
    same = bench("compare", files["before"], suite)  # the same rows by another way
    assert (same.returncode, "1.00x" in same.stdout) == (0, True)


def test_compare_reads_a_benchmark_that_ran(tmp_path, monkeypatch):
    pytest.importorskip("pytest_benchmark", reason="belongs to the bench extra")
    file = tmp_path / "rows.json"
    chosen = ["-k", "2x16x64 and not backward", "--benchmark-json", str(file)]
    ran = subprocess.run(
        [sys.executable, "benchmarks/bench_ada_layer_norm.py", *chosen],
        cwd=ROOT, capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert ran.returncode == 0, ran.stdout
    names = {
        "rows.json": "ada_layer_norm 2x16x64 float32",
        "rows-raised.json": "ada_layer_norm 2x16x64 float32, raised heap",
    }
    for name, expected in names.items():
        (change,) = records.compare(records.load(tmp_path / name), records.load(tmp_path / name))
        assert (change.name, change.factor, change.slower) == (expected, 1, False)
    with pytest.raises(ValueError, match=r"no row in common; they have 'ada_layer_norm 2x16x64 float32' and '.*raised"):
        records.compare(*(records.load(tmp_path / name) for name in names))


@pytest.mark.parametrize("suite", ["solvers", "convergence", "gpu"])
def test_a_file_of_any_suite_compares_with_itself(suite, tmp_path):
    step = {"diffusers": [80, 70, 90], "reference": [40, 39, 41], "cpu": [10, 9, 11]}
    found = {
        "solvers": {"results": [
            {"solver": "ddim", "shape": [1, 4], "time_of_the_copy": 2.0, "microseconds_a_step": step},
        ]},
        "convergence": {"rows": [], "errors": {"ddim": {"6": 0.1, "12": 0.05}}, "orders": {"ddim": 1.0}},
        "gpu": {"rows": [bench_gpu.record(Case("softmax", (8, 8), torch.float32, make=dict, bytes=4), {
            "ours": Timing(1, 1, 1), "eager": Timing(3, 3, 3), "compiled": Timing(2, 2, 2)})]},
    }[suite]  # fmt: skip
    file = tmp_path / "a.json"
    file.write_text(json.dumps(found))
    result = bench("compare", file, file)
    assert result.returncode == 0, result.stderr
    assert "1.00x" in result.stdout
    if suite == "convergence":
        found["errors"]["ddim"]["12"] = 0.06
        (tmp_path / "b.json").write_text(json.dumps(found))
        worse = bench("compare", file, tmp_path / "b.json")
        assert worse.returncode == 1
        assert "less accurate: ddim, 12 calls" in worse.stderr
    if suite == "gpu":
        assert records.ratio(found["rows"][0])[0] == 2


SUITES = ("ops", "models", "solvers", "scaling", "convergence", "time-to-quality", "gpu", "compare")


def test_without_a_suite_they_are_listed(capsys):
    with pytest.raises(SystemExit) as left:
        main(["bench"])
    assert left.value.code in (None, 0)
    lines = capsys.readouterr().out.splitlines()
    assert [line.split()[:3] for line in lines] == [["fastdiff", "bench", suite] for suite in SUITES]
    assert all(len(line.split()) > 6 and not line.endswith("...") for line in lines)


def test_a_suite_has_its_own_options_only(capsys):
    files = {"--json", "--html", "--only"}
    own = {suite: files for suite in SUITES} | {
        "models": {*files, "--against", "--rows", "--device", "--dtype", "--minutes"},
        "ops": {*files, "--device", "--sweep", "--out", "--minutes"},
        "gpu": {"--op", "--check", "--no-check", "--json"},
        "time-to-quality": {"--only", "--folder", "--minutes", "--out", "--json"},
        "compare": set(),
    }
    for suite in SUITES:
        with pytest.raises(SystemExit):
            main(["bench", suite, "--help"])
        assert set(re.findall(r"--[a-z][a-z-]*", capsys.readouterr().out)) == own[suite] | {"--help"}


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["opps"], "unknown suite 'opps'; did you mean 'ops'"),
        (["ops", "--only", "atention"], "unknown op 'atention'"),
        (["ops", "--out", "a.json"], "--out and --minutes are for --sweep"),
        (["ops", "--sweep", "--json", "a.json"], "--sweep writes --out"),
        (["ops", "--sweep"], "--sweep needs --out"),
        (["ops", "--sweep", "--out", "a.json"], "--sweep needs --device cuda, got cpu"),
        (["models", "--against", "tensorrt"], "unknown peer 'tensorrt'"),
        (["scaling", "--only", "hight"], "unknown axis 'hight'"),
        (["compare", "a.json"], "missing argument 'after'"),
        (["compare", "nowhere.json", "b.json"], "nowhere.json"),
        (["ops", "extra"], "got unexpected extra argument"),
    ],
)
def test_bad_arguments(arguments, message, capsys):
    with pytest.raises(SystemExit) as left:
        main(["bench", *arguments])
    assert left.value.code == 2
    assert message.lower() in capsys.readouterr().err.lower()


def test_a_file_of_something_else_is_refused(tmp_path):
    for text, message in (
        ("{", "is not JSON"), ("[]", "is no file of a benchmark"), ('{"rows": [1]}', "benchmark"), ("{}", "benchmark"),
        ('{"benchmarks": [{"fullname": "test_x.py::test", "stats": {}}]}', "benchmark of fastdiff"),
        ('{"rows": [{"name": "a", "seconds": {}}]}', "benchmark"), ('{"rows": []}', "has no rows"),
        ('{"results": [{}]}', "benchmark"), ('{"rows": [], "errors": [1]}', "benchmark"),
    ):  # fmt: skip
        (tmp_path / "x.json").write_text(text)
        with pytest.raises(ValueError, match=message):
            records.load(tmp_path / "x.json")


def test_the_operators_through_the_command(monkeypatch):
    pytest.importorskip("pytest_benchmark", reason="belongs to the bench extra")
    monkeypatch.chdir(ROOT)  # where the benchmarks are
    found = suites.run("ops", only=["ada_layer_norm"], arguments=["-k", "2x16x64 and not backward"])
    (only,) = found
    assert only["name"] == "ada_layer_norm 2x16x64 float32"
    ratio, low, high = records.ratio(only)
    assert low <= ratio <= high
    assert ratio == pytest.approx(only["seconds"]["torch"]["median"] / only["seconds"]["ours"]["median"])
    assert only["share"] > 0


def test_rows_of_the_solvers():
    result = {
        "solver": "ddim", "shape": [1, 4, 64, 64], "time_of_the_copy": 2.0,
        "microseconds_a_step": {"diffusers": [80, 70, 90], "reference": [40, 39, 41], "cpu": [10, 9, 11]},
    }  # fmt: skip
    made = suites.solver_row(result)
    assert made["name"] == "ddim 1x4x64x64"
    assert made["seconds"]["ours"] == {
        "median": pytest.approx(1e-5),
        "p20": pytest.approx(9e-6),
        "p80": pytest.approx(1.1e-5),
    }
    assert records.ratio(made)[0] == pytest.approx(8)
    assert made["share"] == 0.5


def test_exponent():
    n = np.array([1, 2, 4, 8])
    fit = scaling.exponent(n, 3 * n**1.5)
    assert fit["exponent"] == pytest.approx(1.5)
    assert fit["error"] == pytest.approx(0, abs=1e-9)
    assert scaling.exponent([4, 4], [1, 2]) is None


def test_scaling_counts_what_a_layer_does():
    model = torch.nn.Sequential(torch.nn.Conv2d(3, 4, 3, padding=1), torch.nn.SiLU(), torch.nn.Conv2d(4, 2, 1))
    x = torch.randn(1, 3, 5, 7)
    numbers = (3 + 4) * 35 + (4 * 3 * 9 + 4) + (4 + 2) * 35 + (2 * 4 + 2)
    assert scaling.moved_bytes(model, x) == 4 * numbers


def test_scaling_runs():
    threads = torch.get_num_threads()
    rows, fits = scaling.run(["resolution", "sequence"], rounds=1, small=True)
    assert [r["name"] for r in rows] == ["resolution 16", "resolution 32", "sequence 64", "sequence 256"]
    assert fits["resolution"]["multiply-adds"]["exponent"] == pytest.approx(2, abs=0.1)  # pixels
    assert 1 < fits["sequence"]["multiply-adds"]["exponent"] < 1.3  # attention's share is small yet
    assert all(r["seconds"]["ours"]["median"] > 0 for r in rows)
    assert torch.get_num_threads() == threads


def test_the_mixture_is_exact():
    """eps is -sigma times the gradient of log p, p written out."""
    schedule = VPLinear()
    model = convergence.mixture(schedule)
    x = torch.randn(20, 2, dtype=torch.float64).requires_grad_()
    for t in (0.9, 0.3, 0.05):
        point = schedule.point(t)
        variance = (point.alpha * model.std) ** 2 + point.sigma**2
        density = torch.exp(-(x[:, None] - point.alpha * model.means).square().sum(-1) / (2 * variance)).mean(1)
        (score,) = torch.autograd.grad(density.log().sum(), x)
        torch.testing.assert_close(model(x.detach(), torch.full((20,), t)), -point.sigma * score)


def test_convergence_has_the_published_orders():
    solvers = {"ddim": 1, "dpmpp-2m": 2, "dpm-solver-3": 3, "heun": 2}
    found = convergence.errors(list(solvers), (48, 96, 192), samples=64, exact_steps=2000)
    for name, order in convergence.orders(found, last=2).items():
        assert order == pytest.approx(solvers[name], abs=0.35), name
    last = {name: curve[max(curve)] for name, curve in found.items()}
    assert last["ddim"] > last["dpmpp-2m"] > last["dpm-solver-3"]
    assert set(found["heun"]) == {48, 96, 192}  # counted in model calls


def test_published_figures_name_their_source():
    for quoted in convergence.PUBLISHED:
        assert any(year in quoted.source for year in ("2021", "2022", "2023"))
        assert all(math.isfinite(fid) and fid > 1 for fid in quoted.fid.values())


PAGES = {
    "ops": {},
    "scaling": {"fits": {"batch": {"time": {"exponent": 1.0, "error": 0.0}}}},
    "convergence": {"errors": {"ddim": {5: 0.1, 10: 0.05}}, "orders": {"ddim": 1.0},
                    "published": [{"method": "DDIM", "fid": {10: 13.36}, "source": "2021"}]},
}  # fmt: skip


@pytest.fixture(scope="module")
def pages(tmp_path_factory):
    pytest.importorskip("plotly", reason="belongs to the profile extra")
    folder = tmp_path_factory.mktemp("pages")
    rows = [row("a </script> b", 1.0, 2.0, axis="batch", n=1, share=0.5)]
    for suite, more in PAGES.items():
        write_page(folder / f"{suite}.html", suite, rows, **more)
    frames = "".join(f'<iframe src="{suite}.html"></iframe>' for suite in PAGES)
    (folder / "all.html").write_text(f"<!doctype html><title>all</title>{frames}", encoding="utf-8")
    return folder


@pytest.mark.parametrize("suite", PAGES)
def test_a_page_holds_the_rows(suite, pages):
    text = (pages / f"{suite}.html").read_text(encoding="utf-8")
    data = text.split('id="data">')[1].split("</script>")[0]
    assert json.loads(data)["rows"][0]["name"] == "a </script> b"


@NEEDS_BROWSER
def test_the_pages_work_in_a_browser(pages):
    _, log = browse(pages / "all.html")
    assert "CONSOLE" not in log
    document, _ = browse(pages / "scaling.html")
    assert "js-plotly-plot" in document


def test_the_table_of_convergence_is_whole_in_80_columns(tmp_path, monkeypatch, capsys):
    """No name and no number is cut."""
    found = {solver: {n: 1.0 / n**2 for n in convergence.CALLS} for solver in convergence.SOLVERS}
    found["heun"] = {n - 1: 1.0 / n**2 for n in convergence.CALLS}
    monkeypatch.setattr(convergence, "errors", lambda *_: found)
    for width, calls in (("80", 5), ("140", 10)):
        monkeypatch.setenv("COLUMNS", width)
        command.run("convergence", None, None, None, None)
        lines = capsys.readouterr().out.splitlines()
        assert max(map(len, lines)) <= int(width)
        assert "…" not in "".join(lines)
        rows = {line.split()[0]: line.split()[1:] for line in lines if line.split()[:1] and line.split()[0] in found}
        assert set(rows) == set(convergence.SOLVERS)
        assert {len(cells) for cells in rows.values()} == {calls + 1}
        assert rows["ddim"][-2] == f"{1 / 128**2:.1e}"


def test_convergence_through_the_command(tmp_path, capsys):
    command.run("convergence", None, "ddim,dpmpp-2m", str(tmp_path / "c.json"), None)
    assert "quoted and not measured here" in capsys.readouterr().out
    assert set(json.loads((tmp_path / "c.json").read_text())["errors"]) == {"ddim", "dpmpp-2m"}
