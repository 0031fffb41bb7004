#!/usr/bin/env bash
# Run the tests of the compiled code under AddressSanitizer and UndefinedBehaviorSanitizer: the first bad address or
# undefined operation ends the run with a stack trace.
#
#     bash tests/sanitize.sh [arguments of pytest]
#
# PYTHON (python3), SCRATCH: see own_build.sh. CXX (g++): the compiler, GCC on Linux.
set -euo pipefail
cd "$(dirname "$0")/.."
source tests/own_build.sh
export CXX=${CXX:-g++}

# Python itself is not built with the sanitizer, so its runtime must be there first; and with it that of C++, whose
# exceptions the sanitizer looks up when it starts.
runtime=$("$CXX" -print-file-name=libasan.so)
[ -e "$runtime" ] || { echo "$CXX has no libasan.so (Debian: apt install libgcc-12-dev or its version of it)"; exit 1; }
preload="$runtime $("$CXX" -print-file-name=libstdc++.so)"
own_build cmake.build-type=RelWithDebInfo cmake.define.FASTDIFF_SANITIZE=ON

# Python keeps what it allocates until it exits, which is no leak.
export LD_PRELOAD=$preload ASAN_OPTIONS=detect_leaks=0:abort_on_error=1 UBSAN_OPTIONS=print_stacktrace=1
check_own_build
if [ $# = 0 ]; then
  set -- tests/ops tests/test_memory.py tests/test_engine.py tests/test_noise.py -k "not triton and not nvcc"
fi
"$scratch/bin/python" -m pytest -q -p no:cacheprovider --capture=sys "$@"
