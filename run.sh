#!/usr/bin/env bash
# Everything, from an empty machine to a model that thinks in Indonesian. Needs Python 3.11 or 3.12; never sudo.
#
#   bash run.sh             tutorial where an NVIDIA GPU is present, else demo
#   bash run.sh tutorial    the tutorial, value for value: 1 GPU with >= 40 GB (80 GB as in the tutorial), 100 steps
#   bash run.sh fast        the tutorial's job at the highest measured throughput: 16-bit, stock TRL, 80 GB
#   bash run.sh improved    the recipe that learns: other rewards, room to finish, held-out evaluation, 80 GB
#   bash run.sh demo        no GPU, no download but packages: a 1 M parameter model, about 5 minutes on 2 cores
#
# Disk: 15 GB for packages, 16 GB for the 8B model, 16 GB for merged_16bit. README has times and the memory table.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")"

if command -v nvidia-smi > /dev/null && nvidia-smi > /dev/null 2>&1; then gpu=1; else gpu=0; fi
recipe=${1:-}
if [ -z "$recipe" ]; then
    if [ $gpu = 1 ]; then recipe=tutorial; else recipe=demo; echo "No NVIDIA GPU found: running the CPU demo (bash run.sh demo)."; fi
fi
case $recipe in
    tutorial | fast | improved) [ $gpu = 1 ] || { echo "error: bash run.sh $recipe needs an NVIDIA GPU; try bash run.sh demo" >&2; exit 2; }
        venv=.venv requirements=requirements.txt ;;
    demo) venv=.venv-cpu requirements=tests/requirements.txt ;;
    *) echo "error: unknown recipe $recipe; choose tutorial, fast, improved or demo" >&2; exit 2 ;;
esac

# The environment, once for each content of the requirements file
if ! cmp -s "$requirements" "$venv/installed.txt"; then
    for python in "${PYTHON:-python3.12}" python3.12 python3.11 python3; do
        "$python" -c 'import sys; sys.exit(not (3, 11) <= sys.version_info < (3, 13))' 2> /dev/null && break
        python=
    done
    [ -n "$python" ] || { echo "error: Python 3.11 or 3.12 is needed; name one as PYTHON=/path/to/python" >&2; exit 2; }
    "$python" -m venv --clear "$venv"
    "$venv/bin/pip" install --quiet --requirement "$requirements"
    cp "$requirements" "$venv/installed.txt"
fi
python=$venv/bin/python
