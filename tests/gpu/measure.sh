#!/usr/bin/env bash
# The measurements of RESULTS.md, as two queues for two GPUs (or one after the other on one):
#   CUDA_VISIBLE_DEVICES=0 bash tests/gpu/measure.sh unsloth MODEL DATA OUT PEERS
#   CUDA_VISIBLE_DEVICES=1 bash tests/gpu/measure.sh trl MODEL DATA OUT PEERS SMOLLM2
# MODEL may have random weights of the 8B shape: every completion then runs to its limit, as in the tutorial's own log.
# PEERS has tutorial_baseline.py (the tutorial as one script) and trl_baseline.py. Each run has OUT/NAME.log, every line stamped
# with its seconds. Shares of GPU memory are those of an 80 GB card: u turns them into shares of the card that is there.
set -uo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/../.."
queue=$1 model=$2 data=$3 out=$4 peers=$5 smollm2=${6:-}; mkdir -p "$out/cwd"
total=$(nvidia-smi --query-gpu=memory.total --format=csv,noheader,nounits | head -n 1)
u() { python3 -c "print(round($1 * ${2:-79.6} * 1024 / $total, 4))"; }  # u SHARE [CARD_GIB]
cache() { for name in VLLM_CACHE_ROOT TORCHINDUCTOR_CACHE_DIR TRITON_CACHE_DIR; do export $name="/tmp/caches/$1/$name"; done; }
step() {  # step NAME LIMIT_SECONDS COMMAND...
    local name=$1 limit=$2 start=$SECONDS; shift 2
    timeout -k 5 "$limit" "$@" 2>&1 | python3 -uc "import sys, time; s = time.time(); [print(f'{time.time() - s:6.1f}', line, end='') for line in sys.stdin]" > "$out/$name.log"
    echo "[$SECONDS s] $name: exit ${PIPESTATUS[0]}, $((SECONDS - start)) s"
}
card() {  # card GIB: leave only so much of the GPU free
    python3 -c "import sys, time, torch; hold = torch.empty(torch.cuda.mem_get_info()[0] - int(float(sys.argv[1]) * 2**30), dtype=torch.uint8, device='cuda'); time.sleep(2000)" "$1" &
    ballast=$!; sleep 12
}
common=(--model "$model" --dataset "$data" --system-prompt en --report-to none --save-steps 100000)
trl=(--engine trl --num-generations 16 --beta 0)

if [ "$queue" = unsloth ]; then
    cache peer-tutorial
    (cd "$out/cwd" && step peer-tutorial 450 python3 "$peers/tutorial_baseline.py" --model "$model" --data "$data" --steps 5 --util "$(u 0.7)" --eval 3 \
        --save "$out/peer_lora" --out "$out/peer")
    cache unsloth
    step tutorial 500 python3 train.py "${common[@]}" --max-steps 10 --gpu-memory-utilization "$(u 0.7)" --output-dir "$out/tutorial"
    step evaluate 300 python3 evaluate.py --output-dir "$out/tutorial" --max-tokens 512 --gpu-memory-utilization "$(u 0.7)"
    step smoke 450 env SKIP_INSTALL=1 bash tests/run.sh gpu -q
    step improved 360 python3 train.py "${common[@]}" --output-dir "$out/improved" --engine trl --system-prompt boxed --rewards improved --max-seq-length 4096 \
        --mask-truncated-completions --num-generations 8 --per-device-train-batch-size 2 --gradient-accumulation-steps 32 --loss-type dapo --beta 0 \
        --epsilon-high 0.28 --learning-rate 2e-5 --min-p 0 --max-steps 2 --gpu-memory-utilization "$(u 0.45)"
    card 23.5
    step m24-4bit-4x1024 300 python3 train.py "${common[@]}" --max-steps 2 --gpu-memory-utilization "$(u 0.6 23.5)" --output-dir "$out/m24-4bit-4x1024"
    step m24-4bit-8x2048 300 python3 train.py "${common[@]}" --max-steps 1 --gpu-memory-utilization "$(u 0.6 23.5)" --num-generations 8 --max-seq-length 2048 \
        --output-dir "$out/m24-4bit-8x2048"
    kill $ballast
else
    cache peer-trl
    step peer-trl 240 python3 "$peers/trl_baseline.py" --model "$model" --data "$data" --steps 4 --gens 16 --bs 16 --util "$(u 0.35)"
    cache trl
    step trl16-cold 260 python3 train.py "${common[@]}" "${trl[@]}" --max-steps 4 --gpu-memory-utilization "$(u 0.35)" --output-dir "$out/trl16-cold"
    step trl16-warm 160 python3 train.py "${common[@]}" "${trl[@]}" --max-steps 2 --gpu-memory-utilization "$(u 0.35)" --output-dir "$out/trl16-warm"
    step fast 400 python3 train.py "${common[@]}" "${trl[@]}" --max-steps 5 --gpu-memory-utilization "$(u 0.45)" --per-device-train-batch-size 8 \
        --gradient-accumulation-steps 16 --output-dir "$out/fast"
    cache smollm2
    bash tests/gpu/smollm2.sh "$smollm2" "$out/smollm2" > "$out/smollm2.log" 2>&1 &
    smol=$!
    cache export
    step adapter 150 python3 tests/gpu/make_adapter.py "$model" "$out/x8"
    step export 700 python3 export.py --output-dir "$out/x8" --model "$model" --format merged_16bit merged_4bit lora gguf --quantization q8_0 q4_k_m
    for name in merged_16bit merged_4bit; do
        step "serve-$name" 200 python3 evaluate.py --model "$out/x8/export/$name" --adapter none --no-load-in-4bit --dataset "$data" --max-tokens 64 \
            --output-dir "$out/serve-$name" --gpu-memory-utilization "$(u 0.4)"
    done
    wait $smol
    card 39.4
    step m40-16bit-8x1024 300 python3 train.py "${common[@]}" --max-steps 2 --no-load-in-4bit --num-generations 8 --gpu-memory-utilization "$(u 0.65 39.4)" \
        --output-dir "$out/m40-16bit-8x1024"
    kill $ballast
fi
python3 tests/gpu/table.py "$out"/*/ 2> /dev/null
