#!/usr/bin/env bash
# Renew the locks after a change of requirements.txt or tests/requirements.txt:
#
#   bash tests/locks/renew.sh              newest versions of what the requirement files leave open
#   bash tests/locks/renew.sh --keep       as few changes as the requirement files allow
#
# gpu.txt, cpu.txt: every package with its version and the hashes of all its files on PyPI, for
# Python 3.11 and later. run.sh installs them with --require-hashes.
# cpu-torch.txt: PyTorch as PyPI has it and the CUDA libraries that it needs there, 4 GB. They are
# a file of their own, because a machine may have the smaller CPU build: cpu-torch-small.txt.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/../.."
locks=tests/locks
work=$(mktemp -d)
trap 'rm -r "$work"' EXIT

"${PYTHON:-python3}" -m venv "$work/venv"
"$work/venv/bin/python" -m pip install --quiet uv==0.13.9
compile() {
    "$work/venv/bin/uv" pip compile --quiet --universal --python-version 3.11 --generate-hashes \
        --no-annotate --no-header --output-file "$2" "$1"
}

if [ "${1:-}" = --keep ]; then    # uv keeps the versions that it finds in its output file
    cp $locks/gpu.txt "$work/gpu.txt"
    cat $locks/cpu.txt $locks/cpu-torch.txt > "$work/cpu.txt"
fi
compile requirements.txt "$work/gpu.txt"
compile tests/requirements.txt "$work/cpu.txt"

cp "$work/gpu.txt" $locks/gpu.txt
awk -v own=$locks/cpu-torch.txt -v rest=$locks/cpu.txt '
    /^[a-z0-9]/ { torch = /^(torch|triton|cuda-[a-z]+|nvidia-[a-z0-9-]+)==/ && !/^nvidia-ml-py=/ }
    { print > (torch ? own : rest) }' "$work/cpu.txt"
echo "Renewed. Has torch moved? Then cpu-torch-small.txt needs the CPU wheel's hash: pip hash FILE"
