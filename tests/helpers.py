"""What the tests share: small random models, random rollouts, a slow but obvious reference for log-probs, tiny runs."""

import copy
import csv
import json
import os
import tempfile
from functools import partial
from pathlib import Path

import torch
from safetensors.torch import load_file
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import GPT2Config, GPT2LMHeadModel, LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast, Qwen2Config, Qwen2ForCausalLM

from rlvr.engine.attention import ATTENTION
from rlvr.rollout import Rollouts
from rlvr.run.metrics import Watch

V = 29  # vocabulary of the small models


class WordTokenizer:
    """Token 5 is the word "5". Stands in for a Hugging Face tokenizer where only decoding matters."""

    eos_token_id = 2
    chat_template = None

    def batch_decode(self, rows, skip_special_tokens=True):
        return [" ".join(str(i) for i in row if not (skip_special_tokens and i == self.eos_token_id)) for row in rows]


def new_model(name: str, seed: int = 0, vocabulary: int = V, scale: float = 12.0, layers: int = 2):
    """A random float32 model. Its weights are scaled up, because a freshly made model gives every token nearly the same probability."""
    torch.manual_seed(seed)
    if name == "gpt2":  # learned positions: wrong position ids show at once
        model = GPT2LMHeadModel(GPT2Config(vocab_size=vocabulary, n_embd=32, n_layer=2, n_head=4, n_positions=128, bos_token_id=1, eos_token_id=2))
    else:
        shape = dict(
            vocab_size=vocabulary, hidden_size=32, intermediate_size=48, num_hidden_layers=layers, num_attention_heads=4,
            max_position_embeddings=128, bos_token_id=1, eos_token_id=2,
        )  # fmt: skip
        if name == "qwen":  # two query heads share a key head
            model = Qwen2ForCausalLM(Qwen2Config(**shape, num_key_value_heads=2, tie_word_embeddings=True))
        elif name == "windows":  # the second layer sees five tokens and no more
            windows = dict(use_sliding_window=True, sliding_window=5, max_window_layers=1)
            model = Qwen2ForCausalLM(Qwen2Config(**shape, num_key_value_heads=2, **windows))
        else:
            model = LlamaForCausalLM(LlamaConfig(**shape, num_key_value_heads=4))
    with torch.no_grad():
        for weight in model.parameters():
            if weight.dim() > 1:
                weight.mul_(scale)
    model.eval()
    model.set_attn_implementation(ATTENTION)
    return model


MODELS = {}


def shared_model(name: str):
    if name not in MODELS:
        MODELS[name] = new_model(name)
    return MODELS[name]


def stock(model):
    """The same weights with transformers' own plain attention: what our sampling and scoring are compared with."""
    twin = copy.deepcopy(model)
    twin.set_attn_implementation("eager")
    return twin


def exact(model, attention: str = "sdpa"):
    """The same weights in float64, from end to end, with transformers' own attention or ours. `double()` alone is not enough: the softmax of
    the plain attention and the norms of Llama and its kin go through float32 whatever they are given."""
    twin = copy.deepcopy(model).double()
    twin.set_attn_implementation(attention)
    for module in twin.modules():
        if hasattr(module, "variance_epsilon"):
            module.forward = partial(_rms_norm, module)
    return twin


def _rms_norm(module, x: torch.Tensor) -> torch.Tensor:
    return module.weight * x * (x.square().mean(-1, keepdim=True) + module.variance_epsilon).rsqrt()


def reference_logp_and_entropy(model, prompt: list[int], completion: list[int], temperature: float):
    """One row, one full float64 forward for each token, no padding, no cache: two lists of floats."""
    twin = exact(model)
    logp, entropy = [], []
    with torch.no_grad():
        for t, token in enumerate(completion):
            z = twin(input_ids=torch.tensor([prompt + completion[:t]])).logits[0, -1] / temperature
            p = (z - z.max()).exp() / (z - z.max()).exp().sum()
            logp.append(p[token].log().item())
            entropy.append(sum(-x * torch.tensor(x).log().item() for x in p.tolist() if x > 0))
    return logp, entropy


def plain_logp_and_entropy(model, prompt: list[int], completion: list[int], temperature: float):
    """One row by the formulas themselves, alone, without padding: log-prob and entropy of each token, [T] each, for autograd."""
    logits = model(input_ids=torch.tensor([prompt + completion])).logits[0, len(prompt) - 1 : -1]  # each predicts the token after it
    logp = (logits / temperature).log_softmax(-1)
    return logp[range(len(completion)), completion], -(logp.exp() * logp).sum(-1)


def make_rollouts(prompt_lengths, lengths, groups=None, seed=0, finished=None) -> Rollouts:
    """Random tokens in the shape of a batch that was sampled."""
    g = torch.Generator().manual_seed(seed)
    n, width = len(lengths), max(max(lengths), 1)
    lengths = torch.tensor(lengths)
    mask = torch.arange(width)[None] < lengths[:, None]
    return Rollouts(
        prompt_ids=[torch.randint(3, V, (k,), generator=g).tolist() for k in prompt_lengths],
        completion_ids=torch.randint(3, V, (n, width), generator=g).masked_fill(~mask, 0),
        lengths=lengths,
        mask=mask,
        finished=torch.tensor(finished if finished is not None else [True] * n),
        old_logp=(-3 * torch.rand(n, width, generator=g)).masked_fill(~mask, 0),
        entropy=(3 * torch.rand(n, width, generator=g)).masked_fill(~mask, 0),
        group=torch.tensor(groups if groups is not None else [0] * n),
        text=[f"text {i}" for i in range(n)],
    )


def one_step(trainer) -> tuple[dict, Rollouts, torch.Tensor, torch.Tensor]:
    """A step of a trainer, and what a run would log of it: metrics, completions, whether each is correct [N], the shaped advantages."""
    trainer.watch = getattr(trainer, "watch", None) or Watch(trainer)
    step = trainer.step()
    return trainer.watch.row(step), step.rollouts, step.rewards > 0, step.shaped


# ---------------------------------------------------------------------------------------------------------------------------------------
# Whole runs, as small as they come: half a second

# The built-in model takes seconds for what these runs need, so they have a model of their own: random, one layer, and each token a word.
# A third of its answers are right, because three words of sixteen are a box. Some of them end, some are cut off.
WORDS = [*"<unk> <bos> <eos>".split(), *(rf"\boxed{{{n}}}" for n in (1, 2, 3)), *"1 2 3 4 + - * = so is".split()]


def make_small_model(folder: Path) -> None:
    words = Tokenizer(models.WordLevel({word: i for i, word in enumerate(WORDS)}, unk_token="<unk>"))
    words.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    special = dict(unk_token="<unk>", bos_token="<bos>", eos_token="<eos>", pad_token="<unk>")
    new_model("qwen", vocabulary=len(WORDS), scale=16.0, layers=1).save_pretrained(folder / "words")
    PreTrainedTokenizerFast(tokenizer_object=words, **special).save_pretrained(folder / "words")
    rows = [{"problem": f"{i % 4 + 1} {'+-*='[i // 16]} {i // 4 % 4 + 1}", "answer": str(i % 3 + 1)} for i in range(64)]
    (folder / "sums.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")


if "RLVR_SMALL" not in os.environ:  # else the process that started this one has made it
    _FOLDER = tempfile.TemporaryDirectory(prefix="rlvr-tests-")  # goes with the process
    os.environ["RLVR_SMALL"] = _FOLDER.name
    make_small_model(Path(_FOLDER.name))
SMALL_MODEL, SMALL_DATA = (str(Path(os.environ["RLVR_SMALL"]) / name) for name in ("words", "sums.jsonl"))
STORIES = str(Path(__file__).parent / "data" / "stories.jsonl")  # 64 of the built-in ones: all 8192 take seconds to make and encode
RUN = dict(
    method="pos", steps=4, prompts_per_step=4, completions_per_prompt=4, mini_batch_prompts=2, filter_groups=False, sampling_rounds=1,
    max_new_tokens=12, overlong_buffer=6, warmup_steps=2, lr=2e-3, eval_every=2, eval_problems=3, final_eval_problems=3,
    eval_completions=2, log_completions=2, model=SMALL_MODEL, data=SMALL_DATA, eval_data=SMALL_DATA, instruction="",
)  # fmt: skip


def files_of(folder: Path) -> dict[str, object]:
    """What a run leaves behind, without what may differ: times, and where the folder is."""
    with open(folder / "metrics.csv", newline="", encoding="utf-8") as file:
        rows = [{k: v for k, v in row.items() if not k.startswith("seconds")} for row in csv.DictReader(file)]
    summary = json.loads((folder / "summary.json").read_text(encoding="utf-8"))
    return {
        "metrics": rows,
        "rollouts": (folder / "rollouts.jsonl").read_text(encoding="utf-8"),
        "weights": load_file(folder / "model" / "model.safetensors"),
        "summary": {k: v for k, v in summary.items() if k not in ("wall_seconds", "saving_seconds")},
        "others": sorted(p.name for p in folder.iterdir()),
    }


def check_equal(folder: Path, reference: Path) -> None:
    """Two runs are the same: bit-equal weights, equal metrics, equal logged completions."""
    mine, other = files_of(folder), files_of(reference)
    difference = max((mine["weights"][k] - w).abs().max().item() for k, w in other["weights"].items())
    assert difference == 0.0 and mine["weights"].keys() == other["weights"].keys()
    for name in ("metrics", "rollouts", "summary", "others"):
        assert mine[name] == other[name], name


def window_size(browser, width: int, height: int) -> None:
    """A window of this size, in pixels; below 600 that of a phone."""
    metrics = dict(width=width, height=height, deviceScaleFactor=1, mobile=width < 600)
    browser.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", metrics)
