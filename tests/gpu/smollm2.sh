#!/usr/bin/env bash
# Recipes on real weights (SmolLM2-135M-Instruct), 3 seeds each with the same number of completions, all on one GPU at the same time.
#   bash tests/gpu/smollm2.sh SMOLLM2_FOLDER OUT [ARM...]     (the folder: tests/gpu/make_smollm2.py)
# The model is first taught the demo's sums with answers in prose, for as few steps as leave room above its accuracy. Arms:
#   tutorial         the tutorial's flags, with --engine trl and prompt en: steps of 1 prompt x 4, learning rate 5e-6
#   improved         the improved recipe: steps of 4 prompts x 8, learning rate 2e-4 for this small model
#   tutorialrewards  the improved recipe's flags with the tutorial's rewards
set -uo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/../.."
base=$1 out=$2; shift 2; mkdir -p "$out"
[ $# = 0 ] && set -- tutorial improved tutorialrewards
export OMP_NUM_THREADS=1
completions=${COMPLETIONS:-1600} demo=$out/demo port=$((20000 + RANDOM))
[ -e "$demo/train.jsonl" ] || python3 tests/make_demo_model.py --init "$base" --output-dir "$demo" --steps "${TEACH:-40}" --bare-answers 0 --learning-rate 2e-4 > "$out/teach.log" 2>&1
run() {
    name=$1 card=$2; shift 2  # card: GiB
    if ! python3 tests/gpu/as_card.py "$card" train.py --engine trl --model "$demo/model" --dataset "$demo/train.jsonl" --eval-fraction 0.4 \
        --reasoning-tokens "<think>" "</think>" --max-seq-length 256 --gpu-memory-utilization 0.4 --report-to none --save-steps 100000 \
        --output-dir "$out/$name" "$@" > "$out/$name.log" 2>&1; then echo "$name: failed, see $out/$name.log"; return; fi
    python3 evaluate.py --output-dir "$out/$name" --split held-out --num-samples 200 --max-tokens 120 --no-fast-inference > "$out/$name.eval.log" 2>&1
    echo "$name: $(grep -a "^steps\|^seconds" "$out/$name.log" | head -n 2 | tr "\n" " ")"
}
improved=(--system-prompt boxed --mask-truncated-completions --loss-type dapo --beta 0 --min-p 0
    --num-generations 8 --per-device-train-batch-size 32 --max-steps $((completions / 32)) --learning-rate 2e-4)
for arm in "$@"; do
    for seed in 1 2 3; do
        export MASTER_PORT=$((port += 7))  # TRL's own choice of a free port can collide
        case $arm in
            tutorial) run "$arm-$seed" 5 --seed $seed --system-prompt en --max-steps $((completions / 4)) & ;;
            improved) run "$arm-$seed" 9 --seed $seed "${improved[@]}" --rewards improved & ;;
            tutorialrewards) run "$arm-$seed" 9 --seed $seed "${improved[@]}" --rewards tutorial & ;;
        esac
        sleep 4
    done
done
wait
python3 tests/compare.py "$out"/*-[123]
