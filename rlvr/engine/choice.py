"""Which engine can follow a model: found out by trying, so that no list of architectures is needed.

A few completions of two prompts of unlike length are sampled. The log-probs that the sampler saw must be those of the plain scorer of
policy.py (`score`), for each completion alone, with the model as it came.
"""

from collections.abc import Callable, Sequence
from types import SimpleNamespace

import torch
from torch import Tensor
from transformers import AttentionInterface

from rlvr.config import SettingError, as_sentence, refuse
from rlvr.engine import decoder, scorer
from rlvr.engine.attention import ATTENTION, attention
from rlvr.engine.memory import joined, out_of_memory
from rlvr.rollout import complete


@torch.no_grad()
def check_causal(model, name: str) -> None:
    """Raises SettingError for a model in which a token sees later ones."""
    ids = torch.tensor([[3, 5, 7], [3, 5, 9]], device=model.device) % model.get_input_embeddings().weight.shape[0]
    remedy = "Choose another model, or another --dtype."  # an architecture may need more than a text, or another precision
    with as_sentence(f"The model {name!r} cannot read a text", remedy, unless=out_of_memory):
        logits = model(input_ids=ids).logits.float()
    causal = torch.allclose(logits[0, :2], logits[1, :2], rtol=1e-3, atol=1e-3)
    refuse(not causal, f"The model {name!r} lets a token see later ones. Choose a causal model, such as Qwen2.5, Llama 3 or SmolLM2.")


def rehearse(model, name: str, score: Callable) -> None:
    """A forward and a backward pass over four short rows, as an update makes them, and the forward pass again.

    Raises SettingError if the model cannot do it, or if its log-probs differ from one pass to the next, as they do with dropout.
    """
    text = (torch.tensor([[3, 5, 7, 11, 13, 17, 19, 23]] * 4) % model.get_input_embeddings().weight.shape[0]).split([3, 5], 1)
    rows = text[0].tolist(), text[1], torch.ones_like(text[1], dtype=torch.bool)
    remedy = "Choose another model, another --dtype, or all weights instead of --lora-rank."
    try:
        with as_sentence(f"The model {name!r} cannot be trained", remedy, unless=out_of_memory):
            first, _ = score(model, *rows)
            first.sum().backward()
            second, _ = score(model, *rows)
    finally:
        model.zero_grad()
    same = torch.allclose(first, second, equal_nan=True, **_near(model))  # NaN has a diagnosis of its own, later
    refuse(not same, f"The model {name!r} gives other log-probs to the same text each time. Switch off its dropout in config.json.")


def _completions(model, complete: Callable) -> tuple[tuple, Tensor]:
    """What a `complete` makes of two prompts: (prompts, ids, mask) of four rows, as a scorer takes them, and their log-probs."""
    vocabulary = model.get_input_embeddings().weight.shape[0]
    prompts = [[token % vocabulary for token in prompt] for prompt in ([3, 5, 7, 11, 13, 17, 19], [23, 29])]
    u = torch.linspace(0.1, 0.9, 4 * 5, device=model.device).view(4, 5)
    ids, logp, _ = complete(model, prompts, 2, {vocabulary}, 1.0, 1.0, u)
    return ([p for p in prompts for _ in range(2)], ids, torch.ones_like(ids, dtype=torch.bool)), logp


def _near(model) -> dict[str, float]:
    """How near log-probs are, in nats, that are equal but for rounding."""
    return dict(rtol=0, atol=0.002) if model.dtype == torch.float32 else dict(rtol=0.02, atol=0.2)


def _check_same(model, rows: tuple, score: Callable, *found: Tensor) -> None:
    """Raises ValueError if log-probs [4, T] are not those of each row alone."""
    alone = torch.cat([score(model, *(part[i : i + 1] for part in rows))[0] for i in range(4)])
    if not all(torch.allclose(x, alone, **_near(model)) for x in found):
        raise ValueError("other log-probs")


@torch.no_grad()
def use_fast(model, name: str, score: Callable) -> None:
    """Switch the model to our attention, after checking that its log-probs do not change. Raises SettingError if they do.

    Windows are longer than the completions tried, so another check sees that a model with windows tells its attention of them, and does
    not put them into a mask that we replace.
    """
    config, windows = model.config.get_text_config(), set()
    own, kinds = config._attn_implementation, set(getattr(config, "layer_types", None) or ())
    windowed = bool(kinds - {"full_attention"}) if kinds else getattr(config, "sliding_window", None) is not None

    def watched(*args, sliding_window=None, **kw):
        windows.add(sliding_window)
        return attention(*args, sliding_window=sliding_window, **kw)

    AttentionInterface.register(ATTENTION, watched)
    cause = f"The attention of the model {name!r} is one that the fast engine cannot follow"
    # An architecture may make anything of a cache, a mask or an argument that it does not expect.
    with as_sentence(cause, "Choose --engine plain, which is slower.", unless=out_of_memory):
        try:
            model.set_attn_implementation(ATTENTION)
            rows, sampled = _completions(model, decoder.complete)
            packed, _ = scorer.logp_and_entropy(model, *rows)
            model.set_attn_implementation(own)
            _check_same(model, rows, score, sampled, packed)
            if getattr(config, "attn_logit_softcapping", None):  # a few tokens may not reach it, and older versions of transformers drop it
                raise ValueError("a cap on the scores")
            if not kinds <= {"full_attention", "sliding_attention"} or windowed and windows <= {None}:
                raise ValueError("layers that see less than all, and do not say so")
            model.set_attn_implementation(ATTENTION)
        finally:
            AttentionInterface.register(ATTENTION, attention)


@torch.no_grad()
def plain_complete(model, name: str, score: Callable) -> Callable:
    """The first that gives the model's own log-probs: `rollout.complete`; the same for prompts of equal length together, since padding may
    enter the state of a recurrent model; the same without a cache, slow and always right. Raises SettingError if none does.
    """
    for candidate in (complete, by_length(complete), by_length(without_cache)):
        try:
            rows, sampled = _completions(model, candidate)
            together, _ = score(model, *rows)
            _check_same(model, rows, score, sampled, together)
            return candidate
        except Exception as error:  # as above
            if out_of_memory(error):
                raise
    raise SettingError(f"The model {name!r} gives other log-probs to a text that grows token by token. Choose another model.")


def by_length(padded: Callable) -> Callable:
    """A `complete` that needs no padding: it runs prompts of equal length together."""

    def complete_by_length(model, prompts: Sequence, repeats: int, stop_ids, temperature, top_p, u, on_ended=lambda rows: None):
        u, parts, order = u.unflatten(0, (len(prompts), repeats)), [], []
        for length in sorted({len(p) for p in prompts}):
            same = [i for i, p in enumerate(prompts) if len(p) == length]
            draws = u[same].flatten(0, 1)
            parts.append(padded(model, [prompts[i] for i in same], repeats, stop_ids, temperature, top_p, draws, on_ended))
            order += same
        back = torch.tensor(order).argsort()
        return tuple(x.unflatten(0, (len(prompts), repeats))[back].flatten(0, 1) for x in joined(parts))

    return complete_by_length


def without_cache(model, *args):
    """`rollout.complete` for a model that reads its whole text again for every token. Its cache is the text."""

    def read(input_ids: Tensor, past_key_values: Tensor | None, **_):
        text = input_ids if past_key_values is None else torch.cat([past_key_values, input_ids], 1)
        return SimpleNamespace(logits=model(input_ids=text, use_cache=False).logits[:, -1:], past_key_values=text)

    read.device, read.forward = model.device, read
    return complete(read, *args)
