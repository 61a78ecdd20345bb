"""What assignment 6 gives you: the built-in model, its problems, sampling, and the loop. Read it; you need not change it.

It does what `rlvr/` does, in one file and without its speed and its safety nets. Only torch, safetensors and tokenizers are needed.
N = completions of a batch, L = tokens of the longest row (a prompt, its completion, and what comes after), T = tokens of the longest
completion, V = 768 tokens in the vocabulary.
"""

import json
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import torch
from safetensors.torch import load_file
from tokenizers import Tokenizer
from torch import Tensor
from torch.nn import functional as F

HERE = Path(__file__).parent
STOP_IDS = [0]  # the tokens that end a completion
MAX_TOKENS = 96  # of a completion
TEMPERATURE = 1.0  # at which completions are drawn
STEPS, PROMPTS, COMPLETIONS = 20, 10, 8  # steps of training; problems of a step; completions of each problem
LEARNING_RATE = 2e-3
WIDTH, LAYERS, HEADS, KEYS = 96, 3, 4, 2  # of the model; KEYS: heads of keys and values
tokenizer = Tokenizer.from_file(str(HERE / "tokenizer.json"))


class Model(torch.nn.Module):
    """The built-in model (the architecture of Qwen2, 0.4 million parameters): model(ids [N, L]) -> logits [N, L, V].

    The logits at a place are what the model expects at the next one. Each place sees those before it, and itself.
    """

    def __init__(self):
        super().__init__()
        for name, value in load_file(HERE / "model.safetensors").items():
            self.register_parameter(name.replace(".", "_"), torch.nn.Parameter(value))

    def w(self, name: str) -> Tensor:
        return self.get_parameter("model_" + name.replace(".", "_") + "_weight")

    def b(self, name: str) -> Tensor:
        return self.get_parameter("model_" + name.replace(".", "_") + "_bias")

    def norm(self, x: Tensor, name: str) -> Tensor:
        return x * (x.square().mean(-1, keepdim=True) + 1e-6).rsqrt() * self.w(name)

    def forward(self, ids: Tensor, past: list | None = None, start: Tensor | None = None) -> Tensor:
        """past: keys and values of earlier places, for each layer; it grows. start [N]: the place of ids[:, 0]; both for sampling only."""
        n, length = ids.shape
        head = WIDTH // HEADS
        place = torch.arange(length)[None] + (0 if start is None else start[:, None])  # [N, L]
        angle = place[..., None] / 10000 ** (torch.arange(0, head, 2) / head)  # [N, L, head / 2]
        cos, sin = (torch.cat([f(angle)] * 2, -1)[:, None] for f in (torch.cos, torch.sin))  # [N, 1, L, head]

        def turn(x):  # rotary position embedding
            return x * cos + torch.cat([-x[..., head // 2 :], x[..., : head // 2]], -1) * sin

        x = F.embedding(ids, self.w("embed_tokens"))
        for i in range(LAYERS):
            at = f"layers.{i}."
            h = self.norm(x, at + "input_layernorm")
            q, k, v = (
                F.linear(h, self.w(f"{at}self_attn.{c}_proj"), self.b(f"{at}self_attn.{c}_proj")).view(n, length, -1, head).transpose(1, 2)
                for c in "qkv"
            )
            q, k, seen = turn(q), turn(k), None
            if past is not None:
                k, v, seen = past[i].add(k, v, place)
            mixed = F.scaled_dot_product_attention(q, k, v, seen, is_causal=past is None, enable_gqa=True)
            x = x + F.linear(mixed.transpose(1, 2).reshape(n, length, WIDTH), self.w(at + "self_attn.o_proj"))
            h = self.norm(x, at + "post_attention_layernorm")
            gate, up = F.linear(h, self.w(at + "mlp.gate_proj")), F.linear(h, self.w(at + "mlp.up_proj"))
            x = x + F.linear(F.silu(gate) * up, self.w(at + "mlp.down_proj"))
        return F.linear(self.norm(x, "norm"), self.w("embed_tokens"))


class Past:
    """Keys and values of the places that were read, of one layer. Row n has read places 0 to place[n] - 1."""

    def __init__(self, n: int, length: int):
        self.k, self.v = torch.zeros(2, n, KEYS, length, WIDTH // HEADS).unbind(0)

    def add(self, k: Tensor, v: Tensor, place: Tensor):
        at = place[:, None, :, None].expand(k.shape)
        self.k.scatter_(2, at, k)
        self.v.scatter_(2, at, v)
        return self.k, self.v, (torch.arange(self.k.shape[2]) <= place[..., None])[:, None]


@dataclass
class Batch:
    """N sampled completions; group i holds those of problem i."""

    ids: Tensor  # [N, L]: prompt, completion, and whatever was drawn after its end while other rows went on
    prompt_lengths: Tensor  # [N]: tokens of each prompt; the completion begins behind them
    completions: Tensor  # [N, T]: the same tokens from there on
    old_logp: Tensor  # [N, T]: the log-prob with which each of them was drawn; NaN behind the stop token
    group: Tensor  # [N]: which problem
    texts: list[str]  # N completions, decoded up to their stop token
    golds: list[str]  # N: the right answer of the problem

    def select(self, rows: list[int]) -> "Batch":
        return Batch(**{name: x[rows] if isinstance(x, Tensor) else [x[i] for i in rows] for name, x in vars(self).items()})


def problems(name: str = "train") -> list[dict]:
    """ "train": 256 problems to learn from, "own": 100 others to look at. Each has a "question" and an "answer"."""
    return json.loads((HERE / "problems.json").read_text(encoding="utf-8"))[name]


@torch.no_grad()
def sample(model: Model, chosen: list[dict], completions: int, seed: int) -> Batch:
    """Draw so many completions of each problem, token by token."""
    draws = torch.Generator().manual_seed(seed)
    prompts = [tokenizer.encode(f"Q: {p['question']}\nA:").ids for p in chosen for _ in range(completions)]
    lengths = torch.tensor([len(p) for p in prompts])
    n, width = len(prompts), int(lengths.max())
    ids = torch.zeros(n, width + MAX_TOKENS, dtype=torch.long)
    for i, prompt in enumerate(prompts):
        ids[i, : len(prompt)] = torch.tensor(prompt)
    past = [Past(n, width + MAX_TOKENS) for _ in range(LAYERS)]
    rows, ended, drawn, logps = torch.arange(n), torch.zeros(n, dtype=torch.bool), [], []
    logits = model(ids[:, :width], past, torch.zeros(n, dtype=torch.long))[rows, lengths - 1]  # [N, V]
    while len(drawn) < MAX_TOKENS and not ended.all():
        logp = torch.log_softmax(logits / TEMPERATURE, -1)
        token = torch.multinomial(logp.exp(), 1, generator=draws)  # [N, 1]
        place = lengths + len(drawn)
        ids[rows, place] = token[:, 0]
        drawn.append(token)
        logps.append(logp.gather(1, token))
        ended |= torch.isin(token[:, 0], torch.tensor(STOP_IDS))
        logits = model(token, past, place)[:, -1]
    tokens, logp = torch.cat(drawn, 1), torch.cat(logps, 1)
    stop = torch.isin(tokens, torch.tensor(STOP_IDS)).long()
    logp[stop.cumsum(1) - stop > 0] = torch.nan  # behind the end no token is the policy's
    texts = [tokenizer.decode(row[: next((t for t, x in enumerate(row) if x in STOP_IDS), None)]) for row in tokens.tolist()]
    golds = [p["answer"] for p in chosen for _ in range(completions)]
    length = int(lengths.max()) + tokens.shape[1]
    return Batch(ids[:, :length], lengths, tokens, logp, torch.arange(len(chosen)).repeat_interleave(completions), texts, golds)


def train(rewards: Callable, loss: Callable, seed: int = 0, show: bool = False) -> Model:
    """The loop. rewards(texts, golds) -> [N]; loss(model, batch, rewards) -> a tensor with one number. Returns the trained model.

    show: print the share of right completions, that is, of rewards above 0, after each step.
    """
    model, known = Model(), problems("train")
    optimizer = torch.optim.AdamW(model.parameters(), LEARNING_RATE, weight_decay=0.0)
    order = torch.randperm(len(known), generator=torch.Generator().manual_seed(seed)).tolist()
    curve = []
    for step in range(STEPS):
        chosen = [known[i] for i in order[step * PROMPTS : (step + 1) * PROMPTS]]
        batch = sample(model, chosen, COMPLETIONS, 1000 * seed + step)
        got = torch.as_tensor(rewards(batch.texts, batch.golds), dtype=torch.float32)
        for group in optimizer.param_groups:
            group["lr"] = LEARNING_RATE * min(1, (step + 1) / 3) * (1 - 0.7 * step / STEPS)
        half = len(got) // 2
        for rows in (list(range(half)), list(range(half, len(got)))):  # two updates: at the second, the policy has moved
            optimizer.zero_grad()
            value = loss(model, batch.select(rows), got[rows])
            if not value.isfinite():
                raise ValueError(f"the loss of step {step + 1} is {value.item()}: what is behind a stop token, a NaN, got in?")
            value.backward()
            torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
            optimizer.step()
        curve.append((got > 0).float().mean().item())
        if show:
            print(f"step {step + 1:>2} of {STEPS}  {'#' * round(40 * curve[-1]):<40} {curve[-1]:.2f} right", flush=True)
    return model


def weights(model: Model) -> Tensor:
    """All weights in a row, [379104]."""
    return torch.cat([x.detach().flatten() for x in model.parameters()])


def with_weights(values: Tensor) -> Model:
    """A model with these weights. Raises ValueError unless there are as many as it has."""
    model = Model()
    sizes = [x.numel() for x in model.parameters()]
    if values.shape != (sum(sizes),):
        raise ValueError(f"the model has {sum(sizes)} weights, not {list(values.shape)}")
    with torch.no_grad():
        for x, part in zip(model.parameters(), values.split(sizes)):
            x.copy_(part.view_as(x))
    return model


if __name__ == "__main__":
    import solution  # yours

    own = problems("own")

    def pass_at_1(model: Model) -> float:
        batch = sample(model, own, 4, seed=1)
        return sum(float(r) > 0 for r in solution.rewards(batch.texts, batch.golds)) / len(batch.texts)

    print(f"before: pass@1 {pass_at_1(Model()):.2f} on {len(own)} problems that are not trained on (4 completions of each)", flush=True)
    print(f"after:  pass@1 {pass_at_1(train(solution.rewards, solution.loss, show=True)):.2f}")
