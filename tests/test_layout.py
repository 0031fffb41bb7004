"""What holds for the whole repository: one stem an op, a small extension, a quick import."""

import ast
import importlib
import inspect
import subprocess
import sys
from pathlib import Path

import pytest

import fastdiff
from fastdiff.ops.op import Op
from fastdiff.runtime import cuda
from fastdiff.runtime.native import core

ROOT = Path(__file__).parents[1]
PUBLIC = [
    f"fastdiff.{path.relative_to(ROOT / 'fastdiff').with_suffix('').as_posix().replace('/', '.')}"
    for path in sorted((ROOT / "fastdiff").glob("**/*.py"))
    if path.name != "__init__.py" and "kernels" not in path.parts and "cli" not in path.parts
]


@pytest.mark.parametrize("op", fastdiff.ops.OPS)
def test_an_op_has_its_stem_everywhere(op):
    folders = ("fastdiff/ops/{}.py", "fastdiff/bench/cases/{}.py", "tests/ops/test_{}.py")
    for path in (*folders, "benchmarks/bench_{}.py"):
        assert (ROOT / path.format(op)).is_file(), path
    has_kernel = type(fastdiff.ops.OPS[op]).kernel is not Op.kernel
    assert (ROOT / f"csrc/cpu/{op}.cpp").is_file() == has_kernel
    in_triton = op in fastdiff.ops.TRITON_OPS or op in ("linear", "conv2d")  # whose kernels are candidates alone
    assert (ROOT / f"kernels/{op}").is_dir() == in_triton
    assert callable(getattr(fastdiff.ops, op))


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="reads the dynamic section of an ELF file")
def test_the_extension_links_no_torch_and_no_openmp_of_its_own():
    needed = subprocess.run(["ldd", core.__file__], capture_output=True, text=True, check=True).stdout
    assert "torch" not in needed
    assert "gomp" not in needed
    assert "omp" not in needed
    assert "cuda" not in needed


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="reads the dynamic section of an ELF file")
@pytest.mark.skipif(cuda.library() is None, reason="installed without the CUDA kernels: there was no nvcc")
def test_the_cuda_library_links_its_runtime_statically():
    (library,) = Path(core.__file__).parent.glob("_cuda.*")
    needed = subprocess.run(["ldd", library], capture_output=True, text=True, check=True).stdout
    assert "cuda" not in needed
    assert "not found" not in needed


def test_import_loads_nothing_that_only_commands_or_compilation_need():
    """Dynamo alone takes a second."""
    names = {"typer", "rich", "matplotlib", "PIL", "jinja2", "emoji", "torch._dynamo", "triton", "transformers"}
    loaded = f"import sys; print(sorted({names} & set(sys.modules)))"
    ours, torchs = (
        subprocess.run([sys.executable, "-c", f"import {name}; {loaded}"], capture_output=True, text=True, check=True)
        for name in ("fastdiff", "torch")
    )
    assert ours.stdout == torchs.stdout


@pytest.mark.parametrize("name", PUBLIC)
def test_everything_public_has_a_docstring(name):
    module = importlib.import_module(name)
    assert module.__doc__
    for attribute, value in vars(module).items():
        if attribute.startswith("_") or getattr(value, "__module__", None) != module.__name__:
            continue
        if inspect.isfunction(value) or inspect.isclass(value):
            assert inspect.getdoc(value), f"{name}.{attribute}"


KERNELS = sorted((ROOT / "kernels").glob("*/*.py"))


@pytest.mark.parametrize("path", KERNELS, ids=lambda path: "/".join(path.parts[-2:]))
def test_kernels_join_two_conditions_at_a_time(path):
    """Triton 3.2 refuses to compile `a or b or c`."""
    for function in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(function, ast.FunctionDef) and any("jit" in ast.unparse(d) for d in function.decorator_list):
            joined = [each for each in ast.walk(function) if isinstance(each, ast.BoolOp) and len(each.values) > 2]
            assert not joined, f"{function.name}: {ast.unparse(joined[0])}"


def test_every_solver_names_its_source():
    for solver in fastdiff.solvers.SOLVERS.values():
        assert any(year in solver.source for year in map(str, range(2000, 2030))), solver.name
