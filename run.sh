#!/usr/bin/env bash
# Everything, from an empty machine to an exported model. Needs Python 3.11 or 3.12; never sudo.
#
#   bash run.sh             tutorial where an NVIDIA GPU is present, else demo
#   bash run.sh tutorial    the tutorial, value for value: 100 steps of 1 prompt x 4 completions, 4-bit
#   bash run.sh fast        the tutorial's rewards and lengths at a high throughput, 16-bit
#   bash run.sh improved    better rewards, room to finish, held-out evaluation, 16-bit
#   bash run.sh demo        no GPU and no model download: a 0.7 M parameter model, 4 minutes on 2 cores
#
# What follows the recipe goes to train.py: bash run.sh tutorial --model ./DeepSeek-R1-0528-Qwen3-8B --dataset ./DAPO-Math-17k-Processed
#
# tutorial, fast and improved want one 80 GB GPU (smaller ones: README, "Speed and memory at 8B"), a driver for CUDA 13, gcc with
# Python's headers, and 50 GB of disk: 11 for packages, 16 for the 8B model, 16 for merged_16bit.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")"

case " $* " in *" --output-dir"*)
    echo "error: run.sh sets --output-dir for all three scripts; for another folder call them yourself" >&2; exit 2 ;;
esac
gpu=0; nvidia-smi > /dev/null 2>&1 && gpu=1
recipe=${1:-}
if [ -z "$recipe" ]; then
    if [ $gpu = 1 ]; then recipe=tutorial; else recipe=demo; echo "No NVIDIA GPU found: running the CPU demo."; fi
fi
case "$recipe ${2:-}" in
    tutorial\ * | fast\ * | improved\ *)
        if [ $gpu = 0 ]; then echo "error: $recipe needs an NVIDIA GPU; try bash run.sh demo" >&2; exit 2; fi
        venv=.venv requirements=requirements.txt ;;
    "test gpu")
        if [ $gpu = 0 ]; then echo "skipped: the GPU smoke test needs an NVIDIA GPU"; exit 0; fi
        venv=.venv requirements=requirements.txt ;;
    demo\ * | test\ *) venv=.venv-cpu requirements=tests/requirements.txt ;;
    -h\ * | --help\ *) sed -n '2,/^set/s/^# \{0,1\}//p' run.sh; exit ;;
    *) echo "error: unknown recipe $recipe; choose tutorial, fast, improved or demo (train.py's flags come after it)" >&2; exit 2 ;;
esac

# The environment, made once for each content of the requirements file. SKIP_INSTALL=1 takes python3 as it is.
if [ -n "${SKIP_INSTALL:-}" ]; then
    python=python3
else
    python=$venv/bin/python
    if ! cmp -s "$requirements" "$venv/installed.txt"; then
        base=
        for candidate in ${PYTHON:-} python3.11 python3.12 python3; do
            if "$candidate" -c 'import sys; sys.exit(sys.version_info[:2] not in ((3, 11), (3, 12)))' 2> /dev/null; then
                base=$candidate
                break
            fi
        done
        if [ -z "$base" ]; then
            echo "error: Python 3.11 or 3.12 is needed; name it: PYTHON=/path/to/python bash run.sh" >&2; exit 2
        fi
        # Triton, which makes vLLM's and Unsloth's kernels, compiles C against Python's headers
        include=$("$base" -c 'import sysconfig; print(sysconfig.get_path("include"))')
        if [ $venv = .venv ] && ! "${CC:-gcc}" -E -I"$include" - <<< '#include <Python.h>' > /dev/null 2>&1; then
            echo "error: a C compiler and Python's headers are needed (Debian, Ubuntu: gcc and python3-dev)" >&2; exit 2
        fi
        echo "Installing $requirements into $venv (a few minutes)"
        "$base" -m venv --clear "$venv"
        "$python" -m pip install --quiet --requirement "$requirements"
        cp "$requirements" "$venv/installed.txt"
    fi
fi

if [ $venv = .venv ] && ! "$python" -c 'import sys, torch; sys.exit(not torch.cuda.is_available())'; then
    echo "error: PyTorch does not see the GPU: the driver must support CUDA 13 (nvidia-smi names its CUDA version)" >&2; exit 2
fi

case "$recipe ${2:-}" in
    tutorial\ *)    # 27 to 75 minutes of training: 14 s a step on an H100, 44 s in the tutorial's own log (A100)
        "$python" train.py "${@:2}"
        "$python" evaluate.py
        "$python" export.py --format merged_16bit
        ;;
    fast\ *)        # 128 completions a step; stock TRL was measured faster than Unsloth in 16-bit (tests/gpu/RESULTS.md)
        # learning rate: 5e-6 * sqrt(32), for 32 times the completions a step (arXiv 2205.10287)
        "$python" train.py --output-dir outputs-fast --engine trl --num-generations 16 --learning-rate 3e-5 \
            --per-device-train-batch-size 8 --gradient-accumulation-steps 16 --gpu-memory-utilization 0.45 --beta 0 "${@:2}"
        "$python" evaluate.py --output-dir outputs-fast
        "$python" export.py --output-dir outputs-fast --format merged_16bit
        ;;
    improved\ *)    # flags and their sources: README, "The improved recipe"
        "$python" train.py --output-dir outputs-improved --engine trl --eval-fraction 0.05 \
            --system-prompt boxed --rewards improved --max-seq-length 4096 --mask-truncated-completions --stop-if-stuck 20 \
            --num-generations 8 --per-device-train-batch-size 2 --gradient-accumulation-steps 32 --gpu-memory-utilization 0.45 \
            --loss-type dapo --beta 0 --epsilon-high 0.28 --learning-rate 2e-5 --min-p 0 --max-steps 200 --save-steps 50 \
            "${@:2}"
        "$python" evaluate.py --output-dir outputs-improved --split held-out --num-samples 200 --max-tokens 3900
        "$python" export.py --output-dir outputs-improved --format merged_16bit
        ;;
    demo\ *)
        export HF_HUB_OFFLINE=1 OMP_WAIT_POLICY=PASSIVE
        "$python" tests/make_demo_model.py --output-dir demo
        "$python" train.py --output-dir outputs-demo --engine trl --model demo/model --dataset demo/train.jsonl --eval-fraction 0.4 \
            --max-seq-length 144 --num-generations 8 --per-device-train-batch-size 32 --learning-rate 1e-3 --max-steps 40 \
            --use-gradient-checkpointing false "${@:2}"
        "$python" evaluate.py --output-dir outputs-demo --split held-out --num-samples 200 --max-tokens 100
        "$python" export.py --output-dir outputs-demo --format merged_16bit
        ;;
    "test gpu") exec "$python" -m pytest tests/gpu "${@:3}" ;;
    test\ *)
        HF_HUB_OFFLINE=1 OMP_NUM_THREADS=1 exec "$python" -m pytest tests --ignore tests/gpu -n 2 --dist loadfile "${@:2}" ;;
esac
# Next, after `source .venv/bin/activate` (for another recipe than tutorial add its --output-dir):
#   python export.py --format gguf --quantization q4_k_m q8_0      # then: ollama create thinker -f outputs/export/gguf/Modelfile
#   python train.py --resume --max-steps 200                       # train on from the last checkpoint
#   python train.py --report-to swanlab --swanlab-mode cloud       # curves on swanlab.cn, after `swanlab login`
