"""Attention for batches in which completions share their prompt, through the public seam of transformers: the model's code stays as it is.

A model under our attention is given a `layout` with each batch, which says who sees whom. There are two: `Packed` here, for learning from
given completions, and `Growing` in rollout.py, for sampling token by token. Without a layout the stock attention answers.
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


def is_ours(model) -> bool:
    """Whether a model runs under our attention, and so can be sampled by our loop and learn from packed batches (load_policy decides)."""
    return model.config.get_text_config()._attn_implementation == ATTENTION


class Packed:
    """Completions and their prompts as one long row without padding, in which a prompt stands once, however many completions it has:

        prompt a | prompt b | ... | completion of a | completion of a | completion of b | ...

    So everything in the model but attention runs on K tokens and no more; with 8 completions of a prompt's length that is little over half
    of what padded rows of prompt and completion hold. Attention gathers the K tokens into rows again, those of like length together; there a
    prompt's keys and values do stand beside each completion, in one layer at a time.

    prompts, completions: n lists of token ids each. `ids` and `positions` are [1, K]. `predicts` says for every token of the completions,
    in their order, at which of the K places the token before it stands; the last token of a completion predicts nothing and is left out.
    """

    LIKE = 0.85  # rows at least this long, as a share of the longest, stand beside it
    SHORT_PROMPT = 0.25  # up to this share of a row, the prompt's queries are computed anew for each completion: see _Block

    def __init__(self, prompts: list[list[int]], completions: list[list[int]], device):
        ids: list[int] = []
        positions: list[int] = []
        spans: dict[tuple, range] = {}  # where each prompt stands among the K
        for prompt in map(tuple, prompts):
            if prompt not in spans:
                spans[prompt] = range(len(ids), len(ids) + len(prompt))
                ids += prompt
                positions += range(len(prompt))
        predicts, rows = [], [(range(0), span) for span in spans.values()]  # rows: what is seen before, and what is asked
        for prompt, completion in zip(map(tuple, prompts), completions):
            seen, asked = spans[prompt], range(len(ids), len(ids) + len(completion) - 1)
            if completion:
                predicts += [seen[-1], *asked]
            if asked:
                rows.append((seen, asked))
                ids += completion[:-1]
                positions += range(len(prompt), len(prompt) + len(asked))
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
        found = torch.empty(len(ids), dtype=torch.long)  # where each of the K finds its result among those of the blocks
        offset = 0
        for block, group in zip(self.blocks, groups):
            height, width = block.queries.shape
            for i, (seen, asked) in enumerate(group):
                first = offset + i * width + (len(seen) if block.mask is None else 0)
                found[asked.start : asked.stop] = torch.arange(first, first + len(asked))
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
    """Rows of like length, side by side. `queries` and `keys` [rows, width]: which of the K tokens stand where; 0 where there is none.

    With a short prompt, or none, whole rows are asked, padded on the right, where a causal model does not look: no mask, half the work
    inside the row, and what the prompt's tokens answer is thrown away. With a longer prompt only the completion is asked; prompts are
    padded on the left, so that all completions begin in the same column, and a mask hides the padding.
    """

    def __init__(self, rows: list[tuple[range, range]], short_prompt: float, device):
        prompt = max(len(seen) for seen, _ in rows)
        completion = max(len(asked) for _, asked in rows)
        if prompt <= short_prompt * (prompt + completion):
            width = max(len(seen) + len(asked) for seen, asked in rows)
            keys = [[*seen, *asked] + [0] * (width - len(seen) - len(asked)) for seen, asked in rows]
            self.mask = None
        else:
            keys = [[0] * (prompt - len(seen)) + [*seen, *asked] + [0] * (completion - len(asked)) for seen, asked in rows]
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
                asked = column[width - self.queries.shape[1] :, None]
                band = (column <= asked) & (column > asked - window)
                mask = band[None, None] if mask is None else mask & band
            if mask is not None:  # as numbers: torch would make them of a boolean mask in every layer
                mask = torch.zeros(mask.shape, dtype=dtype, device=mask.device).masked_fill_(~mask, float("-inf"))
            self._masks[window, dtype] = mask
        return self._masks[window, dtype]
