"""Print one row for each output folder that evaluate.py has graded, and pool folders whose names differ in a last -N only.

    python tests/compare.py outputs/tutorial-1 outputs/tutorial-2 outputs/improved-1 ... [--plot curves.png]
"""
import argparse
import json
import os
import re
import sys

sys.path.insert(0, os.path.dirname(os.path.dirname(os.path.abspath(__file__))))
from evaluate import RATES, wilson

parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
parser.add_argument("folders", nargs="+", help="output folders of train.py and evaluate.py")
parser.add_argument("--plot", metavar="PNG", help="draw reward parts against completions sampled, one line a folder")
args = parser.parse_args()

groups = {}
for folder in args.folders:
    try:
        results = json.load(open(f"{folder}/eval/results.json"))
    except OSError as error:
        print(f"{folder}: {error}")
        continue
    groups.setdefault(re.sub(r"-\d+$", "", os.path.basename(os.path.normpath(folder))), []).append(results)
print("| run | seeds x n | " + " | ".join(RATES) + " | mean tokens | language share |\n|" + "---|" * (len(RATES) + 4))


def row(name, results, arm):
    n = sum(r["n"] for r in results)
    cells = []
    for rate in RATES:
        k = sum(round(r[arm][rate] * r["n"]) for r in results)
        low, high = wilson(k, n)
        cells.append(f"{100 * k / n:.1f} ({100 * low:.1f}-{100 * high:.1f})")
    means = [sum(r[arm][key] * r["n"] for r in results) / n for key in ("mean_tokens", "language_share")]
    print(f"| {name} | {len(results)} x {results[0]['n']} | {' | '.join(cells)} | {means[0]:.0f} | {means[1]:.2f} |")


for name, results in groups.items():
    row(f"before ({name})", results, "base")
    row(f"after {name}", results, "lora")
    for r in results:
        print(f"|   one seed of {name} | {r['n']} | " + " | ".join(f"{100 * r['base'][rate]:.1f} -> {100 * r['lora'][rate]:.1f}" for rate in RATES) + " | | |")

if args.plot:
    import matplotlib
    matplotlib.use("Agg")
    import matplotlib.pyplot as plt
    keys = {"tutorial": ("rewards/format_and_language_reward_func/mean", "rewards/check_answer/mean"),
            "improved": ("rewards/language_reward/mean", "rewards/answer_reward/mean")}
    figure, axes = plt.subplots(2, 2, figsize=(10, 6), sharex=True)
    for folder in args.folders:
        run = json.load(open(f"{folder}/run.json"))
        kind, size = run["arguments"]["rewards"], run["effective"]["completions_per_step"]
        steps = [r for r in map(json.loads, open(f"{folder}/metrics.jsonl")) if "reward" in r]
        width = max(1, 128 // size)  # running mean over 128 completions
        for line, key in enumerate(keys[kind]):
            values = [r[key] for r in steps]
            means = [sum(values[i:i + width]) / width for i in range(len(values) - width + 1)]
            axis = axes[line][int(kind == "improved")]
            axis.plot([(i + width) * size for i in range(len(means))], means, label=os.path.basename(os.path.normpath(folder)))
            axis.set_title(f"{kind}: {key.split('/')[1]}", fontsize=9)
    for axis in axes.flat:
        axis.legend(fontsize=7)
        axis.set_xlabel("completions sampled (running mean over 128)", fontsize=8)
    figure.tight_layout()
    figure.savefig(args.plot, dpi=100)
