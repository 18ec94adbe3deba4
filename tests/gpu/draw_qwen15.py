"""Draw the runs of qwen15.sh: Indonesian and right at every step, and on problems never seen.

    python tests/gpu/draw_qwen15.py PICTURE RESULTS_JSON METRICS_JSONL...

A point is the mean of 5 steps. The results.json of one evaluation gives the dashed line (the base)
and the point with its 95 % interval (the trained model).
"""

import json
import sys

import matplotlib

matplotlib.use("Agg")
import matplotlib.pyplot as plt

PANELS = {"indonesian_rate": "Indonesian (langid)", "accuracy": "right"}
WINDOW = 5

picture, results_file, *metrics_files = sys.argv[1:]
with open(results_file, encoding="utf-8") as file:
    results = json.load(file)
figure, axes = plt.subplots(1, 2, figsize=(9, 3), sharey=True, layout="constrained")
for panel, (key, title) in zip(axes, PANELS.items()):
    last = 0
    for path in metrics_files:
        with open(path, encoding="utf-8") as file:
            rows = [json.loads(line) for line in file]
        rows = [row for row in rows if "reward" in row]
        values = [row[f"rewards/{key}/mean"] for row in rows]
        steps = range(WINDOW, len(rows) + 1)
        means = [100 * sum(values[step - WINDOW : step]) / WINDOW for step in steps]
        panel.plot(steps, means, color="tab:blue", alpha=0.5)
        last = max(last, len(rows))
    base = 100 * results["base"][key]
    panel.axhline(base, color="gray", linestyle="--", label=f"base, unseen: {base:.0f} %")
    lora = 100 * results["lora"][key]
    low, high = (100 * bound for bound in results["lora"][f"{key}_ci95"])
    panel.errorbar(
        last + 2,
        lora,
        [[lora - low], [high - lora]],
        fmt="o",
        color="tab:red",
        label=f"one run, unseen: {lora:.0f} %",
    )
    panel.set(title=title, xlabel="step (64 completions)", ylim=(0, 100))
    panel.grid(alpha=0.3)
    panel.legend(loc="lower right" if key == "indonesian_rate" else "upper left")
axes[0].set_ylabel("% of the completions")
figure.savefig(picture, dpi=110)
