#!/usr/bin/env bash
# The measurements of RESULTS.md: bash tests/gpu/measure.sh MODEL DATA OUT NAME...   (names: the cases below, run in turn)
# MODEL may have random weights of the 8B shape: every completion then runs to its limit, as in the tutorial's own log.
# PEERS (a variable) is a folder with tutorial_baseline.py (the tutorial as one script) and trl_baseline.py; SMOLLM2 is the folder
# of make_smollm2.py. Each run has OUT/NAME.log, every line stamped with its seconds. Shares of GPU memory are those of an 80 GB
# card: u turns them into shares of the card that is there. Two names take two GPUs: start it twice with CUDA_VISIBLE_DEVICES.
# ddpN is fast-ddpN and improved-ddpN: N processes on N GPUs (1, 2, 4, 8) with as many completions a step as on one. Two more variables:
# SCRIPT=tests/gpu/profile_step.py prints where a step's time goes; FLAGS are added to every train.py. Rehearsed on a CPU with
#   PATH=$PWD/.venv-cpu/bin:$PATH ACCELERATE_USE_CPU=true FLAGS="--max-seq-length 144 --max-steps 2" bash tests/gpu/measure.sh \
#     demo/model demo/train.jsonl /tmp/out ddp1 ddp2 ddp4
set -uo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/../.."
model=$1 data=$2 out=$3; shift 3
mkdir -p "$out/cwd"
total=$(nvidia-smi --query-gpu=memory.total --format=csv,noheader,nounits 2> /dev/null | head -n 1)
total=${total:-81510}  # no GPU: a rehearsal
u() { python3 -c "print(round($1 * 79.6 * 1024 / $total, 4))"; }
cold() { for name in VLLM_CACHE_ROOT TORCHINDUCTOR_CACHE_DIR TRITON_CACHE_DIR; do export $name="/tmp/caches/$1/$name"; done; }
step() {  # step NAME LIMIT_SECONDS COMMAND...
    local name=$1 limit=$2 start=$SECONDS; shift 2
    timeout -k "${grace:-5}" "$limit" "$@" 2>&1 | python3 -uc "import sys, time; s = time.time(); [print(f'{time.time() - s:6.1f}', line, end='') for line in sys.stdin]" > "$out/$name.log"
    echo "[$SECONDS s] $name: exit ${PIPESTATUS[0]}, $((SECONDS - start)) s"
}
train() {  # train NAME LIMIT_SECONDS FLAGS...; card: a smaller card's GiB; gpus: processes
    local name=$1 limit=$2 launch=() grace=5; shift 2
    if [ "${gpus:-1}" != 1 ]; then  # torchrun needs up to 30 s to end its processes, which outlive it if it is killed first
        launch=(-m torch.distributed.run --standalone --nproc-per-node "$gpus") grace=45
    fi
    step "$name" "$limit" python3 "${launch[@]}" ${card:+tests/gpu/as_card.py $card} "${SCRIPT:-train.py}" --model "$model" --dataset "$data" \
        --system-prompt en --report-to none --save-steps 100000 --output-dir "$out/$name" "$@" ${FLAGS:-}
}
fast() {  # fast NAME: 128 completions a step on any number of gpus
    train "$1" 400 "${trl[@]}" --max-steps 4 --gpu-memory-utilization "$(u 0.45)" --per-device-train-batch-size 8 \
        --gradient-accumulation-steps $((16 / ${gpus:-1}))
}
improved() {  # improved NAME: 64 completions a step; not masked where cut off, as random weights' all are: skip_padding would leave them out
    train "$1" 360 --engine trl --system-prompt boxed --rewards improved --max-seq-length 4096 --num-generations 8 \
        --per-device-train-batch-size 1 --gradient-accumulation-steps $((64 / ${gpus:-1})) --loss-type dapo --beta 0 --learning-rate 2e-5 --min-p 0 \
        --max-steps 2 --gpu-memory-utilization "$(u 0.72)" --vllm-enable-sleep-mode --use-gradient-checkpointing false
}
chain() {  # chain CARD_GIB SHARE FLAGS...: two steps of bash run.sh tutorial and all that follows them, on a smaller card
    local card=$1 share=$2 name=chain${1%%.*}; shift 2
    train "$name" 400 --max-steps 2 --learning-rate 1e-3 --warmup-ratio 0 --gpu-memory-utilization "$share" "$@"
    step "$name-evaluate" 300 python3 tests/gpu/as_card.py "$card" evaluate.py --output-dir "$out/$name" --gpu-memory-utilization "$share" --max-tokens 256
    step "$name-export" 400 python3 tests/gpu/as_card.py "$card" export.py --output-dir "$out/$name" --format merged_16bit
}
evaluate_start() {
    step "$measurement" 260 python3 evaluate.py --model "$model" --dataset "$data" --adapter "$out/x8/grpo_lora" --no-load-in-4bit --max-tokens 256 \
        --output-dir "$out/$measurement" --gpu-memory-utilization "$(u 0.5)" "$@"
}
ddp() {  # ddp RECIPE GPUS; one GPU is the first, without torchrun
    local gpus=$2 visible=${CUDA_VISIBLE_DEVICES:-0}
    if [ "$gpus" = 1 ]; then
        CUDA_VISIBLE_DEVICES=${visible%%,*} "$1" "$1-ddp1"
    else
        "$1" "$1-ddp$gpus"
    fi
}
trl=(--engine trl --num-generations 16 --beta 0)

for measurement in "$@"; do
    case $measurement in  # empty compilation caches, but for those whose start is not measured
        [24]*bit-* | improved | serve | smoke) cold "rest-${CUDA_VISIBLE_DEVICES:-0}" ;;
        *ddp*) cold ddp ;;
        peer-tutorial) cold tutorial ;;  # run it after tutorial: only ours starts cold
        *) cold "$measurement" ;;
    esac
    case $measurement in
        peer-tutorial)
            (cd "$out/cwd" && step peer-tutorial 450 python3 "$PEERS/tutorial_baseline.py" --model "$model" --data "$data" --steps 5 --util "$(u 0.7)" \
                --save "$out/peer_lora" --out "$out/peer") ;;
        peer-trl) step peer-trl 240 python3 "$PEERS/trl_baseline.py" --model "$model" --data "$data" --steps 4 --gens 16 --bs 16 --util "$(u 0.35)" ;;
        tutorial) train tutorial 500 --max-steps 10 --gpu-memory-utilization "$(u 0.7)" ;;
        trl16)  # cold, then warm
            train trl16-cold 260 "${trl[@]}" --max-steps 4 --gpu-memory-utilization "$(u 0.35)"
            train trl16-warm 160 "${trl[@]}" --max-steps 2 --gpu-memory-utilization "$(u 0.35)" ;;
        fast | improved) "$measurement" "$measurement" ;;
        ddp[1248]) ddp fast "${measurement#ddp}"; ddp improved "${measurement#ddp}" ;;
        fast-ddp[1248] | improved-ddp[1248]) ddp "${measurement%-ddp*}" "${measurement#*-ddp}" ;;
        adapter) step adapter 150 python3 tests/gpu/make_adapter.py "$model" "$out/x8" ;;
        evaluate)  # 4-bit with vLLM as in run.sh tutorial, then the tutorial's loop against one batch; needs adapter
            step evaluate 400 python3 tests/gpu/eval_speed.py --model "$model" --dataset "$data" --adapter "$out/x8/grpo_lora" --max-tokens "${EVAL_TOKENS:-512}" \
                --output-dir "$out/evaluate" --gpu-memory-utilization "$(u 0.7)" ;;
        start-cold | start-warm)  # evaluate.py's 20 samples x 2 from nothing, then again; needs adapter
            cold start
            evaluate_start --name "$measurement" ;;
        start-old) cold start-old; (cd "$OLD" && evaluate_start) ;;  # the same by another commit's evaluate.py, in the folder OLD
        export)  # needs adapter
            step export 700 python3 export.py --output-dir "$out/x8" --model "$model" --format merged_16bit merged_4bit lora gguf --quantization ${GGUF:-q8_0 q4_k_m} ;;
        serve)  # needs export
            for name in merged_4bit merged_16bit; do
                step "serve-$name" 240 python3 evaluate.py --model "$out/x8/export/$name" --adapter none --no-load-in-4bit --dataset "$data" --max-tokens 64 \
                    --output-dir "$out/serve-$name" --gpu-memory-utilization "$(u 0.35)"
            done ;;
        smoke) step smoke 450 env SKIP_INSTALL=1 bash tests/run.sh gpu -q -rP ;;
        smollm2)
            step smollm2 1300 bash tests/gpu/smollm2.sh "$SMOLLM2" "$out/smollm2"
            step smollm2-export 300 python3 export.py --output-dir "$out/smollm2/improved-1" --format merged_16bit merged_4bit gguf --quantization q8_0 q4_k_m ;;
        # What fits: NAME is CARD-BITS-GENERATIONSxLENGTH. A 24 GB card has 23.5 GiB, one of 40 GB 39.4
        24-4bit-4x1024) card=23.5 train "$measurement" 400 --max-steps 2 --gpu-memory-utilization 0.6 ;;
        24-4bit-8x2048) card=23.5 train "$measurement" 400 --max-steps 1 --warmup-ratio 0 --gpu-memory-utilization 0.6 --num-generations 8 --max-seq-length 2048 ;;
        40-4bit-8x4096) card=39.4 train "$measurement" 500 --max-steps 1 --warmup-ratio 0 --gpu-memory-utilization 0.6 --num-generations 8 --max-seq-length 4096 ;;
        chain24) chain 23.5 0.6 ;;  # the README's whole command for such a card: training, evaluation, export
        chain40) chain 39.4 0.65 --no-load-in-4bit --num-generations 8 ;;
        40-16bit-8x1024) card=39.4 train "$measurement" 400 --max-steps 2 --gpu-memory-utilization 0.65 --num-generations 8 --no-load-in-4bit ;;
        *) echo "unknown measurement $measurement" ;;
    esac
done
shopt -s nullglob
runs=("$out"/*/metrics.jsonl)
python3 tests/gpu/table.py "${runs[@]%/metrics.jsonl}"
