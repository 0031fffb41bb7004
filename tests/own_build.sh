# For the scripts beside this one: a build of the package with options of CMake, in an environment of its own.
#
#     source own_build.sh; own_build cmake.build-type=Release cmake.define.NAME=VALUE ...
#
# Sets scratch, the environment's folder. PYTHON (python3): its packages are used, and must be those that
# `pip install ".[test]"` brings. SCRATCH: a folder for the build, kept for the next run; without it, one that is thrown
# away.
python=$(command -v "${PYTHON:-python3}") || { echo "no ${PYTHON:-python3}; set PYTHON"; exit 1; }

own_build() {
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
  local isolation= options=()
  if "$scratch/bin/python" -c "import ninja, pybind11, scikit_build_core" 2>/dev/null; then
    isolation=--no-build-isolation
  fi
  for option in "$@"; do options+=(-C "$option"); done
  "$scratch/bin/python" -m pip install -q --disable-pip-version-check --no-deps --force-reinstall $isolation \
    "${options[@]}" -C build-dir="$scratch/build" .
}

# Ends the script if Python in that environment finds another fastdiff than the one that was built.
check_own_build() {
  local found
  found=$(cd "$scratch" && bin/python -c "from fastdiff.runtime.native import core; print(core.__file__)")
  case $found in
    "$scratch"/*) ;;
    *) echo "another fastdiff is in the way: $found"; exit 1 ;;
  esac
}
