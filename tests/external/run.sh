#!/usr/bin/env bash
# Run the tests that others wrote for what fastdiff replaces: PyTorch's samples of functions, diffusers' tests of models
# and of schedulers. Takes hours; not part of `python -m pytest`. What differs, and why, is in docs/notes/external.md.
#
#     bash tests/external/run.sh DIFFUSERS [operators|schedulers|models] [arguments of pytest for diffusers' tests]
#
# DIFFUSERS: a checkout of https://github.com/huggingface/diffusers. SCRATCH: a folder for the environment and the
# results, kept for the next run; without it, one that is thrown away. TORCH (torch): what pip installs as PyTorch.
set -euo pipefail
[ $# -ge 1 ] && [ -d "$1/tests/schedulers" ] || { sed -n '2,8s/^# \{0,1\}//p' "$0"; exit 2; }
diffusers=$(cd "$1" && pwd)
suite=${2:-all}
shift; [ $# = 0 ] || shift
here=$(cd "$(dirname "$0")" && pwd)
case $suite in all | operators | schedulers | models) ;; *) echo "no suite $suite: operators, schedulers or models"; exit 2 ;; esac

if [ -n "${SCRATCH:-}" ]; then mkdir -p "$SCRATCH"; else SCRATCH=$(mktemp -d); trap 'rm -rf "$SCRATCH"' EXIT; fi
if [ ! -e "$SCRATCH/ready" ]; then
  python3 -m venv "$SCRATCH/venv"
  "$SCRATCH/venv/bin/python" -m pip install -q "${TORCH:-torch}"
  "$SCRATCH/venv/bin/python" -m pip install -q "$here/../..[test]" "$diffusers" expecttest parameterized requests
  touch "$SCRATCH/ready"
fi
python=$SCRATCH/venv/bin/python
export HF_HUB_OFFLINE=${HF_HUB_OFFLINE:-1} OMP_WAIT_POLICY=passive

# compared SUITE PLUGIN TESTS...: diffusers' tests without and with the plugin.
compared() {
  local name=$1 plugin=$2 kind
  shift 2
  for kind in plain plugin; do
    (cd "$diffusers" && PYTHONPATH="$here" "$python" -m pytest -q -p no:cacheprovider --junitxml="$SCRATCH/$name-$kind.xml" \
      $([ $kind = plain ] || echo "-p $plugin") "$@" >"$SCRATCH/$name-$kind.log" 2>&1) || true
  done
  echo "== $name"
  "$python" "$here/differences.py" "$SCRATCH/$name-plain.xml" "$SCRATCH/$name-plugin.xml"
}

status=0
if [ $suite = all ] || [ $suite = operators ]; then
  (cd "$here/../.." && "$python" -m pytest -q -p no:cacheprovider tests/external/operator_samples.py) || status=1
fi
if [ $suite = all ] || [ $suite = schedulers ]; then
  compared schedulers swapped_schedulers tests/schedulers "$@" || status=1
fi
if [ $suite = all ] || [ $suite = models ]; then
  compared models optimized_models tests/models/unets tests/models/transformers tests/models/autoencoders "$@" || status=1
fi
exit $status
