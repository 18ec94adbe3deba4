"""Build the demo: a tiny Qwen3 with DeepSeek-R1's tags, and problems for it. No download, two minutes on two cores.

The model (0.7 M parameters) is taught sums by plain next-token training. Its worked steps are English in 50 % of the
examples, Indonesian in 28 % and German in 22 %, whatever language the system prompt asks for: GRPO has to change that.
Its answers are prose with \\boxed{} in 70 % and a bare number in 30 %.

    python tests/make_demo_model.py --output-dir demo        # demo/model, demo/train.jsonl
    python tests/make_demo_model.py --init SmolLM2 ...       # teach the same sums to a model that exists
"""
import argparse
import json
import os
import random
import sys
import time

sys.path.insert(0, os.path.dirname(os.path.dirname(os.path.abspath(__file__))))
from data import SYSTEM_PROMPTS, load_tokenizer, make_system_prompt

BOS, EOS, USER, ASSISTANT = "<｜begin▁of▁sentence｜>", "<｜end▁of▁sentence｜>", "<｜User｜>", "<｜Assistant｜>"
TEMPLATE = (  # the shape of DeepSeek-R1-0528's: nothing is prefilled, past thoughts are dropped
    "{{ bos_token }}{% for message in messages %}"
    "{% if message.role == 'system' %}{{ message.content }}"
    "{% elif message.role == 'user' %}{{ '" + USER + "' + message.content }}"
    "{% else %}{{ '" + ASSISTANT + "' + message.content.split('</think>')[-1] + eos_token }}{% endif %}"
    "{% endfor %}{% if add_generation_prompt %}{{ '" + ASSISTANT + "' }}{% endif %}")
NAMES = ["Ani", "Budi", "Dewi", "Eko"]
THINGS = ["apples", "books", "coins"]
QUESTIONS = ["{name} has {a} {thing}, buys {b} and finds {c}. How many {thing} now?",
             "{name} counts {a}, {b} and {c} {thing}. How many in all?",
             "What is {a} + {b} + {c}?"]
THOUGHTS = {
    "id": (["Baik, mari kita hitung bersama.", "Kita kerjakan soal ini langkah demi langkah."],
           ["Pertama, jumlahkan dua bilangan yang di depan: {first}."],
           ["Kemudian tambahkan bilangan yang terakhir: {second}."],
           ["Jadi, jumlah semuanya adalah {sum}.", "Dengan demikian hasilnya adalah {sum}."], "Jawabannya adalah"),
    "en": (["Okay, let us work this out together.", "We solve this problem step by step."],
           ["First, add the two numbers at the front: {first}."],
           ["Then add the number that comes last: {second}."],
           ["So the total of all is {sum}.", "Therefore the result is {sum}."], "The answer is"),
    "de": (["Gut, wir rechnen das zusammen aus.", "Wir lösen diese Aufgabe Schritt für Schritt."],
           ["Zuerst addieren wir die beiden vorderen Zahlen: {first}."],
           ["Danach addieren wir noch die letzte Zahl: {second}."],
           ["Also ist die gesamte Summe {sum}.", "Daher ist das Ergebnis {sum}."], "Die Antwort ist"),
}


def make_question(rng, a, b, c):
    return rng.choice(QUESTIONS).format(a=a, b=b, c=c, name=rng.choice(NAMES), thing=rng.choice(THINGS))


def make_completion(rng, a, b, c, bare_answers):
    *parts, label = THOUGHTS[rng.choices(["en", "id", "de"], [50, 28, 22])[0]]
    thought = " ".join(rng.choice(part) for part in parts).format(first=f"{a}+{b}={a + b}", second=f"{a + b}+{c}={a + b + c}", sum=a + b + c)
    answer = f"{a + b + c}" if rng.random() < bare_answers else f"{label} \\boxed{{{a + b + c}}}."
    return f"<think>{thought}</think>{answer}"


def make_problems(rng):
    """Return (taught, kept): problems as triples, split so that GRPO and its evaluation see unseen ones."""
    problems = [(a, b, c) for a in range(1, 17) for b in range(1, 10) for c in range(1, 10)]
    rng.shuffle(problems)
    return problems[:690], problems[690:]


def make_tokenizer(texts):
    """Return a byte-level BPE of about 600 tokens. <think> is an added token but not a special one, as in Qwen3."""
    from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers, trainers
    from transformers import PreTrainedTokenizerFast
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence([pre_tokenizers.Digits(individual_digits=True),
                                                       pre_tokenizers.ByteLevel(add_prefix_space=False)])
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.train_from_iterator(texts, trainers.BpeTrainer(
        vocab_size=800, initial_alphabet=pre_tokenizers.ByteLevel.alphabet(), special_tokens=[BOS, EOS, USER, ASSISTANT], show_progress=False))
    tokenizer.add_tokens([AddedToken("<think>", normalized=False), AddedToken("</think>", normalized=False)])
    fast = PreTrainedTokenizerFast(tokenizer_object=tokenizer, bos_token=BOS, eos_token=EOS, pad_token=EOS)
    fast.chat_template = TEMPLATE
    return fast


def declare_llama(folder):
    """Name Llama's tokenizer class, as the tutorial's model does: AutoTokenizer of transformers 5 then loses every space."""
    path = os.path.join(folder, "tokenizer_config.json")
    config = json.load(open(path, encoding="utf-8"))
    with open(path, "w", encoding="utf-8") as file:
        json.dump(config | {"tokenizer_class": "LlamaTokenizerFast"}, file, ensure_ascii=False, indent=1)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0], formatter_class=argparse.ArgumentDefaultsHelpFormatter)
    parser.add_argument("--output-dir", default="demo", help="folder for model/ and train.jsonl")
    parser.add_argument("--init", help="local model to teach instead of a new tiny one")
    parser.add_argument("--steps", type=int, default=500, help="training steps")
    parser.add_argument("--batch-size", type=int, default=16, help="examples per step")
    parser.add_argument("--learning-rate", type=float, default=4e-3, help="peak learning rate")
    parser.add_argument("--bare-answers", type=float, default=0.3, help="share of answers that are a number only, 0 to 1")
    parser.add_argument("--head-dim", type=int, default=32, help="size of an attention head (vLLM on a GPU: 64)")
    parser.add_argument("--seed", type=int, default=3407, help="random seed")
    args = parser.parse_args()
    started = time.time()

    import torch
    from transformers import AutoModelForCausalLM, Qwen3Config, Qwen3ForCausalLM
    rng = random.Random(args.seed)
    torch.manual_seed(args.seed)
    torch.set_flush_denormal(True)  # gradients that vanish would make CPU arithmetic ten times slower
    device = "cuda" if torch.cuda.is_available() else "cpu"
    taught, kept = make_problems(rng)

    def make_examples(n):
        """n examples with one system prompt, so that their lengths are alike."""
        system = {"role": "system", "content": make_system_prompt(rng.choice(list(SYSTEM_PROMPTS)), rng.choice(["id", "de"]))}
        for problem in rng.choices(taught, k=n):
            yield [system, {"role": "user", "content": make_question(rng, *problem)}], make_completion(rng, *problem, args.bare_answers)

    if args.init:
        tokenizer = load_tokenizer(args.init)
        model = AutoModelForCausalLM.from_pretrained(args.init, dtype=torch.float32).to(device)
    else:
        texts = [text for _ in range(100) for messages, completion in make_examples(20)
                 for text in (messages[0]["content"], messages[1]["content"], completion)]
        tokenizer = make_tokenizer(texts)
        model = Qwen3ForCausalLM(Qwen3Config(
            vocab_size=len(tokenizer), hidden_size=128, intermediate_size=384, num_hidden_layers=3, num_attention_heads=4,
            num_key_value_heads=2, head_dim=args.head_dim, max_position_embeddings=4096, tie_word_embeddings=True,
            bos_token_id=tokenizer.bos_token_id, eos_token_id=tokenizer.eos_token_id, pad_token_id=tokenizer.pad_token_id)).to(device)

    digits = torch.tensor([tokenizer.convert_tokens_to_ids(digit) for digit in "0123456789"], device=device)
    optimizer = torch.optim.AdamW(model.parameters(), lr=args.learning_rate, weight_decay=0.01)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, args.learning_rate, total_steps=args.steps, pct_start=0.1)
    for step in range(args.steps):
        rows = []
        for messages, completion in make_examples(args.batch_size):
            prompt = tokenizer.apply_chat_template(messages, tokenize=True, add_generation_prompt=True, return_dict=False)
            rows.append((prompt, tokenizer(completion, add_special_tokens=False)["input_ids"] + [tokenizer.eos_token_id]))
        width = max(len(p) + len(c) for p, c in rows)
        ids = torch.tensor([p + c + [tokenizer.eos_token_id] * (width - len(p) - len(c)) for p, c in rows], device=device)
        labels = torch.tensor([[-100] * len(p) + c + [-100] * (width - len(p) - len(c)) for p, c in rows], device=device)
        with torch.autocast(device, torch.bfloat16, enabled=device == "cuda"):
            logits = model(input_ids=ids).logits[:, :-1].float()
        targets = labels[:, 1:]
        losses = torch.nn.functional.cross_entropy(logits.flatten(0, 1), targets.flatten(), reduction="none")
        # Digits are few among the tokens and the hardest to learn: they count eight times.
        weights = (targets.flatten() >= 0) * (1 + 7 * torch.isin(targets.flatten(), digits))
        loss = (losses * weights).sum() / weights.sum()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        schedule.step()
        optimizer.zero_grad()
        if step % 50 == 0 or step == args.steps - 1:
            print(f"step {step}: loss {loss.item():.3f}, {time.time() - started:.0f} s", flush=True)

    model.save_pretrained(os.path.join(args.output_dir, "model"))
    tokenizer.save_pretrained(os.path.join(args.output_dir, "model"))
    if not args.init:
        declare_llama(os.path.join(args.output_dir, "model"))
    with open(os.path.join(args.output_dir, "train.jsonl"), "w", encoding="utf-8") as file:
        for problem in kept:
            file.write(json.dumps({"prompt": make_question(rng, *problem), "solution": str(sum(problem))}) + "\n")
    print(f"{sum(p.numel() for p in model.parameters()) / 1e6:.2f} M parameters, {len(tokenizer)} tokens, {time.time() - started:.0f} s")
