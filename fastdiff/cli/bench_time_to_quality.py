"""`fastdiff bench time-to-quality`: the bundled models and a diffusers folder, in as many minutes as are given."""

from __future__ import annotations

from collections.abc import Sequence

from rich.table import Table

from fastdiff.bench import records
from fastdiff.bench.time_to_quality import MODELS, Result, record, run
from fastdiff.bench.time_to_quality_page import write_page
from fastdiff.cli.console import Bars, console
from fastdiff.cli.profile import seconds
from fastdiff.errors import expect
from fastdiff.files import writable_file, writable_folder
from fastdiff.profiling import get_subject
from fastdiff.profiling.report import require

PAGE = "index.html"


def time_to_quality(models: Sequence[str], folder: str | None, minutes: float, out: str, json_file: str | None) -> None:
    """See `fastdiff bench time-to-quality --help`. What is named is looked at before anything is timed."""
    require()
    expect(minutes > 0, f"--minutes must be positive, got {minutes!r}")
    chosen = [*(models or MODELS), *([folder] if folder else [])]
    for name in chosen:
        get_subject(name)
    where = writable_folder(out)
    if json_file:
        writable_file(json_file)
    bar = Bars(counts=False, period=600)
    task = bar.add("starting")
    bar.start()
    try:
        results = run(
            chosen, minutes, where,
            lambda what, done, total: bar.update(task, description=what, completed=done, total=total),
        )  # fmt: skip
    finally:
        bar.stop()
    write_page(where / PAGE, results)
    if json_file:
        good, bad = [r for r in results if r.rungs], [r for r in results if not r.rungs]
        left_out = {result.model: result.reason for result in bad}
        records.save(json_file, "time-to-quality", [record(result) for result in good], left_out=left_out)
    _print(results)
    if not folder:
        console.print("no diffusers folder was given: --folder DIR adds one", style="dim")
    console.print(f"report: [bold]{(where / PAGE).resolve()}[/bold]", soft_wrap=True)
    expect(any(result.rungs for result in results), f"nothing was found: {results[0].reason}")


def _print(results: Sequence[Result]) -> None:
    for result in results:
        if not result.rungs:
            console.print(f"{result.model}: {result.reason}", markup=False, soft_wrap=True)
            continue
        assert result.whole is not None
        factor, low, high = result.whole
        title = f"{result.model}: {factor:.1f} times as fast ({low:.1f} to {high:.1f}), {result.samples} samples"
        table = Table(title=title, title_justify="left")
        for heading in ("factor", "setting", "a sample", "times", "SSIM", "RMSE", "Frechet"):
            table.add_column(heading, justify="left" if heading in ("factor", "setting") else "right")
        for rung in result.rungs:
            row = rung.row
            cells = [
                "" if found is None else f"{found['value']:.3g}"
                for found in (row["ssim_interval"], row["rmse"], row["frechet"])
            ]
            times = "" if rung is result.rungs[0] else f"{rung.times[0]:.2f}x"
            table.add_row(rung.factor, row["label"], seconds(row["seconds"]["median"]), times, *cells)
        console.print(table)
        console.print(result.reason, markup=False, soft_wrap=True)
