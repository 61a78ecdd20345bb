"""The decoder: what `rollout.complete` computes, two to four times faster, over the Hugging Face forward of any model under our attention.

Plain decoding spends most of its time on waste. Six things remove it, and none of them touches the model's code:

1. a prompt is run once, and its keys and values are stored once for all its G completions, whose queries share them;
2. completions that have ended leave the batch;
3. a completion's own keys and values fill one block per layer that grows by a few columns at a time; new ones are written in place;
4. attention of a single query is plain matrix products; the query heads that share a key head are folded together;
5. log-prob and entropy come from the logits of the step; nothing of size [N, T, V] is ever kept;
6. a step reads and writes tensors that do not move, so that a GPU can record it once and replay it (`cuda_graphs`).
"""

import inspect
from collections.abc import Callable, Sequence

import torch
from torch import Tensor
from torch.nn.functional import pad
from transformers.cache_utils import Cache, DynamicLayer
from transformers.integrations.sdpa_attention import sdpa_attention_forward

from rlvr.rollout import keep_top_p, left_pad

GROW = 16  # columns by which the cache grows, and steps between two looks at which rows have ended
GROW_CUDA_GRAPHS = 128  # the same when steps are recorded: each growth means a new recording


class SharedLayer(DynamicLayer):
    """Keys and values of one layer. Each prompt's are stored once: [P, heads, head_dim, W] and [P, heads, W, head_dim]. Those of the
    completions, [rows, heads, head_dim, C] and [rows, heads, C, head_dim], have room for a few columns more than are written.

    Keys are stored transposed: fastest for a product with a single query. Columns not yet written hold zeros and are hidden by the mask.
    Nothing is concatenated from token to token.
    """

    def update(self, key_states: Tensor, value_states: Tensor, *args, **kwargs) -> tuple[Tensor, Tensor]:
        if not self.is_initialized:
            self.lazy_initialization(key_states, value_states)
            self.prompt_keys, self.prompt_values = key_states.transpose(2, 3).contiguous(), value_states.contiguous()
            return key_states, value_states
        self.keys.index_copy_(3, self.column, key_states.transpose(2, 3))
        self.values.index_copy_(2, self.column, value_states)
        return self.keys, self.values

    def begin(self, prompt_of: Tensor, column: Tensor) -> None:
        """After the prompts' pass: a row for each completion, without columns yet. column [1]: where the next token goes, in all layers."""
        self.keys, self.values = self.prompt_keys[prompt_of, ..., :0], self.prompt_values[prompt_of, :, :0]
        self.column = column

    def rearrange(self, prompts: Tensor, rows: Tensor, steps: int) -> None:
        """Keep the given prompts and rows, and make room for `steps` more columns."""
        if len(prompts) < len(self.prompt_keys):
            self.prompt_keys, self.prompt_values = self.prompt_keys[prompts], self.prompt_values[prompts]
        self.keys = pad(self.keys.index_select(0, rows), (0, steps))
        self.values = pad(self.values.index_select(0, rows), (0, 0, 0, steps))

    def get_seq_length(self) -> int:
        """For models that work out positions or masks from it; ours are given both, so the prompts' width will do."""
        return self.prompt_values.shape[2] if self.is_initialized else 0


class DecodingLayout:
    """Which keys a query sees while sampling: the layout for `rlvr.engine.attention`. Columns are those of the prompts, W, then those of
    the completions.

    prompt_mask [P, 1, 1 or W, W] and mask [1, 1, 1, C] are added to the scores: 0, or `hidden`. The queries of all rows of a prompt meet
    its keys in one product, in S slots, as many as any prompt still has rows: `row_in_slot` says for every key head which row is in each
    slot, and `slot_of_row` the reverse.
    """

    def __init__(self, layers: list[SharedLayer], valid: Tensor, query_columns: Tensor, written: int, steps: int, dtype):
        prompts, width, device = *valid.shape, valid.device
        self.layers, self.query_columns = layers, query_columns  # query_columns [queries]: the column of each query
        self.hidden = torch.finfo(dtype).min  # not -inf: a padded position sees nothing, and softmax over -inf alone is NaN
        self.prompt_mask = torch.zeros(prompts, 1, 1, width, dtype=dtype, device=device).masked_fill_(~valid[:, None, None], self.hidden)
        self.mask = pad(torch.zeros(1, 1, 1, written, dtype=dtype, device=device), (0, steps), value=self.hidden)
        self.column = torch.arange(width + written + steps, device=device)
        self.row_in_slot = self.slot_of_row = None

    def assign_slots(self, prompt_of: Tensor) -> None:
        """prompt_of [rows], in ascending order: whose row each is."""
        counts = torch.bincount(prompt_of)
        most, heads = int(counts.max()), self.layers[0].prompt_keys.shape[1]
        row, head = torch.arange(len(prompt_of), device=counts.device), torch.arange(heads, device=counts.device)
        slot = row - (counts.cumsum(0) - counts)[prompt_of]
        self.slot_of_row = ((prompt_of[:, None] * heads + head) * most + slot[:, None]).flatten()  # [rows * heads]
        self.row_in_slot = torch.zeros(len(counts) * heads * most, dtype=torch.long, device=counts.device)  # [P * heads * S]
        self.row_in_slot[self.slot_of_row] = (row[:, None] * heads + head).flatten()

    def attend(self, module, query: Tensor, key: Tensor, value: Tensor, window: int | None, **kw) -> Tensor:
        """Prompts go to the stock attention. A new token's query meets its prompt, beside other rows of that prompt, and its own past."""
        rows, heads, _, dim = query.shape
        width = self.prompt_mask.shape[-1]
        prompt_mask, mask = self.prompt_mask, self.mask
        sampling = self.row_in_slot is not None
        if not sampling or window is not None:
            near = self.column > self.query_columns[:, None] - (window or len(self.column))
            seen = near & (self.column <= self.query_columns[:, None])
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
        return x.flatten(0, 1).index_select(0, self.row_in_slot).view(len(self.prompt_mask), heads, -1, y)

    def _to_rows(self, x: Tensor, shape: Sequence[int]) -> Tensor:
        """[P, key heads, S * r, Y] -> [rows, key heads, r, Y]; `shape` begins with the first three."""
        rows, heads, r, _ = shape
        return x.view(-1, r * x.shape[-1]).index_select(0, self.slot_of_row).view(rows, heads, r, x.shape[-1])


def choose(logits: Tensor, temperature: float, top_p: float, u: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """`rollout.choose` in fewer passes over [B, V]: one exponential serves the draw, the log-prob and the entropy (entropy.py's)."""
    z = logits.float() if temperature in (0, 1) else logits.float() / temperature
    z = (z - z.amax(-1, keepdim=True)).clamp_(min=-1e4)  # the clamp makes 0 * -inf a plain 0
    weight = z.exp()  # probabilities, but for their sum
    line = weight.cumsum(-1)
    total = line[:, -1]
    if temperature == 0:
        token = z.argmax(-1)
    else:
        if top_p < 1:
            line = keep_top_p(weight / total[:, None], top_p).cumsum(-1)
        token = torch.searchsorted(line, u[:, None] * line[:, -1:])[:, 0].clamp(max=line.shape[1] - 1)
    logp = z.gather(-1, token[:, None])[:, 0] - total.log()
    return token, logp, total.log() - z.mul_(weight).sum(-1) / total


class Decoder:
    """Generates one token per step for many completions at once. Within a block of steps no tensor moves, so a GPU can record a step and
    replay it.

    prompts: P lists; u [N, T] decides the draws, N = P * repeats. Results: tokens, logp, entropy, [N, T] each.
    """

    def __init__(self, model, prompts, repeats: int, stop_ids: set[int], temperature: float, top_p: float, u: Tensor, cuda_graphs: bool):
        device, n, steps = model.device, *u.shape
        self.model, self.temperature, self.top_p, self.u = model, temperature, top_p, u
        self.stops = torch.tensor(sorted(stop_ids), device=device)
        self.cuda_graphs = cuda_graphs
        self.tokens = torch.zeros(n, steps, dtype=torch.long, device=device)
        self.logp, self.entropy = torch.zeros(2, n, steps, device=device).unbind(0)
        self.done = 0  # tokens that every row in the batch has
        self.column = torch.zeros(1, dtype=torch.long, device=device)  # of the newest token, whose key and value are not in the cache yet

        ids, self.valid = left_pad(prompts, device)
        cache = Cache(layer_class_to_replicate=SharedLayer)
        self.layers = cache.layers
        self.cache = {"cache" if "cache" in inspect.signature(model.forward).parameters else "past_key_values": cache}
        self.layout = DecodingLayout(self.layers, self.valid, torch.arange(ids.shape[1], device=device), 0, 0, model.dtype)
        position = self.valid.cumsum(1) - 1
        logits = self._forward(ids, position.clamp(min=0))
        # From here on the batch has a row for each completion.
        self.rows = torch.arange(n, device=device)
        self.prompt_of = torch.arange(len(prompts), device=device).repeat_interleave(repeats)
        self.position = position[self.prompt_of, -1:]
        for layer in self.layers:
            layer.begin(self.prompt_of, self.column)
        self._choose(logits[self.prompt_of])
        self._finish_block(1)

    def block(self, steps: int) -> None:
        """The next `steps` tokens of all rows that have not ended. A GPU records the kernels of a step once and then replays them."""
        self._rearrange(steps)
        self._step()
        again = self._record() if self.cuda_graphs and steps > 1 else self._step
        for _ in range(steps - 1):
            again()
        self._finish_block(steps)

    def _rearrange(self, steps: int) -> None:
        """Drop ended rows, and prompts that have none left, and make room for the next columns, all in one go."""
        prompts, self.prompt_of = self.prompt_of[self.alive].unique(return_inverse=True)
        self.valid = self.valid[prompts]
        for layer in self.layers:
            layer.rearrange(prompts, self.alive, steps)
        query_columns = self.column + self.valid.shape[1]
        self.layout = DecodingLayout(self.layers, self.valid, query_columns, self.done - 1, steps, self.model.dtype)
        self.layout.assign_slots(self.prompt_of)
        self.rows, self.position = self.rows[self.alive], self.position[self.alive]

    def _step(self) -> None:
        """One more token for every row. Nothing in here depends on how many steps came before, so a recording of it can be replayed."""
        self.layout.mask.index_fill_(3, self.column, 0.0)
        self.position += 1
        logits = self._forward(self.tokens[self.rows, self.column][:, None], self.position)
        self.column += 1
        self.layout.query_columns += 1
        self._choose(logits)

    def _forward(self, ids: Tensor, position: Tensor) -> Tensor:
        """Logits after the last column, [rows, V]."""
        masks = {"attention_mask": self.layout.prompt_mask, "layout": self.layout}  # four dimensions: the model adds no mask of its own
        return self.model(input_ids=ids, position_ids=position, use_cache=True, logits_to_keep=1, **masks, **self.cache).logits[:, -1]

    def _choose(self, logits: Tensor) -> None:
        """Choose the next token of every row and write it down."""
        chosen = choose(logits, self.temperature, self.top_p, self.u[self.rows, self.column])
        for whole, new in zip((self.tokens, self.logp, self.entropy), chosen):
            whole[self.rows, self.column] = new

    def _record(self) -> Callable[[], None]:
        """A CUDA graph of a step: all its kernels, with the addresses they read and write, as one thing to start."""
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph):
            self._step()
        return graph.replay

    def _finish_block(self, steps: int) -> None:
        """See which rows have ended."""
        tokens = self.tokens[self.rows, self.done : self.done + steps]
        self.alive = (~torch.isin(tokens, self.stops).any(1)).nonzero()[:, 0]
        self.done += steps


@torch.inference_mode()
def complete(
    model, prompts, repeats: int, stop_ids: set[int], temperature: float, top_p: float, u: Tensor, on_ended=lambda rows: None,
    cuda_graphs: bool = False,
) -> tuple[Tensor, Tensor, Tensor]:  # fmt: skip
    """The fast twin of `rollout.complete`, with the same arguments and results; `on_ended` is told of every few rows that end."""
    decoder = Decoder(model, prompts, repeats, stop_ids, temperature, top_p, u, cuda_graphs)
    while len(decoder.alive) and decoder.done < u.shape[1]:
        on_ended(len(decoder.rows) - len(decoder.alive))
        decoder.block(min(GROW_CUDA_GRAPHS if cuda_graphs else GROW, u.shape[1] - decoder.done))
    on_ended(len(decoder.rows))
    return decoder.tokens, decoder.logp, decoder.entropy
