"""The C++ sources compile without a warning with compilers other than the one that built the package: Clang, as on
macOS, and GCC for ARM. Nothing is run."""

import re
import shutil
import subprocess
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
CMAKE = (ROOT / "CMakeLists.txt").read_text()
X86 = ("baseline", "avx2", "avx512", "avx512_bfloat16", "avx512_vnni", "amx", "emulated amx")
# The command, and the instruction sets that it compiles for.
COMPILERS = {
    "clang++": X86,
    "clang++ --target=aarch64-linux-gnu": ("neon",),
    "aarch64-linux-gnu-g++": ("neon", "baseline"),
}
CASES = [(compiler, isa) for compiler, isas in COMPILERS.items() for isa in (*isas, "core")]


def sources(isa):
    """The files of an instruction set, or of what is compiled once, and their options, as CMakeLists.txt has them."""
    if isa == "core":
        bindings = r"_core csrc/bindings.cpp csrc/bindings_changes.cpp csrc/bindings_norms.cpp"
        (files,) = re.findall(rf"pybind11_add_module\({bindings} ([^)]+)\)", CMAKE)
        return files.split(), []
    emulated = ["-DFASTDIFF_EMULATE_AMX"] if isa == "emulated amx" else []
    isa = isa.removeprefix("emulated ")
    common, *_ = re.findall(r"set\(kernel_files\s+([^)]+)\)", CMAKE)
    own = re.findall(rf"set\(kernel_files\s+([^)]+)\)\s+add_kernels\({isa} ", CMAKE)  # for what not all processors have
    avx512 = re.findall(r"set\(avx512 ([^)]+)\)", CMAKE)
    options = re.findall(rf"add_kernels\({isa}((?: [^)/]+)?)\)", CMAKE)[-1].replace("${avx512}", *avx512)
    return (own or [common])[0].split(), [f"-DFASTDIFF_ISA_{isa.upper()}", *emulated, *options.split()]


@pytest.mark.parametrize(("compiler", "isa"), CASES)
def test_compiles(compiler, isa):
    command = compiler.split()
    if shutil.which(command[0]) is None:
        pytest.skip(f"there is no {command[0]} here")
    if len(command) > 1 and shutil.which("aarch64-linux-gnu-g++") is None:
        pytest.skip("the C library's headers for ARM are not here")
    has = ["-DFASTDIFF_HAS_NEON"] if "aarch64" in compiler else ["-DFASTDIFF_HAS_X86", "-DFASTDIFF_HAS_AMX"]
    files, options = sources(isa)
    assert files
    options += [*has, "-std=c++17", "-O2", "-Wall", "-Wextra", "-Werror", "-ffp-contract=off"]
    for file in files:
        line = [*command, *options, "-I", "csrc/include", "-fsyntax-only", file]
        done = subprocess.run(line, check=False, cwd=ROOT, capture_output=True, text=True)
        assert done.returncode == 0, done.stderr[-3000:]
