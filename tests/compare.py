"""Print a row for each output folder that evaluate.py has graded; pool folders that differ in -N.

python tests/compare.py outputs/tutorial-1 outputs/tutorial-2 outputs/improved-1 --plot curves.png
"""

import json
import os
import re
import sys

sys.path.insert(0, os.path.dirname(os.path.dirname(os.path.abspath(__file__))))
import data
from evaluate import RATES, wilson

REWARDS = {
    "tutorial": ["format_and_language_reward_func", "check_answer"],
    "improved": ["language_reward", "answer_reward"],
}


def main(args):
    groups = {}
    for folder in args.folders:
        path = os.path.join(folder, "eval", "results.json")
        if not os.path.exists(path):
            print(f"{path} is not there")
            continue
        with open(path, encoding="utf-8") as file:
            groups.setdefault(re.sub(r"-\d+$", "", get_name(folder)), []).append(json.load(file))

    titles = ["run", "seeds x n", *RATES, "mean tokens", "language share"]
    print(f"| {' | '.join(titles)} |\n|{'---|' * len(titles)}")
    for name, results in groups.items():
        print_row(f"before ({name})", results, "base")
        print_row(f"after {name}", results, "lora")
        for r in results:
            changes = [f"{100 * r['base'][x]:.1f} -> {100 * r['lora'][x]:.1f}" for x in RATES]
            print(f"|   one seed of {name} | {r['n']} | {' | '.join(changes)} | | |")
    if args.plot:
        plot(args.folders, args.plot)


def get_name(folder):
    return os.path.basename(os.path.normpath(folder))


def print_row(name, results, arm):
    n = sum(r["n"] for r in results)
    cells = [name, f"{len(results)} x {results[0]['n']}"]
    for rate in RATES:
        k = sum(round(r[arm][rate] * r["n"]) for r in results)
        low, high = wilson(k, n)
        cells.append(f"{100 * k / n:.1f} ({100 * low:.1f}-{100 * high:.1f})")
    for key, digits in (("mean_tokens", 0), ("language_share", 2)):
        mean = sum(r[arm][key] * r["n"] for r in results) / n
        cells.append(f"{mean:.{digits}f}")
    print(f"| {' | '.join(cells)} |")


def plot(folders, png):
    """Draw reward parts against completions sampled: a line a folder, means of 128 completions."""
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    figure, axes = plt.subplots(2, 2, figsize=(10, 6), sharex=True)
    for folder in folders:
        with open(os.path.join(folder, "run.json"), encoding="utf-8") as file:
            run = json.load(file)
        with open(os.path.join(folder, "metrics.jsonl"), encoding="utf-8") as file:
            steps = [json.loads(line) for line in file]
        kind = run["arguments"]["rewards"]
        size = run["effective"]["completions_per_step"]
        width = max(1, 128 // size)
        for line, reward in enumerate(REWARDS[kind]):
            values = [r[f"rewards/{reward}/mean"] for r in steps if "reward" in r]
            x = range(width, len(values) + 1)
            means = [sum(values[i - width : i]) / width for i in x]
            axis = axes[line][int(kind == "improved")]
            axis.plot([i * size for i in x], means, label=get_name(folder))
            axis.set_title(f"{kind}: {reward}", fontsize=9)
    for axis in axes.flat:
        if axis.lines:
            axis.legend(fontsize=7)
        axis.set_xlabel("completions sampled (running mean over 128)", fontsize=8)
    figure.tight_layout()
    figure.savefig(png, dpi=100)


def parse_arguments():
    parser = data.make_parser(__doc__)
    parser.add_argument("folders", nargs="+", help="output folders of train.py and evaluate.py")
    parser.add_argument("--plot", metavar="PNG", help="draw reward parts against completions")
    return parser.parse_args()


if __name__ == "__main__":
    main(parse_arguments())
