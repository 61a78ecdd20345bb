"""Sampling: greedy decoding equals Hugging Face's, log-probs equal the training forward's, frequencies equal the softmax; stop tokens."""

from functools import partial

import pytest
import torch
from helpers import V, exact, make_rollouts, new_model, plain_logp_and_entropy, reference_logp_and_entropy, stock

from rlvr import policy, rollout
from rlvr.data import encode_prompts, load_problems
from rlvr.engine import decoder, scorer
from rlvr.engine.attention import ATTENTION
from rlvr.engine.decoder import GROW
from rlvr.policy import Policy
from rlvr.rollout import Rollouts, sample

PROMPTS = [[3, 4, 5], [6], [7, 8, 9, 10, 11, 12, 13], [14, 6]]  # different lengths: some are padded on the left
MORE_PROMPTS = [[i, 28 - i][: 1 + i % 2] for i in range(3, 25)]
NEVER = {V + 100}  # a stop token that no model can draw


def run(model, tokenizer, prompts=PROMPTS, **settings):
    defaults = dict(completions_per_prompt=1, max_new_tokens=2 * GROW + 5, stop_ids={2}, temperature=1.0)
    generator = torch.Generator().manual_seed(settings.pop("seed", 0))
    return sample(model, tokenizer, prompts, generator=generator, **(dict(complete=decoder.complete) | defaults | settings))


def score(model, rollouts, temperature):
    """Log-probs and entropies of the training forward, without our attention: plain padded rows."""
    return Policy(stock(model), None, set()).score(rollouts, torch.arange(len(rollouts)), temperature, 10_000)


def completions(rollouts):
    return [row[:n].tolist() for row, n in zip(rollouts.completion_ids, rollouts.lengths)]


def hugging_face_greedy(model, prompt, max_new_tokens, stop_ids):
    ids = torch.tensor([prompt])
    settings = dict(do_sample=False, max_new_tokens=max_new_tokens, eos_token_id=sorted(stop_ids), pad_token_id=0)
    out = stock(model).generate(ids, attention_mask=torch.ones_like(ids), **settings)
    return out[0, len(prompt) :].tolist()


# -- greedy -----------------------------------------------------------------------------------------------------------------------------


def test_greedy_equals_hugging_face_token_for_token(model, tokenizer):
    theirs = [hugging_face_greedy(model, p, 3 * GROW + 2, NEVER) for p in PROMPTS]
    for max_new_tokens in (1, GROW, GROW + 1, 3 * GROW + 2):  # before, at and beyond the places where the cache grows
        ours = completions(run(model, tokenizer, temperature=0, max_new_tokens=max_new_tokens, stop_ids=NEVER, completions_per_prompt=2))
        assert ours == [row[:max_new_tokens] for row in theirs for _ in range(2)]
    assert len({tuple(row) for row in theirs}) == 4 and any(len(set(row)) > 3 for row in theirs), "too dull to test anything"


def test_rows_that_end_early_do_not_change_the_others(model, tokenizer):
    """Ended completions leave the batch; the keys and values of those that stay must move with their rows."""
    free = completions(run(model, tokenizer, MORE_PROMPTS, temperature=0, max_new_tokens=3 * GROW, stop_ids=NEVER))

    def cut_at(stop):
        return [row[: next((t + 1 for t, token in enumerate(row) if token in stop), len(row))] for row in free]

    def leaves_and_stays(stop):
        lengths = [len(row) for row in cut_at(stop)]
        return min(lengths) <= GROW < lengths[-1] and max(lengths[:-1]) > GROW  # one leaves in the first block, two stay longer

    stop = next({token} for token in range(V) if leaves_and_stays({token}))
    cut = cut_at(stop)
    ours = run(model, tokenizer, MORE_PROMPTS, temperature=0, max_new_tokens=3 * GROW, stop_ids=stop)
    assert completions(ours) == cut
    for i in range(0, len(MORE_PROMPTS), 4):  # and some rows alone, without neighbours
        assert completions(run(model, tokenizer, [MORE_PROMPTS[i]], temperature=0, max_new_tokens=3 * GROW, stop_ids=stop)) == [cut[i]]


def test_rows_that_leave_at_different_times_keep_their_own_keys(model, tokenizer):
    """The log-probs of what was sampled in a shrinking batch are those of each row by itself."""
    rollouts = run(model, tokenizer, completions_per_prompt=6, max_new_tokens=4 * GROW, temperature=2.0)
    blocks = {(n - 1) // GROW for n in rollouts.lengths.tolist()}
    assert len(blocks) >= 3, "rows leave in at least three different blocks"
    logp, _ = score(model, rollouts, 2.0)
    torch.testing.assert_close(rollouts.old_logp, logp, rtol=0, atol=1e-4)


# -- log-prob and entropy ---------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("temperature", [1.0, 0.7])
def test_old_logp_and_entropy_equal_the_training_forward(model, tokenizer, temperature):
    rollouts = run(model, tokenizer, completions_per_prompt=3, temperature=temperature)
    logp, entropy = score(model, rollouts, temperature)
    torch.testing.assert_close(rollouts.old_logp, logp, rtol=0, atol=1e-4)
    torch.testing.assert_close(rollouts.entropy, entropy, rtol=0, atol=1e-4)
    assert (rollouts.old_logp[rollouts.mask] < -0.1).float().mean() > 0.3


def test_old_logp_and_entropy_equal_the_reference(qwen, tokenizer):
    rollouts = run(qwen, tokenizer, PROMPTS[:2], temperature=0.7, max_new_tokens=5)
    for i, row in enumerate(completions(rollouts)):
        logp, entropy = reference_logp_and_entropy(qwen, PROMPTS[i], row, 0.7)
        assert rollouts.old_logp[i, : len(row)].tolist() == pytest.approx(logp, abs=1e-4)
        assert rollouts.entropy[i, : len(row)].tolist() == pytest.approx(entropy, abs=1e-4)


def test_top_p_changes_the_draw_and_not_the_log_probs(qwen, tokenizer):
    rollouts = run(qwen, tokenizer, completions_per_prompt=3, top_p=0.6, temperature=0.8)
    logp, entropy = score(qwen, rollouts, 0.8)
    torch.testing.assert_close(rollouts.old_logp, logp, rtol=0, atol=1e-4)
    torch.testing.assert_close(rollouts.entropy, entropy, rtol=0, atol=1e-4)


def test_greedy_reports_log_probs_at_temperature_one(qwen, tokenizer):
    rollouts = run(qwen, tokenizer, temperature=0)
    torch.testing.assert_close(rollouts.old_logp, score(qwen, rollouts, 1.0)[0], rtol=0, atol=1e-4)


def test_log_probs_of_the_built_in_model_are_as_exact_as_those_of_plain_rows():
    """A whole batch of its own stories. With weights in float64 only the softmax rounds; in float32 the sampler and the packed forward
    round no worse than transformers' own forward. How far the worst of thousands is off depends on the processor, the mean does not."""
    built_in = policy.load_policy("tiny")
    _, prompts, _ = encode_prompts(built_in.tokenizer, load_problems("tiny", "train", 12), "", 128)
    settings = dict(completions_per_prompt=8, max_new_tokens=100, stop_ids=built_in.stop_ids)

    def exact_logp(rollouts):
        rows = [plain_logp_and_entropy(twin, p, c, 1.0)[0] for p, c in zip(rollouts.prompt_ids, completions(rollouts))]
        return torch.cat(rows)

    def scored(model, rollouts, logp_and_entropy=scorer.logp_and_entropy):
        return logp_and_entropy(model, rollouts.prompt_ids, rollouts.completion_ids, rollouts.mask)[0][rollouts.mask]

    twin, doubled = exact(built_in.model), exact(built_in.model, ATTENTION)
    with torch.no_grad():
        rollouts = run(doubled, built_in.tokenizer, prompts[:4], **settings | dict(max_new_tokens=60))
        for logp in (rollouts.old_logp[rollouts.mask], scored(doubled, rollouts)):
            torch.testing.assert_close(logp.double(), exact_logp(rollouts), rtol=0, atol=5e-6)  # a few roundings of numbers up to 30

        rollouts = run(built_in.model, built_in.tokenizer, prompts, **settings)
        assert len(rollouts.lengths.unique()) > 20
        expected = exact_logp(rollouts)
        plain = (scored(stock(built_in.model), rollouts, policy.logp_and_entropy) - expected).square().mean().sqrt()
        for logp in (rollouts.old_logp[rollouts.mask], scored(built_in.model, rollouts)):
            error = logp - expected
            assert error.square().mean().sqrt() < 1.5 * plain < 3e-6 and error.abs().max() < 1e-4


# -- a step that is recorded and played again -------------------------------------------------------------------------------------------


def record_on_the_cpu(decoder):
    """What a CUDA graph does, done with torch's tracer: the operations of one step, with the very tensors that they read and write.

    Whatever a step takes from Python (a column, a number of steps) would stand still in the recording, as it would on a GPU.
    """
    from torch.fx.experimental.proxy_tensor import make_fx

    kept = [decoder.column, decoder.layout.query_columns, decoder.position, decoder.tokens, decoder.logp, decoder.entropy]
    kept += [decoder.layout.mask]
    kept += [x for layer in decoder.layers for x in (layer.keys, layer.values)]
    before = [x.clone() for x in kept]
    recorded = make_fx(lambda: decoder._step())()
    for x, old in zip(kept, before):  # recording on a GPU runs nothing
        x.copy_(old)
    return recorded


def test_a_recorded_step_gives_the_same_completions(model, tokenizer, monkeypatch):
    def completions_with(cuda_graphs):
        prompts, repeats, steps = PROMPTS, 3, GROW + 4
        u = torch.rand(len(prompts) * repeats, steps, generator=torch.Generator().manual_seed(0))
        with torch.no_grad():
            return decoder.complete.__wrapped__(model, prompts, repeats, {2}, 1.0, 1.0, u, cuda_graphs=cuda_graphs)

    calls = []
    monkeypatch.setattr(decoder, "GROW_CUDA_GRAPHS", 8)  # several recordings
    monkeypatch.setattr(decoder.Decoder, "_record", lambda decoder: calls.append(1) or record_on_the_cpu(decoder))
    plain, recorded = completions_with(False), completions_with(True)
    assert len(calls) >= 3
    lengths, _ = rollout.completion_lengths(plain[0], {2})
    assert torch.equal(lengths, rollout.completion_lengths(recorded[0], {2})[0]) and lengths.unique().numel() > 1
    mask = torch.arange(GROW + 4) < lengths[:, None]
    for a, b in zip(plain, recorded):
        torch.testing.assert_close(a[mask], b[mask], rtol=0, atol=1e-5)


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA GPU")
def test_cuda_graphs_give_the_same_completions(tokenizer):
    model = new_model("qwen").cuda()
    ways = decoder.complete, partial(decoder.complete, cuda_graphs=True)
    plain, recorded = (run(model, tokenizer, completions_per_prompt=6, complete=way) for way in ways)
    assert completions(plain) == completions(recorded)
    torch.testing.assert_close(plain.old_logp, recorded.old_logp, rtol=0, atol=1e-4)


# -- the definition: the decoder is the same, faster -------------------------------------------------------------------------------------


SETTINGS = {
    "greedy": dict(temperature=0),
    "hot": dict(temperature=1.7),
    "top-p": dict(temperature=0.8, top_p=0.6),
    "several stop tokens": dict(stop_ids={2, 9, 17}, temperature=1.5),
    "no stop token": dict(stop_ids=NEVER),
    "one token": dict(max_new_tokens=1),
}


@pytest.mark.parametrize("settings", SETTINGS.values(), ids=SETTINGS)
def test_the_decoder_equals_the_definition(model, tokenizer, settings):
    """Token for token; prompts of unlike length, rows that end early and late, and all of them at once. In float64, because in float32
    one draw in some thousands falls so near to the border of two tokens that rounding decides; of 40 rows one may still do so."""
    settings = dict(completions_per_prompt=4, seed=3) | settings
    fast, plain = (
        run(exact(model, attention), tokenizer, PROMPTS + MORE_PROMPTS[:6], complete=way, **settings)
        for way, attention in ((decoder.complete, ATTENTION), (rollout.complete, "sdpa"))
    )
    same = [i for i, (a, b) in enumerate(zip(completions(fast), completions(plain))) if a == b]
    assert len(same) >= len(plain) - 1
    fast, plain = fast.select(torch.tensor(same)), plain.select(torch.tensor(same))
    assert fast.text == plain.text and torch.equal(fast.finished, plain.finished) and fast.group.tolist() == plain.group.tolist()
    torch.testing.assert_close(fast.old_logp, plain.old_logp, rtol=0, atol=1e-4)
    torch.testing.assert_close(fast.entropy, plain.entropy, rtol=0, atol=1e-4)


def test_the_two_ways_to_choose_a_token_are_one():
    """rollout.choose says what a draw is; the decoder's own saves passes over the vocabulary."""
    logits = 4 * torch.randn(400, V, generator=torch.Generator().manual_seed(0))
    logits[:100, 5] = float("-inf")
    u = 1 - torch.rand(400, generator=torch.Generator().manual_seed(1))
    for temperature, top_p in ((1.0, 1.0), (0.6, 1.0), (2.0, 0.7), (0, 1.0)):
        (token, *plain), (fast_token, *fast) = (way(logits, temperature, top_p, u) for way in (rollout.choose, decoder.choose))
        assert torch.equal(token, fast_token) and (token[:100] != 5).all()
        for a, b in zip(plain, fast):
            torch.testing.assert_close(a, b, rtol=0, atol=1e-5)


def test_the_definition_is_told_how_many_rows_ended(qwen):
    """What the progress bar shows: every row once."""
    u, told = torch.rand(8, 12, generator=torch.Generator().manual_seed(0)), []
    for way in (rollout.complete, decoder.complete):
        way(qwen, PROMPTS, 2, {2, 9}, 1.5, 1.0, u, told.append)
        assert sum(told) == 8
        told.clear()


# -- the distribution -------------------------------------------------------------------------------------------------------------------


def next_token_probs(model, prompt, temperature):
    with torch.no_grad():
        return torch.softmax(stock(model)(input_ids=torch.tensor([prompt])).logits[0, -1].double() / temperature, -1)


@pytest.mark.parametrize("temperature, top_p", [(1.0, 1.0), (0.5, 1.0), (2.0, 1.0), (1.0, 0.7), (0.8, 0.3)])
def test_tokens_are_drawn_with_their_probability(qwen, tokenizer, temperature, top_p):
    draws = 4000
    settings = dict(max_new_tokens=1, temperature=temperature, top_p=top_p, sampling_rows=2 * draws)
    rollouts = run(qwen, tokenizer, PROMPTS[:2], completions_per_prompt=draws, **settings)
    for i, prompt in enumerate(PROMPTS[:2]):
        p = next_token_probs(qwen, prompt, temperature)
        # the smallest set of tokens that holds top_p, in plain Python
        kept, mass = [], 0.0
        for token in sorted(range(V), key=lambda v: -p[v]):
            if mass < top_p:
                kept.append(token)
                mass += p[token].item()
        counts = torch.bincount(rollouts.completion_ids[i * draws : (i + 1) * draws, 0], minlength=V)
        assert int(counts.sum()) == draws and set(counts.nonzero()[:, 0].tolist()) <= set(kept)
        expected = draws * p[kept] / mass
        often = expected > 5
        chi_square = ((counts[kept] - expected) ** 2 / expected)[often].sum().item()
        degrees = int(often.sum()) - 1
        assert chi_square < degrees + 4 * (2 * max(degrees, 1)) ** 0.5, (chi_square, degrees)


def test_the_completions_of_a_prompt_differ(qwen, tokenizer):
    rows = completions(run(qwen, tokenizer, completions_per_prompt=8, temperature=1.0, stop_ids=NEVER))
    assert len({tuple(row) for row in rows}) == len(rows)


def test_the_same_seed_gives_the_same_completions(qwen, tokenizer):
    a, b, c = (run(qwen, tokenizer, completions_per_prompt=4, seed=seed) for seed in (5, 5, 6))
    assert completions(a) == completions(b) and torch.equal(a.old_logp, b.old_logp)
    assert completions(a) != completions(c)


def test_only_the_given_generator_is_used(qwen, tokenizer):
    before = torch.get_rng_state()
    run(qwen, tokenizer)
    assert torch.equal(torch.get_rng_state(), before)


# -- stop tokens ------------------------------------------------------------------------------------------------------------------------


def check_bookkeeping(rollouts: Rollouts, stop_ids, max_new_tokens):
    """A completion ends with its first stop token, which belongs to it; or it has max_new_tokens tokens and is truncated."""
    assert torch.equal(rollouts.mask.sum(1), rollouts.lengths)
    assert torch.equal(rollouts.mask, rollouts.mask.cumprod(1).bool()), "the mask has no holes"
    for row, finished in zip(completions(rollouts), rollouts.finished.tolist()):
        assert not set(row[:-1]) & stop_ids
        assert (row[-1] in stop_ids) == finished
        assert finished or len(row) == max_new_tokens
    outside = ~rollouts.mask
    assert not rollouts.completion_ids[outside].any() and not rollouts.old_logp[outside].any() and not rollouts.entropy[outside].any()


@pytest.mark.parametrize("stop_ids", [{2}, {2, 9}, {0}, {4, 5, 6, 7, 8}])  # {0}: the number that also fills the padding
def test_the_stop_token_belongs_to_the_completion(qwen, tokenizer, stop_ids):
    for seed in range(3):
        rollouts = run(qwen, tokenizer, completions_per_prompt=8, stop_ids=stop_ids, seed=seed, temperature=1.5)
        check_bookkeeping(rollouts, stop_ids, 2 * GROW + 5)
        assert rollouts.finished.any() and (rollouts.old_logp[rollouts.finished, rollouts.lengths[rollouts.finished] - 1] < 0).all()


def test_every_stop_token_of_the_set_ends_a_completion(qwen, tokenizer):
    stop_ids = {3, 11, 20}
    rollouts = run(qwen, tokenizer, completions_per_prompt=24, stop_ids=stop_ids, temperature=2.0, max_new_tokens=60)
    check_bookkeeping(rollouts, stop_ids, 60)
    assert {row[-1] for row, done in zip(completions(rollouts), rollouts.finished) if done} == stop_ids


def test_a_completion_can_be_the_stop_token_alone(qwen, tokenizer):
    first = completions(run(qwen, tokenizer, temperature=0))[1][0]
    rollouts = run(qwen, tokenizer, [PROMPTS[1]], temperature=0, stop_ids={first}, completions_per_prompt=3)
    assert completions(rollouts) == [[first]] * 3
    assert rollouts.lengths.tolist() == [1, 1, 1] and rollouts.finished.all() and rollouts.mask.shape == (3, 1)


def test_a_completion_that_never_stops_is_truncated(qwen, tokenizer):
    rollouts = run(qwen, tokenizer, completions_per_prompt=2, stop_ids=NEVER)
    check_bookkeeping(rollouts, NEVER, 2 * GROW + 5)
    assert not rollouts.finished.any() and set(rollouts.lengths.tolist()) == {2 * GROW + 5}


def test_a_stop_token_in_the_last_place_counts_as_finished(qwen, tokenizer):
    free = completions(run(qwen, tokenizer, [PROMPTS[0]], temperature=0, stop_ids=NEVER, max_new_tokens=60))[0]
    t = next(t for t in range(1, 60) if free[t] not in free[:t])  # a token that comes for the first time at t
    rollouts = run(qwen, tokenizer, [PROMPTS[0]], temperature=0, stop_ids={free[t]}, max_new_tokens=t + 1)
    assert rollouts.finished.tolist() == [True] and rollouts.lengths.tolist() == [t + 1]
    rollouts = run(qwen, tokenizer, [PROMPTS[0]], temperature=0, stop_ids={free[t]}, max_new_tokens=t)
    assert rollouts.finished.tolist() == [False] and rollouts.lengths.tolist() == [t]


# -- the batch --------------------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("rows", [1, 2, 3, 5, 512])
def test_prompts_keep_their_order_however_few_rows_run_at_once(qwen, tokenizer, rows):
    whole = run(qwen, tokenizer, temperature=0, completions_per_prompt=2)
    rollouts = run(qwen, tokenizer, temperature=0, completions_per_prompt=2, sampling_rows=rows)
    assert rollouts.group.tolist() == [0, 0, 1, 1, 2, 2, 3, 3]
    assert rollouts.prompt_ids == [p for p in PROMPTS for _ in range(2)]
    assert completions(rollouts) == completions(whole) and rollouts.text == whole.text


def test_text_is_the_decoded_completion_without_the_stop_token(qwen, tokenizer):
    rollouts = run(qwen, tokenizer, completions_per_prompt=4, temperature=1.5)
    assert rollouts.text == [" ".join(str(i) for i in row if i != 2) for row in completions(rollouts)]


def test_the_training_mode_of_the_model_is_restored(tokenizer):
    model, seen = new_model("qwen"), []

    def watched(*args):
        seen.append(model.training)
        return decoder.complete(*args)

    for training in (True, False):
        model.train(training)
        run(model, tokenizer, max_new_tokens=2, complete=watched)
        assert model.training == training
    assert seen == [False, False]


def test_a_prompt_without_tokens_is_refused(qwen, tokenizer):
    with pytest.raises(ValueError, match="no token"):
        run(qwen, tokenizer, [[3], []])


def same(a: Rollouts, b: Rollouts):
    return all(
        torch.equal(x, y) if isinstance(x, torch.Tensor) else x == y for x, y in zip(vars(a).values(), vars(b).values(), strict=True)
    )


def test_select_and_concat_are_inverse():
    rollouts = make_rollouts([3, 1, 4, 2], [2, 6, 3, 1], groups=[0, 0, 1, 1], finished=[True, False, True, True])
    halves = [rollouts.select(torch.tensor([0, 1])), rollouts.select(torch.tensor([2, 3]))]
    assert halves[0].mask.shape == (2, 6) and halves[1].mask.shape == (2, 3), "cut to the longest completion"
    assert same(Rollouts.concat(halves), rollouts)
    assert same(rollouts.select(torch.arange(4)), rollouts)


def test_select_takes_the_rows_in_the_order_asked():
    rollouts = make_rollouts([3, 1, 4, 2], [2, 6, 3, 1], groups=[0, 0, 1, 1])
    picked = rollouts.select(torch.tensor([3, 0]))
    assert picked.text == ["text 3", "text 0"] and picked.group.tolist() == [1, 0] and picked.lengths.tolist() == [1, 2]
    assert picked.prompt_ids == [rollouts.prompt_ids[3], rollouts.prompt_ids[0]] and len(picked) == 2
    assert torch.equal(picked.old_logp, rollouts.old_logp[[3, 0], :2])


def test_bfloat16_models_sample_in_their_own_precision(tokenizer):
    model = new_model("qwen").bfloat16()
    rollouts = run(model, tokenizer, completions_per_prompt=4)
    check_bookkeeping(rollouts, {2}, 2 * GROW + 5)
    assert rollouts.old_logp.dtype == torch.float32
    drift = (rollouts.old_logp - score(model, rollouts, 1.0)[0])[rollouts.mask].abs().mean()
    assert drift < 0.1
