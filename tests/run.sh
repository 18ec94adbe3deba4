#!/usr/bin/env bash
# Make the test environment (once) and run the tests: no GPU, no model hub.
#
#   bash tests/run.sh                   all tests, about 7 minutes on 2 cores
#   bash tests/run.sh -k rewards        with pytest's arguments
#   bash tests/run.sh gpu               the GPU smoke test in run.sh's environment
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."
if [ "${1:-}" = gpu ]; then
    if ! nvidia-smi > /dev/null 2>&1; then
        echo "skipped: the GPU smoke test needs an NVIDIA GPU"
        exit
    fi
    bash run.sh install gpu
    python=.venv/bin/python
    [ -z "${SKIP_INSTALL:-}" ] || python=python3
    exec "$python" -m pytest tests/gpu "${@:2}"
fi
bash run.sh install cpu
python=.venv-cpu/bin/python
[ -z "${SKIP_INSTALL:-}" ] || python=python3
export HF_HUB_OFFLINE=1 OMP_NUM_THREADS=1
exec "$python" -m pytest tests --ignore tests/gpu -n 2 --dist loadfile "$@"
