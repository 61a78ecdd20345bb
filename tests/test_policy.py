"""Log-probs and entropies of given tokens, micro-batches, master weights: against one plain float64 forward for each token."""

import copy
import json
import shutil

import pytest
import torch
from helpers import V, exact, make_rollouts, new_model, plain_logp_and_entropy, reference_logp_and_entropy, stock

from rlvr import policy, rollout
from rlvr.config import SettingError, TrainConfig
from rlvr.engine import choice, decoder, scorer
from rlvr.engine.attention import ATTENTION, Packed
from rlvr.engine.optimizer import MasterWeights
from rlvr.entropy import token_entropy
from rlvr.loaders.models import check_length, most_positions
from rlvr.loss import clipped_loss
from rlvr.policy import Policy, load_policy, micro_batches
from rlvr.rollout import sample

PROMPT_LENGTHS, LENGTHS = [3, 1, 7, 2, 5], [6, 9, 1, 4, 0]


@pytest.fixture
def rollouts():
    return make_rollouts(PROMPT_LENGTHS, LENGTHS)


def of(model, rollouts, temperature=1.0, plain=None, **options):
    """The packed scorer for a model under our attention, the plain one for any other, and on request for both."""
    ours = model.config._attn_implementation == ATTENTION and not plain
    way = scorer.logp_and_entropy if ours else policy.logp_and_entropy
    return way(model, rollouts.prompt_ids, rollouts.completion_ids, rollouts.mask, temperature, **options)


both_scorers = pytest.mark.parametrize("plain", [False, True], ids=["packed", "plain"])


# -- values -----------------------------------------------------------------------------------------------------------------------------


@both_scorers
@pytest.mark.parametrize("temperature", [1.0, 0.6])
def test_equals_one_full_forward_for_each_token(model, rollouts, temperature, plain):
    with torch.no_grad():
        logp, entropy = of(model, rollouts, temperature, plain)
    for i, n in enumerate(LENGTHS):
        completion = rollouts.completion_ids[i, :n].tolist()
        expected = reference_logp_and_entropy(model, rollouts.prompt_ids[i], completion, temperature)
        assert logp[i, :n].tolist() == pytest.approx(expected[0], abs=2e-5)
        assert entropy[i, :n].tolist() == pytest.approx(expected[1], abs=2e-5)
    assert torch.equal(logp[~rollouts.mask], torch.zeros(int((~rollouts.mask).sum())))
    assert torch.equal(entropy[~rollouts.mask], torch.zeros(int((~rollouts.mask).sum())))
    assert entropy[rollouts.mask].max() - entropy[rollouts.mask].min() > 0.3, "the model would be too uniform to test anything"


@both_scorers
def test_row_order_and_padding_change_nothing(model, rollouts, plain):
    with torch.no_grad():
        together = torch.stack(of(model, rollouts, plain=plain))
        for i in (3, 0, 2):  # alone: no padding at all
            alone = torch.stack(of(model, rollouts.select(torch.tensor([i])), plain=plain))
            torch.testing.assert_close(alone, together[:, i : i + 1, : alone.shape[2]], rtol=0, atol=1e-5)
        order = torch.tensor([4, 1, 0, 3, 2])
        torch.testing.assert_close(torch.stack(of(model, rollouts.select(order), plain=plain)), together[:, order], rtol=0, atol=1e-5)
        rollouts.completion_ids[~rollouts.mask] = 7  # whatever stands at the padding
        torch.testing.assert_close(torch.stack(of(model, rollouts, plain=plain)), together, rtol=0, atol=0)


@both_scorers
def test_completions_without_a_token_give_zeros(qwen, plain):
    rollouts = make_rollouts([2, 3], [0, 0])
    logp, entropy = of(qwen, rollouts, plain=plain)
    assert torch.equal(logp, torch.zeros(2, 1)) and torch.equal(entropy, torch.zeros(2, 1))


@both_scorers
def test_score_returns_what_one_pass_over_all_rows_gives(model, rollouts, plain):
    with torch.no_grad():
        whole = of(model, rollouts, 0.7, plain)
    engine = {} if plain else dict(logp_and_entropy=scorer.logp_and_entropy, packed=True)
    for budget in (1, 12, 10_000):
        for ours, expected in zip(Policy(model, None, set(), **engine).score(rollouts, torch.arange(len(rollouts)), 0.7, budget), whole):
            torch.testing.assert_close(ours, expected, rtol=0, atol=1e-5)
            assert not ours.requires_grad


# -- gradients --------------------------------------------------------------------------------------------------------------------------


def gradient(model, rollouts, batches, entropy_coef=0.0, temperature=1.0):
    """Gradient of the clipped loss over the whole batch, gone through in the given micro-batches."""
    model.zero_grad()
    advantages = torch.linspace(-1, 2, len(rollouts))[:, None].expand(rollouts.mask.shape)
    for rows in batches:
        part = rollouts.select(rows)
        width = part.mask.shape[1]
        logp, entropy = of(model, part, temperature, with_grad_entropy=entropy_coef > 0)
        loss, _ = clipped_loss(
            logp, part.old_logp, advantages[rows, :width], part.mask, clip_low=0.9, clip_high=9.0, denominator=int(rollouts.mask.sum()),
            entropy=entropy, entropy_coef=entropy_coef,
        )  # fmt: skip
        loss.backward()
    return torch.cat([p.grad.flatten() for p in model.parameters()])


def assert_same_gradient(a, b):
    assert b.norm() > 1e-3
    assert ((a - b).norm() / b.norm()).item() < 1e-5


def differences(f, x: torch.Tensor, directions: list[torch.Tensor], h: float) -> torch.Tensor:
    """The derivative of f at x along each direction, by central differences: what holds whatever autograd does."""
    return torch.stack([(f(x + h * d) - f(x - h * d)) / (2 * h) for d in directions])


@pytest.mark.parametrize("temperature", [1.0, 0.6])
def test_the_gradient_of_a_log_prob_is_that_of_its_formula(temperature):
    """d log p_y / d z_v = ([v = y] - p_v) / temperature: by hand, by autograd in float64, and by differences."""
    g = torch.Generator().manual_seed(0)
    logits, targets = 3 * torch.randn(6, V, generator=g, dtype=torch.float64), torch.randint(0, V, (6,), generator=g)
    weights = torch.randn(6, generator=g, dtype=torch.float64)

    def total(z):
        return (weights * (z.view(6, V) / temperature).log_softmax(-1)[range(6), targets]).sum()

    ours = logits.float().requires_grad_()
    logp, entropy = scorer._TokenLogp.apply(ours, targets, temperature)
    (logp * weights).sum().backward()
    p = (logits / temperature).softmax(-1)
    by_hand = weights[:, None] * (torch.nn.functional.one_hot(targets, V) - p) / temperature
    by_autograd = torch.autograd.functional.jacobian(total, logits.flatten()).view(6, V)
    by_differences = differences(total, logits.flatten(), list(torch.eye(6 * V, dtype=torch.float64)), 1e-5).view(6, V)
    for expected in (by_hand, by_autograd, by_differences):
        torch.testing.assert_close(ours.grad.double(), expected, rtol=0, atol=1e-6)
    torch.testing.assert_close(logp.double(), p.log()[range(6), targets], rtol=0, atol=1e-5)
    torch.testing.assert_close(entropy.double(), -(p * p.log()).sum(-1), rtol=0, atol=1e-5)


@pytest.mark.parametrize("entropy_coef", [0.0, 0.05])
@pytest.mark.parametrize("temperature", [1.0, 0.6])
def test_the_gradient_of_the_whole_loss_is_that_of_its_formula(model, rollouts, temperature, entropy_coef):
    """Clipped objective, KL and entropy bonus, token by token in float64: by autograd, and by differences along random directions."""
    ours, plain = exact(model, ATTENTION), exact(model)
    rows = [(i, rollouts.prompt_ids[i], rollouts.completion_ids[i, :n].tolist()) for i, n in enumerate(LENGTHS) if n]
    g = torch.Generator().manual_seed(3)
    with torch.no_grad():
        now, _ = of(plain, rollouts, temperature)
    # a policy that has moved: some ratios are outside the clip, on either side
    rollouts.old_logp, ref_logp, advantages = (x + torch.randn(now.shape, generator=g) * s for x, s in ((now, 0.4), (now, 0.4), (0, 1.0)))

    def loss_by_formula(weights):
        total = 0.0
        named = dict(zip(dict(plain.named_parameters()), torch.split(weights, [p.numel() for p in plain.parameters()])))
        for i, prompt, completion in rows:
            shaped = {name: named[name].view_as(p) for name, p in plain.named_parameters()}
            logp, entropy = plain_logp_and_entropy(lambda **kw: torch.func.functional_call(plain, shaped, kwargs=kw), prompt, completion, temperature)
            for t in range(len(completion)):
                ratio, a = (logp[t] - rollouts.old_logp[i, t]).exp(), advantages[i, t]
                gain = torch.minimum(ratio * a, ratio.clamp(0.8, 1.28) * a)
                log_ref = ref_logp[i, t] - logp[t]
                total = total + gain - 0.1 * (log_ref.exp() - log_ref - 1) + entropy_coef * entropy[t]
        return -total / sum(LENGTHS)

    logp, entropy = of(ours, rollouts, temperature, with_grad_entropy=entropy_coef > 0)
    loss, stats = clipped_loss(
        logp, rollouts.old_logp, advantages, rollouts.mask, ref_logp=ref_logp, kl_coef=0.1, entropy=entropy, entropy_coef=entropy_coef
    )
    loss.backward()
    assert stats["clipped_low"] > 0 and stats["clipped_high"] > 0
    gradient = torch.cat([p.grad.flatten() for p in ours.parameters()])
    weights = torch.cat([p.detach().flatten() for p in plain.parameters()])
    by_autograd = torch.autograd.functional.jacobian(loss_by_formula, weights)
    assert gradient.norm() > 1e-3
    assert loss.item() == pytest.approx(loss_by_formula(weights).item(), abs=1e-6)
    assert (gradient - by_autograd).norm() < 5e-6 * gradient.norm()  # the softmax of ours is float32: 5e-7
    directions = [gradient / gradient.norm(), *torch.nn.functional.normalize(torch.randn(3, len(weights), generator=g, dtype=torch.float64))]
    with torch.no_grad():
        slopes = differences(loss_by_formula, weights, directions, 1e-6)
    torch.testing.assert_close(slopes, torch.stack([gradient @ d for d in directions]), rtol=0, atol=5e-6 * gradient.norm().item())


@pytest.mark.parametrize("name", ["qwen", "llama", "gpt2"])
def test_the_gradient_does_not_depend_on_the_micro_batches(name, rollouts):
    model = new_model(name)
    whole = gradient(model, rollouts, [torch.arange(5)])
    for budget in (1, 10, 20, 10_000):
        assert_same_gradient(gradient(model, rollouts, micro_batches(rollouts, torch.arange(5), budget)), whole)
    assert_same_gradient(gradient(model, rollouts, [torch.tensor([4, 2, 0]), torch.tensor([3, 1])]), whole)


@pytest.mark.parametrize("entropy_coef", [0.0, 0.5])
def test_chunked_logits_give_the_same_values_and_gradients(monkeypatch, rollouts, entropy_coef):
    model = new_model("qwen")
    values, grad = of(model, rollouts, 0.6), gradient(model, rollouts, [torch.arange(5)], entropy_coef, 0.6)
    monkeypatch.setattr(scorer, "LOGITS_AT_ONCE", 3 * V)  # three positions at a time; there are 20
    for ours, expected in zip(of(model, rollouts, 0.6), values):
        torch.testing.assert_close(ours, expected, rtol=0, atol=2e-6)
    assert_same_gradient(gradient(model, rollouts, [torch.arange(5)], entropy_coef, 0.6), grad)


@both_scorers
def test_the_gradient_of_the_entropy_is_that_of_its_definition(rollouts, plain):
    model = new_model("qwen")
    of(model, rollouts, 0.6, plain, with_grad_entropy=True)[1].sum().backward()
    ours = torch.cat([p.grad.flatten() for p in model.parameters()])
    model.zero_grad()
    for prompt, completion, n in zip(rollouts.prompt_ids, rollouts.completion_ids.tolist(), LENGTHS):
        plain_logp_and_entropy(model, prompt, completion[:n], 0.6)[1].sum().backward()
    assert_same_gradient(ours, torch.cat([p.grad.flatten() for p in model.parameters()]))


def test_the_entropy_carries_a_gradient_only_if_asked(rollouts):
    model = new_model("qwen")
    assert not of(model, rollouts)[1].requires_grad and not of(model, rollouts, plain=True)[1].requires_grad
    without, with_bonus = (gradient(model, rollouts, [torch.arange(5)], coef) for coef in (0.0, 0.5))
    assert (without - with_bonus).norm() > 0.01 * without.norm()


def test_logits_of_all_positions_never_exist_at_once(monkeypatch, rollouts):
    """The output layer sees completion positions alone, a chunk at a time, and no logits are kept for the backward pass."""
    monkeypatch.setattr(scorer, "LOGITS_AT_ONCE", 4 * V)
    model = new_model("llama")
    seen, kept = [], []
    model.get_output_embeddings().register_forward_hook(lambda _, inputs, output: seen.append(tuple(output.shape)))
    with torch.autograd.graph.saved_tensors_hooks(lambda x: kept.append(tuple(x.shape)) or x, lambda x: x):
        logp, _ = of(model, rollouts)
    assert seen == [(4, V)] * 5  # 20 valid tokens, not 5 rows x 16 columns
    assert not [s for s in kept if s[-1:] == (V,)], "logits were saved"
    logp.sum().backward()
    assert seen == [(4, V)] * 10  # computed again, chunk by chunk


def test_gradient_checkpointing_gives_the_same_gradient(rollouts):
    model = new_model("qwen").train()
    plain = gradient(model, rollouts, [torch.arange(5)])
    model.gradient_checkpointing_enable({"use_reentrant": False})
    assert_same_gradient(gradient(model, rollouts, [torch.arange(5)]), plain)


# -- micro-batches ----------------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("budget", [1, 15, 40, 200, 10_000])
def test_micro_batches_cover_every_row_once_within_the_budget(budget):
    g = torch.Generator().manual_seed(0)
    rollouts = make_rollouts(torch.randint(1, 9, (30,), generator=g).tolist(), torch.randint(0, 20, (30,), generator=g).tolist())
    wanted = torch.randperm(30, generator=g)[:23]
    batches = list(micro_batches(rollouts, wanted, budget, packed=False))
    assert sorted(torch.cat(batches).tolist()) == sorted(wanted.tolist())
    for rows in batches:
        longest = max(len(rollouts.prompt_ids[i]) + int(rollouts.lengths[i]) for i in rows.tolist())
        assert len(rows) * longest <= budget or len(rows) == 1, "padded to the longest row"
    if budget == 10_000:
        assert len(batches) == 1
    if budget == 200:  # 23 rows of up to 27 tokens: about four batches, not one for each row
        assert len(batches) <= 6


def test_packed_micro_batches_count_a_prompt_once_and_keep_a_group_together():
    rollouts = make_rollouts([6, 6, 6, 4, 4, 4], [3, 1, 2, 5, 5, 5], groups=[1, 1, 1, 0, 0, 0])
    rollouts.prompt_ids = [rollouts.prompt_ids[0]] * 3 + [rollouts.prompt_ids[3]] * 3
    assert [b.tolist() for b in micro_batches(rollouts, torch.arange(6), 19)] == [[3, 4, 5], [0, 1, 2]]  # 4 + 15 and 6 + 6 tokens
    assert [b.tolist() for b in micro_batches(rollouts, torch.arange(6), 14)] == [[3, 4], [5], [0, 1, 2]]
    assert [b.tolist() for b in micro_batches(rollouts, torch.tensor([5, 0, 3]), 100)] == [[5, 3, 0]]


def test_no_rows_make_no_micro_batch(rollouts):
    assert list(micro_batches(rollouts, torch.tensor([], dtype=torch.long), 100)) == []


# -- master weights ---------------------------------------------------------------------------------------------------------------------


def bfloat16_layer():
    """Weights between 2**-8 and 2**-7, where neighbours in bfloat16 are 2**-15 = 3e-5 apart."""
    torch.manual_seed(0)
    layer = torch.nn.Linear(16, 16, bias=False)
    with torch.no_grad():
        layer.weight.copy_(2.0**-8 * (1.1 + 0.8 * torch.rand(16, 16)))
    return layer.bfloat16()


def test_master_weights_move_where_pure_bfloat16_stands_still():
    """AdamW moves a weight by about 1e-6 a step, less than half the way to the next bfloat16. Twenty steps add up to more."""
    layer, pure = bfloat16_layer(), bfloat16_layer()
    start = layer.weight.detach().clone()
    reference = start.float().requires_grad_()
    masters = MasterWeights(layer)
    ours = torch.optim.AdamW(masters.parameters, lr=1e-6, weight_decay=0.0)
    theirs = torch.optim.AdamW([reference], lr=1e-6, weight_decay=0.0)
    naive = torch.optim.AdamW(pure.parameters(), lr=1e-6, weight_decay=0.0)
    g = torch.Generator().manual_seed(1)
    sign = torch.randn(16, 16, generator=g).sign()
    for _ in range(20):
        parts = [(sign * torch.rand(16, 16, generator=g)).bfloat16() for _ in range(2)]  # two micro-batches
        for part in parts:
            layer.weight.grad = part.clone()
            masters.collect_grads()
            assert layer.weight.grad is None
        reference.grad = parts[0].float() + parts[1].float()
        pure.weight.grad = parts[0] + parts[1]
        for optimizer in (ours, theirs, naive):
            optimizer.step()
            optimizer.zero_grad()
        masters.write_back()
    torch.testing.assert_close(masters.parameters[0].detach(), reference.detach(), rtol=0, atol=1e-9)
    assert torch.equal(layer.weight, reference.bfloat16())
    assert torch.equal(pure.weight, start)
    assert (layer.weight != start).float().mean() > 0.95


def test_masters_keep_what_bfloat16_cannot_show():
    layer = bfloat16_layer()
    masters = MasterWeights(layer)
    with torch.no_grad():
        masters.parameters[0].add_(1e-6)
    masters.write_back()
    assert masters.parameters[0].dtype == torch.float32 and layer.weight.dtype == torch.bfloat16
    assert not torch.equal(masters.parameters[0], layer.weight.float())


def test_a_float32_model_is_its_own_master():
    model = new_model("qwen")
    masters = MasterWeights(model)
    assert [p.data_ptr() for p in masters.parameters] == [p.data_ptr() for p in model.parameters()]
    model.lm_head.weight.grad = torch.ones_like(model.lm_head.weight)
    masters.collect_grads()
    masters.write_back()
    assert torch.equal(model.lm_head.weight.grad, torch.ones_like(model.lm_head.weight))


def test_frozen_weights_have_no_master():
    layer = bfloat16_layer()
    frozen = copy.deepcopy(layer).requires_grad_(False)
    assert MasterWeights(frozen).parameters == [] and len(MasterWeights(layer).parameters) == 1


# -- loading ----------------------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("named, expected", [(None, set()), (5, {5}), ([5, 9], {5, 9})])
def test_every_end_token_that_tokenizer_or_generation_config_names_is_a_stop_token(model_folder, tmp_path, named, expected):
    folder = shutil.copytree(model_folder, tmp_path / "model")
    (folder / "generation_config.json").write_text(json.dumps({"eos_token_id": named} if named else {}))
    loaded = load_policy(str(folder), device="cpu")
    assert loaded.stop_ids == expected | {loaded.tokenizer.eos_token_id}
    assert loaded.model.dtype == torch.float32


def test_a_folder_without_model_or_tokenizer_is_refused_with_a_remedy(model_folder, tmp_path):
    with pytest.raises(SettingError, match="no model folder"):
        load_policy(str(tmp_path / "nothing"))
    with pytest.raises(SettingError, match="no config.json"):
        load_policy(str(tmp_path))
    shutil.copy(model_folder / "config.json", tmp_path)
    with pytest.raises(SettingError, match="tokenizer.save_pretrained"):
        load_policy(str(tmp_path))


SMALL = dict(vocab_size=800, hidden_size=32, intermediate_size=48, num_hidden_layers=2, num_attention_heads=2, num_key_value_heads=1)


def saved(model, model_folder, tmp_path) -> str:
    """A folder with this model and the built-in tokenizer. The weights are scaled up, so that mistakes show in the log-probs."""
    folder = shutil.copytree(model_folder, tmp_path / "model")
    with torch.no_grad():
        for weight in model.parameters():
            if weight.dim() > 1:
                weight.mul_(8.0)
    model.save_pretrained(folder)
    return str(folder)


def test_a_model_that_scales_its_logits_after_the_output_layer_is_followed(model_folder, tmp_path):
    from transformers import GraniteConfig, GraniteForCausalLM

    policy = load_policy(saved(GraniteForCausalLM(GraniteConfig(**SMALL, logits_scaling=8.0)), model_folder, tmp_path))
    rollouts = make_rollouts(PROMPT_LENGTHS, LENGTHS)
    logp, _ = of(policy.model, rollouts)
    assert logp[0, :6].tolist() == pytest.approx(reference_logp_and_entropy(policy.model, rollouts.prompt_ids[0],
                                                                            rollouts.completion_ids[0, :6].tolist(), 1.0)[0], abs=1e-4)  # fmt: skip


def test_a_model_that_changes_its_logits_in_an_unknown_way_needs_the_plain_engine(monkeypatch):
    from transformers import Qwen2ForCausalLM

    real = Qwen2ForCausalLM.forward

    def forward(self, *args, **kwargs):
        out = real(self, *args, **kwargs)
        out.logits = out.logits * 1.5
        return out

    monkeypatch.setattr(Qwen2ForCausalLM, "forward", forward)
    with pytest.raises(SettingError, match=r"the fast engine cannot follow \(.*\). Choose --engine plain"):
        load_policy("tiny")
    assert load_policy("tiny", engine="plain").complete.complete is rollout.complete


def test_completions_that_would_run_past_the_positions_of_the_model_are_refused():
    policy = load_policy("tiny")  # 512 positions
    check_length(policy.model, [[3] * 12], 500)
    with pytest.raises(SettingError, match="make 513 tokens, but the model has positions for 512"):
        check_length(policy.model, [[3], [3] * 13], 500)


def new_gemma2():
    """Its attention caps the scores, which the stock fast attention and ours do not do."""
    from transformers import Gemma2Config, Gemma2ForCausalLM

    return Gemma2ForCausalLM(Gemma2Config(**SMALL, head_dim=16, sliding_window=4, attn_logit_softcapping=5.0))


def new_bloom():
    """Its positions are a bias in the scores that it makes of the attention mask."""
    from transformers import BloomConfig, BloomForCausalLM

    return BloomForCausalLM(BloomConfig(vocab_size=800, hidden_size=32, n_layer=2, n_head=2))


def new_phimoe():
    """Its window, longer than what is tried when it is loaded, is in the mask that the model makes, and its attention is not told."""
    from transformers import PhimoeConfig, PhimoeForCausalLM

    return PhimoeForCausalLM(PhimoeConfig(**SMALL, sliding_window=20, num_local_experts=2, num_experts_per_tok=1))


def new_gpt_oss():
    """Its attention has a sink, which takes a share of the probability. Ours knows of none and says nothing: only the log-probs differ."""
    from transformers import GptOssConfig, GptOssForCausalLM

    return GptOssForCausalLM(GptOssConfig(**SMALL, head_dim=16, num_local_experts=2, num_experts_per_tok=1))


def new_gpt_neo():
    """Every other layer sees four tokens, by a mask of its own."""
    from transformers import GPTNeoConfig, GPTNeoForCausalLM

    shape = dict(vocab_size=800, hidden_size=32, num_layers=2, num_heads=2, window_size=4)
    return GPTNeoForCausalLM(GPTNeoConfig(**shape, attention_types=[[["global", "local"], 1]]))


def new_mamba():
    """Recurrent: padding on the left enters its state, and its cache has another name."""
    from transformers import MambaConfig, MambaForCausalLM

    return MambaForCausalLM(MambaConfig(vocab_size=800, hidden_size=32, state_size=8, num_hidden_layers=2))


def new_recurrent_gemma():
    """Recurrent layers and windows, and a cache that it keeps in itself."""
    from transformers import RecurrentGemmaConfig, RecurrentGemmaForCausalLM

    windows = dict(lru_width=32, attention_window_size=16)
    return RecurrentGemmaForCausalLM(RecurrentGemmaConfig(**SMALL | dict(num_hidden_layers=3, intermediate_size=96), **windows))


def new_falcon():
    """Its dropout is a module under the name that others have a number for."""
    from transformers import FalconConfig, FalconForCausalLM

    return FalconForCausalLM(FalconConfig(vocab_size=800, hidden_size=32, num_hidden_layers=2, num_attention_heads=2, alibi=True))


def new_opt():
    """Its dropout is a number, and it leaves out whole layers."""
    from transformers import OPTConfig, OPTForCausalLM

    shape = dict(vocab_size=800, hidden_size=32, ffn_dim=48, num_hidden_layers=2, num_attention_heads=2, word_embed_proj_dim=32)
    return OPTForCausalLM(OPTConfig(**shape, dropout=0.5, layerdrop=0.5))


def new_bigcode():
    """Its attention has dropout as a number, the rest as modules."""
    from transformers import GPTBigCodeConfig, GPTBigCodeForCausalLM

    shape = dict(vocab_size=800, n_embd=32, n_layer=2, n_head=2)
    return GPTBigCodeForCausalLM(GPTBigCodeConfig(**shape, attn_pdrop=0.5, resid_pdrop=0.5, embd_pdrop=0.5))


@pytest.mark.parametrize("checkpointing", [False, True])
@pytest.mark.parametrize("new", [new_opt, new_bigcode, new_bloom, new_falcon])
def test_no_architecture_is_trained_with_dropout_in_whatever_form(new, checkpointing):
    """Ready to be trained, it gives the log-probs of its evaluation mode, each time, and its activations are recomputed if asked for."""
    from transformers.modeling_layers import GradientCheckpointingLayer

    torch.manual_seed(0)
    batch, mine, twin = make_rollouts(PROMPT_LENGTHS, LENGTHS), Policy(new(), None, set()), Policy(new().eval(), None, set())
    twin.model.load_state_dict(mine.model.state_dict())
    mine.prepare(TrainConfig(gradient_checkpointing=checkpointing))
    expected, found = twin.logp_of(batch, 1.0)[0], [mine.logp_of(batch, 1.0)[0] for _ in range(3)]
    assert all(torch.allclose(x, expected, atol=1e-5) for x in found)
    assert all(p.grad is None for p in mine.model.parameters()), "the rehearsal leaves nothing behind"
    seen = []
    layer = next(m for m in mine.model.modules() if isinstance(m, GradientCheckpointingLayer))
    next(layer.children()).register_forward_hook(lambda *_: seen.append(1))
    mine.logp_of(batch, 1.0)[0].sum().backward()
    assert len(seen) == (2 if checkpointing else 1)


@pytest.mark.parametrize("change, said", [
    (lambda out: setattr(out, "logits", out.logits + torch.randn(out.logits.shape)), "gives other log-probs to the same text each time"),
    (lambda out: setattr(out, "logits", out.logits.detach()), "cannot be trained .*does not require grad.* Choose another model"),
])  # fmt: skip
def test_what_cannot_be_trained_is_found_out_before_the_first_step(change, said):
    model = new_model("qwen")
    model.set_attn_implementation("sdpa")
    model.register_forward_hook(lambda module, given, out: change(out))
    with pytest.raises(SettingError, match=said):
        Policy(model, None, set()).prepare(TrainConfig())


def test_a_model_that_cannot_read_a_text_is_refused_in_one_sentence(monkeypatch):
    from transformers import Qwen2ForCausalLM

    monkeypatch.setattr(Qwen2ForCausalLM, "forward", lambda *args, **kwargs: torch.zeros(2) @ torch.zeros(3))
    with pytest.raises(SettingError, match="The model 'tiny' cannot read a text .inconsistent tensor size.* Choose another model"):
        load_policy("tiny")


@pytest.mark.parametrize("rope, most", [
    (dict(rope_type="longrope", long_factor=[2.0] * 8, short_factor=[1.0] * 8, original_max_position_embeddings=64), 64),
    (dict(rope_type="dynamic", factor=4.0, original_max_position_embeddings=64), 64),
    (dict(rope_type="dynamic", factor=4.0), 256),
    (dict(rope_type="yarn", factor=4.0, original_max_position_embeddings=64), 256),
    (dict(full_attention=dict(rope_type="dynamic", factor=4.0, original_max_position_embeddings=64), sliding_attention=dict(rope_type="default")), 64),
])  # fmt: skip
def test_a_model_whose_positions_change_with_the_length_is_used_up_to_its_original_length(rope, most):
    """Past it the keys that the sampler has in its cache are turned another way than those of the training forward."""
    from transformers import Gemma3TextConfig, LlamaConfig

    kind = Gemma3TextConfig if "full_attention" in rope else LlamaConfig
    assert most_positions(kind(**SMALL, head_dim=16, max_position_embeddings=256, rope_parameters=rope)) == most


UNUSUAL = [new_gemma2, new_bloom, new_falcon, new_phimoe, new_gpt_oss, new_gpt_neo, new_mamba, new_recurrent_gemma]


@pytest.mark.parametrize("new", UNUSUAL)
def test_models_that_the_fast_engine_cannot_follow_are_refused_and_work_with_the_plain_one(new, model_folder, tmp_path):
    """Sampled side by side, from prompts of unlike length, past windows, with log-probs that are those of each row alone."""
    torch.manual_seed(0)
    folder = saved(new(), model_folder, tmp_path)
    with pytest.raises(SettingError, match=r"cannot follow \(.*\). Choose --engine plain"):
        load_policy(folder)
    plain = load_policy(folder, engine="plain")
    prompts = [[5, 6, 7], [8], [9, 10, 11, 12, 13, 14, 15]]
    settings = dict(completions_per_prompt=2, max_new_tokens=30, stop_ids={3, 9}, generator=torch.Generator().manual_seed(0))
    rollouts = sample(plain.model, plain.tokenizer, prompts, complete=plain.complete, **settings)
    assert rollouts.group.tolist() == [0, 0, 1, 1, 2, 2] and rollouts.lengths.max() > 20
    logp, entropy = plain.score(rollouts, torch.arange(6), 1.0, 100)
    for i, n in enumerate(rollouts.lengths.tolist()):
        with torch.no_grad():
            alone = plain_logp_and_entropy(plain.model, rollouts.prompt_ids[i], rollouts.completion_ids[i, :n].tolist(), 1.0)
        for found in ((rollouts.old_logp, rollouts.entropy), (logp, entropy)):
            for ours, expected in zip(found, alone):
                torch.testing.assert_close(ours[i, :n], expected, rtol=0, atol=1e-3)


def test_what_the_plain_engine_does_without(model_folder, tmp_path):
    """A recurrent model is sampled without padding and, where its cache is not found, without a cache; a usual one with both."""
    assert load_policy("tiny", engine="plain").complete.complete is rollout.complete
    unpadded = load_policy(saved(new_mamba(), model_folder, tmp_path), engine="plain").complete.complete
    assert unpadded is not rollout.complete and unpadded.__name__ == "complete_by_length"


@pytest.mark.parametrize("inner", [rollout.complete, choice.without_cache])
def test_prompts_of_one_length_together_give_the_same_completions(qwen, inner):
    u = torch.rand(10, 12, generator=torch.Generator().manual_seed(0))
    prompts = [[3, 4, 5], [6], [7, 8, 9], [14, 6], [9]]
    usual, other = (way(stock(qwen), prompts, 2, {2, 9}, 1.3, 0.9, u) for way in (rollout.complete, choice.by_length(inner)))
    lengths, _ = rollout.completion_lengths(usual[0], {2, 9})
    mask = torch.arange(usual[0].shape[1]) < lengths[:, None]
    assert torch.equal(usual[0][mask], other[0][:, : mask.shape[1]][mask])
    for a, b in zip(usual[1:], other[1:]):
        torch.testing.assert_close(a[mask], b[:, : mask.shape[1]][mask], rtol=0, atol=1e-4)


def test_a_model_with_a_window_longer_than_what_is_tried_is_followed(model_folder, tmp_path):
    from transformers import MistralConfig, MistralForCausalLM

    policy = load_policy(saved(MistralForCausalLM(MistralConfig(**SMALL, sliding_window=20)), model_folder, tmp_path))
    settings = dict(completions_per_prompt=2, max_new_tokens=50, stop_ids={800}, complete=policy.complete)
    rollouts = sample(policy.model, policy.tokenizer, [[5, 6, 7], [8]], **settings)
    exact, _ = Policy(stock(policy.model), None, set()).score(rollouts, torch.arange(4), 1.0, 100)
    packed, _ = policy.score(rollouts, torch.arange(4), 1.0, 100)
    torch.testing.assert_close(rollouts.old_logp, exact, rtol=0, atol=1e-4)
    torch.testing.assert_close(packed, exact, rtol=0, atol=1e-4)


def test_an_unknown_engine_is_refused():
    with pytest.raises(SettingError, match="There is no engine 'slow'. Choose fast or plain"):
        load_policy("tiny", engine="slow")


def test_a_folder_with_damaged_weights_is_refused(model_folder, tmp_path):
    folder = shutil.copytree(model_folder, tmp_path / "m")
    (folder / "model.safetensors").write_bytes(b"not weights")
    with pytest.raises(SettingError, match="cannot be loaded"):
        load_policy(str(folder))


# -- packed batches ---------------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("prompt, lengths", [(9, [6, 9, 1, 4, 0, 7, 7, 2]), (1, [40, 3, 38, 12, 39, 40]), (4, [1, 1, 1, 1]), (6, [0, 0])])
def test_packed_rows_give_the_gradient_of_padded_rows(model, prompt, lengths):
    """In float64, to 1e-6: shared prompts, completions of one token and none, rows that are asked whole and rows that are not."""
    rollouts = make_rollouts([prompt] * len(lengths), lengths)
    rollouts.prompt_ids[1] = rollouts.prompt_ids[0]
    rollouts.prompt_ids[-1] = rollouts.prompt_ids[-2]
    weights = torch.rand(rollouts.mask.shape, generator=torch.Generator().manual_seed(1), dtype=torch.float64) - 0.3

    def gradient_and_logp(twin):
        logp, entropy = of(twin, rollouts, 0.7)
        (logp * weights).sum().backward()
        gradients = [p.grad if p.grad is not None else torch.zeros_like(p) for p in twin.parameters()]
        return torch.cat([g.flatten() for g in gradients]), logp.detach(), entropy

    packed, padded = gradient_and_logp(copy.deepcopy(model).double()), gradient_and_logp(stock(model).double())
    assert (packed[0] - padded[0]).norm() <= 1e-6 * padded[0].norm() and (sum(lengths) == 0 or padded[0].norm() > 1e-3)
    for ours, expected in zip(packed[1:], padded[1:]):
        torch.testing.assert_close(ours, expected, rtol=0, atol=1e-5)


def test_a_packed_batch_holds_every_prompt_once_and_no_padding():
    batch = Packed([[5, 6], [7], [5, 6]], [[8, 9, 3], [4, 3], []], "cpu")
    assert batch.ids.tolist() == [[5, 6, 7, 8, 9, 4]]  # the last token of a completion predicts nothing
    assert batch.positions.tolist() == [[0, 1, 0, 2, 3, 1]]
    assert batch.predicts.tolist() == [1, 3, 4, 2, 5]


def test_rows_of_like_length_stand_side_by_side():
    prompts, completions = [[1] * 10] * 6, [[2] * n for n in (30, 29, 90, 88, 3, 31)]
    blocks = Packed(prompts, completions, "cpu").blocks
    assert [len(block.keys) for block in blocks] == [2, 3, 1, 1] and all(block.keys.shape[1] >= 10 for block in blocks)
    padding = sum(block.keys.numel() for block in blocks) / sum([*(10 + n - 1 for n in (30, 29, 90, 88, 3, 31)), 10])
    assert padding < 1.1


def test_the_entropy_of_both_fast_twins_is_that_of_entropy_py():
    """scorer._TokenLogp and decoder.choose compute it in passing. Whoever changes its definition must change them too."""
    logits = 3 * torch.randn(50, V, generator=torch.Generator().manual_seed(0))
    logits[:10, 4] = float("-inf")
    for temperature in (1.0, 0.6):
        expected = token_entropy(logits, temperature)
        _, of_scorer = scorer._TokenLogp.apply(logits, torch.zeros(50, dtype=torch.long), temperature)
        _, _, of_decoder = decoder.choose(logits, temperature, 1.0, torch.full((50,), 0.5))
        for name, found in (("rlvr/engine/scorer.py", of_scorer), ("rlvr/engine/decoder.py", of_decoder)):
            torch.testing.assert_close(found, expected, rtol=0, atol=1e-5, msg=f"{name} has another entropy than rlvr/entropy.py")
