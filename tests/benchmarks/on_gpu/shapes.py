"""The models that are measured: published shapes with random weights, made where they are used."""

import json
from pathlib import Path

import torch

from rlvr.engine import decoder, scorer
from rlvr.engine.choice import use_fast
from rlvr.policy import Policy, logp_and_entropy
from rlvr.rollout import complete

from .processes import Needs, Options

QWEN_1_5B = dict(
    hidden_size=1536, intermediate_size=8960, num_hidden_layers=28, num_attention_heads=12, num_key_value_heads=2, vocab_size=151936
)
SMALL = dict(hidden_size=768, intermediate_size=2048, num_hidden_layers=4, num_attention_heads=12, num_key_value_heads=2, vocab_size=32000)
TINY = dict(hidden_size=64, intermediate_size=128, num_hidden_layers=2, num_attention_heads=4, num_key_value_heads=2, vocab_size=1000)


class NoText:
    """Stands in for a tokenizer where it does not matter what completions say."""

    def batch_decode(self, rows, skip_special_tokens=True):
        return [""] * len(rows)


def device_of(options: Options) -> str:
    """cuda; with --smoke any machine will do. Raises Needs."""
    if torch.cuda.is_available():
        return "cuda"
    if not options.smoke:
        raise Needs("CUDA")
    return "cpu"


def needs_cuda(device: str) -> None:
    if device != "cuda":
        raise Needs("CUDA")


def random_model(shape: dict, device: str, dtype: str, scale: float = 1.0):
    """Llama's architecture with biases, which does the same work as Qwen2's.

    scale: of the matrices; above 1 the tokens are less alike in probability than freshly made weights have them.
    """
    from transformers import LlamaConfig, LlamaForCausalLM

    torch.manual_seed(0)
    with torch.device(device):
        model = LlamaForCausalLM(LlamaConfig(**shape, max_position_embeddings=4096, tie_word_embeddings=True, attention_bias=True))
    with torch.no_grad():
        for weight in model.parameters() if scale != 1 else ():
            if weight.dim() > 1:
                weight.mul_(scale)
    return model.to(getattr(torch, dtype)).eval()


def policy_of(model, engine: str = "fast") -> Policy:
    """A model under one of the engines. It never ends a text: its stop token is none of its vocabulary."""
    never = {model.config.vocab_size}
    if engine == "plain":
        return Policy(model, NoText(), never, complete, logp_and_entropy)
    use_fast(model, "the random model", logp_and_entropy)
    return Policy(model, NoText(), never, decoder.complete, scorer.logp_and_entropy, packed=True)


def make_folder(folder: Path, shape: dict, device: str) -> None:
    """A random model as a folder, with a tokenizer in which every token is a word, and a file of problems of 128 tokens."""
    from tokenizers import Tokenizer, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    words = {"<unk>": 0, "<eos>": 1} | {f"w{i}": i for i in range(2, shape["vocab_size"])}
    tokenizer = Tokenizer(models.WordLevel(words, unk_token="<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    PreTrainedTokenizerFast(tokenizer_object=tokenizer, eos_token="<eos>", pad_token="<eos>", unk_token="<unk>").save_pretrained(folder)
    model = random_model(shape, device, "bfloat16")
    for config in (model.config, model.generation_config):
        config.eos_token_id, config.pad_token_id, config.bos_token_id = 1, 1, None
    model.save_pretrained(folder)
    g = torch.Generator().manual_seed(0)
    with open(folder / "problems.jsonl", "w", encoding="utf-8") as file:
        for i in range(1024):
            ids = torch.randint(2, shape["vocab_size"], (128,), generator=g).tolist()
            file.write(json.dumps({"problem": " ".join(f"w{t}" for t in ids), "answer": str(i)}) + "\n")
