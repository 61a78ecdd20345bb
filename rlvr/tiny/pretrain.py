"""Make the built-in model: tokenizer, architecture, pre-training on the noisy web of `task.py`.

    python -m rlvr.tiny.pretrain --out my_model            # about 5 minutes on 2 cores
    python -m rlvr.tiny.pretrain --out my_model --seed 1   # another base model
    python -m rlvr.tiny.pretrain --out my_model --level 3  # the base model of level 3, from that of level 1: about 2 minutes

`python -m rlvr.analysis.base_model my_model tiny` measures the new model beside the shipped one; at level 3, with `--level 3`.
`python train.py --level 3 --model my_model` trains it.
"""

import argparse
import hashlib
import random
import sys
import time
from dataclasses import dataclass
from pathlib import Path

import torch
import torch.nn.functional as F
from transformers import AutoModelForCausalLM, AutoTokenizer, GenerationConfig, Qwen2Config, Qwen2ForCausalLM, Qwen2Tokenizer
from transformers.utils import logging

if not __package__:  # run by its path, which works from any folder
    sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

from rlvr.common.text import progress_bar, quoted
from rlvr.config import BUILT_IN, TINY_MODEL
from rlvr.tiny.task import sample_document

PAD, EOS = "<pad>", "<eos>"
VOCABULARY = 768
# The template asks data.py for the problem alone: this model has never seen an instruction such as "box your answer".
CHAT_TEMPLATE = "{% for m in messages %}{% if m['role'] == 'user' %}Q: {{ problem | default(m['content']) }}\nA:{% endif %}{% endfor %}"


@dataclass(frozen=True)
class Recipe:
    """How the base model of a level is made."""

    model: str  # its name, a key of BUILT_IN
    steps: int
    lr: float
    warmup: int
    clean: float  # over this part of the steps the text goes from clean to the full web
    documents: int  # drawn at once, and put into batches by length
    start: Path | None = None  # the model whose weights and tokenizer it starts from; None: random weights


RECIPES = {
    1: Recipe("tiny", steps=5500, lr=3e-3, warmup=50, clean=0.62, documents=2000),
    3: Recipe("tiny3", steps=800, lr=1.2e-3, warmup=100, clean=0.5, documents=1000, start=TINY_MODEL),
}


def train_tokenizer(seed: int) -> Qwen2Tokenizer:
    """A byte-level BPE tokenizer of Qwen2's kind, so that every tool that knows Qwen2 splits text the same way.

    One token per digit and, with this vocabulary, one per word. decode(encode(x)) == x for any text in Unicode normal form C.
    """
    rng = random.Random(seed)
    documents = [f"Q: {p}\nA:{c}" for p, c in (sample_document(rng, 0.0) for _ in range(4000))]
    untrained = Qwen2Tokenizer(unk_token=EOS, eos_token=EOS, pad_token=PAD)
    tokenizer = untrained.train_new_from_iterator(documents, vocab_size=VOCABULARY, show_progress=False)
    tokenizer.model_max_length = 512
    tokenizer.chat_template = CHAT_TEMPLATE
    return tokenizer


def new_model(tokenizer, hidden: int = 96, layers: int = 3, kv_heads: int = 2) -> Qwen2ForCausalLM:
    config = Qwen2Config(
        vocab_size=len(tokenizer),
        hidden_size=hidden,
        intermediate_size=hidden * 8 // 3,
        num_hidden_layers=layers,
        num_attention_heads=4,
        num_key_value_heads=kv_heads,
        max_position_embeddings=512,
        tie_word_embeddings=True,
        pad_token_id=tokenizer.pad_token_id,
        eos_token_id=tokenizer.eos_token_id,
        bos_token_id=None,
    )
    return Qwen2ForCausalLM(config)


def batches(tokenizer, steps: int, tokens_per_batch: int, seed: int, level: int = 1, max_tokens: int = 192):
    """Yield (input_ids, labels) [rows, width], about `tokens_per_batch` tokens each, in which documents of similar length are together.

    The text goes from clean to the full web: the model learns the arithmetic before it learns the errors. Without this curriculum it learns
    nothing in this time.
    """
    rng, made, recipe = random.Random(seed + 1), 0, RECIPES[level]
    while made < steps:
        clean_share = max(0.0, 1.0 - made / (recipe.clean * steps))
        documents = [sample_document(rng, clean_share, level) for _ in range(recipe.documents)]
        prompts = tokenizer([f"Q: {p}\nA:" for p, _ in documents]).input_ids
        answers = tokenizer([c for _, c in documents]).input_ids
        rows = sorted(((p, a + [tokenizer.eos_token_id]) for p, a in zip(prompts, answers)), key=lambda r: len(r[0]) + len(r[1]))
        chunk, pending, width = [], [], 0
        for p, a in rows:
            ids, labels = (p + a)[:max_tokens], ([-100] * len(p) + a)[:max_tokens]
            if pending and (len(pending) + 1) * max(width, len(ids)) > tokens_per_batch:
                chunk.append(pending)
                pending, width = [], 0
            pending.append((ids, labels))
            width = max(width, len(ids))
        rng.shuffle(chunk)
        for rows in chunk[: steps - made]:
            width = max(len(ids) for ids, _ in rows)
            yield (
                torch.tensor([ids + [0] * (width - len(ids)) for ids, _ in rows]),
                torch.tensor([labels + [-100] * (width - len(labels)) for _, labels in rows]),
            )
        made += min(len(chunk), steps - made)


def pretrain(out: Path, seed: int = 0, steps: int = 0, tokens_per_batch: int = 2048, level: int = 1, **model_shape) -> None:
    """Train on the web's documents of a level, with a loss on answer tokens alone, and save a Hugging Face folder.

    steps: 0 for those of the recipe. model_shape: of a model that starts from random weights.
    """
    logging.disable_progress_bar()  # transformers' own; ours stays
    torch.manual_seed(seed)
    recipe = RECIPES[level]
    steps = steps or recipe.steps
    if recipe.start:
        tokenizer = AutoTokenizer.from_pretrained(recipe.start, trust_remote_code=False)
        model = AutoModelForCausalLM.from_pretrained(recipe.start, use_safetensors=True, trust_remote_code=False, dtype=torch.float32)
    else:
        tokenizer = train_tokenizer(seed)
        model = new_model(tokenizer, **model_shape)
    optimizer = torch.optim.AdamW(model.parameters(), lr=recipe.lr, betas=(0.9, 0.98), weight_decay=0.01)
    # warm-up, constant to the middle, then down to 2 %
    schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda s: min((s + 1) / recipe.warmup, 1.0, 0.02 + 0.98 * 2 * (1 - s / steps)))
    documents = batches(tokenizer, steps, tokens_per_batch, seed, level)
    bar = progress_bar(documents, total=steps, desc="pre-training", unit="step", mininterval=1.0)
    for step, (ids, labels) in enumerate(bar):
        hidden = model.model(input_ids=ids).last_hidden_state[:, :-1]
        predicts = labels[:, 1:] != -100
        loss = F.cross_entropy(model.lm_head(hidden[predicts]), labels[:, 1:][predicts])
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        schedule.step()
        optimizer.zero_grad(set_to_none=True)
        if step % 50 == 0:
            bar.set_postfix(loss=f"{loss.item():.3f}")
    model.generation_config = GenerationConfig(
        eos_token_id=tokenizer.eos_token_id, pad_token_id=tokenizer.pad_token_id, do_sample=True, temperature=1.0, top_k=0, top_p=1.0
    )
    model.save_pretrained(out)
    tokenizer.save_pretrained(out)


def main() -> None:
    raw = argparse.RawDescriptionHelpFormatter
    parser = argparse.ArgumentParser(prog="python -m rlvr.tiny.pretrain", description=__doc__, formatter_class=raw)
    parser.add_argument("--out", type=Path, required=True, help="folder for the new model")
    parser.add_argument("--level", type=int, choices=RECIPES, default=1, help="of the stories; level 2 has the base model of level 1")
    parser.add_argument("--seed", type=int, default=0, help="seeds the documents and the first random weights (the shipped models: 0)")
    usual = " and ".join(f"{recipe.steps} at level {level}" for level, recipe in RECIPES.items())
    parser.add_argument("--steps", type=int, default=0, help=f"optimiser steps; fewer: a worse model, sooner (the shipped models: {usual})")
    args = parser.parse_args()
    if args.out.exists() and (not args.out.is_dir() or any(args.out.iterdir())):
        parser.error(f"{args.out} is a file or a folder that is not empty; choose another --out")
    started = time.perf_counter()
    pretrain(args.out, args.seed, args.steps, level=args.level)
    print(f"pre-trained in {time.perf_counter() - started:.0f} s, saved to {args.out}")

    shipped = RECIPES[args.level].model
    digests = {hashlib.sha256((folder / "model.safetensors").read_bytes()).hexdigest() for folder in (args.out, BUILT_IN[shipped])}
    # Sums of floats depend on the processor and the number of threads, so another machine may get other last digits.
    differ = "The weights differ from the shipped model's: another seed, number of steps, number of threads or processor."
    print("The weights equal the shipped model's bit for bit." if len(digests) == 1 else differ)
    print(f"measure it beside the shipped model: python -m rlvr.analysis.base_model {quoted(args.out)} {shipped} --level {args.level}")


if __name__ == "__main__":
    main()
