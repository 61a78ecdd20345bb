"""The policy: load a model and its tokenizer, and ask it for the log-prob and entropy of given tokens, lean in memory."""

import os
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable
from torch.utils.checkpoint import checkpoint
from transformers import AttentionInterface

from rlvr.engine.attention import ATTENTION, Packed, attention, is_ours
from rlvr.config import TINY_MODEL, SettingError
from rlvr.entropy import entropy_from_logp
from rlvr.common.text import printable
from rlvr.loaders.adapters import chain, check_adapter, check_peft, is_adapter, merged
from rlvr.loaders.json_file import json_object
from rlvr.engine.memory import out_of_memory
from rlvr.rollout import Rollouts, sample_batch

LOGITS_AT_ONCE = 2**26  # numbers in a chunk of logits: 256 MiB in float32, whatever the vocabulary


@dataclass
class Policy:
    """A causal language model, its tokenizer and the tokens that end a completion."""

    model: torch.nn.Module
    tokenizer: object
    stop_ids: set[int]


def resolve_model(name: str) -> str:
    """'tiny' -> the shipped folder; a run folder -> the model in it; anything else stays as it is."""
    if name == "tiny":
        return str(TINY_MODEL)
    inside = os.path.join(name, "model")
    return inside if os.path.isfile(os.path.join(inside, "config.json")) or is_adapter(inside) else name


def check_model_name(name: str) -> str:
    """The path or Hub id behind a name, checked as far as that goes without loading. Raises SettingError."""
    path = resolve_model(name)
    folder = Path(path)
    if not os.path.isdir(path):
        is_path = path.count("/") > 1 or path.startswith((".", "/", "~")) or ("/" in path and os.path.isdir(folder.parent))
        if is_path or os.path.exists(path):
            raise SettingError(f"There is no model folder {path}. Name a Hugging Face model folder, a run folder or a Hub id.")
        return path
    if is_adapter(folder):
        check_peft()
        check_adapter(folder)
        return path
    config = json_object(folder / "config.json")
    if config is None:
        raise SettingError(
            f"The folder {path} holds no model (no config.json). Name a Hugging Face model folder, a run folder or a Hub id."
        )
    if "preset" in config:  # that of a run
        raise SettingError(f"The run folder {path} has no model yet. Continue the run first: python train.py --resume {path}")
    for file in ("generation_config.json", "tokenizer.json", "tokenizer_config.json", "model.safetensors.index.json"):
        json_object(folder / file)
    if not has_tokenizer(folder):
        raise SettingError(f"The model folder {path} has no tokenizer. Save the tokenizer there too: tokenizer.save_pretrained({path!r}).")
    if not any(folder.glob("*.safetensors")):
        pickles = [f.name for pattern in ("*.bin", "*.pt", "*.pth", "*.ckpt") for f in sorted(folder.glob(pattern))]
        weights = f"only a pickle of weights ({pickles[0]}), which could run any code when opened" if pickles else "no weights"
        raise SettingError(f"The model folder {path} has {weights}. Save them as safetensors: model.save_pretrained({path!r}).")
    return path


def has_tokenizer(folder: Path) -> bool:
    return any((folder / f).is_file() for f in ("tokenizer.json", "tokenizer_config.json", "tokenizer.model", "vocab.json"))


def choose_device(device: str, cuda_graphs: bool = False) -> str:
    if device == "auto":
        device = "cuda" if torch.cuda.is_available() else "mps" if torch.backends.mps.is_available() else "cpu"
    if (device == "cuda" and not torch.cuda.is_available()) or (device == "mps" and not torch.backends.mps.is_available()):
        raise SettingError(f"There is no {device} device here. Choose --device cpu, or auto.")
    if cuda_graphs and device != "cuda":
        raise SettingError(f"--cuda-graphs needs a CUDA GPU, but the device is {device}. Leave it out.")
    return device


def choose_dtype(dtype: str, device: str) -> str:
    """What --dtype auto comes to on a device."""
    return dtype if dtype != "auto" else "bfloat16" if device == "cuda" else "float32"


def load_policy(name: str, device: str = "cpu", dtype: str = "auto", sampler: str = "rlvr") -> Policy:
    """Load a model folder, run folder or Hub id, with its weights in the precision of the forward pass (MasterWeights keeps float32 ones).

    sampler "rlvr" puts the model under our attention, so that it is sampled by our loop and learns from packed batches; "generate" leaves
    it as it is, for transformers' `generate` and padded rows.

    Raises SettingError when the folder, the model or its tokenizer is missing or damaged, the device is not there, or our code cannot
    follow the model. No code that comes with a model is run: none of its own (trust_remote_code), and none in a pickle (weights are read
    from safetensors alone).
    """
    from huggingface_hub.utils import logging as hub_logging
    from transformers import AutoModelForCausalLM, AutoTokenizer
    from transformers.utils import logging

    logging.disable_progress_bar()
    logging.set_verbosity_error()  # no page of warnings or retries before our one sentence
    hub_logging.set_verbosity_error()
    path = check_model_name(name)
    device = choose_device(device)
    dtype = choose_dtype(dtype, device)
    try:
        *adapters, base = chain(path, check_model_name)
        with_tokenizer = next((folder for folder in adapters if has_tokenizer(Path(folder))), base)
        tokenizer = AutoTokenizer.from_pretrained(with_tokenizer, trust_remote_code=False)
        if not tokenizer("1 + 1", add_special_tokens=False).input_ids:
            raise ValueError("its tokenizer has no vocabulary")
        model, loading = AutoModelForCausalLM.from_pretrained(
            base, dtype=getattr(torch, dtype), use_safetensors=True, trust_remote_code=False, output_loading_info=True
        )
        if missing := sorted(loading["missing_keys"]):  # transformers has filled them with random numbers
            raise ValueError(f"its weights lack {missing[0]}")
        if getattr(model, "_hf_peft_config_loaded", False):  # transformers has put an adapter of the Hub into its base by itself
            remedy = f"Fetch it first, as in: hf download {name} --local-dir my_adapter"
            raise SettingError(f"The model {name!r} is an adapter on the Hub. {remedy}")
        for folder in reversed(adapters):
            model = merged(model, folder)
        if damaged := [weight for weight, p in model.named_parameters() if not p.isfinite().all()]:
            raise ValueError(f"its weights hold NaN or infinity in {damaged[0]}")
        model.to(device)
    except SettingError:
        raise
    except Exception as error:  # a damaged folder makes transformers raise nearly every kind there is
        raise SettingError(
            f"The model {name!r} cannot be loaded ({_reason(error)}). Check its name and its files, or choose another model."
        ) from None
    vocabulary = model.get_input_embeddings().weight.shape[0]
    eos = model.generation_config.eos_token_id
    ends = [tokenizer.eos_token_id, *(eos if isinstance(eos, list) else [eos])]
    stop_ids = {i for i in ends if isinstance(i, int) and 0 <= i < vocabulary}
    if not stop_ids:
        raise SettingError(
            f"The model {name!r} names no token that ends a text. Set eos_token in its tokenizer or its generation_config.json."
        )
    _check_head(model, name)
    if sampler == "rlvr":
        _put_under_our_attention(model, name)
    return Policy(model, tokenizer, stop_ids)


def _reason(error: Exception) -> str:
    """Why a model could not be loaded, in one line."""
    text = printable(" ".join(str(error).split()))
    if "trust_remote_code" in text:
        return "it needs Python code that comes with it, and such code is not run here"
    if "ignore_mismatched_sizes" in text:
        return "its weights have other shapes than its config.json says"
    return text[:150].rstrip(".") if isinstance(error, (ValueError, OSError)) else f"{type(error).__name__}: {text}"[:150].rstrip(".")


def positions(policy: Policy) -> float:
    """How many tokens, prompt and completion together, the model was made for."""
    return getattr(policy.model.config.get_text_config(), "max_position_embeddings", None) or float("inf")


def check_length(policy: Policy, prompts: list[list[int]], max_new_tokens: int) -> None:
    """Refuse prompts and completions that do not fit the model: its vocabulary, or the positions it was made for. Raises SettingError."""
    highest, vocabulary = max(map(max, prompts)), policy.model.get_input_embeddings().weight.shape[0]
    if highest >= vocabulary:
        raise SettingError(
            f"The tokenizer makes token {highest} of a prompt, but the model knows only {vocabulary} tokens. "
            "Save the tokenizer that belongs to the model beside it."
        )
    longest = max(map(len, prompts)) + max_new_tokens
    if longest > positions(policy):
        raise SettingError(
            f"The longest prompt and --max-new-tokens make {longest} tokens, but the model has positions for {positions(policy)}. "
            "Lower --max-new-tokens or --max-prompt-tokens."
        )


@torch.no_grad()
def _check_head(model, name: str) -> None:
    """Logits are made from hidden states, a chunk at a time. Refuse a model that does so in a way we do not know, or sees later tokens."""
    ids = torch.tensor([[3, 5, 7], [3, 5, 9]], device=model.device) % model.get_input_embeddings().weight.shape[0]
    hidden = model.base_model(input_ids=ids).last_hidden_state
    if not torch.allclose(hidden[0, :2], hidden[1, :2], rtol=1e-3, atol=1e-3):
        raise SettingError(f"The model {name!r} lets a token see later ones. Choose a causal model, such as Qwen2.5, Llama 3 or SmolLM2.")
    if not torch.allclose(_logits(model, hidden), model(input_ids=ids).logits, rtol=1e-2, atol=1e-2):
        raise SettingError(
            f"The model {name!r} changes its logits after the output layer, in a way that this library does not know. "
            "Choose another model, such as Qwen2.5, Llama 3 or SmolLM2."
        )


@torch.no_grad()
def _put_under_our_attention(model, name: str) -> None:
    """Switch the model to our attention, if with it the model still says what it says by itself; SettingError if not.

    So it is not needed to know every architecture: a few completions of two prompts of unlike length are sampled by our loop, and the
    log-probs that it saw are compared with those of the model as it came and with those of a packed batch. Windows are longer than that,
    so it must also be seen that a model with windows tells its attention of them, and does not put them in a mask that we replace.
    """
    vocabulary = model.get_input_embeddings().weight.shape[0]
    prompts = [[token % vocabulary for token in prompt] for prompt in ([3, 5, 7, 11, 13, 17, 19], [23, 29])]
    config, training, windows = model.config.get_text_config(), model.training, set()
    own, kinds = config._attn_implementation, set(getattr(config, "layer_types", None) or ())
    windowed = bool(kinds - {"full_attention"}) if kinds else getattr(config, "sliding_window", None) is not None

    def watched(*args, sliding_window=None, **kw):
        windows.add(sliding_window)
        return attention(*args, sliding_window=sliding_window, **kw)

    model.eval()
    AttentionInterface.register(ATTENTION, watched)
    try:
        model.set_attn_implementation(ATTENTION)
        u = torch.linspace(0.1, 0.9, 4 * 5, device=model.device).view(4, 5)
        ids, lengths, _, sampled, _ = sample_batch(model, prompts, 2, {vocabulary}, 1.0, 1.0, u)
        rows = [p for p in prompts for _ in range(2)], ids, torch.ones_like(ids, dtype=torch.bool)
        packed, _ = logp_and_entropy(model, *rows)
        model.set_attn_implementation(own)
        alone, _ = logp_and_entropy(model, *rows)
        near = dict(rtol=0, atol=0.002) if model.dtype == torch.float32 else dict(rtol=0.02, atol=0.2)  # nats
        if not all(torch.allclose(x, alone, **near) for x in (sampled, packed)):
            raise ValueError("other log-probs")
        if getattr(config, "attn_logit_softcapping", None):  # a few tokens may not reach it, and older versions of transformers drop it
            raise ValueError("a cap on the scores")
        if not kinds <= {"full_attention", "sliding_attention"} or windowed and windows <= {None}:
            raise ValueError("layers that see less than all, and do not say so")
        model.set_attn_implementation(ATTENTION)
    except Exception as error:  # whatever an architecture makes of a cache, a mask or an argument that it does not expect
        if out_of_memory(error):
            raise
        raise SettingError(
            f"The attention of the model {name!r} is one that our sampler cannot follow. Choose --sampler generate, which is slower."
        ) from None
    finally:
        AttentionInterface.register(ATTENTION, attention)
        model.train(training)


def _logits(model, hidden: Tensor) -> Tensor:
    """hidden [..., H] -> logits [..., V]: the output layer, and the scale or cap that some architectures put on top."""
    config, logits = model.config.get_text_config(), model.get_output_embeddings()(hidden)
    if cap := getattr(config, "final_logit_softcapping", None):  # Gemma
        logits = cap * torch.tanh(logits / cap)
    if scale := getattr(config, "logits_scaling", None):  # Granite
        logits = logits / scale
    if scale := getattr(config, "logit_scale", None):  # Cohere
        logits = logits * scale
    return logits


class _TokenLogp(torch.autograd.Function):
    """logits [K, V], targets [K] -> log-prob of each target and entropy, [K] float32 each; the gradient is that of the log-prob.

    What autograd would do, with one [K, V] buffer kept for the backward pass and fewer trips through memory.
    """

    @staticmethod
    def forward(ctx, logits: Tensor, targets: Tensor, temperature: float) -> tuple[Tensor, Tensor]:
        z = logits.float() if temperature == 1 else logits.float() / temperature
        z = (z - z.amax(-1, keepdim=True)).clamp_(min=-1e4)  # the clamp makes 0 * -inf a plain 0
        p = z.exp()
        total = p.sum(-1, keepdim=True)
        log_total = total[:, 0].log()
        p /= total
        ctx.save_for_backward(p, targets)
        ctx.temperature, ctx.dtype = temperature, logits.dtype
        entropy = log_total - torch.linalg.vecdot(p, z)
        ctx.mark_non_differentiable(entropy)
        return z.gather(-1, targets[:, None])[:, 0] - log_total, entropy

    @staticmethod
    @once_differentiable
    def backward(ctx, grad: Tensor, _) -> tuple[Tensor, None, None]:
        p, targets = ctx.saved_tensors
        grad = (grad / ctx.temperature)[:, None]
        return (p * -grad).scatter_add_(-1, targets[:, None], grad).to(ctx.dtype), None, None


def _head_logp_entropy(model, hidden: Tensor, targets: Tensor, temperature: float, with_grad_entropy: bool) -> tuple[Tensor, Tensor]:
    """hidden [K, H], targets [K] -> log-prob of each target [K] and entropy [K], float32."""
    logits = _logits(model, hidden)
    if not with_grad_entropy:
        return _TokenLogp.apply(logits, targets, temperature)
    logp = torch.log_softmax(logits.float() / temperature, dim=-1)
    return logp.gather(-1, targets[:, None])[:, 0], entropy_from_logp(logp)


def logp_and_entropy(
    model, prompt_ids: list[list[int]], completion_ids: Tensor, mask: Tensor, temperature: float = 1.0, with_grad_entropy: bool = False
) -> tuple[Tensor, Tensor]:
    """Log-prob and entropy of every completion token under the model as it is now, at the sampling temperature.

    prompt_ids: n lists; completion_ids, mask [n, T] -> logp [n, T], entropy [n, T], float32, 0 outside the mask. Under our attention the
    rows go through the model packed, equal prompts once. Otherwise as they are, padded on the right: with causal attention nothing looks
    there, so no attention mask is needed. The output layer runs on completion positions alone; if their logits are more than
    LOGITS_AT_ONCE numbers, in chunks whose logits are thrown away and recomputed in the backward pass.
    """
    device = model.device
    mask = mask.to(device)
    if not mask.any():
        return torch.zeros(mask.shape, device=device, requires_grad=torch.is_grad_enabled()), torch.zeros(mask.shape, device=device)
    hidden, targets = hidden_states(model, prompt_ids, completion_ids, mask)
    chunk = logits_chunk(model)
    if len(targets) <= chunk:
        flat = _head_logp_entropy(model, hidden, targets, temperature, with_grad_entropy)
    else:
        parts = [
            checkpoint(_head_logp_entropy, model, h, y, temperature, with_grad_entropy, use_reentrant=False)
            for h, y in zip(hidden.split(chunk), targets.split(chunk))
        ]
        flat = tuple(torch.cat(x) for x in zip(*parts))
    return tuple(torch.zeros(mask.shape, device=device).masked_scatter(mask, x) for x in flat)


def logits_chunk(model) -> int:
    """How many positions go through the output layer at once, so that their logits are at most LOGITS_AT_ONCE numbers."""
    return max(1, LOGITS_AT_ONCE // model.get_output_embeddings().weight.shape[0])


def hidden_states(model, prompt_ids: list[list[int]], completion_ids: Tensor, mask: Tensor) -> tuple[Tensor, Tensor]:
    """The states that predict the K valid tokens of a batch, row by row, and these tokens: [K, H] and [K]. mask: on the model's device."""
    device = model.device
    completions = [ids[:n] for ids, n in zip(completion_ids.tolist(), mask.sum(1).tolist())]
    targets = completion_ids.to(device)[mask]
    # The state that predicts a token stands one place before it.
    if is_ours(model):
        batch = Packed(prompt_ids, completions, device)
        four_dimensions = torch.zeros(1, 1, 1, 1, device=device)  # a mask that nobody reads: so the model makes none of its own
        out = model.base_model(
            input_ids=batch.ids, position_ids=batch.positions, attention_mask=four_dimensions, use_cache=False, layout=batch
        )
        hidden = out.last_hidden_state[0].index_select(0, batch.predicts)
    else:
        rows = [p + c for p, c in zip(prompt_ids, completions)]
        width = max(map(len, rows))
        ids = torch.tensor([row + [0] * (width - len(row)) for row in rows], device=device)
        start = torch.tensor([len(p) - 1 for p in prompt_ids], device=device)
        row, t = mask.nonzero(as_tuple=True)
        hidden = model.base_model(input_ids=ids, use_cache=False).last_hidden_state[row, start[row] + t]
    return hidden, targets


def micro_batches(rollouts: Rollouts, rows: Tensor, budget: int, packed: bool = True) -> Iterator[Tensor]:
    """Split `rows` (indices) into batches of at most `budget` tokens; a single row that is longer forms a batch of its own.

    packed: the completions of a prompt together, and the prompt counts once. Otherwise rows of like length, and the padding counts.
    """
    prompt, length = [len(p) for p in rollouts.prompt_ids], rollouts.lengths.tolist()
    key = rollouts.group.tolist() if packed else [p + n for p, n in zip(prompt, length)]
    batch: list[int] = []
    tokens = 0
    for i in sorted(rows.tolist(), key=key.__getitem__):
        if packed:
            known = batch and rollouts.prompt_ids[batch[-1]] == rollouts.prompt_ids[i]
            tokens += length[i] + (0 if known else prompt[i])
        else:
            tokens = (len(batch) + 1) * key[i]  # padded to the longest, which comes last
        if batch and tokens > budget:
            yield torch.tensor(batch)
            batch, tokens = [], prompt[i] + length[i]
        batch.append(i)
    if batch:
        yield torch.tensor(batch)


@torch.no_grad()
def score(model, rollouts: Rollouts, rows: Tensor, temperature: float, micro_batch_tokens: int) -> tuple[Tensor, Tensor]:
    """Log-prob and entropy of the completions `rows` (indices), on the CPU, without gradient; [N, T] each, 0 in all other rows."""
    logp, entropy = torch.zeros(2, *rollouts.mask.shape).unbind(0)
    for some in micro_batches(rollouts, rows, micro_batch_tokens, is_ours(model)):
        part = rollouts.select(some)
        width = part.mask.shape[1]
        logp_part, entropy_part = logp_and_entropy(model, part.prompt_ids, part.completion_ids, part.mask, temperature)
        logp[some, :width], entropy[some, :width] = logp_part.cpu(), entropy_part.cpu()
    return logp, entropy


class MasterWeights:
    """float32 master copies for a model that computes in bfloat16.

    AdamW at a learning rate of 1e-6 moves a weight by less than bfloat16 can show, so a pure bfloat16 run stands still. Here the optimiser
    works on float32 copies: after each backward pass the gradients are added to theirs and freed, and after each update the copies are
    rounded back into the model. For a float32 model the masters are the weights themselves and nothing is copied.
    """

    def __init__(self, model):
        self.pairs = []  # (weight in the model, its float32 master), where they differ
        self.parameters = []
        for p in model.parameters():
            if p.requires_grad and p.dtype != torch.float32:
                master = torch.nn.Parameter(p.detach().float())
                self.pairs.append((p, master))
                self.parameters.append(master)
            elif p.requires_grad:
                self.parameters.append(p)

    def collect_grads(self) -> None:
        """Add the model's gradients to the masters', in float32, and free them. Call after every backward pass."""
        for p, master in self.pairs:
            if p.grad is not None:
                grad = p.grad.float()
                master.grad = grad if master.grad is None else master.grad.add_(grad)
                p.grad = None

    def zero_grad(self) -> None:
        """Free all gradients, of the model and of the masters."""
        for p in (*self.parameters, *(p for p, _ in self.pairs)):
            p.grad = None

    @torch.no_grad()
    def write_back(self) -> None:
        """Round the masters into the model. Call after every optimiser step."""
        for p, master in self.pairs:
            p.copy_(master)
