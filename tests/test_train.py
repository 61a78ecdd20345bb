"""The loop: what a step does to the policy, what a run leaves behind, and that it learns."""

import csv
import json
import math
from functools import lru_cache

import pytest
import torch
from helpers import SMALL_DATA, SMALL_MODEL, STORIES, exact, one_step, plain_logp_and_entropy

from rlvr import reward
from rlvr import train as train_module
from rlvr.advantage import grpo_advantages
from rlvr.config import SettingError, TrainConfig
from rlvr.data import encode_prompts, load_problems
from rlvr.data import next_problems
from rlvr.evaluate import evaluate
from rlvr.policy import Policy, load_policy
from rlvr.run import held_out as held_out_module
from rlvr.run import session as session_module
from rlvr.run.defects import defects
from rlvr.train import Trainer, train

SMALL = dict(
    prompts_per_step=8, completions_per_prompt=4, mini_batch_prompts=4, steps=3, sampling_rounds=1, warmup_steps=0, final_eval_problems=0,
    max_new_tokens=20, overlong_buffer=10, model=SMALL_MODEL, data=SMALL_DATA, instruction="",
)  # fmt: skip
BUILT_IN = dict(model="tiny", data=STORIES, max_new_tokens=60, overlong_buffer=TrainConfig.overlong_buffer)  # knows what it does, and takes longer


def make_trainer(**settings) -> Trainer:
    config = TrainConfig(**(SMALL | settings))
    policy = load_policy(config.model, "cpu", config.dtype, config.engine)
    problems, prompts, _ = encode_prompts(policy.tokenizer, load_problems(config.data, "train", 64), "", 128)
    return Trainer(config, policy, problems, prompts)


def weights(trainer: Trainer) -> torch.Tensor:
    return torch.cat([p.detach().flatten().clone() for p in trainer.policy.model.parameters()])


@lru_cache(maxsize=None)  # several tests ask for the same baseline
def after(steps: int = 2, **settings) -> torch.Tensor:
    trainer = make_trainer(**settings)
    for _ in range(steps):
        trainer.step()
    return weights(trainer)


# ---------------------------------------------------------------------------------------------------------------------------------------
# A step


def test_one_seed_one_result():
    assert torch.equal(after(), after.__wrapped__())  # made anew
    assert not torch.equal(after(), after(seed=1))


@pytest.mark.parametrize("method", ["ppl", "pos", "ppl+pos"])
def test_strength_0_is_bit_equal_to_grpo_and_the_default_strength_is_not(method):
    baseline = after(method="grpo")
    assert torch.equal(after(method=method, ppl_alpha=0.0, pos_alpha=0.0), baseline)
    assert not torch.equal(after(method=method), baseline)


def test_the_factor_dropped_is_bit_equal_to_grpo():
    assert torch.equal(after(method="ppl", ppl_alpha=0.5, ppl_apply=False), after(method="grpo"))
    assert not torch.equal(after(method="ppl", ppl_alpha=0.5), after(method="grpo"))


def test_the_gradients_of_the_two_signs_add_up():
    """One denominator for all: what right and wrong answers teach apart is what they teach together."""
    gradients = {}
    for learn_from in ("all", "positive", "negative"):
        trainer = make_trainer(learn_from=learn_from, mini_batch_prompts=8, max_grad_norm=1e9, overlong_buffer=0)
        trainer.optimizer.adamw.register_step_pre_hook(
            lambda *_: gradients.update({learn_from: [p.grad.clone() for p in trainer.optimizer.weights.parameters]})  # noqa: B023
        )
        _, _, correct, shaped = one_step(trainer)
        assert not shaped[~correct if learn_from == "positive" else correct].any() or learn_from == "all"
    for whole, positive, negative in zip(gradients["all"], gradients["positive"], gradients["negative"]):
        torch.testing.assert_close(whole, positive + negative, rtol=0, atol=2e-6)
        assert positive.any() and negative.any()


@pytest.mark.parametrize("temperature", [1.0, 0.6])
def test_the_gradient_of_each_update_is_that_of_the_formula_row_by_row(temperature, monkeypatch):
    """Two updates of one batch, with KL and entropy bonus, in several micro-batches: in the second the policy has moved."""
    settings = dict(kl_coef=0.3, entropy_coef=0.05, filter_groups=False, micro_batch_tokens=60, max_grad_norm=1e9, lr=5e-3, temperature=temperature)
    trainer, rows_of, updates = make_trainer(**settings), [], []
    first, real = exact(trainer.policy.model), trainer.gradient
    monkeypatch.setattr(trainer, "gradient", lambda step, rows, tokens: rows_of.append(rows) or real(step, rows, tokens))
    trainer.optimizer.adamw.register_step_pre_hook(
        lambda *_: updates.append((exact(trainer.policy.model), [p.grad.clone() for p in trainer.optimizer.weights.parameters]))
    )
    _, batch, _, shaped = one_step(trainer)
    assert len(updates) == 2
    for rows, (model, gradient) in zip(rows_of, updates):
        total = 0.0
        for i in rows.tolist():
            completion = batch.completion_ids[i, : batch.lengths[i]].tolist()
            logp, entropy = plain_logp_and_entropy(model, batch.prompt_ids[i], completion, temperature)
            with torch.no_grad():
                ref_logp, _ = plain_logp_and_entropy(first, batch.prompt_ids[i], completion, temperature)
            a, ratio, log_ref = shaped[i, : len(logp)], (logp - batch.old_logp[i, : len(logp)]).exp(), ref_logp - logp
            gain = torch.minimum(ratio * a, ratio.clamp(0.8, 1.28) * a)
            total = total + (gain - 0.3 * (log_ref.exp() - log_ref - 1) + 0.05 * entropy).sum()
        (-total / int(batch.lengths[rows].sum())).backward()
        ours, plain = (torch.cat([g.flatten() for g in grads]) for grads in (gradient, [p.grad for p in model.parameters()]))
        assert (ours - plain).norm() < 1e-4 * plain.norm()
    assert ratio.min() < 0.95 and ratio.max() > 1.05


def test_the_micro_batch_size_changes_nothing_but_rounding():
    one, many = after(steps=1, micro_batch_tokens=100_000), after(steps=1, micro_batch_tokens=60)
    assert not torch.equal(one, weights(make_trainer()))
    torch.testing.assert_close(one, many, rtol=0, atol=2e-5)  # AdamW's first step is lr * sign(gradient): it magnifies rounding


def test_several_updates_share_one_batch_and_the_old_log_probs_stay():
    trainer = make_trainer(mini_batch_prompts=2, filter_groups=False, lr=5e-3)
    metrics, batch, _, _ = one_step(trainer)
    assert metrics["updates"] == 4
    # fresh log-probs differ from the old ones now; the ratio of the later updates was therefore not 1
    logp, _ = trainer.policy.score(batch, torch.arange(len(batch)), 1.0, 4096)
    assert (logp - batch.old_logp)[batch.mask].abs().max() > 1e-3


def test_groups_that_are_all_right_or_all_wrong_are_dropped_and_counted(monkeypatch):
    trainer = make_trainer(sampling_rounds=1)
    # groups 0 and 1 all right, 2 all wrong, the rest mixed
    pattern = [True] * 8 + [False] * 4 + [True, False, False, False] * 5
    monkeypatch.setattr(reward, "verify_all", lambda texts, golds, _: pattern[: len(texts)])
    metrics, _, _, shaped = one_step(trainer)
    assert (metrics["groups"], metrics["groups_kept"]) == (8, 5)
    assert (metrics["groups_all_right"], metrics["groups_all_wrong"]) == (2 / 8, 1 / 8)  # shares of the groups sampled


def test_the_filter_looks_at_correctness_and_not_at_the_reward(monkeypatch):
    # Every completion is right, but some are overlong: the rewards differ inside a group, and the group is dropped all the same.
    monkeypatch.setattr(reward, "verify_all", lambda texts, golds, _: [True] * len(texts))
    trainer = make_trainer(overlong_buffer=20, max_new_tokens=20)
    before = weights(trainer)
    metrics, _, _, _ = one_step(trainer)
    assert metrics["reward_std"] > 0 and metrics["groups_kept"] == 0 and metrics["updates"] == 0
    assert torch.equal(weights(trainer), before)


def test_refill_samples_again_until_the_batch_is_full_or_the_rounds_are_over(monkeypatch):
    calls = []

    def half_useful(texts, golds, _):  # every other group is mixed
        calls.append(len(texts) // 4)
        return [i % 8 == 0 for i in range(len(texts))]

    monkeypatch.setattr(reward, "verify_all", half_useful)
    trainer = make_trainer(sampling_rounds=3)
    metrics, batch, correct, _ = one_step(trainer)
    assert calls == [8, 4, 2]  # what was still missing each time
    assert metrics["sampling_rounds"] == 3 and metrics["groups_kept"] == 7
    assert len(batch) == 14 * 4 and batch.group.unique(return_counts=True)[1].tolist() == [4] * 14


def test_all_problems_come_once_before_one_comes_again():
    trainer = make_trainer()
    drawn = []
    for n in (40, 24, 64):
        chosen, trainer.queue = next_problems(trainer.queue, n, 64, trainer.shuffle)
        drawn += chosen
    assert sorted(drawn[:64]) == sorted(drawn[64:]) == list(range(64)) and drawn[:64] != drawn[64:]


def test_rows_without_advantage_are_skipped_but_count_as_tokens(monkeypatch):
    """With filtering off, a group that is all right has advantage 0: no work, but its tokens are in the mean."""
    trainer = make_trainer(filter_groups=False, mini_batch_prompts=8, overlong_buffer=0, micro_batch_tokens=100_000)
    monkeypatch.setattr(reward, "verify_all", lambda texts, golds, _: [True] * 16 + [True, False] * ((len(texts) - 16) // 2))
    real, seen = train_module.clipped_loss, []

    def watched(logp, old_logp, advantages, mask, **settings):
        seen.append((len(mask), settings["denominator"]))
        return real(logp, old_logp, advantages, mask, **settings)

    monkeypatch.setattr(train_module, "clipped_loss", watched)
    _, batch, _, _ = one_step(trainer)
    assert seen == [(16, int(batch.mask.sum()))]


def test_each_kept_group_is_in_exactly_one_update(monkeypatch):
    trainer = make_trainer(filter_groups=False, mini_batch_prompts=3)
    real, updates = trainer.gradient, []

    def watched(step, rows, micro_batch_tokens):
        updates.append(step.rollouts.group[rows].tolist())
        return real(step, rows, micro_batch_tokens)

    monkeypatch.setattr(trainer, "gradient", watched)
    trainer.step()
    assert [len(rows) for rows in updates] == [3 * 4, 3 * 4, 2 * 4]
    assert sorted(sum(updates, [])) == [group for group in range(8) for _ in range(4)]


def test_a_reward_function_gets_with_each_completion_the_row_of_its_problem():
    pairs = []

    def function(completions, answers, rows):
        pairs.extend((answer, row["answer"], row["problem"]) for answer, row in zip(answers, rows, strict=True))
        return [float(i % 2) for i in range(len(rows))]

    trainer = make_trainer()
    trainer.reward = function
    _, problem_ids, _ = trainer.sample_groups()
    problems = [trainer.problems[i] for i in problem_ids]
    assert pairs == [(p.answer, p.answer, p.problem) for p in problems] and len({p.problem for p in problems}) > 1


def one_right_in_four(texts, golds, _):
    """Stands in for verify_all: one right completion in each group of four, so that every group is kept."""
    return [i % 4 == 0 for i in range(len(texts))]


def test_a_right_answer_earns_1_and_a_wrong_one_minus_1(monkeypatch):
    monkeypatch.setattr(reward, "verify_all", one_right_in_four)
    metrics, *_ = one_step(make_trainer(overlong_buffer=0))
    assert (metrics["accuracy"], metrics["reward"]) == (0.25, -0.5)


def test_the_overlong_penalty_is_added_to_the_reward_and_scaled_by_its_factor(monkeypatch):
    monkeypatch.setattr(reward, "verify_all", one_right_in_four)
    trainer = make_trainer(method="grpo", max_new_tokens=20, overlong_buffer=15, overlong_factor=0.5)
    metrics, batch, correct, shaped = one_step(trainer)
    penalties = [min(0.0, -0.5 * (length - 5) / 15) for length in batch.lengths.tolist()]  # from token 5 on, -0.5 at token 20
    assert len(set(penalties)) > 2
    rewards = torch.tensor([(1.0 if right else -1.0) + penalty for right, penalty in zip(correct.tolist(), penalties)])
    assert metrics["reward"] == pytest.approx(rewards.mean().item(), abs=1e-6)
    torch.testing.assert_close(shaped[:, 0], grpo_advantages(rewards, batch.group), rtol=0, atol=1e-5)


def test_the_shares_of_clipped_tokens_and_the_loss_are_means_over_the_tokens(monkeypatch):
    monkeypatch.setattr(reward, "verify_all", one_right_in_four)
    real, clipped = train_module.clipped_loss, []

    def watched(*args, **kwargs):
        loss, stats = real(*args, **kwargs)
        clipped.append([stats["clipped_low"].item(), stats["clipped_high"].item(), loss.item() * kwargs["denominator"]])
        return loss, stats

    monkeypatch.setattr(train_module, "clipped_loss", watched)
    metrics, batch, *_ = one_step(make_trainer(mini_batch_prompts=2, lr=5e-3))
    tokens = int(batch.mask.sum())
    low, high, loss = (sum(column) for column in zip(*clipped))
    assert low > 0 and high > 0
    assert (metrics["clipped_low"], metrics["clipped_high"]) == (low / tokens, high / tokens)
    assert metrics["loss"] == pytest.approx(loss / tokens)


def test_the_defects_of_a_row_are_counted_with_the_steps_of_its_own_problem():
    trainer = make_trainer(**BUILT_IN | dict(data="tiny"))
    metrics, batch, *_ = one_step(trainer)
    problems = [trainer.problems[trainer.prompts.index(prompt)] for prompt in batch.prompt_ids]
    rows = zip(batch.text, batch.finished.tolist(), problems)
    skipped = [defects(text, finished, problem.solution_steps)["skipped_step"] for text, finished, problem in rows]
    assert metrics["defect_skipped_step"] == sum(skipped) / len(skipped) > 0


@pytest.mark.parametrize("norm", [math.nan, math.inf])
def test_an_update_whose_gradient_norm_is_not_finite_is_skipped(monkeypatch, norm):
    trainer = make_trainer(mini_batch_prompts=8)
    monkeypatch.setattr(torch.nn.utils, "clip_grad_norm_", lambda *args: torch.tensor(norm))
    before = weights(trainer)
    metrics, *_ = one_step(trainer)
    assert metrics["skipped_updates"] == 1 and metrics["grad_norm"] is None and torch.equal(weights(trainer), before)


def test_a_step_with_a_non_finite_gradient_is_skipped_and_counted(monkeypatch):
    trainer = make_trainer(mini_batch_prompts=8)
    real, calls = train_module.clipped_loss, []

    def poisoned(*args, **kwargs):
        calls.append(1)
        loss, stats = real(*args, **kwargs)
        return (loss * math.nan if len(calls) == 1 else loss), stats

    monkeypatch.setattr(train_module, "clipped_loss", poisoned)
    before = weights(trainer)
    metrics, *_ = one_step(trainer)
    assert metrics["skipped_updates"] == 1 and metrics["updates"] == 0 and torch.equal(weights(trainer), before)
    metrics, *_ = one_step(trainer)
    assert metrics["skipped_updates"] == 0 and torch.isfinite(weights(trainer)).all() and not torch.equal(weights(trainer), before)


@pytest.mark.usefixtures("no_figure")
def test_a_run_whose_gradients_stay_non_finite_stops_with_a_diagnosis(tmp_path, monkeypatch):
    real = train_module.clipped_loss
    monkeypatch.setattr(train_module, "clipped_loss", lambda *a, **k: (real(*a, **k)[0] * math.inf, real(*a, **k)[1]))
    monkeypatch.setattr(session_module, "NON_FINITE_LIMIT", 3)
    settings = dict(mini_batch_prompts=1, filter_groups=False, prompts_per_step=12, out=str(tmp_path))
    with pytest.raises(SettingError, match="not finite in 3 updates"):
        train(TrainConfig(**(SMALL | settings)))


def test_gradients_above_the_norm_limit_are_scaled_down():
    def norm_in_the_update(limit):
        trainer, norms = make_trainer(max_grad_norm=limit), []
        trainer.optimizer.adamw.register_step_pre_hook(
            lambda *_: norms.append(sum(p.grad.norm() ** 2 for p in trainer.optimizer.weights.parameters) ** 0.5)
        )
        trainer.step()
        return norms[-1]

    assert norm_in_the_update(1e9) > 1e-2 and norm_in_the_update(1e-9) <= 1.01e-9


def test_learning_rate_warms_up_then_stays_or_decays_to_a_tenth():
    def rates(**settings):
        trainer, out = make_trainer(steps=10, warmup_steps=4, lr=1.0, **settings), []
        for number in range(1, 11):
            out.append(round(trainer.optimizer.learning_rate(number), 4))
        return out

    assert rates(lr_schedule="constant") == [0.2, 0.4, 0.6, 0.8, 1.0, 1.0, 1.0, 1.0, 1.0, 1.0]
    assert rates(lr_schedule="linear")[:4] == [0.2, 0.4, 0.6, 0.8] and rates(lr_schedule="linear")[-1] == 0.1


def test_learning_rate_and_weight_decay_reach_the_optimizer():
    trainer = make_trainer(lr=1e-2, warmup_steps=3, weight_decay=0.1)
    metrics, *_ = one_step(trainer)
    assert [(group["lr"], group["weight_decay"]) for group in trainer.optimizer.adamw.param_groups] == [(0.0025, 0.1)]
    assert metrics["lr"] == 0.0025


def test_gradient_checkpointing_is_switched_on_and_changes_no_weight():
    trainer = make_trainer(gradient_checkpointing=True)
    assert any(getattr(module, "gradient_checkpointing", False) for module in trainer.policy.model.modules())
    trainer.step()
    assert torch.equal(weights(trainer), after(steps=1))


def test_shaping_is_on_inside_its_window_alone():
    config = TrainConfig(method="pos", shape_start=3, shape_stop=5)
    assert [config.method_at(step, None) for step in range(1, 8)] == ["grpo", "grpo", "pos", "pos", "pos", "grpo", "grpo"]
    config = TrainConfig(method="pos", shape_start="plateau")
    assert [config.method_at(9, plateau) for plateau in (None, 9, 10)] == ["grpo", "pos", "grpo"]



def test_the_plateau_that_is_found_switches_shaping_on(monkeypatch):
    monkeypatch.setattr(train_module, "plateau_step", lambda entropies: 2 if len(entropies) >= 2 else None)
    trainer = make_trainer(method="pos", shape_start="plateau")
    log = [one_step(trainer)[0] for _ in range(3)]
    assert [(m["stage"], m["shaped"]) for m in log] == [("rising", 0), ("plateau", 1), ("plateau", 1)]
    assert torch.equal(weights(trainer), after(steps=3, method="pos", shape_start=2))


def test_outside_the_window_a_run_is_bit_equal_to_grpo():
    assert torch.equal(after(method="pos", shape_start=3), after(method="grpo"))
    assert not torch.equal(after(method="pos", shape_start=2), after(method="grpo"))
    assert torch.equal(after(method="pos", shape_start="plateau"), after(method="grpo"))


def test_recomputed_old_log_probs_agree_with_the_sampler():
    metrics, batch, _, _ = one_step(make_trainer(old_logp="recompute"))
    assert 0 < metrics["logp_drift"] < 1e-5 and metrics["seconds_scoring"] > 0
    metrics, _, _, _ = one_step(make_trainer())
    assert 0 < metrics["logp_drift"] < 1e-5 and metrics["seconds_scoring"] == 0


def updates_of_a_step(monkeypatch, **settings):
    """The metrics of a step, the sampler's log-probs, the rows scored, and for each update the log-probs it saw, new and old."""
    trainer, seen, scored, before = make_trainer(**settings), [], [], []
    loss, score, rescore = train_module.clipped_loss, Policy.score, Policy.rescore
    monkeypatch.setattr(Policy, "score", lambda self, batch, rows, *a: scored.append(rows) or score(self, batch, rows, *a))
    monkeypatch.setattr(Policy, "rescore", lambda self, batch, *a: before.append(batch.old_logp.clone()) or rescore(self, batch, *a))
    monkeypatch.setattr(
        train_module,
        "clipped_loss",
        lambda new, old, a, mask, **k: seen.append((new.detach()[mask], old[mask])) or loss(new, old, a, mask, **k),
    )
    metrics, batch, _, _ = one_step(trainer)
    return metrics, before[0], batch, torch.cat(scored) if scored else torch.tensor([]), seen


def test_in_bfloat16_only_what_later_updates_compare_with_is_scored(monkeypatch):
    """The first update's old log-probs are its own; those of later ones come from the policy before it, by the training forward."""
    settings = dict(dtype="bfloat16", mini_batch_prompts=4, filter_groups=False, micro_batch_tokens=100_000, method="grpo", lr=3e-3)
    metrics, sampler, batch, rows, (first, second) = updates_of_a_step(monkeypatch, **settings)
    assert len(rows) == 16 and metrics["updates"] == 2 and metrics["seconds_scoring"] > 0
    assert torch.equal(*first) and not torch.equal(*second)
    unscored = torch.ones(32, dtype=torch.bool).index_fill(0, rows, False)
    assert torch.equal(batch.old_logp[unscored], sampler[unscored]) and not torch.equal(batch.old_logp[rows], sampler[rows])
    assert 0 < metrics["logp_drift"] < 0.1  # of the first update: sampler against training forward


@pytest.mark.parametrize("settings", [dict(method="ppl"), dict(method="pos+ppl"), dict(method="grpo", old_logp="recompute")])
def test_later_and_first_are_scored_where_the_method_or_the_user_asks(monkeypatch, settings):
    metrics, sampler, batch, rows, _ = updates_of_a_step(monkeypatch, dtype="bfloat16", mini_batch_prompts=4, filter_groups=False, **settings)
    assert sorted(rows.tolist()) == list(range(32))
    drift = (batch.old_logp - sampler).abs()[batch.mask].mean().item()  # training forward against sampler, not against itself
    assert metrics["logp_drift"] == pytest.approx(drift) and drift > 1e-4


def test_recomputed_old_log_probs_bring_their_entropies():
    """What is logged, and what the stage detector sees, is then of the same pass."""
    entropies = [one_step(make_trainer(dtype="bfloat16", old_logp=way))[1].entropy for way in ("sampler", "recompute")]
    assert 0 < (entropies[0] - entropies[1]).abs().max() < 0.5


@pytest.mark.parametrize("settings", [{}, dict(kl_coef=0.3, entropy_coef=0.05, temperature=0.6)])
def test_the_plain_engine_trains_to_the_same_weights(settings):
    """Rounding alone parts the two: the same completions are drawn, and AdamW's first steps magnify what differs."""
    fast, plain = make_trainer(**settings), make_trainer(engine="plain", **settings)
    assert fast.policy.packed and not plain.policy.packed
    for _ in range(2):
        (metrics, batch, *_), (plain_metrics, plain_batch, *_) = one_step(fast), one_step(plain)
        assert batch.text == plain_batch.text
        assert metrics["entropy"] == pytest.approx(plain_metrics["entropy"], abs=1e-4)
        assert metrics["grad_norm"] == pytest.approx(plain_metrics["grad_norm"], rel=1e-3)
    assert plain_metrics["logp_drift"] < 1e-4
    assert (weights(fast) - weights(plain)).abs().mean() < 1e-5


def test_old_log_probs_are_taken_at_the_sampling_temperature():
    """Before the first update new and old log-probs are equal, whatever the temperature."""
    metrics, *_ = one_step(make_trainer(temperature=0.6))
    assert metrics["logp_drift"] < 1e-5


def test_the_text_is_for_the_verifier_and_what_was_sampled_is_trained(monkeypatch):
    """Encoded anew, a text may give other tokens than those that were drawn; here it would give nothing like them."""

    def after_a_step(spoil):
        trainer = make_trainer()
        trainer.reward = lambda texts, golds: [i % 3 == 0 for i in range(len(texts))]
        if spoil:
            monkeypatch.setattr(trainer.policy.tokenizer, "batch_decode", lambda rows, **settings: ["\u2603"] * len(rows))
        trainer.step()
        return weights(trainer)

    assert torch.equal(after_a_step(spoil=False), after_a_step(spoil=True))


def test_kl_and_entropy_terms_change_the_update_and_are_off_by_default():
    plain = after()
    assert torch.equal(after(kl_coef=0.0, entropy_coef=0.0), plain)
    assert not torch.equal(after(kl_coef=0.5), plain)
    assert not torch.equal(after(entropy_coef=0.1), plain)


def test_an_entropy_bonus_raises_the_entropy_at_the_sampled_positions():
    def entropy_after(coef):
        trainer = make_trainer(entropy_coef=coef)
        _, batch, _, _ = one_step(trainer)
        _, entropy = trainer.policy.score(batch, torch.arange(len(batch)), 1.0, 4096)
        return entropy[batch.mask].mean()  # of one batch, the same for both: the policies differ by the one update after it

    assert entropy_after(0.3) > entropy_after(0.0) + 0.01


def test_bfloat16_with_master_weights_trains():
    trainer = make_trainer(dtype="bfloat16", filter_groups=False)  # so that there is a second update, to score for
    before = weights(trainer)
    metrics, *_ = one_step(trainer)
    assert trainer.policy.model.dtype == torch.bfloat16 and trainer.optimizer.weights.parameters[0].dtype == torch.float32
    assert not torch.equal(weights(trainer), before)
    assert metrics["seconds_scoring"] > 0  # bfloat16: old log-probs come from the training forward
    assert metrics["logp_drift"] > 1e-5


# ---------------------------------------------------------------------------------------------------------------------------------------
# A run


def test_a_run_folder_is_a_complete_record(tmp_path, capsys):
    watching = dict(eval_data=SMALL_DATA, final_eval_problems=6, eval_every=2, eval_problems=4, show_every=1)
    config = TrainConfig(**(SMALL | watching | dict(out=str(tmp_path), name="r")))
    summary = train(config)
    folder = tmp_path / "r"
    assert {p.name for p in folder.iterdir()} == set(
        ".lock config.json metrics.csv rollouts.jsonl summary.json curves.png model checkpoints".split()
    )
    assert json.loads((folder / "config.json").read_text())["prompts_per_step"] == 8
    assert json.loads((folder / "summary.json").read_text()) == summary
    assert set(summary) == set(
        "method seed steps stopped_by wall_seconds saving_seconds "
        "pass_at_1_start pass_at_1_end pass_at_8_start pass_at_8_end plateau_step".split()
    )
    with open(folder / "metrics.csv", newline="") as file:
        rows = list(csv.DictReader(file))
    assert [r["step"] for r in rows] == ["0", "1", "2", "3"]
    assert [bool(r["eval_pass_at_1"]) for r in rows] == [True, False, True, True]
    assert {r["stage"] for r in rows} == {"rising"}
    assert all(0 <= float(r["accuracy"]) <= 1 and float(r["entropy"]) > 0 and float(r["seconds_step"]) > 0 for r in rows[1:4])

    lines = [json.loads(line) for line in (folder / "rollouts.jsonl").read_text().splitlines()]
    assert len(lines) == 3 * config.log_completions
    for line in lines:
        n = len(line["token_ids"])
        assert n == len(line["logp"]) == len(line["entropy"]) == len(line["advantage"])
    assert (folder / "curves.png").read_bytes()[:4] == b"\x89PNG"
    printed = capsys.readouterr().out
    assert "pass@1" in printed and str(folder / "curves.png") in printed and "a sample" in printed


@pytest.mark.usefixtures("no_figure")
def test_the_saved_model_is_the_trained_policy(tmp_path):
    from transformers import AutoModelForCausalLM

    config = TrainConfig(**(SMALL | dict(out=str(tmp_path), name="r", lr=5e-3)))
    train(config)
    saved = AutoModelForCausalLM.from_pretrained(tmp_path / "r" / "model")
    base = AutoModelForCausalLM.from_pretrained(SMALL_MODEL)
    moved = [not torch.equal(a, b) for a, b in zip(saved.parameters(), base.parameters(), strict=True)]
    assert all(moved)
    assert load_policy(str(tmp_path / "r")).model.config._name_or_path.endswith("model")  # a run folder is a model name


@pytest.mark.usefixtures("no_figure")
def test_progress_is_measured_with_the_sampling_of_training(tmp_path, monkeypatch):
    real, seen = held_out_module.evaluate, []

    def watched(policy, problems, prompts, **settings):
        seen.append((len(problems), settings["temperature"], settings["top_p"], settings["max_new_tokens"]))
        return real(policy, problems, prompts, **settings)

    monkeypatch.setattr(held_out_module, "evaluate", watched)
    settings = dict(eval_data=SMALL_DATA, steps=2, temperature=0.9, max_new_tokens=12, eval_every=1, eval_problems=2, final_eval_problems=3)
    train(TrainConfig(**(SMALL | settings | dict(out=str(tmp_path)))))
    assert seen == [(3, 0.9, 1.0, 12), (2, 0.9, 1.0, 12), (3, 0.9, 1.0, 12)]


@pytest.mark.usefixtures("no_figure")
def test_the_csv_reads_back_equal_for_equal_seeds(tmp_path):
    rows = []
    for name in "ab":
        train(TrainConfig(**(SMALL | dict(out=str(tmp_path), name=name))))
        with open(tmp_path / name / "metrics.csv", newline="") as file:
            rows.append([{k: v for k, v in row.items() if not k.startswith("seconds")} for row in csv.DictReader(file)])
    assert rows[0] == rows[1]


@pytest.mark.usefixtures("no_figure")
def test_a_run_with_the_plain_engine_is_the_run_with_the_fast_one(tmp_path):
    """From end to end: training, evaluation, log. Rounding alone may part them, and in two steps of a small model it does not show."""
    watching = dict(eval_data=SMALL_DATA, final_eval_problems=6, eval_every=1, eval_problems=4, steps=2)
    rows = {}
    for engine in ("fast", "plain"):
        train(TrainConfig(**(SMALL | watching | dict(out=str(tmp_path), name=engine, engine=engine))))
        with open(tmp_path / engine / "metrics.csv", newline="") as file:
            rows[engine] = list(csv.DictReader(file))
    for fast, plain in zip(rows["fast"], rows["plain"], strict=True):
        for name in ("accuracy", "length", "groups_kept", "eval_pass_at_1", "truncated"):
            assert fast[name] == plain[name], name
        for name in ("entropy", "log_ppl", "grad_norm", "loss"):
            assert fast[name] == plain[name] == "" or float(fast[name]) == pytest.approx(float(plain[name]), rel=1e-3, abs=1e-5), name


def test_an_unknown_method_is_refused_before_any_work(tmp_path):
    with pytest.raises(SettingError, match="no method 'ppo'"):
        train(TrainConfig(method="ppo", out=str(tmp_path / "runs")))
    assert not (tmp_path / "runs").exists()


@pytest.mark.slow
def test_it_learns():
    """15 steps take the built-in model from one right answer in five or so to far more, and the format defects go first."""
    config = TrainConfig(steps=15, prompts_per_step=16, mini_batch_prompts=8, sampling_rounds=2, final_eval_problems=0)
    policy = load_policy("tiny")
    problems, prompts, _ = encode_prompts(policy.tokenizer, load_problems("tiny", "train", 1024), "", 128)
    held_out, held_out_prompts, _ = encode_prompts(policy.tokenizer, load_problems("tiny", "test", 64), "", 128)

    def accuracy():
        result = evaluate(policy, held_out, held_out_prompts, completions=8, temperature=1.0, top_p=1.0, max_new_tokens=120)
        return result.metrics["pass@1"][0]

    trainer = Trainer(config, policy, problems, prompts)
    before = accuracy()
    log = [one_step(trainer)[0] for _ in range(config.steps)]
    gain = accuracy() - before
    assert before < 0.4 and gain > 0.2, (before, gain)
    assert log[-1]["defect_no_box"] < 0.5 * log[0]["defect_no_box"]
    assert log[-1]["entropy_wrong"] < 0.6 * log[0]["entropy_wrong"]


@pytest.mark.parametrize("device", ["cuda", "mps"])
def test_a_step_on_a_gpu_if_there_is_one(device):
    """Draws come from the CPU, so the first batch is that of the CPU, but for a token here and there that rounding decides."""
    if not (torch.cuda.is_available() if device == "cuda" else torch.backends.mps.is_available()):
        pytest.skip(f"no {device} here")

    def first_batch(device):
        config = TrainConfig(**(SMALL | BUILT_IN | dict(device=device, dtype="float32")))
        policy = load_policy("tiny", device, "float32")
        problems, prompts, _ = encode_prompts(policy.tokenizer, load_problems("tiny", "train", 64), "", 128)
        trainer = Trainer(config, policy, problems, prompts)
        metrics, batch, _, _ = one_step(trainer)
        assert metrics["updates"] and metrics["logp_drift"] < 1e-4
        return batch

    here, there = first_batch(device), first_batch("cpu")
    assert sum(a == b for a, b in zip(here.text, there.text)) > 0.8 * len(here)
