#!/usr/bin/env bash
# Run the tests of the compiled code under AddressSanitizer and UndefinedBehaviorSanitizer: the first bad address or
# undefined operation ends the run with a stack trace.
#
#     bash tests/sanitize.sh [arguments of pytest]
#
# PYTHON (python3): its packages are used, and must be those that `pip install ".[test]"` brings. CXX (g++): the compiler,
# GCC on Linux. SCRATCH: a folder for the build, kept for the next run; without it, one that is thrown away.
set -euo pipefail
cd "$(dirname "$0")/.."
python=$(command -v "${PYTHON:-python3}") || { echo "no ${PYTHON:-python3}; set PYTHON"; exit 1; }
export CXX=${CXX:-g++}

# Python itself is not built with the sanitizer, so its runtime must be there first; and with it that of C++, whose
# exceptions the sanitizer looks up when it starts.
runtime=$("$CXX" -print-file-name=libasan.so)
[ -e "$runtime" ] || { echo "$CXX has no libasan.so (Debian: apt install libgcc-12-dev or that of your version)"; exit 1; }
preload="$runtime $("$CXX" -print-file-name=libstdc++.so)"

if [ -n "${SCRATCH:-}" ]; then
  mkdir -p "$SCRATCH"
  scratch=$(cd "$SCRATCH" && pwd)
else
  scratch=$(mktemp -d)
  trap 'rm -rf "$scratch"' EXIT
fi
"$python" -m venv "$scratch"
# The packages of PYTHON without its .pth files: one may lead to an editable install of fastdiff.
"$python" - "$scratch" <<'SETUP'
import pathlib, sys, sysconfig
packages = [p for p in sys.path if p.endswith(("site-packages", "dist-packages"))]
version = f"python{sys.version_info.major}.{sys.version_info.minor}"
(pathlib.Path(sys.argv[1]) / "lib" / version / "site-packages" / "packages.pth").write_text("\n".join(packages) + "\n")
SETUP
isolation=
if "$scratch/bin/python" -c "import ninja, pybind11, scikit_build_core" 2>/dev/null; then
  isolation=--no-build-isolation
fi
"$scratch/bin/python" -m pip install -q --disable-pip-version-check --no-deps --force-reinstall $isolation \
  -C cmake.build-type=RelWithDebInfo -C cmake.define.FASTDIFF_SANITIZE=ON -C build-dir="$scratch/build" .

# Python keeps what it allocates until it exits, which is no leak.
export LD_PRELOAD=$preload ASAN_OPTIONS=detect_leaks=0:abort_on_error=1 UBSAN_OPTIONS=print_stacktrace=1
found=$(cd "$scratch" && bin/python -c "from fastdiff.runtime.native import core; print(core.__file__)")
case $found in
  "$scratch"/*) ;;
  *) echo "another fastdiff is in the way: $found"; exit 1 ;;
esac
if [ $# = 0 ]; then
  set -- tests/ops tests/test_memory.py tests/test_engine.py tests/test_noise.py -k "not triton"
fi
"$scratch/bin/python" -m pytest -q -p no:cacheprovider --capture=sys "$@"
