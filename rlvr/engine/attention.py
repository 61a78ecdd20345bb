"""Attention for batches that store each prompt once and need no padding, through the public seam of transformers: models stay as they are.

A model under our attention gets a `layout` with each batch, which says which keys a query sees. Two exist: `Packed` here, for scoring given
completions, and `DecodingLayout` in decoder.py, for sampling token by token. Without a layout the stock attention answers.
"""

import torch
from torch import Tensor
from torch.nn.functional import embedding
from transformers import AttentionInterface, AttentionMaskInterface
from transformers.integrations.sdpa_attention import sdpa_attention_forward
from transformers.masking_utils import sdpa_mask

ATTENTION = "rlvr"  # the name under which our attention is registered; load_policy sets it on the model


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

    LIKE = 0.85  # rows at least this long, as a share of the longest, stand beside it
    SHORT_PROMPT = 0.25  # up to this share of a row, the prompt's queries are computed again for each completion: see _Block

    def __init__(self, prompts: list[list[int]], completions: list[list[int]], device):
        ids: list[int] = []
        positions: list[int] = []
        spans: dict[tuple, range] = {}  # the indices of each prompt among the K
        for prompt in map(tuple, prompts):
            if prompt not in spans:
                spans[prompt] = range(len(ids), len(ids) + len(prompt))
                ids += prompt
                positions += range(len(prompt))
        predicts, rows = [], [(range(0), span) for span in spans.values()]  # rows: (tokens seen before, tokens that are queries)
        for prompt, completion in zip(map(tuple, prompts), completions):
            seen, queries = spans[prompt], range(len(ids), len(ids) + len(completion) - 1)
            if completion:
                predicts += [seen[-1], *queries]
            if queries:
                rows.append((seen, queries))
                ids += completion[:-1]
                positions += range(len(prompt), len(prompt) + len(queries))
        rows.sort(key=lambda row: (len(row[0]) > 0, len(row[0]) + len(row[1])), reverse=True)
        groups: list[list[tuple[range, range]]] = []
        for row in rows:
            longest = groups[-1][0] if groups else row
            alike = len(row[0]) + len(row[1]) >= self.LIKE * (len(longest[0]) + len(longest[1])) and bool(row[0]) == bool(longest[0])
            if groups and alike:
                groups[-1].append(row)
            else:
                groups.append([row])
        self.blocks = [_Block(group, self.SHORT_PROMPT, device) for group in groups]
        found = torch.empty(len(ids), dtype=torch.long)  # the index of each token's result among those of the blocks
        offset = 0
        for block, group in zip(self.blocks, groups):
            height, width = block.queries.shape
            for i, (seen, queries) in enumerate(group):
                first = offset + i * width + (len(seen) if block.mask is None else 0)
                found[queries.start : queries.stop] = torch.arange(first, first + len(queries))
            offset += height * width
        self.found = found.to(device)
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


class _Block:
    """Rows of like length, side by side. `queries` and `keys` [rows, width]: indices among the K tokens, 0 for padding.

    With a short prompt, or none, all tokens of a row are queries, padded on the right, where a causal model does not look: no mask, half
    the work inside the row, and the results of the prompt's tokens are thrown away. With a longer prompt only the completion's tokens are
    queries; prompts are padded on the left, so that all completions begin in the same column, and a mask hides the padding.
    """

    def __init__(self, rows: list[tuple[range, range]], short_prompt: float, device):
        prompt = max(len(seen) for seen, _ in rows)
        completion = max(len(queries) for _, queries in rows)
        if prompt <= short_prompt * (prompt + completion):
            width = max(len(seen) + len(queries) for seen, queries in rows)
            keys = [[*seen, *queries] + [0] * (width - len(seen) - len(queries)) for seen, queries in rows]
            self.mask = None
        else:
            keys = [[0] * (prompt - len(seen)) + [*seen, *queries] + [0] * (completion - len(queries)) for seen, queries in rows]
            start = torch.tensor([prompt - len(seen) for seen, _ in rows])[:, None, None, None]
            column = torch.arange(prompt + completion)
            self.mask = ((column >= start) & (column <= column[prompt:, None])).to(device)  # [rows, 1, completion, prompt + completion]
        self.keys = torch.tensor(keys, device=device)
        self.queries = self.keys if self.mask is None else self.keys[:, prompt:].contiguous()
        self._masks: dict = {}

    def mask_for(self, window: int | None, dtype) -> Tensor | None:
        """The mask to add to the scores, made once for all layers: None (causal), or [rows or 1, 1, queries, keys]."""
        width = self.keys.shape[1]
        if window is not None and window >= width:
            window = None
        if (window, dtype) not in self._masks:
            mask = self.mask
            if window is not None:
                column = torch.arange(width, device=self.keys.device)
                query = column[width - self.queries.shape[1] :, None]
                band = (column <= query) & (column > query - window)
                mask = band[None, None] if mask is None else mask & band
            if mask is not None:  # as numbers: torch would make them of a boolean mask in every layer
                mask = torch.zeros(mask.shape, dtype=dtype, device=mask.device).masked_fill_(~mask, float("-inf"))
            self._masks[window, dtype] = mask
        return self._masks[window, dtype]
