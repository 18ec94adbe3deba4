"""Draw the language reward against the length of a text, before and after issue 17.

Before: the share of windows in Indonesian times the share of fresh word triples in the whole text.
After: language_share as it is. Copies and Malay are treated alike in both. Honest text is that of
language_texts.jsonl, thoughts joined and cut to length.

    python tests/reward_vs_length.py                # makes tests/reward_vs_length.png
    python tests/reward_vs_length.py --completions texts.jsonl   # and a table of real completions
                                                    # with the columns prompt, text, langid
"""

import argparse
import json
import sys
from pathlib import Path

HERE = Path(__file__).resolve().parent
sys.path.insert(0, str(HERE.parent))

LENGTHS = [20, 40, 60, 100, 150, 220, 300, 450, 700, 1000, 1400, 1900]
BINS = [(8, 30), (30, 60), (60, 100), (100, 150), (150, 220), (220, 10_000)]


def main(args):
    texts = make_texts()
    curves = {}
    print(f"{'words':34}", *[f"{length:>5}" for length in LENGTHS])
    for name, make in texts.items():
        curves[name] = [get_rewards(make(length)) for length in LENGTHS]
        for index, when in enumerate(("before", "after")):
            row = [f"{point[index]:5.2f}" for point in curves[name]]
            print(f"{name + ', ' + when:34}", *row)
    draw(curves, args.output)
    if args.completions:
        print_completions(args.completions)


def make_texts():
    """Return {name: function that makes a text of so many words}."""
    lines = (HERE / "language_texts.jsonl").read_text("utf-8").splitlines()
    thoughts = [json.loads(line) for line in lines]
    words = {}
    for lang in ("id", "ms"):
        words[lang] = " ".join(t["thought"] for t in thoughts if t["lang"] == lang).split()
    repeated = {
        "one word": ["yang"],
        "one sentence": words["id"][5:20],
        "one paragraph of 60 words": words["id"][:60],
    }
    texts = {
        "honest Indonesian": lambda length: words["id"][:length],
        "honest Malay": lambda length: words["ms"][:length],
    }
    for name, piece in repeated.items():
        texts[name] = lambda length, piece=piece: (piece * length)[:length]
    return texts


def get_rewards(words, problem=""):
    """Return (before, after) of a text."""
    import rewards

    text = " ".join(words)
    found = rewards.find_words(text)
    after = rewards.language_share(text, problem)
    if len(found) < rewards.MIN_WORDS:
        return 0.0, after
    factor = rewards.repetition_factor
    rewards.repetition_factor = rewards.fresh_share
    before = rewards.language_share(text, problem)
    rewards.repetition_factor = factor
    return before, after


def draw(curves, output):
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    figure, panels = plt.subplots(1, 2, figsize=(10, 4), sharey=True)
    for index, title in enumerate(("before", "after")):
        for name, points in curves.items():
            panels[index].plot(LENGTHS, [point[index] for point in points], "o-", ms=3, label=name)
        panels[index].set(title=title, xlabel="words", xscale="log", ylim=(-0.03, 1.03))
        panels[index].grid(alpha=0.3)
    panels[0].set_ylabel("language reward")
    panels[1].legend(loc="center right", fontsize=8)
    figure.tight_layout()
    figure.savefig(output, dpi=110)


def print_completions(file):
    """Print the mean reward of the Indonesian ones among real completions, by length."""
    rows = []
    for line in Path(file).read_text("utf-8").splitlines():
        row = json.loads(line)
        if row["langid"] == "id":
            length = len(row["text"].split())
            rows.append((length, *get_rewards(row["text"].split(), row["prompt"])))
    print(f"\n{len(rows)} Indonesian completions: words, number, mean before, mean after")
    for low, high in BINS:
        chosen = [row for row in rows if low <= row[0] < high]
        before = sum(row[1] for row in chosen) / len(chosen)
        after = sum(row[2] for row in chosen) / len(chosen)
        print(f"{low:>4} to {high:<6} {len(chosen):>4} {before:.2f} {after:.2f}")


if __name__ == "__main__":
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--output", default=HERE / "reward_vs_length.png")
    parser.add_argument("--completions")
    main(parser.parse_args())
