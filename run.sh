#!/usr/bin/env bash
# From an empty machine to an exported model: environment, training, evaluation, export. No sudo.
#
#   bash run.sh             tutorial where there is an NVIDIA GPU, else demo
#   bash run.sh tutorial    the tutorial, value for value: 100 steps of 4 completions, 4-bit
#                             27 minutes on an H100, about 73 on an A100; 57 GiB; outputs/
#   bash run.sh fast        the tutorial's rewards and lengths at a high throughput, 16-bit
#                             100 steps of 128: about 45 minutes on an H200; 71 GiB; outputs-fast/
#   bash run.sh improved    better rewards, room to finish, held-out problems, 16-bit
#                             100 steps of 64 longer ones: about 2 h 5 min on an H200; 75 GiB;
#                             outputs-improved/
#   bash run.sh demo        no GPU and no model download: a 0.7 M parameter model
#                             4 minutes on 2 cores; outputs-demo/
#   bash run.sh install gpu (or cpu)    only the environment: .venv (or .venv-cpu)
#
# The times are training's; 16 GB of model to download, evaluation and export come on top. The GPU
# recipes need a driver for CUDA 13, gcc with Python's headers, and 43 GB of disk: 11 for packages,
# 16 for the model, 16 for its export. The same command again goes on where the last one stopped.
#
# What follows the recipe goes to train.py:
#   bash run.sh tutorial --model ./DeepSeek-R1-0528-Qwen3-8B --dataset ./DAPO-Math-17k-Processed
#   bash run.sh tutorial --gpu-memory-utilization 0.6                       # 24 GB of GPU memory
#   bash run.sh tutorial --gpu-memory-utilization 0.65 --no-load-in-4bit --num-generations 8  # 40
#
# Variables:
#   CUDA_VISIBLE_DEVICES    the GPUs to use, for instance 0,1: fast and improved train on all
#   HF_ENDPOINT             another model hub, for instance https://hf-mirror.com
#   HF_HOME                 where downloaded models and data are kept
#   HF_HUB_OFFLINE=1        use what has been downloaded
#   PIP_INDEX_URL           another package index
#   PYTHON                  the Python 3.11, 3.12 or 3.13 to make the environment with
#   SKIP_INSTALL=1          make no environment, take python3 as it is
#   SWANLAB_API_KEY         for curves in the cloud, with --swanlab-mode cloud
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")"
adapter=grpo_lora/adapter_model.safetensors

tutorial() {    # 14 s a step on an H100, 44 s in the tutorial's own log (A100)
    "$python" train.py --output-dir outputs --resume "$@"
    unless_newer outputs/eval/results.json outputs/$adapter \
        "$python" evaluate.py --output-dir outputs "${share[@]}"
    unless_newer outputs/export/export.json outputs/$adapter \
        "$python" export.py --output-dir outputs --format merged_16bit
}

fast() {    # TRL + PEFT was measured faster than Unsloth in 16-bit (tests/gpu/RESULTS.md)
    # learning rate: 5e-6 * sqrt(32), for 32 times the completions a step (arXiv 2205.10287)
    on_all_gpus train.py --output-dir outputs-fast --resume --engine trl \
        --num-generations 16 --per-device-train-batch-size 8 \
        --gradient-accumulation-steps $((16 / gpus)) --gpu-memory-utilization 0.45 \
        --learning-rate 3e-5 --beta 0 "$@"
    unless_newer outputs-fast/eval/results.json outputs-fast/$adapter \
        "$python" evaluate.py --output-dir outputs-fast "${share[@]}"
    unless_newer outputs-fast/export/export.json outputs-fast/$adapter \
        "$python" export.py --output-dir outputs-fast --format merged_16bit
}

improved() {    # flags and their sources: README, "The improved recipe"
    on_all_gpus train.py --output-dir outputs-improved --resume --engine trl \
        --dataset openai/gsm8k --dataset-config main --eval-fraction 0.05 \
        --system-prompt native --rewards improved --scale-rewards none --max-seq-length 4096 \
        --mask-truncated-completions --stop-if-stuck 20 \
        --num-generations 8 --per-device-train-batch-size 1 \
        --gradient-accumulation-steps $((64 / gpus)) --gpu-memory-utilization 0.72 \
        --vllm-enable-sleep-mode --use-gradient-checkpointing false \
        --loss-type dapo --beta 0 --min-p 0 --learning-rate 1e-4 --max-steps 100 "$@"
    unless_newer outputs-improved/eval/results.json outputs-improved/$adapter \
        "$python" evaluate.py --output-dir outputs-improved --split held-out \
        --num-samples 200 --max-tokens 3900 "${share[@]}"
    # without the system prompt, as the tutorial does at its end: what has the model itself kept?
    unless_newer outputs-improved/eval-no-system-prompt/results.json outputs-improved/$adapter \
        "$python" evaluate.py --output-dir outputs-improved --split held-out \
        --num-samples 200 --max-tokens 3900 "${share[@]}" \
        --system-prompt none --name eval-no-system-prompt
    unless_newer outputs-improved/export/export.json outputs-improved/$adapter \
        "$python" export.py --output-dir outputs-improved --format merged_16bit
}

demo() {
    export HF_HUB_OFFLINE=1 OMP_WAIT_POLICY=PASSIVE CUDA_VISIBLE_DEVICES=
    export HF_HUB_DISABLE_PROGRESS_BARS=1 HF_DATASETS_DISABLE_PROGRESS_BARS=1    # of some ms each
    unless_newer demo/train.jsonl tests/make_demo_model.py \
        "$python" tests/make_demo_model.py --output-dir demo
    "$python" train.py --output-dir outputs-demo --resume --engine trl \
        --model demo/model --dataset demo/train.jsonl --eval-fraction 0.4 \
        --max-seq-length 144 --num-generations 8 --per-device-train-batch-size 32 \
        --learning-rate 1e-3 --max-steps 40 --use-gradient-checkpointing false "$@"
    unless_newer outputs-demo/eval/results.json outputs-demo/$adapter \
        "$python" evaluate.py --output-dir outputs-demo --split held-out \
        --num-samples 200 --max-tokens 100 --no-single-prompts    # a toy knows only sums
    unless_newer outputs-demo/export/export.json outputs-demo/$adapter \
        "$python" export.py --output-dir outputs-demo --format merged_16bit
}

# --------------------------------------------------------------------------------------------------
# What the recipes call

unless_newer() {    # unless_newer RESULT INPUT COMMAND...
    if [ "$1" -nt "$2" ]; then
        echo "skipped: $1 is newer than $2 (to make it again, delete it)"
    else
        "${@:3}"
    fi
}

on_all_gpus() {    # a process for each GPU; the recipe divides the completions of a step among them
    if [ "$gpus" = 1 ]; then
        "$python" "$@"
    else    # the seconds for the step that a signal ends: torch 2.12 reads it, 2.11 takes 30
        TORCH_ELASTIC_SHUTDOWN_TIMEOUT=600 "$python" -m torch.distributed.run --standalone \
            --nproc-per-node "$gpus" "$@"
    fi
}

say_next() {    # say_next OUTPUT_DIR QUESTION
    printf '\nDone. Next:\n'
    if [ "$python" != python3 ]; then
        echo "  source ${python%/*}/activate"
    fi
    local train="python train.py"
    if [[ $gpus -gt 1 && $recipe =~ ^(fast|improved)$ ]]; then
        train="torchrun --standalone --nproc-per-node $gpus train.py"
    fi
    echo "  python evaluate.py --output-dir $1 --prompt \"$2\""
    if [ "$recipe" = demo ]; then    # llama.cpp does not know the demo's tokenizer
        echo "  python export.py --output-dir $1 --format lora merged_4bit"
    else
        echo "  python export.py --output-dir $1 --format gguf --quantization q4_k_m q8_0"
        echo "    # then: ollama create thinker -f $1/export/gguf/Modelfile"
    fi
    echo "  $train --output-dir $1 --resume --max-steps 400"
    if [ -d "$1/swanlog" ]; then
        echo "  swanlab watch $1/swanlog    # charts and texts in the browser"
    fi
}

has_flag() {    # has_flag FLAG ARGUMENTS...
    case " ${*:2} " in *" $1 "* | *" $1="*) return 0 ;; *) return 1 ;; esac
}

fail() {
    echo "error: $*" >&2
    exit 2
}

# --------------------------------------------------------------------------------------------------
# The machine: what would go wrong after an hour is said in the first second

find_gpus() {    # sets gpus and memory, the MiB of the smallest
    local lines id=${CUDA_VISIBLE_DEVICES:+--id=$CUDA_VISIBLE_DEVICES}
    gpus=0 memory=
    case ${CUDA_VISIBLE_DEVICES-all} in "" | -1) return ;; esac
    if nvidia-smi > /dev/null 2>&1; then
        if ! lines=$(nvidia-smi --query-gpu=memory.total --format=csv,noheader,nounits $id); then
            lines=unknown    # a part of a card (MIG), which this query does not know
        fi
        gpus=$(wc -l <<< "$lines")
        memory=$(sort -n <<< "$lines" | head -n 1)
    fi
}

check_memory() {    # whoever names a share of the memory knows what they do
    if has_flag --gpu-memory-utilization "${@:2}"; then
        return
    fi
    case $memory in *[!0-9]* | "") return ;; esac    # unknown
    local fits="bash run.sh demo (less than 24 GB was never tried)"
    if [ "$memory" -ge 75000 ]; then
        return
    elif [ "$memory" -ge 38000 ] && [ "$1" != tutorial ]; then
        fits="bash run.sh tutorial --gpu-memory-utilization 0.65 --no-load-in-4bit"
        fits="$fits --num-generations 8"
    elif [ "$memory" -ge 22000 ]; then
        fits="bash run.sh tutorial --gpu-memory-utilization 0.6"
    fi
    local cause="$1 is made for an 8B model and 80 GB of GPU memory, here are $((memory / 1024))"
    if has_flag --model "${@:2}"; then
        echo "note: $cause; what fits: $fits"
    else
        fail "$cause; what fits: $fits"
    fi
}

share_gpus() {    # tutorial takes one; fast and improved as many as divide 16 micro-batches
    if [ "$1" = tutorial ]; then
        export CUDA_VISIBLE_DEVICES=${CUDA_VISIBLE_DEVICES:-0}
        CUDA_VISIBLE_DEVICES=${CUDA_VISIBLE_DEVICES%%,*}
        echo "$gpus GPUs: tutorial takes the first; fast and improved take all"
    else
        while [ $((16 % gpus)) != 0 ]; do
            gpus=$((gpus - 1))
        done
        echo "training on $gpus GPUs, with as many completions a step as on one"
    fi
}

check_before_install() {    # the GPU recipes' needs, before 11 GB of packages
    local cuda include free need=27 hub=${HF_ENDPOINT:-https://huggingface.co}
    cuda=$({ nvidia-smi 2> /dev/null || true; } |
        sed -nE 's/.*CUDA[A-Z ]* Version: *([0-9]+)\..*/\1/p' | head -n 1)
    if [ -n "$cuda" ] && [ "$cuda" -lt 13 ]; then
        fail "this driver supports CUDA $cuda, needed is 13: install NVIDIA's driver 580 or later"
    fi
    # Triton compiles vLLM's and Unsloth's kernels as C, against Python's headers
    include=$("$base" -c 'import sysconfig; print(sysconfig.get_path("include"))')
    if ! "${CC:-gcc}" -E -I"$include" - <<< '#include <Python.h>' > /dev/null 2>&1; then
        fail "a C compiler and Python's headers are needed (Debian, Ubuntu: gcc and python3-dev)"
    fi
    if [ -z "${HF_HOME:-}" ] && ! has_flag --model "$@"; then
        need=43
    fi
    free=$(df -Pk . | awk 'NR == 2 {print int($4 / 1048576)}')
    if [ "$free" -lt $need ]; then
        fail "$free GB of disk are free here and $need are needed: 11 for packages, 16 for the" \
            "export, 16 for the model unless HF_HOME names another disk"
    fi
    if has_flag --model "$@" && has_flag --dataset "$@"; then
        return
    fi
    if [ -z "${HF_HUB_OFFLINE:-}" ] && ! "$base" -c "$can_reach" "$hub"; then
        fail "no answer from $hub: set HF_ENDPOINT=https://hf-mirror.com, or HF_HUB_OFFLINE=1 if" \
            "model and data are here, or name folders: --model FOLDER --dataset FOLDER"
    fi
}
can_reach='import ssl, sys, urllib.error, urllib.request
try:
    urllib.request.urlopen(sys.argv[1], timeout=15)
except urllib.error.HTTPError:
    pass  # an answer, too
except OSError as error:  # a certificate that Python does not know: the hub is there
    sys.exit(not isinstance(getattr(error, "reason", error), ssl.SSLError))'

find_python() {    # sets base
    for base in ${PYTHON:-python3.11 python3.12 python3.13 python3}; do
        if "$base" -c 'import sys; sys.exit(not (3, 11) <= sys.version_info[:2] <= (3, 13))' \
            2> /dev/null; then
            return
        fi
    done
    fail "Python 3.11, 3.12 or 3.13 is needed${PYTHON:+ (PYTHON=$PYTHON is not)}. To get one:" \
        "pip install uv && uv python install 3.12; then PYTHON=\$(uv python find 3.12) bash run.sh"
}

make_environment() {    # gpu or cpu, once for each content of its files; sets python
    local venv=.venv requirements=requirements.txt locks="tests/locks/gpu.txt"
    if [ "$1" = cpu ]; then
        venv=.venv-cpu requirements=tests/requirements.txt locks="tests/locks/cpu*.txt"
    fi
    python=$venv/bin/python
    if [ -n "${SKIP_INSTALL:-}" ]; then
        python=python3
        return
    fi
    if cat $requirements $locks | cmp -s - $venv/installed.txt; then
        return
    fi
    find_python
    if [ "$1" = gpu ]; then
        check_before_install "${@:2}"
    fi
    echo "Installing $requirements into $venv: a few minutes"
    "$base" -m venv --clear $venv
    export PIP_DISABLE_PIP_VERSION_CHECK=1
    if ! "$python" -m pip download --quiet --retries 1 --timeout 15 \
        --no-deps --dest $venv/probe packaging; then
        fail "pip cannot download: name a mirror, for instance" \
            "PIP_INDEX_URL=https://pypi.tuna.tsinghua.edu.cn/simple bash run.sh"
    fi
    if [ "$1" = gpu ]; then
        install_lock gpu.txt
    else    # PyTorch's CPU build where pip finds it, else PyPI's with 4 GB of CUDA libraries
        install_lock cpu-torch-small.txt 2> /dev/null || install_lock cpu-torch.txt
        install_lock cpu.txt
    fi
    # What you add to the requirements: without hashes, until tests/locks/renew.sh has met it
    "$python" -m pip install --quiet --requirement $requirements
    cat $requirements $locks > $venv/installed.txt
}

install_lock() {
    "$python" -m pip install --require-hashes --no-deps --requirement "tests/locks/$1"
}

# --------------------------------------------------------------------------------------------------

if has_flag --output-dir "$@"; then
    fail "run.sh names the folder itself; for another --output-dir call the scripts yourself"
fi
find_gpus
recipe=${1:-}
if [ -z "$recipe" ] && [ "$gpus" = 0 ]; then
    recipe=demo
    echo "No NVIDIA GPU found: running the CPU demo."
elif [ -z "$recipe" ]; then
    recipe=tutorial
fi

share=()    # evaluation takes the share of GPU memory that was given to training
previous=
for argument in "${@:2}"; do
    case $previous in --gpu-memory-utilization) share=("$previous" "$argument") ;; esac
    case $argument in --gpu-memory-utilization=*) share=("$argument") ;; esac
    previous=$argument
done

case $recipe in
    tutorial | fast | improved)
        if [ "$gpus" = 0 ]; then
            fail "$recipe needs an NVIDIA GPU; try bash run.sh demo"
        fi
        check_memory "$recipe" "${@:2}"
        make_environment gpu "${@:2}"
        if ! "$python" -c 'import sys, torch; sys.exit(not torch.cuda.is_available())'; then
            fail "PyTorch does not see the GPU: the driver must support CUDA 13 (see nvidia-smi)"
        fi
        if [ "$gpus" -gt 1 ]; then
            share_gpus "$recipe"
        fi
        "$recipe" "${@:2}"
        output=outputs-$recipe    # the tutorial's is outputs
        say_next "${output%-tutorial}" "Solve (x + 2)^2 = 0" ;;
    demo)
        make_environment cpu
        demo "${@:2}"
        say_next outputs-demo "What is 7 + 4 + 9?" ;;
    install)
        case ${2:-} in
            gpu | cpu) make_environment "$2" ;;
            *) fail "say which: bash run.sh install gpu, or bash run.sh install cpu" ;;
        esac ;;
    -h | --help) sed -n '2,/^set/s/^# \{0,1\}//p' run.sh ;;
    *) fail "unknown recipe $recipe; choose tutorial, fast, improved or demo (see --help)" ;;
esac
