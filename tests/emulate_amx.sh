#!/usr/bin/env bash
# Run the tests of the kernels for Intel's matrix units (AMX) on a machine without them: in a build where the tiles and
# their instructions are done in software on AVX-512, with the same results as the processor's manual gives (see
# csrc/include/fastdiff/amx_emulated.h). It shows that the results are right, and nothing about the time they take.
#
#     bash tests/emulate_amx.sh [arguments of pytest]
#
# PYTHON (python3), SCRATCH: see own_build.sh. In such a build `fastdiff info` says "AMX emulated", and amx is the last
# choice of the instruction sets and not the first; FASTDIFF_ISA=amx, as here, takes it.
set -euo pipefail
cd "$(dirname "$0")/.."
source tests/own_build.sh
own_build cmake.define.FASTDIFF_EMULATE_AMX=ON
export FASTDIFF_ISA=amx OMP_NUM_THREADS=${OMP_NUM_THREADS:-1}
check_own_build
if [ $# = 0 ]; then
  # The passes first, as in the whole suite: after torch.library.opcheck Dynamo captures in more graphs.
  set -- tests/compiler/test_passes.py tests/ops/test_attention.py tests/ops/test_attention_few.py \
    tests/ops/test_linear.py tests/ops/test_conv2d.py tests/ops/test_conv2d_pointwise.py -n 2 \
    -k "not (avx512 or avx2 or baseline)"
fi
"$scratch/bin/python" -m pytest -q -p no:cacheprovider "$@"
