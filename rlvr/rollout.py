"""Sample G completions for each prompt, over the Hugging Face forward of any causal language model.

Plain `generate()` spends most of its time on waste. Six things remove it, and none of them touches the model's code:

1. a prompt is run once, and its keys and values are there once for all its G completions, which ask them together;
2. completions that have ended leave the batch;
3. their own keys and values lie in one contiguous block per layer that grows by a few columns at a time; new ones are written in place;
4. attention of a single query is plain matrix products; the query heads that share a key head are folded together;
5. log-prob and entropy are taken from the logits that are there anyway; nothing of size [N, T, V] is ever kept;
6. a step reads and writes tensors that stay where they are, so that a GPU can record it once and play it back (`cuda_graphs`).
"""

import dataclasses
import inspect
import itertools
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor
from tqdm import tqdm
from transformers import GenerationConfig
from transformers.cache_utils import Cache, DynamicLayer
from transformers.integrations.sdpa_attention import sdpa_attention_forward

from rlvr.engine.attention import is_ours

GROW = 16  # columns by which the cache grows, and steps between two looks at which rows have ended
GROW_CUDA_GRAPHS = 128  # the same when steps are recorded: each growth means a new recording


@dataclass
class Rollouts:
    """A batch of N sampled completions; everything after sampling reads from it. T is the longest completion.

    The mask comes from the lengths, never from the pad token: pad may be the same token as the stop token, which is trained.
    """

    prompt_ids: list[list[int]]  # N lists, without padding
    completion_ids: Tensor  # [N, T] int64, 0 outside the mask
    lengths: Tensor  # [N] int64: tokens of each completion, the stop token included
    mask: Tensor  # [N, T] bool
    finished: Tensor  # [N] bool: ended with a stop token; False: truncated at max_new_tokens
    old_logp: Tensor  # [N, T] float32, 0 outside the mask: log-prob of each token under the policy that sampled, at its temperature
    entropy: Tensor  # [N, T] float32, 0 outside the mask, nats: entropy at each position, at the sampling temperature
    group: Tensor  # [N] int64: which prompt
    text: list[str]  # N decoded completions

    def __len__(self) -> int:
        return len(self.prompt_ids)

    def select(self, rows: Tensor) -> "Rollouts":
        """The given rows (indices [n]) as a batch, cut to their longest completion."""
        width = max(int(self.lengths[rows].max()), 1) if len(rows) else 1
        picked = {}
        for field in dataclasses.fields(self):
            value = getattr(self, field.name)
            if isinstance(value, list):
                picked[field.name] = [value[i] for i in rows.tolist()]
            else:
                picked[field.name] = value[rows][:, :width] if value.dim() == 2 else value[rows]
        return Rollouts(**picked)

    @staticmethod
    def concat(parts: Sequence["Rollouts"]) -> "Rollouts":
        """Several batches as one, padded to the longest completion."""
        width = max(part.mask.shape[1] for part in parts)

        def join(values: list):
            if isinstance(values[0], list):
                return sum(values, [])
            if values[0].dim() == 2:
                values = [torch.nn.functional.pad(v, (0, width - v.shape[1])) for v in values]
            return torch.cat(values)

        return Rollouts(**{f.name: join([getattr(p, f.name) for p in parts]) for f in dataclasses.fields(Rollouts)})


# ---------------------------------------------------------------------------------------------------------------------------------------
# The cache and who sees what of it


class SharedLayer(DynamicLayer):
    """Keys and values of one layer. Those of the prompts are there once: [P, heads, head_dim, W] and [P, heads, W, head_dim]. Those of the
    completions, [rows, heads, head_dim, C] and [rows, heads, C, head_dim], are a few columns ahead of what is written.

    Keys lie on their side because so a product with a single query reads them fastest. Columns not yet written hold zeros and are hidden by
    the mask. Nothing is concatenated from token to token.
    """

    def __init__(self, **kwargs):
        super().__init__(**kwargs)
        self.column: Tensor | None = None  # [1], where the next token goes; the same tensor in all layers

    def update(self, key_states: Tensor, value_states: Tensor, *args, **kwargs) -> tuple[Tensor, Tensor]:
        if not self.is_initialized:
            self.lazy_initialization(key_states, value_states)
            self.prompt_keys, self.prompt_values = key_states.transpose(2, 3).contiguous(), value_states.contiguous()
            return key_states, value_states
        self.keys.index_copy_(3, self.column, key_states.transpose(2, 3))
        self.values.index_copy_(2, self.column, value_states)
        return self.keys, self.values

    def rearrange(self, prompts: Tensor, rows: Tensor, written: int, columns: int) -> None:
        """Keep the given prompts and rows, and make room for `columns` columns in all."""
        if len(prompts) < len(self.prompt_keys):
            self.prompt_keys, self.prompt_values = self.prompt_keys[prompts], self.prompt_values[prompts]

        def moved(old: Tensor, dim: int, shape: tuple) -> Tensor:
            new = self.prompt_keys.new_empty(shape)
            if written:
                new.narrow(dim, 0, written).copy_(old.index_select(0, rows))
            new.narrow(dim, written, columns - written).zero_()
            return new

        heads, key_dim, value_dim = *self.prompt_keys.shape[1:3], self.prompt_values.shape[3]
        self.keys = moved(self.keys, 3, (len(rows), heads, key_dim, columns))
        self.values = moved(self.values, 2, (len(rows), heads, columns, value_dim))

    def get_seq_length(self) -> int:
        """Asked by models that work out positions or masks from it; ours are given both, so the prompts' width will do."""
        return self.prompt_values.shape[2] if self.is_initialized else 0


class Growing:
    """Who sees whom while sampling: the layout for `rlvr.engine.attention`. Columns are those of the prompts, W, then those of the completions.

    prompt_mask [P, 1, 1 or W, W] and mask [1, 1, 1, C] are added to the scores: 0, or `hidden`. All rows of a prompt ask it together, in S
    slots, as many as any prompt still has rows. For every key head, `slots` says which row asks in each, and `places` where each row asks.
    """

    def __init__(self, layers: list[SharedLayer], valid: Tensor, asked: Tensor, columns: int, written: int, dtype):
        prompts, width, device = *valid.shape, valid.device
        self.layers, self.asked = layers, asked  # asked: the columns of the queries, [queries]
        self.hidden = torch.finfo(dtype).min  # not -inf: a padded position sees nothing, and softmax over -inf alone is NaN
        self.prompt_mask = torch.zeros(prompts, 1, 1, width, dtype=dtype, device=device).masked_fill_(~valid[:, None, None], self.hidden)
        self.mask = torch.zeros(1, 1, 1, columns, dtype=dtype, device=device)
        self.mask[..., written:] = self.hidden
        self.column = torch.arange(width + columns, device=device)
        self.slots = self.places = None

    def share(self, prompt_of: Tensor) -> None:
        """prompt_of [rows], in ascending order: whose row each is."""
        counts = torch.bincount(prompt_of)
        most, heads = int(counts.max()), self.layers[0].prompt_keys.shape[1]
        row, head = torch.arange(len(prompt_of), device=counts.device), torch.arange(heads, device=counts.device)
        slot = row - (counts.cumsum(0) - counts)[prompt_of]
        self.places = ((prompt_of[:, None] * heads + head) * most + slot[:, None]).flatten()  # [rows * heads]
        self.slots = torch.zeros(len(counts) * heads * most, dtype=torch.long, device=counts.device)  # [P * heads * S]
        self.slots[self.places] = (row[:, None] * heads + head).flatten()

    def attend(self, module, query: Tensor, key: Tensor, value: Tensor, window: int | None, **kw) -> Tensor:
        """Prompts go to the stock attention. A new token asks its prompt, along with its neighbours of that prompt, and its own past."""
        rows, heads, _, dim = query.shape
        width = self.prompt_mask.shape[-1]
        prompt_mask, mask = self.prompt_mask, self.mask
        sampling = self.slots is not None
        if not sampling or window is not None:
            seen = self.column <= self.asked[:, None]
            if window is not None:
                seen = seen & (self.column > self.asked[:, None] - window)
            prompt_mask = torch.where(seen[:, :width], prompt_mask, self.hidden)
            mask = torch.where(seen[:, width:], mask, self.hidden)
        if not sampling:
            return sdpa_attention_forward(module, query, key, value, prompt_mask, **kw)[0]
        layer = self.layers[module.layer_idx]
        scaling = kw.get("scaling")
        query = query * (dim**-0.5 if scaling is None else scaling)
        query = query.view(rows, key.shape[1], -1, dim)  # query heads of one key head together
        shared = torch.matmul(self._to_prompts(query), layer.prompt_keys).add_(prompt_mask)
        scores = torch.cat([self._to_rows(shared, query.shape), torch.matmul(query, key).add_(mask)], -1)
        weights = scores.softmax(-1, dtype=torch.float32).to(value.dtype)
        shared = torch.matmul(self._to_prompts(weights[..., :width]), layer.prompt_values)
        out = torch.matmul(weights[..., width:], value).add_(self._to_rows(shared, query.shape))
        return out.view(rows, 1, heads, value.shape[-1])

    def _to_prompts(self, x: Tensor) -> Tensor:
        """[rows, key heads, r, Y] -> [P, key heads, S * r, Y]"""
        _, heads, _, y = x.shape
        return x.flatten(0, 1).index_select(0, self.slots).view(len(self.prompt_mask), heads, -1, y)

    def _to_rows(self, x: Tensor, shape: Sequence[int]) -> Tensor:
        """[P, key heads, S * r, Y] -> [rows, key heads, r, Y]; `shape` begins with the first three."""
        rows, heads, r, _ = shape
        return x.view(-1, r * x.shape[-1]).index_select(0, self.places).view(rows, heads, r, x.shape[-1])


# ---------------------------------------------------------------------------------------------------------------------------------------
# Sampling


def _keep_top_p(probs: Tensor, top_p: float) -> Tensor:
    """Set to 0 the probability of all tokens outside the smallest set that holds `top_p` (for evaluation; training samples from all)."""
    ordered, index = probs.sort(dim=-1, descending=True)
    ordered[ordered.cumsum(-1) - ordered >= top_p] = 0.0
    return torch.zeros_like(probs).scatter_(-1, index, ordered)


def choose(logits: Tensor, temperature: float, top_p: float, u: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Draw one token per row: logits [B, V] -> token [B], its log-prob [B], entropy [B], both at `temperature` and before top-p.

    u [B], uniform in (0, 1], decides: the probabilities laid end to end make a line, and the token is the one that u falls on.
    Temperature 0 takes the most likely token (and gives log-prob and entropy at 1).
    """
    z = logits.float() if temperature in (0, 1) else logits.float() / temperature
    z = (z - z.amax(-1, keepdim=True)).clamp_(min=-1e4)  # the clamp makes 0 * -inf a plain 0
    weight = z.exp()  # probabilities, but for their sum
    line = weight.cumsum(-1)
    total = line[:, -1]
    if temperature == 0:
        token = z.argmax(-1)
    else:
        if top_p < 1:
            line = _keep_top_p(weight / total[:, None], top_p).cumsum(-1)
        # u * total is above 0 and at most total, so a token of probability 0 is never hit; the clamp is for NaN, which falls on none
        token = torch.searchsorted(line, u[:, None] * line[:, -1:])[:, 0].clamp(max=line.shape[1] - 1)
    logp = z.gather(-1, token[:, None])[:, 0] - total.log()
    return token, logp, total.log() - z.mul_(weight).sum(-1) / total


def left_pad(prompts: Sequence[Sequence[int]], device) -> tuple[Tensor, Tensor]:
    """Token ids and validity, [P, W] each, prompts at the right edge: every prompt's next token comes in the same column."""
    width = max(len(p) for p in prompts)
    ids = torch.tensor([[0] * (width - len(p)) + list(p) for p in prompts], device=device)
    valid = torch.tensor([[0] * (width - len(p)) + [1] * len(p) for p in prompts], device=device, dtype=torch.bool)
    return ids, valid


class Decoder:
    """Rows that are completed side by side. Within a block of steps, all that a step reads and changes stays where it is.

    prompts: P lists; u [N, T] decides the draws, N = P * repeats. Results: tokens, logp, entropy [N, T], lengths [N], finished [N].
    """

    def __init__(self, model, prompts, repeats: int, stop_ids: set[int], temperature: float, top_p: float, u: Tensor, cuda_graphs: bool):
        device, n, steps = model.device, *u.shape
        self.model, self.temperature, self.top_p, self.u = model, temperature, top_p, u
        self.stops = torch.tensor(sorted(stop_ids), device=device)
        self.cuda_graphs = cuda_graphs
        self.tokens = torch.zeros(n, steps, dtype=torch.long, device=device)
        self.logp, self.entropy = torch.zeros(2, n, steps, device=device).unbind(0)
        self.lengths = torch.full((n,), steps, device=device)
        self.finished = torch.zeros(n, dtype=torch.bool, device=device)
        self.done = 0  # tokens that every row in the batch has

        ids, self.valid = left_pad(prompts, device)
        cache = Cache(layer_class_to_replicate=SharedLayer)
        self.layers = cache.layers
        self.cache = {"cache" if "cache" in inspect.signature(model.forward).parameters else "past_key_values": cache}
        self.layout = Growing(self.layers, self.valid, torch.arange(ids.shape[1], device=device), 0, 0, model.dtype)
        position = self.valid.cumsum(1) - 1
        logits = self._forward(ids, position.clamp(min=0))
        # From here on there is a row for each completion.
        self.rows = torch.arange(n, device=device)
        self.prompt_of = torch.arange(len(prompts), device=device).repeat_interleave(repeats)
        self.position = position[self.prompt_of, -1:]
        self._open(1)
        self._draw(logits[self.prompt_of])
        self._close()

    def block(self, steps: int) -> None:
        """The next `steps` tokens of all rows that have not ended. A GPU is told the kernels of a step once and then plays them again."""
        self._rearrange(steps)
        self._open(steps)
        self._step()
        again = self._record() if self.cuda_graphs and steps > 1 else self._step
        for _ in range(steps - 1):
            again()
        self._close()

    def _rearrange(self, steps: int) -> None:
        """Let ended rows leave, and prompts that have none left, and make room for the next columns, all in one go."""
        alive, written = self.alive, self.done - 1  # the newest token is not in the cache yet
        prompts, self.prompt_of = self.prompt_of[alive].unique(return_inverse=True)
        self.valid = self.valid[prompts]
        self.column = torch.full((1,), written, device=alive.device)
        for layer in self.layers:
            layer.rearrange(prompts, alive, written, written + steps)
            layer.column = self.column
        asked = self.column + self.valid.shape[1]
        self.layout = Growing(self.layers, self.valid, asked, written + steps, written, self.model.dtype)
        self.layout.share(self.prompt_of)
        self.rows, self.position, self.newest = self.rows[alive], self.position[alive], self.newest[alive]

    def _open(self, steps: int) -> None:
        """Pages for the next tokens, a line for each step, and the numbers that decide them."""
        device, shape = self.rows.device, (steps, len(self.rows))
        self.line = torch.zeros(1, dtype=torch.long, device=device)
        self.page = [torch.zeros(shape, dtype=kind, device=device) for kind in (torch.long, torch.float32, torch.float32)]
        self.page_u = self.u[self.rows, self.done : self.done + steps].T.contiguous()

    def _step(self) -> None:
        """One more token for every row. Nothing in here depends on how many steps came before, so a recording of it can be played again."""
        self.layout.mask.index_fill_(3, self.column, 0.0)
        self.position += 1
        logits = self._forward(self.newest[:, None], self.position)
        self._draw(logits)
        for moving in (self.column, self.layout.asked, self.line):
            moving += 1

    def _forward(self, ids: Tensor, position: Tensor) -> Tensor:
        """Logits after the last column, [rows, V]."""
        masks = {"attention_mask": self.layout.prompt_mask, "layout": self.layout}  # four dimensions: the model adds no mask of its own
        return self.model(input_ids=ids, position_ids=position, use_cache=True, logits_to_keep=1, **masks, **self.cache).logits[:, -1]

    def _draw(self, logits: Tensor) -> None:
        """Choose the next token of every row and write it down."""
        results = choose(logits, self.temperature, self.top_p, self.page_u.index_select(0, self.line)[0])
        for page, result in zip(self.page, results):
            page.index_copy_(0, self.line, result[None])
        if self.done:
            self.newest.copy_(results[0])
        else:
            self.newest = results[0]

    def _record(self) -> Callable[[], None]:
        """A CUDA graph of a step: all its kernels, with the addresses they read and write, as one thing to start."""
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph):
            self._step()
        return graph.replay

    def _close(self) -> None:
        """Copy the pages to the results, and see which rows have ended."""
        tokens = self.page[0].T
        block = slice(self.done, self.done + tokens.shape[1])
        for result, page in zip((self.tokens, self.logp, self.entropy), self.page):
            result[self.rows, block] = page.T
        stop = torch.isin(tokens, self.stops)
        self.finished[self.rows] = stop.any(1)
        self.lengths[self.rows] = torch.where(stop.any(1), self.done + stop.int().argmax(1) + 1, self.lengths[self.rows])
        self.done = block.stop
        self.alive = (~stop.any(1)).nonzero()[:, 0]


@torch.inference_mode()
def sample_batch(model, prompts, repeats, stop_ids, temperature, top_p, u, on_ended=lambda rows: None, cuda_graphs=False):
    """Complete `prompts`, each `repeats` times, side by side; u [N, T] decides the draws, `on_ended` is told of every few rows that end.

    -> ids [N, T], lengths [N], finished [N], logp [N, T], entropy [N, T].
    """
    decoder = Decoder(model, prompts, repeats, stop_ids, temperature, top_p, u, cuda_graphs)
    while len(decoder.alive) and decoder.done < u.shape[1]:
        on_ended(len(decoder.rows) - len(decoder.alive))
        decoder.block(min(GROW_CUDA_GRAPHS if cuda_graphs else GROW, u.shape[1] - decoder.done))
    on_ended(len(decoder.rows))
    return decoder.tokens, decoder.lengths, decoder.finished, decoder.logp, decoder.entropy


def _generate_batch(model, prompts, repeats, stop_ids, temperature, top_p, shape, generator):
    """The same by transformers' own `generate`, for models that our attention cannot serve. Log-probs and entropies are left NaN."""
    n, steps = shape
    ids, valid = (x.repeat_interleave(repeats, 0) for x in left_pad(prompts, model.device))
    draw = dict(do_sample=True, temperature=temperature, top_p=top_p, top_k=0) if temperature else dict(do_sample=False)
    settings = GenerationConfig(**draw, max_new_tokens=steps, eos_token_id=sorted(stop_ids), pad_token_id=min(stop_ids))
    # What is not set would come from the model's own settings: a repetition penalty, say.
    own, model.generation_config = model.generation_config, settings
    try:
        with torch.random.fork_rng(devices=[model.device] if model.device.type == "cuda" else []), torch.inference_mode():
            torch.manual_seed(int(torch.randint(2**62, (1,), generator=generator)))
            out = model.generate(ids, attention_mask=valid.long())[:, ids.shape[1] :]
    finally:
        model.generation_config = own
    tokens = torch.nn.functional.pad(out, (0, steps - out.shape[1]))
    stop = torch.isin(out, torch.tensor(sorted(stop_ids), device=out.device))
    finished = stop.any(1)
    unknown = torch.full((n, steps), float("nan"))
    return tokens, torch.where(finished, stop.int().argmax(1) + 1, steps), finished, unknown, unknown


def sample(
    model, tokenizer, prompts: Sequence[Sequence[int]], *, completions_per_prompt: int, max_new_tokens: int, stop_ids: set[int],
    temperature: float = 1.0, top_p: float = 1.0, generator: torch.Generator | None = None, sampling_rows: int = 512, progress: str = "",
    cuda_graphs: bool = False,
) -> Rollouts:  # fmt: skip
    """Sample `completions_per_prompt` completions of each prompt (lists of token ids) -> Rollouts; group i holds those of prompt i.

    At most `sampling_rows` completions run side by side, prompts of like length together. A completion ends with the first token of
    `stop_ids`, which belongs to it, or is truncated after `max_new_tokens`. Everything random is drawn from `generator` (a CPU one) at the
    start: one number for each token of each completion. So what a completion says does not depend on which others run beside it, on how
    many, or on the device (but for rounding). `cuda_graphs` lets a GPU record a step once for many tokens, instead of being told each time.

    A model that does not run under our attention (see load_policy) is sampled by transformers' `generate`: what a completion says then
    depends on the batch too, and log-probs and entropies are NaN until somebody scores them.
    """
    if any(len(p) == 0 for p in prompts):
        raise ValueError("A prompt has no token. Give every prompt at least one token, for example the tokenizer's BOS.")
    order = sorted(range(len(prompts)), key=lambda i: len(prompts[i]))
    per_batch = max(1, sampling_rows // completions_per_prompt)
    at_once = min(completions_per_prompt, sampling_rows)
    ours = is_ours(model)
    if ours:
        u = 1 - torch.rand(len(prompts), completions_per_prompt, max_new_tokens, generator=generator)  # (0, 1]
    parts, groups = [], []
    training = model.training
    model.eval()
    try:
        with tqdm(total=len(prompts) * completions_per_prompt, desc=progress, unit="completion", leave=False, disable=not progress) as bar:
            for start, done in itertools.product(range(0, len(order), per_batch), range(0, completions_per_prompt, at_once)):
                batch, repeats = order[start : start + per_batch], min(at_once, completions_per_prompt - done)
                common = model, [prompts[i] for i in batch], repeats, stop_ids, temperature, top_p
                if ours:
                    batch_u = u[batch, done : done + repeats].flatten(0, 1).to(model.device)
                    parts.append(sample_batch(*common, batch_u, bar.update, cuda_graphs))
                else:
                    parts.append(_generate_batch(*common, (len(batch) * repeats, max_new_tokens), generator))
                    bar.update(len(batch) * repeats)
                groups += [i for i in batch for _ in range(repeats)]
    finally:
        model.train(training)

    group = torch.tensor(groups)
    back = group.argsort(stable=True)  # to the order in which the prompts came
    ids, lengths, finished, logp, entropy = (torch.cat([part[i].cpu() for part in parts])[back] for i in range(5))
    group = group[back]
    width = int(lengths.max())
    mask = torch.arange(width)[None, :] < lengths[:, None]
    ids, logp, entropy = (x[:, :width].masked_fill(~mask, 0) for x in (ids, logp, entropy))
    text = tokenizer.batch_decode([row[:n].tolist() for row, n in zip(ids, lengths)], skip_special_tokens=True)
    return Rollouts([list(prompts[g]) for g in group.tolist()], ids, lengths, mask, finished, logp, entropy, group, text)
