"""Draw the runs of qwen15.sh against completions: each step of training, and problems never seen.

    python tests/gpu/draw_qwen15.py PICTURE improved RESULTS_JSON METRICS_JSONL... \\
        -- tutorial RESULTS_JSON METRICS_JSONL...

A colour for each recipe. Lines: its training runs, means of 5 steps. The results.json of one
evaluation gives the dashed line (its base) and the points with 95 % intervals (checkpoints and
trained models).
"""

import json
import sys

import matplotlib

matplotlib.use("Agg")
import matplotlib.pyplot as plt

# key in results.json: (title, key in metrics.jsonl)
PANELS = {
    "indonesian_rate": ("Indonesian (langid), %", "rewards/indonesian_rate/mean"),
    "accuracy": ("right, %", "rewards/accuracy/mean"),
    "indonesian_and_correct": ("both, %", None),
    "mean_tokens": ("tokens", "completions/mean_length"),
}
WINDOW = 5
COMPLETIONS = 64

picture, *arguments = sys.argv[1:]
recipes = " ".join(arguments).split(" -- ")
figure, axes = plt.subplots(1, 4, figsize=(12, 3), layout="constrained")
last = 0
for recipe, color in zip(recipes, ("tab:blue", "tab:orange")):
    name, results_file, *metrics_files = recipe.split()
    with open(results_file, encoding="utf-8") as file:
        results = json.load(file)
    runs = []
    for path in metrics_files:
        with open(path, encoding="utf-8") as file:
            rows = [json.loads(line) for line in file]
        runs.append([row for row in rows if "reward" in row])
    last = max(last, COMPLETIONS * max(results["steps"].values()))

    for panel, (key, (title, metric)) in zip(axes, PANELS.items()):
        scale = 1 if key == "mean_tokens" else 100
        for rows in runs if metric else []:
            values = [row[metric] for row in rows]
            steps = range(WINDOW, len(values) + 1)
            means = [scale * sum(values[step - WINDOW : step]) / WINDOW for step in steps]
            panel.plot([COMPLETIONS * step for step in steps], means, color=color, alpha=0.4)
        panel.axhline(scale * results["base"][key], color=color, linestyle="--", alpha=0.6)
        beside = 0
        for arm, step in results["steps"].items():
            if arm.endswith("grpo_lora"):
                beside += 120  # several runs have the same last step
            value = scale * results[arm][key]
            low, high = (scale * bound for bound in results[arm].get(f"{key}_ci95", [0, 0]))
            error = [[value - low], [high - value]] if high else None
            x = COMPLETIONS * step + beside
            panel.errorbar(x, value, error, fmt="o", markersize=4, color=color)
        panel.set(title=title, xlabel="completions")
        panel.set_xlim(0, last + 560)
        panel.set_ylim(0, None if key == "mean_tokens" else 100)
        panel.grid(alpha=0.3)
    axes[2].plot([], [], color=color, label=name)
axes[2].plot([], [], color="gray", linestyle="--", label="its base")
axes[2].errorbar([], [], [], fmt="o", markersize=4, color="gray", label="unseen problems")
axes[2].legend(fontsize=8, loc="upper left")
figure.savefig(picture, dpi=110)
