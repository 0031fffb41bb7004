"""Workers on Ray: two nodes on this machine, a node that goes away, clusters that cannot be had."""

import socket
import sys
from pathlib import Path

import pytest
import small_job

import fastdiff
from fastdiff import distributed

ray = pytest.importorskip("ray", reason="belongs to the ray extra")


@pytest.fixture(scope="module")
def cluster():
    """Two nodes of one core each, where each call of the network takes a tenth of a second."""
    from ray.cluster_utils import Cluster

    size = 128 * 2**20  # bytes of shared memory; results are files and do not need it
    with pytest.MonkeyPatch.context() as patch:
        for name, value in {"RAY_USAGE_STATS_ENABLED": "0", "BREAK": "slow", "BREAK_SECONDS": "0.1"}.items():
            patch.setenv(name, value)
        started = patient(Cluster, initialize_head=True, head_node_args={"num_cpus": 1, "object_store_memory": size})
        started.second = patient(started.add_node, num_cpus=1, object_store_memory=size)
    yield started
    started.shutdown()


def patient(start, **options):
    """On a busy machine a node takes longer than the half minute that Ray waits for it."""
    for _ in range(3):
        try:
            return start(**options)
        except Exception as error:  # of no class of its own
            if "timed out during startup" not in str(error):
                raise
            last = error
    raise last


def make(out, **options):
    return distributed.sample(small_job.MODEL, out, **{**small_job.JOB, **options})


def test_what_a_worker_on_ray_refuses_is_said(tmp_path, cluster):
    with pytest.raises(ValueError, match="needs a model with a condition to leave out"):
        make(tmp_path, cluster=cluster.address, workers=1, guidance=2.0)
    assert not ray.is_initialized()


def test_a_worker_that_does_not_fit_is_refused(tmp_path, cluster):
    with pytest.raises(ValueError, match=f"{cluster.address} has no room for a worker, which needs 2 CPUs"):
        make(tmp_path, cluster=cluster.address, threads=2)
    assert not ray.is_initialized()


def test_a_sweep_on_two_nodes_has_the_table_of_one_process(tmp_path, cluster):
    pytest.importorskip("skimage", reason="belongs to the profile extra")
    toy = f"{Path(__file__).parents[1] / 'profiling' / 'toy.py'}:subject"
    sweep = dict(solvers=["ddim", "dpmpp-2m"], steps=[4], samples=6, reference_steps=16)
    expected = fastdiff.profile(toy, **sweep, out=tmp_path / "one")
    found = distributed.profile(toy, **sweep, out=tmp_path / "two", cluster=cluster.address)
    for ours, theirs in zip(found.rows, expected.rows, strict=True):
        for name in ("label", "error", "samples", "calls", "rmse", "psnr", "ssim"):
            assert ours[name] == theirs[name]


def test_two_nodes_make_the_same_samples_also_when_one_goes_away(tmp_path, cluster):
    expected = make(tmp_path / "one", threads=1, features="pixels")
    told, removed = [], []

    def on_progress(progress):
        told.append(progress)
        if progress.made == 2 and not removed:
            removed.append(cluster.remove_node(cluster.second))

    out = tmp_path / "two"
    found = make(out, cluster=cluster.address, features="pixels", on_progress=on_progress)
    assert removed
    assert found.sha256 == expected.sha256
    assert found.kinds == expected.kinds
    assert not found.failed
    for path in (tmp_path / "one" / "statistics").iterdir():
        assert (out / "statistics" / path.name).read_bytes() == path.read_bytes()


def test_a_cluster_is_started_on_this_machine(tmp_path):
    found = make(tmp_path / "a", cluster="local", workers=1)
    assert found.sha256 == make(tmp_path / "b", threads=1).sha256
    assert not ray.is_initialized()


def test_clusters_that_cannot_be_had(tmp_path):
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        address = f"127.0.0.1:{free.getsockname()[1]}"
        with pytest.raises(ValueError, match=f"cannot reach the Ray cluster {address}: .*refused"):
            make(tmp_path / "a", cluster=address)
    with pytest.raises(ValueError, match="must be HOST:PORT, ray://HOST:PORT, auto or local, got 'nonsense'"):
        make(tmp_path / "a", cluster="nonsense")


def test_without_ray_the_extra_is_named(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "ray", None)
    with pytest.raises(ImportError, match=r'a cluster needs Ray: pip install "torch-fastdiff\[ray\]"'):
        make(tmp_path, cluster="auto")
