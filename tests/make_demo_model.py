"""Build the demo: a tiny Qwen3 with DeepSeek-R1's tags, and problems for it. No download.

The model (0.7 M parameters) is taught sums by plain next-token training, in two minutes on two
cores. Its worked steps are English in 50 % of the examples, Indonesian in 28 % and German in 22 %,
whatever language the system prompt asks for: GRPO has to change that. Its answers are prose with
\\boxed{} in 70 % and a bare number in 30 %.

    python tests/make_demo_model.py --output-dir demo        # demo/model, demo/train.jsonl
    python tests/make_demo_model.py --init SmolLM2           # teach the sums to a model that exists
"""

import json
import os
import random
import sys
import time

sys.path.insert(0, os.path.dirname(os.path.dirname(os.path.abspath(__file__))))
import data


def main(args):
    import torch
    from transformers import AutoModelForCausalLM

    started = time.time()
    rng = random.Random(args.seed)
    torch.manual_seed(args.seed)
    device = "cuda" if torch.cuda.is_available() else "cpu"
    taught, kept = make_problems(rng)

    if args.init:
        tokenizer = data.load_tokenizer(args.init)
        model = AutoModelForCausalLM.from_pretrained(args.init, dtype=torch.float32)
    else:
        texts = []
        for _ in range(100):
            for messages, completion in make_examples(rng, taught, 20, args.bare_answers):
                texts += [messages[0]["content"], messages[1]["content"], completion]
        tokenizer = make_tokenizer(texts)
        model = make_model(tokenizer, args.head_dim)
    model.to(device)

    torch.set_flush_denormal(True)  # gradients that vanish would make a CPU ten times slower
    weigh = make_digit_weights(tokenizer, device)
    optimizer = torch.optim.AdamW(model.parameters(), lr=args.learning_rate, weight_decay=0.01)
    schedule = torch.optim.lr_scheduler.OneCycleLR(
        optimizer, args.learning_rate, total_steps=args.steps, pct_start=0.1
    )
    for step in range(args.steps):
        examples = make_examples(rng, taught, args.batch_size, args.bare_answers)
        ids, labels = encode_examples(tokenizer, examples, device)
        with torch.autocast(device, torch.bfloat16, enabled=device == "cuda"):
            logits = model(input_ids=ids).logits[:, :-1].float()
        targets = labels[:, 1:].flatten()
        losses = torch.nn.functional.cross_entropy(logits.flatten(0, 1), targets, reduction="none")
        weights = weigh(targets)
        loss = (losses * weights).sum() / weights.sum()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        schedule.step()
        optimizer.zero_grad()
        if step % 50 == 0 or step == args.steps - 1:
            seconds = time.time() - started
            print(f"step {step}: loss {loss.item():.3f}, {seconds:.0f} s", flush=True)

    folder = os.path.join(args.output_dir, "model")
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    if not args.init:
        declare_llama(folder)
    with data.whole_file(os.path.join(args.output_dir, "train.jsonl")) as name:
        write_problems(name, rng, kept)
    millions = sum(p.numel() for p in model.parameters()) / 1e6
    seconds = time.time() - started
    print(f"{millions:.2f} M parameters, {len(tokenizer)} tokens, {seconds:.0f} s")


# --------------------------------------------------------------------------------------------------
# The problems and their worked answers

NAMES = ["Ani", "Budi", "Dewi", "Eko"]
THINGS = ["apples", "books", "coins"]
QUESTIONS = [
    "{name} has {a} {thing}, buys {b} and finds {c}. How many {thing} now?",
    "{name} counts {a}, {b} and {c} {thing}. How many in all?",
    "What is {a} + {b} + {c}?",
]
# language: ways to say the four parts of a thought, and what introduces the answer
THOUGHTS = {
    "id": (
        ["Baik, mari kita hitung bersama.", "Kita kerjakan soal ini langkah demi langkah."],
        ["Pertama, jumlahkan dua bilangan yang di depan: {first}."],
        ["Kemudian tambahkan bilangan yang terakhir: {second}."],
        ["Jadi, jumlah semuanya adalah {sum}.", "Dengan demikian hasilnya adalah {sum}."],
        "Jawabannya adalah",
    ),
    "en": (
        ["Okay, let us work this out together.", "We solve this problem step by step."],
        ["First, add the two numbers at the front: {first}."],
        ["Then add the number that comes last: {second}."],
        ["So the total of all is {sum}.", "Therefore the result is {sum}."],
        "The answer is",
    ),
    "de": (
        ["Gut, wir rechnen das zusammen aus.", "Wir lösen diese Aufgabe Schritt für Schritt."],
        ["Zuerst addieren wir die beiden vorderen Zahlen: {first}."],
        ["Danach addieren wir noch die letzte Zahl: {second}."],
        ["Also ist die gesamte Summe {sum}.", "Daher ist das Ergebnis {sum}."],
        "Die Antwort ist",
    ),
}


def make_problems(rng):
    """Return (taught, kept): sums as triples, split so that GRPO and evaluation see new ones."""
    problems = [(a, b, c) for a in range(1, 17) for b in range(1, 10) for c in range(1, 10)]
    rng.shuffle(problems)
    return problems[:690], problems[690:]


def make_question(rng, a, b, c):
    question = rng.choice(QUESTIONS)
    return question.format(a=a, b=b, c=c, name=rng.choice(NAMES), thing=rng.choice(THINGS))


def make_completion(rng, a, b, c, bare_answers):
    *parts, label = THOUGHTS[rng.choices(["en", "id", "de"], [50, 28, 22])[0]]
    thought = " ".join(rng.choice(part) for part in parts)
    first = f"{a}+{b}={a + b}"
    second = f"{a + b}+{c}={a + b + c}"
    thought = thought.format(first=first, second=second, sum=a + b + c)
    if rng.random() < bare_answers:
        return f"<think>{thought}</think>{a + b + c}"
    return f"<think>{thought}</think>{label} \\boxed{{{a + b + c}}}."


def make_examples(rng, taught, n, bare_answers):
    """Return n pairs (messages, completion) of one system prompt, so that lengths are alike."""
    name = rng.choice(list(data.SYSTEM_PROMPTS))
    language = rng.choice(["id", "de"])
    system_prompt = data.make_system_prompt(name, language, ("<think>", "</think>"))
    examples = []
    for problem in rng.choices(taught, k=n):
        messages = data.make_messages(make_question(rng, *problem), system_prompt)
        examples.append((messages, make_completion(rng, *problem, bare_answers)))
    return examples


def write_problems(name, rng, problems):
    with open(name, "w", encoding="utf-8") as file:
        for problem in problems:
            row = {"prompt": make_question(rng, *problem), "solution": str(sum(problem))}
            file.write(json.dumps(row) + "\n")


# --------------------------------------------------------------------------------------------------
# The model and its tokenizer

BOS, EOS = "<｜begin▁of▁sentence｜>", "<｜end▁of▁sentence｜>"
USER, ASSISTANT = "<｜User｜>", "<｜Assistant｜>"
TEMPLATE = (  # the shape of DeepSeek-R1-0528's: nothing is prefilled, past thoughts are dropped
    "{{ bos_token }}{% for message in messages %}"
    "{% if message.role == 'system' %}{{ message.content }}"
    "{% elif message.role == 'user' %}{{ '" + USER + "' + message.content }}"
    "{% else %}{{ '" + ASSISTANT + "' + message.content.split('</think>')[-1] + eos_token }}"
    "{% endif %}{% endfor %}"
    "{% if add_generation_prompt %}{{ '" + ASSISTANT + "' }}{% endif %}"
)


def make_tokenizer(texts):
    """Return a byte-level BPE of about 600 tokens. <think> is added but not special, as Qwen3's."""
    from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers, trainers
    from transformers import PreTrainedTokenizerFast

    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Digits(individual_digits=True),
            pre_tokenizers.ByteLevel(add_prefix_space=False),
        ]
    )
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=800,
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        special_tokens=[BOS, EOS, USER, ASSISTANT],
        show_progress=False,
    )
    tokenizer.train_from_iterator(texts, trainer)
    for tag in ("<think>", "</think>"):
        tokenizer.add_tokens([AddedToken(tag, normalized=False)])
    fast = PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, bos_token=BOS, eos_token=EOS, pad_token=EOS
    )
    fast.chat_template = TEMPLATE
    return fast


def make_model(tokenizer, head_dim):
    from transformers import Qwen3Config, Qwen3ForCausalLM

    config = Qwen3Config(
        vocab_size=len(tokenizer),
        hidden_size=128,
        intermediate_size=384,
        num_hidden_layers=3,
        num_attention_heads=4,
        num_key_value_heads=2,
        head_dim=head_dim,
        max_position_embeddings=4096,
        tie_word_embeddings=True,
        bos_token_id=tokenizer.bos_token_id,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
    )
    return Qwen3ForCausalLM(config)


def declare_llama(folder):
    """Name Llama's tokenizer class, as the tutorial's model does.

    AutoTokenizer of transformers 5 then loses every space, which data.load_tokenizer must not.
    """
    path = os.path.join(folder, "tokenizer_config.json")
    with open(path, encoding="utf-8") as file:
        config = json.load(file)
    config["tokenizer_class"] = "LlamaTokenizerFast"
    with open(path, "w", encoding="utf-8") as file:
        json.dump(config, file, ensure_ascii=False, indent=1)


def encode_examples(tokenizer, examples, device):
    """Return (ids, labels), both n x width; the labels leave out prompts and padding (-100)."""
    import torch

    rows = []
    for messages, completion in examples:
        prompt = data.encode_prompt(tokenizer, messages)
        answer = tokenizer(completion, add_special_tokens=False)["input_ids"]
        rows.append((prompt, answer + [tokenizer.eos_token_id]))
    width = max(len(prompt) + len(answer) for prompt, answer in rows)
    ids = []
    labels = []
    for prompt, answer in rows:
        padding = width - len(prompt) - len(answer)
        ids.append(prompt + answer + [tokenizer.eos_token_id] * padding)
        labels.append([-100] * len(prompt) + answer + [-100] * padding)
    return torch.tensor(ids, device=device), torch.tensor(labels, device=device)


def make_digit_weights(tokenizer, device):
    """Return a function: targets -> weights of their losses.

    Digits are few among the tokens and the hardest to learn: they count eight times.
    """
    import torch

    digits = [tokenizer.convert_tokens_to_ids(digit) for digit in "0123456789"]
    digits = torch.tensor(digits, device=device)
    return lambda targets: (targets >= 0) * (1 + 7 * torch.isin(targets, digits))


def parse_arguments():
    number = data.number
    parser = data.make_parser(__doc__)
    parser.add_argument("--output-dir", default="demo", help="folder for model/ and train.jsonl")
    parser.add_argument("--init", help="local model to teach; default: a new tiny one")
    parser.add_argument("--steps", type=number(int, least=1), default=500, help="training steps")
    parser.add_argument(
        "--batch-size", type=number(int, least=1), default=16, help="examples in a step"
    )
    parser.add_argument(
        "--learning-rate", type=number(float, above=0), default=4e-3, help="peak learning rate"
    )
    parser.add_argument(
        "--bare-answers",
        type=number(float, least=0, most=1),
        default=0.3,
        help="share of answers that are a number only",
    )
    parser.add_argument(
        "--head-dim",
        type=number(int, least=1),
        default=32,
        help="size of an attention head (vLLM on a GPU: 64)",
    )
    parser.add_argument("--seed", type=number(int, least=0), default=3407, help="random seed")
    return parser.parse_args()


if __name__ == "__main__":
    main(parse_arguments())
