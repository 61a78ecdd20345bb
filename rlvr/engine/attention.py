"""Attention for batches that store each prompt once and need no padding, through the public seam of transformers: models stay as they are.

A model under our attention gets a `layout` with each batch, which says which keys a query sees. Two exist: `Packed` here, for scoring given
completions, and `DecodingLayout` in decoder.py, for sampling token by token. Without a layout the stock attention answers.
"""

from collections.abc import Iterator

import torch
from torch import Tensor
from torch.nn.functional import embedding
from torch.nn.utils.rnn import pad_sequence
from transformers import AttentionInterface, AttentionMaskInterface
from transformers.integrations.sdpa_attention import sdpa_attention_forward
from transformers.masking_utils import sdpa_mask

ATTENTION = "rlvr"  # the name under which our attention is registered; load_policy sets it on the model
LIKE = 0.85  # rows at least this long, as a share of the longest, stand beside it
SHORT_PROMPT = 0.25  # up to this share of a row, the prompt's queries are computed again for each completion: see _Block


def attention(module, query: Tensor, key: Tensor, value: Tensor, mask: Tensor | None, layout=None, sliding_window: int | None = None, **kw):
    """query [B, heads, T, dim], key and value [B, key heads, S, dim] -> [B, T, heads, dim], as transformers asks of an attention."""
    if layout is None:
        return sdpa_attention_forward(module, query, key, value, mask, sliding_window=sliding_window, **kw)
    return layout.attend(module, query, key, value, sliding_window, **kw), None


AttentionInterface.register(ATTENTION, attention)
AttentionMaskInterface.register(ATTENTION, sdpa_mask)


class Packed:
    """Completions and their prompts as one long row without padding, which holds a prompt once, however many completions it has:

        prompt a | prompt b | ... | completion of a | completion of a | completion of b | ...

    So everything in the model but attention runs on K tokens and no more; with 8 completions of a prompt's length that is little over half
    of what padded rows of prompt and completion hold. Attention gathers the K tokens into rows again, those of like length together; only
    there, in one layer at a time, is a prompt copied beside each of its completions.

    prompts, completions: n lists of token ids each. `ids` and `positions` are [1, K]. `predicts` gives for every token of the completions,
    in their order, the index among the K of the token before it; the last token of a completion predicts nothing and is left out.
    """

    def __init__(self, prompts: list[list[int]], completions: list[list[int]], device):
        ids, positions = [], []
        spans: dict[tuple, range] = {}  # the indices of each prompt among the K
        for prompt in map(tuple, prompts):
            if prompt not in spans:
                spans[prompt] = range(len(ids), len(ids) + len(prompt))
                ids += prompt
                positions += range(len(prompt))
        predicts, rows = [], []  # rows: (tokens seen before, tokens that are queries)
        for prompt, completion in zip(map(tuple, prompts), completions):
            seen, queries = spans[prompt], range(len(ids), len(ids) + len(completion) - 1)
            if completion:
                predicts += [seen[-1], *queries]
            if queries:
                rows.append((seen, queries))
                ids += completion[:-1]
                positions += range(len(prompt), len(prompt) + len(queries))
        self.blocks = [*_blocks(rows, device), *_blocks([(range(0), span) for span in spans.values()], device)]
        own = torch.cat([block.own.flatten() for block in self.blocks]).nonzero()[:, 0]
        self.found = own[torch.cat([block.queries.flatten() for block in self.blocks])[own].argsort()]  # where each token's result is
        self.ids, self.positions = torch.tensor([ids], device=device), torch.tensor([positions], device=device)
        self.predicts = torch.tensor(predicts, dtype=torch.long, device=device)

    def attend(self, module, query: Tensor, key: Tensor, value: Tensor, window: int | None, **kw) -> Tensor:
        """query [1, heads, K, dim], key and value [1, key heads, K, dim] -> [1, K, heads, dim].

        `embedding` picks rows as indexing does, but its backward pass, which adds up what a prompt gets from its completions, is faster.
        """
        flat = [x[0].transpose(0, 1).flatten(1) for x in (query, key, value)]  # [K, heads * dim] each
        results = []
        for block in self.blocks:
            q, k, v = (
                embedding(at, x).unflatten(-1, (y.shape[1], y.shape[3])).transpose(1, 2)  # [rows, heads, width, dim]
                for at, x, y in zip((block.queries, block.keys, block.keys), flat, (query, key, value))
            )
            results.append(sdpa_attention_forward(module, q, k, v, block.mask_for(window, q.dtype), **kw)[0].flatten(0, 1))
        return torch.cat(results).flatten(1).index_select(0, self.found).view(1, len(self.found), *results[0].shape[1:])


def _blocks(rows: list[tuple[range, range]], device) -> Iterator["_Block"]:
    """The longest row and those of like length, then the longest of the others, and so on."""

    def length(row: tuple[range, range]) -> int:
        return len(row[0]) + len(row[1])

    rows = sorted(rows, key=length, reverse=True)
    while rows:
        alike = [row for row in rows if length(row) >= LIKE * length(rows[0])]
        yield _Block(alike, device)
        rows = rows[len(alike) :]


class _Block:
    """Rows of like length, side by side. `queries` and `keys` [rows, width]: indices among the K tokens, 0 for padding. `own`: which of the
    queries are neither padding nor tokens of a prompt beside its completion.

    With a short prompt, or none, all tokens of a row are queries, padded on the right, where a causal model does not look: no mask, half
    the work inside the row, and the results of the prompt's tokens are thrown away. With a longer prompt only the completion's tokens are
    queries; prompts are padded on the left, so that all completions begin in the same column, and a mask hides the padding.
    """

    def __init__(self, rows: list[tuple[range, range]], device):
        prompt, completion = (max(map(len, spans)) for spans in zip(*rows))
        self.first_query = 0 if prompt <= SHORT_PROMPT * (prompt + completion) else prompt
        if self.first_query:
            keys = torch.cat([_padded([seen for seen, _ in rows], "left"), _padded([queries for _, queries in rows], "right")], 1)
        else:
            keys = _padded([[*seen, *queries] for seen, queries in rows], "right")
        self.start = torch.tensor([prompt - len(seen) for seen, _ in rows], device=device)[:, None, None, None]
        self.keys = keys.clamp(min=0).to(device)
        self.queries = self.keys[:, self.first_query :].contiguous()
        self.own = keys[:, self.first_query :].to(device) >= min(queries.start for _, queries in rows)  # all prompts come before
        self._masks: dict = {}

    def mask_for(self, window: int | None, dtype) -> Tensor | None:
        """The mask to add to the scores, made once for all layers: None (causal), or [rows or 1, 1, queries, keys]."""
        width = self.keys.shape[1]
        window = min(window or width, width)
        if not self.first_query and window == width:
            return None
        if (window, dtype) not in self._masks:
            column = torch.arange(width, device=self.keys.device)
            query = column[self.first_query :, None]
            mask = ((column <= query) & (column > query - window))[None, None]
            if self.first_query:
                mask = mask & (column >= self.start)
            # As numbers: torch would make them of a boolean mask in every layer.
            self._masks[window, dtype] = torch.zeros(mask.shape, dtype=dtype, device=mask.device).masked_fill_(~mask, float("-inf"))
        return self._masks[window, dtype]


def _padded(rows: list, side: str) -> Tensor:
    """Rows of indices as a tensor [rows, width], padded with -1."""
    return pad_sequence([torch.tensor(row) for row in rows], batch_first=True, padding_value=-1, padding_side=side)
