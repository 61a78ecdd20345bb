"""The policy: load a model and its tokenizer, and ask it for the log-prob and entropy of given tokens, lean in memory."""

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import torch
from safetensors import SafetensorError
from torch import Tensor
from torch.utils.checkpoint import checkpoint

from rlvr.config import TINY_MODEL, SettingError
from rlvr.entropy import entropy_from_logp
from rlvr.rollout import ATTENTION, Rollouts

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
    if (Path(name) / "model" / "config.json").is_file():
        return str(Path(name) / "model")
    return name


def check_model_name(name: str) -> str:
    """The path or Hub id behind a name, checked as far as that goes without loading. Raises SettingError."""
    path = resolve_model(name)
    folder = Path(path)
    if folder.is_dir():
        if not (folder / "config.json").is_file():
            raise SettingError(
                f"The folder {path} holds no model (no config.json). Name a Hugging Face model folder, a run folder or a Hub id."
            )
        if not any((folder / f).is_file() for f in ("tokenizer.json", "tokenizer_config.json", "tokenizer.model", "vocab.json")):
            raise SettingError(
                f"The model folder {path} has no tokenizer. Save the tokenizer there too: tokenizer.save_pretrained({path!r})."
            )
    elif path.count("/") > 1 or path.startswith((".", "/", "~")) or folder.exists() or ("/" in path and folder.parent.is_dir()):
        raise SettingError(f"There is no model folder {path}. Name a Hugging Face model folder, a run folder or a Hub id.")
    return path


def choose_device(device: str) -> str:
    if device == "auto":
        return "cuda" if torch.cuda.is_available() else "mps" if torch.backends.mps.is_available() else "cpu"
    if (device == "cuda" and not torch.cuda.is_available()) or (device == "mps" and not torch.backends.mps.is_available()):
        raise SettingError(f"There is no {device} device here. Choose --device cpu, or auto.")
    return device


def load_policy(name: str, device: str = "cpu", dtype: str = "auto") -> Policy:
    """Load a model folder, run folder or Hub id, with its weights in the precision of the forward pass (MasterWeights keeps float32 ones).

    Raises SettingError when the folder, the model or its tokenizer is missing, or the device is not there.
    """
    from huggingface_hub.utils import logging as hub_logging
    from transformers import AutoModelForCausalLM, AutoTokenizer
    from transformers.utils import logging

    logging.disable_progress_bar()
    hub_logging.set_verbosity_error()  # no page of retries before our one sentence
    path = check_model_name(name)
    device = choose_device(device)
    if dtype == "auto":
        dtype = "bfloat16" if device == "cuda" else "float32"
    try:
        tokenizer = AutoTokenizer.from_pretrained(path)
        # safetensors alone: other weight files are pickles, which can run code
        model = AutoModelForCausalLM.from_pretrained(path, dtype=getattr(torch, dtype), use_safetensors=True)
    except (OSError, ValueError, SafetensorError) as error:
        reason = str(error).strip().splitlines()[0].rstrip(".")
        raise SettingError(
            f"The model {name!r} cannot be loaded ({reason}). Name a Hugging Face model folder, a run folder or a Hub id."
        ) from None
    model.to(device)
    model.set_attn_implementation(ATTENTION)
    stop_ids = {tokenizer.eos_token_id}
    eos = model.generation_config.eos_token_id
    stop_ids |= set(eos) if isinstance(eos, list) else {eos}
    stop_ids.discard(None)
    if not stop_ids:
        raise SettingError(
            f"The model {name!r} names no token that ends a text. Set eos_token in its tokenizer or its generation_config.json."
        )
    _check_attention(model, name)
    _check_head(model, name)
    return Policy(model, tokenizer, stop_ids)


def positions(policy: Policy) -> float:
    """How many tokens, prompt and completion together, the model was made for."""
    return getattr(policy.model.config.get_text_config(), "max_position_embeddings", None) or float("inf")


def check_length(policy: Policy, prompts: list[list[int]], max_new_tokens: int) -> None:
    """Refuse completions that could run past the positions the model was made for. Raises SettingError."""
    longest = max(map(len, prompts)) + max_new_tokens
    if longest > positions(policy):
        raise SettingError(
            f"The longest prompt and --max-new-tokens make {longest} tokens, but the model has positions for {positions(policy)}. "
            "Lower --max-new-tokens or --max-prompt-tokens."
        )


def _check_attention(model, name: str) -> None:
    """The sampler lets every token see all earlier ones. Refuse models in which some layers see a window, or keep a state instead."""
    config = model.config.get_text_config()
    layer_types = getattr(config, "layer_types", None)
    full = all(t == "full_attention" for t in layer_types) if layer_types else getattr(config, "sliding_window", None) is None
    if not full or getattr(model, "_is_stateful", False):
        raise SettingError(
            f"The model {name!r} has layers without full attention (a sliding window, or a state), which the sampler cannot follow. "
            "Choose a model with full attention, such as Qwen2.5, Llama 3 or SmolLM2."
        )


@torch.no_grad()
def _check_head(model, name: str) -> None:
    """Logits are computed in chunks as head(hidden state). Some architectures scale or cap them afterwards; refuse those."""
    ids = torch.tensor([[3, 5, 7]], device=model.device)
    direct = model.get_output_embeddings()(model.base_model(input_ids=ids).last_hidden_state)
    if not torch.allclose(direct, model(input_ids=ids).logits, rtol=1e-2, atol=1e-2):
        raise SettingError(
            f"The model {name!r} changes its logits after the output layer, which this library cannot follow. "
            "Choose another model, such as Qwen2.5, Llama 3 or SmolLM2."
        )


def _head_logp_entropy(head, hidden: Tensor, targets: Tensor, temperature: float, with_grad_entropy: bool) -> tuple[Tensor, Tensor]:
    """hidden [K, H], targets [K] -> log-prob of each target [K] and entropy [K], float32."""
    logp = torch.log_softmax(head(hidden).float() / temperature, dim=-1)
    with torch.set_grad_enabled(with_grad_entropy and torch.is_grad_enabled()):
        entropy = entropy_from_logp(logp)
    return logp.gather(-1, targets[:, None])[:, 0], entropy


def logp_and_entropy(
    model, prompt_ids: list[list[int]], completion_ids: Tensor, mask: Tensor, temperature: float = 1.0, with_grad_entropy: bool = False
) -> tuple[Tensor, Tensor]:
    """Log-prob and entropy of every completion token under the model as it is now, at the sampling temperature.

    prompt_ids: n lists; completion_ids, mask [n, T] -> logp [n, T], entropy [n, T], float32, 0 outside the mask. The rows go through the
    model as they are, padded on the right: with causal attention nothing looks there, so no attention mask is needed. The output layer
    runs on completion positions alone; if their logits are more than LOGITS_AT_ONCE numbers, in chunks whose logits are thrown away and
    recomputed in the backward pass.
    """
    device = model.device
    mask = mask.to(device)
    lengths = mask.sum(1).tolist()
    rows = [p + c[:n] for p, c, n in zip(prompt_ids, completion_ids.tolist(), lengths)]
    width = max(map(len, rows))
    ids = torch.tensor([row + [0] * (width - len(row)) for row in rows], device=device)
    # The hidden state that predicts token t of a completion stands one place before it.
    start = torch.tensor([len(p) - 1 for p in prompt_ids], device=device)
    row, t = mask.nonzero(as_tuple=True)
    hidden = model.base_model(input_ids=ids, use_cache=False).last_hidden_state[row, start[row] + t]  # [K, H], K valid tokens
    targets = completion_ids.to(device)[mask]
    head, chunk = model.get_output_embeddings(), max(1, LOGITS_AT_ONCE // model.get_output_embeddings().weight.shape[0])
    if len(targets) <= chunk:
        flat = _head_logp_entropy(head, hidden, targets, temperature, with_grad_entropy)
    else:
        parts = [
            checkpoint(_head_logp_entropy, head, h, y, temperature, with_grad_entropy, use_reentrant=False)
            for h, y in zip(hidden.split(chunk), targets.split(chunk))
        ]
        flat = tuple(torch.cat(x) for x in zip(*parts))
    return tuple(torch.zeros(mask.shape, device=device).masked_scatter(mask, x) for x in flat)


def micro_batches(rollouts: Rollouts, rows: Tensor, budget: int) -> Iterator[Tensor]:
    """Split `rows` (indices) into batches of at most `budget` tokens, padding included; rows of like length together, so little is padded.

    A single row longer than the budget forms a batch of its own.
    """
    length = {i: len(rollouts.prompt_ids[i]) + int(rollouts.lengths[i]) for i in rows.tolist()}
    batch: list[int] = []
    for i in sorted(length, key=length.get):
        if batch and (len(batch) + 1) * length[i] > budget:
            yield torch.tensor(batch)
            batch = []
        batch.append(i)
    if batch:
        yield torch.tensor(batch)


@torch.no_grad()
def score(model, rollouts: Rollouts, temperature: float, micro_batch_tokens: int) -> tuple[Tensor, Tensor]:
    """Log-prob and entropy of all completions, [N, T] each, on the CPU, without gradient."""
    logp, entropy = torch.zeros(2, *rollouts.mask.shape).unbind(0)
    for rows in micro_batches(rollouts, torch.arange(len(rollouts)), micro_batch_tokens):
        part = rollouts.select(rows)
        width = part.mask.shape[1]
        logp_part, entropy_part = logp_and_entropy(model, part.prompt_ids, part.completion_ids, part.mask, temperature)
        logp[rows, :width], entropy[rows, :width] = logp_part.cpu(), entropy_part.cpu()
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

    @torch.no_grad()
    def write_back(self) -> None:
        """Round the masters into the model. Call after every optimiser step."""
        for p, master in self.pairs:
            p.copy_(master)
