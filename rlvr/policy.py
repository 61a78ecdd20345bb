"""The policy: a model, its tokenizer, and the two things that are asked of it: completions, and the log-prob and entropy of given tokens.

`logp_and_entropy` here and `rollout.complete` are the definitions (`--engine plain`). The fast engine does the same with less work.
"""

import copy
from collections.abc import Callable, Iterator
from contextlib import nullcontext
from dataclasses import dataclass
from functools import partial

import torch
from torch import Tensor

from rlvr.config import TrainConfig, refuse
from rlvr.engine import decoder, scorer
from rlvr.engine.choice import check_causal, plain_complete, rehearse, use_fast
from rlvr.engine.memory import Budget, InHalves
from rlvr.entropy import token_entropy
from rlvr.loaders.adapters import without_lora
from rlvr.loaders.models import choose_device, choose_dtype, load_model
from rlvr.methods import reads
from rlvr.rollout import Rollouts, complete, sample


def logp_and_entropy(
    model, prompt_ids: list[list[int]], completion_ids: Tensor, mask: Tensor, temperature: float = 1.0, with_grad_entropy: bool = False
) -> tuple[Tensor, Tensor]:
    """Log-prob and entropy of every completion token under the model as it is now, at the sampling temperature.

    prompt_ids: n lists; completion_ids, mask [n, T] -> logp [n, T], entropy [n, T], float32, 0 outside the mask. Rows are padded on the
    right: with causal attention no token looks there, so no attention mask is needed. The entropy has a gradient if it is asked for.
    """
    mask = mask.to(model.device)
    completions = [ids[:n] for ids, n in zip(completion_ids.tolist(), mask.sum(1).tolist())]
    width = max(len(p) + len(c) for p, c in zip(prompt_ids, completions))
    ids = torch.tensor([p + c + [0] * (width - len(p) - len(c)) for p, c in zip(prompt_ids, completions)], device=model.device)  # [n, W]
    row, t = mask.nonzero(as_tuple=True)  # of the K valid tokens
    before = torch.tensor([len(p) - 1 for p in prompt_ids], device=model.device)[row] + t  # each is predicted one place before its own
    logits = model(input_ids=ids, use_cache=False).logits[row, before].float()  # [K, V]
    logp = torch.log_softmax(logits / temperature, dim=-1).gather(-1, ids[row, before + 1][:, None])[:, 0]  # [K]
    entropy = token_entropy(logits if with_grad_entropy else logits.detach(), temperature)  # [K]
    return tuple(torch.zeros(mask.shape, device=model.device).masked_scatter(mask, x) for x in (logp, entropy))


@dataclass
class Policy:
    """A causal language model, its tokenizer, the tokens that end a completion, and the engine."""

    model: torch.nn.Module
    tokenizer: object
    stop_ids: set[int]
    complete: Callable = complete  # how completions are sampled: for rollout.sample
    logp_and_entropy: Callable = logp_and_entropy  # how given tokens are scored
    packed: bool = False  # whether a prompt counts once for all its completions in a batch that is scored
    reference: Callable | None = None  # for a KL penalty: a context that gives the model as it was before training

    def __post_init__(self):
        self.complete = InHalves(self.complete)

    def prepare(self, config: TrainConfig) -> None:
        """Make the model ready to be trained: no dropout, so that old and new log-probs are of one policy; a reference for the KL.

        Raises SettingError if the model cannot be trained, or gives other log-probs to the same text each time: see `rehearse`.
        """
        self.model.eval()  # whatever an architecture does in training mode only: dropout, layers left out, noise for its experts
        if config.gradient_checkpointing:
            # transformers renamed this; the old name goes in version 6
            enable = getattr(self.model, "activation_checkpointing_enable", None) or self.model.gradient_checkpointing_enable
            enable({"use_reentrant": False})
            for module in self.model.modules():
                if getattr(module, "gradient_checkpointing", False):
                    module.training = True  # its own switch, as activations are recomputed in this mode alone; its parts stay in the other
                    for name in [name for name, x in vars(module).items() if isinstance(x, float) and "drop" in name]:
                        setattr(module, name, 0.0)
        rehearse(self.model, config.model, self.logp_and_entropy)
        if config.kl_coef and config.lora_rank:
            self.reference = partial(without_lora, self.model)
        elif config.kl_coef:
            self.reference = partial(nullcontext, copy.deepcopy(self.model).eval().requires_grad_(False))

    def sample(self, prompts: list[list[int]], completions: int, c: TrainConfig, generator: torch.Generator, progress="") -> Rollouts:
        """`completions` completions of each prompt, as a run with these settings samples them."""
        how = dict(temperature=c.temperature, sampling_rows=c.sampling_rows, progress=progress, complete=self.complete)
        size = dict(completions_per_prompt=completions, max_new_tokens=c.max_new_tokens, stop_ids=self.stop_ids)
        return sample(self.model, self.tokenizer, prompts, **size, **how, generator=generator)

    def logp_of(self, part: Rollouts, temperature: float, with_grad_entropy: bool = False, model=None) -> tuple[Tensor, Tensor]:
        """Log-prob and entropy of every token of some completions, [n, T] each."""
        return self.logp_and_entropy(model or self.model, part.prompt_ids, part.completion_ids, part.mask, temperature, with_grad_entropy)

    @torch.no_grad()
    def reference_logp(self, part: Rollouts, temperature: float) -> Tensor | None:
        """Log-probs [n, T] of some completions under the model as it was before training; None without a KL penalty."""
        if self.reference is None:
            return None
        with self.reference() as model:
            return self.logp_of(part, temperature, model=model)[0]

    @torch.no_grad()
    def score(self, rollouts: Rollouts, rows: Tensor, temperature: float, micro_batch_tokens: int) -> tuple[Tensor, Tensor]:
        """Log-prob and entropy of the completions `rows` (indices), on the CPU, without gradient; [N, T] each, 0 in all other rows."""
        logp, entropy = torch.zeros(2, *rollouts.mask.shape).unbind(0)
        for some in micro_batches(rollouts, rows, micro_batch_tokens, self.packed):
            part = rollouts.select(some)
            for whole, result in zip((logp, entropy), self.logp_of(part, temperature)):
                whole[some, : part.mask.shape[1]] = result.cpu()
        return logp, entropy

    def rescore(self, rollouts: Rollouts, mini_batches: list[list[int]], c: TrainConfig, micro_batch_tokens: Budget) -> float | None:
        """Replace the sampler's log-probs by those of the training forward where rounding makes them differ (--old-logp).

        In float32 the sampler's are as good. In bfloat16 the first update takes its own log-probs; completions of later updates are scored
        here, before the policy moves. Returns how far the two differ, in nats per token, or None if nothing was replaced.
        """
        groups = rollouts.group.unique().tolist() if c.old_logp == "recompute" else []
        if c.old_logp == "auto" and self.model.dtype != torch.float32:
            groups = sum(mini_batches[1 if self.first_update_is_on_policy(c) else 0 :], [])
        rows = torch.isin(rollouts.group, torch.tensor(groups)).nonzero()[:, 0]
        if not len(rows):
            return None
        logp, entropy = micro_batch_tokens.run(lambda tokens: self.score(rollouts, rows, c.temperature, tokens))
        rollouts.entropy = entropy if c.old_logp == "recompute" else rollouts.entropy
        before, rollouts.old_logp = rollouts.old_logp, rollouts.old_logp.index_copy(0, rows, logp[rows])
        return (logp - before)[rows][rollouts.mask[rows]].abs().mean().item()

    def first_update_is_on_policy(self, c: TrainConfig) -> bool:
        """Whether the first update of a step takes its own log-probs for the old ones. A method that reads old log-probs needs them before
        the update."""
        return c.old_logp == "auto" and self.model.dtype != torch.float32 and "old_logp" not in reads(c.method)


def load_policy(name: str, device: str = "cpu", dtype: str = "auto", engine: str = "fast", cuda_graphs: bool = False) -> Policy:
    """Load a model folder, run folder or Hub id, with its weights in the precision of the forward pass.

    engine "fast" samples with the decoder and scores packed batches; "plain" uses the definitions. Either is tried on a few tokens first.
    Raises SettingError when the folder, the model or its tokenizer is missing or damaged, the device is missing, or the engine cannot
    follow the model. No code that comes with a model is run.
    """
    refuse(engine not in ("fast", "plain"), f"There is no engine {engine!r}. Choose fast or plain.")
    device = choose_device(device, cuda_graphs)
    model, tokenizer, stop_ids = load_model(name, device, choose_dtype(dtype, device))
    check_causal(model, name)
    if engine == "plain":
        return Policy(model, tokenizer, stop_ids, plain_complete(model, name, logp_and_entropy))
    use_fast(model, name, logp_and_entropy)
    return Policy(model, tokenizer, stop_ids, partial(decoder.complete, cuda_graphs=cuda_graphs), scorer.logp_and_entropy, packed=True)


def micro_batches(rollouts: Rollouts, rows: Tensor, budget: int, packed: bool = True) -> Iterator[Tensor]:
    """Split `rows` (indices) into batches of at most `budget` tokens; a single row that is longer forms a batch of its own.

    packed: the completions of a prompt together, and the prompt counts once. Otherwise rows of like length, and the padding counts.
    """
    prompt, length = [len(p) for p in rollouts.prompt_ids], rollouts.lengths.tolist()
    key = rollouts.group.tolist() if packed else [p + n for p, n in zip(prompt, length)]
    batch, tokens = [], 0
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
