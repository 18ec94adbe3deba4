"""train.py with completions that do not depend on who generates them.

    python tests/fixed_rollouts.py FLAGS OF train.py

So one process and several that share a step can be compared: what is left is the training itself.
"""

import os
import sys

sys.path.insert(0, os.path.dirname(os.path.dirname(os.path.abspath(__file__))))
import train

TEXTS = [
    "<think>Baik, mari kita hitung bersama satu per satu sampai selesai.</think>{n}",
    "<think>Okay, let us work this out together, one by one.</think>{n}",
    "<think>Gut, wir rechnen das zusammen aus.</think>The answer is {n}.",
    "{n} is what I think",
]


def generate_single_turn(self, prompt_ids, *args, **kwargs):
    """In TRL's place: the i-th completion of a prompt is the same text in every process."""
    completions = []
    for i, ids in enumerate(prompt_ids):
        number = (sum(ids) + i) % self.num_generations
        text = TEXTS[number % len(TEXTS)].format(n=number)
        tokens = self.processing_class(text, add_special_tokens=False)["input_ids"]
        completions.append([*tokens, self.processing_class.eos_token_id])
    return completions, None


if __name__ == "__main__":
    import torch
    import trl

    # On a CPU, Trainer loads several processes' optimizer to "cpu:0"; torch knows only "cpu"
    torch.serialization.register_package(
        30, lambda storage: None, lambda storage, place: storage if place == "cpu:0" else None
    )
    trl.GRPOTrainer._generate_single_turn = generate_single_turn
    train.main(train.parse_arguments())
