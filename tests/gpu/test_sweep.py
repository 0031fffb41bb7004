"""`fastdiff bench ops --sweep` on a GPU: it measures within its time, and tables can be made of its file."""

import pytest
import torch

from fastdiff.bench import measured, sweep, sweep_cases, tables

pytestmark = [pytest.mark.only_gpu, pytest.mark.needs_triton]


def test_a_sweep_gives_a_file_for_the_tables(tmp_path, monkeypatch):
    some = [(part, case) for part, case in sweep_cases.cases() if case.shape in ((2, 256, 1152), (2, 8, 1024, 80))]
    monkeypatch.setattr(sweep, "cases", lambda: some)  # processes that compile have the true list
    found = sweep.run([], torch.device("cuda", 0), minutes=1.0, warm=lambda do, tasks, **options: {})
    assert found.ceilings["copy"] > 1e10
    names = {case.op for case in found.cases}
    assert names == {"ada_layer_norm", "residual_ada_layer_norm", "attention"}
    for case in found.cases:
        assert all(time.fault is None for time in case.times.values())
        if not case.part:
            assert {"torch", "triton"} <= set(case.times), case.failed
    measured.save(tmp_path / "measured.json", found)
    made = tables.make([measured.load(tmp_path / "measured.json")], sweep_cases.names)
    assert {row.architecture for row in made.rows} == {found.architecture}
    assert not [line for line in made.left_out if "no such" in line]


def test_processes_that_compile_reach_the_device():
    index, name = next(
        (i, "triton") for i, (part, case) in enumerate(sweep_cases.cases()) if case.op == "ada_layer_norm" and not part
    )
    assert sweep.warming.warm(sweep.compile_one, [(index, name, "cuda:0")], jobs=1, seconds=60) == {}
