"""The methods inside TRL: the same advantages, on any number of processes, and TRL's own run where nothing is shaped. Longer checks."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

pytest.importorskip("trl", reason="needs trl, see tests/requirements-extra.txt")

from trl import GRPOTrainer
from trl_run import G, Recorded, fixed_completions, make_trainer, trained

from rlvr.adapters import trl as adapter
from rlvr.adapters.trl import ShapedGRPOTrainer, right_or_wrong
from rlvr.advantage import METHODS, keep_sign, shape
from rlvr.config import SettingError

ROOT = Path(__file__).parents[1]
STRONG = {"method": "ppl+pos", "strengths": {"ppl_alpha": 0.2, "pos_alpha": 0.1}}
pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def stock(tmp_path_factory):
    """TRL's own run: its weights after three steps."""
    return trained(tmp_path_factory.mktemp("stock"), GRPOTrainer)


def same(a: dict, b: dict) -> bool:
    return all(torch.equal(a[name], b[name]) for name in a)


# ---------------------------------------------------------------------------------------------------------------------------------------
# Where nothing is shaped, it is TRL


@pytest.mark.parametrize("settings", [
    {"method": "grpo"},
    {"method": "ppl+pos", "strengths": {"ppl_alpha": 0.0, "pos_alpha": 0.0}},
    {"method": "ppl+pos", "shape_start": 4},
    {"method": "pos", "shape_start": "plateau"},
    {"method": "forks", "strengths": {"forks_share": 1.0}},
], ids=["grpo", "strength 0", "before the window", "no plateau yet", "all tokens are forks"])  # fmt: skip
def test_where_nothing_is_shaped_the_run_is_trls_own_bit_for_bit(settings, stock, tmp_path):
    assert same(stock, trained(tmp_path, settings=settings))


def test_also_where_the_ratio_is_one_of_whole_sequences(tmp_path):
    """TRL sums such a loss over [B, 1], and over [B, T] it would round in another way."""
    options = dict(steps=2, importance_sampling_level="sequence")
    assert same(trained(tmp_path, GRPOTrainer, **options), trained(tmp_path, settings={"method": "ppl+pos", "shape_start": 9}, **options))


LOSSES = ("dapo", "grpo", "bnpo", "dr_grpo", "cispo", "sapo", "vespo", "luspo")


@pytest.mark.parametrize("loss", LOSSES)
def test_every_loss_of_trl_takes_them(loss, tmp_path):
    options = dict(steps=1, loss_type=loss, gradient_accumulation_steps=1)
    own = trained(tmp_path, GRPOTrainer, **options)
    assert same(own, trained(tmp_path, settings={"method": "pos", "strengths": {"pos_alpha": 0.0}}, **options))
    shaped = trained(tmp_path, settings={"method": "pos", "strengths": {"pos_alpha": 0.4}}, **options)
    assert all(value.isfinite().all() for value in shaped.values()) and not same(own, shaped)


# ---------------------------------------------------------------------------------------------------------------------------------------
# Where they are shaped, it is rlvr.advantage


def scores_of(trainer, out) -> tuple[torch.Tensor, torch.Tensor]:
    """Log-probs and entropies of a batch by the model as it is, through transformers alone."""
    ids = torch.cat([out["prompt_ids"], out["completion_ids"]], 1)
    attention = torch.cat([out["prompt_mask"], out["completion_mask"]], 1)
    T = out["completion_ids"].shape[1]
    with torch.no_grad():
        logp = trainer.model(input_ids=ids, attention_mask=attention).logits[:, -T - 1 : -1].log_softmax(-1)
    return logp.gather(-1, out["completion_ids"][..., None])[..., 0], -(logp.exp() * logp).sum(-1)


@pytest.mark.parametrize("method", [*METHODS, "ppl+pos"])
def test_every_method_gives_the_advantages_of_rlvr_advantage(method, tmp_path):
    """On TRL's own advantages; they may differ by what another forward pass rounds in another way."""
    strengths = {"ppl_alpha": 0.2, "clip_cov_low": 0.1, "clip_cov_share": 0.1}
    trainer = make_trainer(tmp_path, Recorded, steps=1, learning_rate=0.0, settings={"method": method, "strengths": strengths})
    plain = []
    before = GRPOTrainer._generate_and_score_completions

    def noted(self, inputs):
        out = before(self, inputs)
        plain.append(out["advantages"].clone())
        return out

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(GRPOTrainer, "_generate_and_score_completions", noted)
        trainer.train()
    out, advantages = trainer.made[0], plain[0]
    logp, entropy = scores_of(trainer, out)
    mask, group = out["completion_mask"].bool(), torch.arange(len(advantages)) // G
    rewards = torch.tensor([1.0 if sum(ids[m].tolist()) % 2 else -1.0 for ids, m in zip(out["completion_ids"], mask)])
    wanted = shape(method, advantages, logp, mask, group, entropy=entropy, rewards=rewards, step=1, **strengths)
    if method == "grpo":
        assert torch.equal(out["advantages"], advantages)
    else:
        difference = (out["advantages"] - wanted).abs().max()
        print(f"{method}: {difference:.1e}")
        assert difference < 1e-5
        assert not torch.equal(wanted, shape("grpo", advantages, logp, mask, group))

    # TRL shuffles the rows before it learns from them; each keeps its own advantages.
    rows = {tuple(ids.tolist()): advantage for ids, advantage in zip(out["completion_ids"], out["advantages"])}
    learned = [(ids, a) for batch in trainer.batches for ids, a in zip(batch["completion_ids"], batch["advantages"])]
    assert len(learned) == len(rows) == 32 and [tuple(ids.tolist()) for ids, _ in learned] != list(rows)
    assert all(torch.equal(rows[tuple(ids.tolist())], a) for ids, a in learned)


def test_cut_completions_that_trl_masks_take_no_part_in_the_statistics_of_their_group(tmp_path):
    def cut(prompts, trainer):
        out = fixed_completions(prompts, trainer)
        for i in range(0, len(prompts), 3):  # two or three of each eight
            out["completion_ids"][i][-1] = 5
        return out

    trainer = make_trainer(tmp_path, Recorded, steps=1, settings=STRONG | {"method": "ppl"}, mask_truncated_completions=True)
    trainer.rollout_func = cut
    trainer.train()
    out = trainer.made[0]
    mask = out["completion_mask"].bool()
    kept = mask.any(1)
    assert 18 < kept.sum() < 24
    logp, _ = scores_of(make_trainer(tmp_path), out)
    plain = torch.zeros(len(kept))
    plain[kept] = out["advantages"][kept].sum(1) / mask[kept].sum(1)
    group = torch.arange(32) // G
    ones = torch.ones(int(kept.sum()))
    factors = shape("ppl", ones, logp[kept], mask[kept], group[kept], ppl_alpha=0.2)[:, 0]  # as if the others were not there
    advantages = plain[kept] / factors  # what TRL made: one value for the right ones of a group, one for the wrong ones
    for g in range(4):
        own = advantages[group[kept] == g]
        for sign in (own[own > 0], own[own < 0]):
            assert (sign - sign.mean()).abs().max() < 1e-4 if len(sign) else True
    assert not out["advantages"][~kept].any()


@pytest.mark.parametrize("learn_from", ["positive", "negative"])
def test_advantages_can_be_kept_by_sign_also_of_plain_grpo(learn_from, tmp_path):
    trainer = make_trainer(tmp_path, Recorded, steps=1, settings={"method": "grpo", "learn_from": learn_from})
    trainer.train()
    a = trainer.made[0]["advantages"]
    assert a.any() and torch.equal(a, keep_sign(a, learn_from))


def test_tokens_of_tools_get_no_advantage(tmp_path):
    trainer = make_trainer(tmp_path, Recorded, steps=1, settings={"method": "pos"})
    generated = trainer._generate

    def with_tools(prompts):
        made = list(generated(prompts))
        made[2] = [[1] * (len(ids) - 2) + [0, 1] for ids in made[1]]  # the last token but one of each was written by a tool
        return tuple(made)

    trainer._generate = with_tools
    trainer.train()
    out = trainer.made[0]
    mask = out["completion_mask"] * out["tool_mask"]
    assert not out["advantages"][mask == 0].any() and out["advantages"].any(1).all()


def test_evaluation_keeps_trls_advantages(tmp_path):
    trainer = make_trainer(tmp_path, Recorded, settings=STRONG)
    metrics = trainer.evaluate()
    assert trainer.made[0]["advantages"].dim() == 1 and metrics["eval_reward"] == metrics["eval_reward"]
    assert not any("rlvr" in name for name in metrics)


# ---------------------------------------------------------------------------------------------------------------------------------------
# Cost, log, stages, resuming


@pytest.mark.parametrize("method, options, passes", [
    ("pos", {}, 2),  # one for each micro-batch of the loss, and no more
    ("ppl", {}, 3),
    ("forks", {}, 3),
    ("ppl", {"steps_per_generation": 4}, 5),  # TRL has the old log-probs: two updates of two micro-batches, and its own pass
    ("forks", {"steps_per_generation": 4}, 6),  # but not the entropies
])  # fmt: skip
def test_a_pass_more_is_made_only_for_what_a_method_reads_and_trl_has_not(method, options, passes, tmp_path):
    steps = 2 if options else 1
    trainer = make_trainer(tmp_path, Recorded, steps=steps, settings={"method": method}, **options)
    trainer.train()
    assert trainer.passes == passes


def test_entropies_of_right_and_wrong_answers_are_logged_as_means_over_tokens(tmp_path):
    trainer = make_trainer(tmp_path, Recorded, steps=2, learning_rate=0.0, settings={"method": "pos", "shape_start": 2})
    trainer.train()
    rows = [row for row in trainer.state.log_history if "loss" in row]
    assert [row["rlvr/shaped"] for row in rows] == [0.0, 1.0]
    for row, out in zip(rows, trainer.made):
        logp, entropy = scores_of(trainer, out)
        mask = out["completion_mask"].bool()
        right = torch.tensor([sum(ids[m].tolist()) % 2 == 1 for ids, m in zip(out["completion_ids"], mask)])  # see even_or_odd
        for name, chosen in (("right", right), ("wrong", ~right)):
            assert row[f"rlvr/entropy_{name}"] == pytest.approx(entropy[chosen][mask[chosen]].mean().item(), abs=1e-5)
        log_ppl = torch.stack([-logp[i][mask[i]].mean() for i in range(len(mask))]).mean()
        assert row["rlvr/log_ppl"] == pytest.approx(log_ppl.item(), abs=1e-4)
    assert trainer.stage.entropies == pytest.approx([scores_of(trainer, out)[1][out["completion_mask"].bool()].mean().item()
                                                     for out in trainer.made], abs=1e-5)  # fmt: skip


def test_shaping_from_the_plateau_on_begins_one_step_after_it(tmp_path):
    trainer = make_trainer(tmp_path, Recorded, steps=2, settings={"method": "pos", "shape_start": "plateau"})
    falling = [3.0, 2.0, 1.5, *[1.2 - 0.01 * i for i in range(60)]]
    begun = next(n for n in range(1, 60) if adapter.plateau_step(falling[:n]))
    trainer.stage.on_train_begin = lambda *args, **kwargs: setattr(trainer.stage, "entropies", falling[: begun - 1])
    trainer._note = lambda *args, note=trainer._note: (note(*args), trainer.stage.entropies.__setitem__(-1, falling[begun - 1]))
    trainer.train()
    shaped = [batch["advantages"].dim() == 2 for batch in trainer.made]
    assert shaped == [False, False]  # the plateau begins at step `begun`, which TRL has not reached
    trainer.state.global_step = begun
    assert trainer.method_now() == "pos"
    trainer.state.global_step = begun - 2
    assert trainer.method_now() == "grpo"


@pytest.mark.parametrize("restored", [False, True], ids=["callbacks as given", "callbacks as stored"])
def test_a_resumed_run_remembers_the_entropies_of_its_steps(restored, tmp_path):
    """With the second, transformers puts a callback of its own making in the place of ours."""
    options = dict(settings=STRONG, save_strategy="steps", save_steps=1, restore_callback_states_from_checkpoint=restored)
    first = make_trainer(tmp_path, steps=2, **options)
    first.train()
    before = list(first.stage.entropies)
    assert len(before) == 2
    again = make_trainer(tmp_path, steps=3, **options)
    assert again.stage.entropies == []  # who has looked before it resumes is not told of that one for ever
    again.train(resume_from_checkpoint=True)
    assert again.stage.entropies[:2] == before and len(again.stage.entropies) == 3
    again.train()  # anew, from step 0
    assert len(again.stage.entropies) == 3 and again.stage.entropies[:2] != before


def test_completions_that_serve_several_steps_keep_the_method_of_the_step_that_sampled_them(tmp_path):
    """Batches of two steps: those of steps 1 and 2 are shaped, those of 3 and 4 are not, and the log says so of each."""
    window = {"method": "pos", "shape_stop": 1}
    trainer = make_trainer(tmp_path, Recorded, steps=4, settings=window, steps_per_generation=4)
    trainer.train()
    assert [batch["advantages"].dim() for batch in trainer.batches] == [2, 2, 2, 2, 1, 1, 1, 1]
    assert [row["rlvr/shaped"] for row in trainer.state.log_history if "loss" in row] == [1.0, 1.0, 0.0, 0.0]


def test_with_log_probs_of_trl_such_as_those_with_vllm_no_other_are_made(tmp_path):
    """TRL puts them into the batch with vLLM; here it is made to, by a batch of two steps."""
    trainer = make_trainer(tmp_path, Recorded, steps=2, settings=STRONG | {"method": "ppl"}, steps_per_generation=4)
    plain, before = [], GRPOTrainer._generate_and_score_completions

    def with_log_probs(self, inputs):
        out = before(self, inputs)
        draw = torch.Generator().manual_seed(0)
        assert out["old_per_token_logps"].shape == out["completion_mask"].shape
        logp = -torch.rand(out["completion_mask"].shape, generator=draw)
        out["old_per_token_logps"] = logp * torch.rand(len(logp), 1, generator=draw)  # such that perplexities differ much
        plain.append(out["advantages"].clone())
        return out

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(GRPOTrainer, "_generate_and_score_completions", with_log_probs)
        trainer.train()
    out = trainer.made[0]
    group = torch.arange(len(plain[0])) // G
    wanted = shape("ppl", plain[0], out["old_per_token_logps"], out["completion_mask"].bool(), group, ppl_alpha=0.2)
    assert torch.equal(out["advantages"], wanted) and not torch.equal(wanted, shape("grpo", plain[0], *[out["completion_mask"]] * 2, group))


def test_what_no_function_scored_is_neither_right_nor_wrong(tmp_path):
    trainer = make_trainer(tmp_path, Recorded, steps=1, learning_rate=0.0, settings={"method": "pos"})
    trainer.reward_funcs[0] = lambda completion_ids, **_: [(-1.0, 1.0, 1.0, None)[i % 4] for i in range(len(completion_ids))]
    trainer.train()
    row, out = next(row for row in trainer.state.log_history if "loss" in row), trainer.made[0]
    entropy, mask = scores_of(trainer, out)[1], out["completion_mask"].bool()
    place = torch.arange(len(mask)) % 4
    for name, rows in (("right", (place == 1) | (place == 2)), ("wrong", place == 0)):
        assert row[f"rlvr/entropy_{name}"] == pytest.approx(entropy[rows][mask[rows]].mean().item(), abs=1e-5)
    assert trainer.stage.entropies == pytest.approx([entropy[mask].mean().item()], abs=1e-5)  # all tokens, for the stage


# ---------------------------------------------------------------------------------------------------------------------------------------
# Several processes


def launched(folder: Path, world: int, method: str, accumulation: int) -> list[dict]:
    """A run of 24 rows in three groups on so many processes -> what each made of its rows."""
    script = [str(ROOT / "tests" / "trl_run.py"), str(folder), "24", method, str(accumulation)]
    launch = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node", str(world)]
    done = subprocess.run([*launch, *script], capture_output=True, text=True, env=os.environ | {"OMP_NUM_THREADS": "1"}, timeout=300)
    assert done.returncode == 0, done.stderr[-2000:]
    return [torch.load(folder / f"{world}-{rank}.pt", weights_only=True) for rank in range(world)]


@pytest.mark.usefixtures("forked")
@pytest.mark.parametrize("method, accumulation", [("ppl+pos", 1), ("ppl+forks", 2)])
def test_two_processes_give_the_result_of_one(method, accumulation, tmp_path):
    """The middle group lies on both, and each process pads to its own longest completion. With forks, they share one bound of entropy."""
    (one,), (first, second) = launched(tmp_path, 1, method, accumulation), launched(tmp_path, 2, method, accumulation)
    for alone, *both in zip(one["shaped"], first["shaped"], second["shaped"], strict=True):
        assert [len(part) for part in both] == [12, 12] and G == 8
        joined = torch.cat([torch.nn.functional.pad(part, (0, alone.shape[1] - part.shape[1])) for part in both])
        print(f"advantages differ by at most {(joined - alone).abs().max():.1e}")
        assert (joined - alone).abs().max() < 1e-6
    assert any(a.shape[1] != b.shape[1] for a, b in zip(first["shaped"], second["shaped"]))
    difference = max((one["weights"][name] - first["weights"][name]).abs().max().item() for name in one["weights"])
    print(f"weights after three steps differ by at most {difference:.1e}")
    assert difference < 2e-5  # AdamW at 1e-4: the sign of a gradient that is nothing but rounding moves a weight by 1e-4
    assert same(first["weights"], second["weights"])
    for name in ("rlvr/entropy_right", "rlvr/entropy_wrong", "rlvr/log_ppl"):
        assert [row[name] for row in first["logs"]] == pytest.approx([row[name] for row in one["logs"]], abs=1e-3)


# ---------------------------------------------------------------------------------------------------------------------------------------
# What a user meets


def test_the_example_learns(tmp_path):
    sys.path.insert(0, str(ROOT / "tutorials"))
    try:
        from with_trl import main
    finally:
        sys.path.pop(0)
    rewards = [row["reward"] for row in main(str(tmp_path)).state.log_history if "reward" in row]
    print("rewards", rewards)
    assert len(rewards) == 30 and sum(rewards[-5:]) / 5 >= sum(rewards[:5]) / 5 + 0.5
    lines = (ROOT / "tutorials" / "with_trl.py").read_text().splitlines()
    assert len(lines) <= 46 and len([line for line in lines if line.strip()]) <= 40


@pytest.mark.parametrize("settings, message", [
    ({"method": "best"}, "There is no method 'best'"),
    ({"method": "ppl", "strengths": {"ppl_alpha": -1.0}}, "--ppl-alpha is -1"),
    ({"method": "ppl", "strengths": {"alpha": 0.1}}, "alpha is no setting of shaping"),
    ({"method": "pos", "learn_from": "both"}, "--learn-from is 'both'"),
    ({"method": "pos", "shape_start": 9, "shape_stop": 3}, "is empty"),
])  # fmt: skip
def test_settings_are_checked_before_anything_is_loaded(settings, message, tmp_path):
    with pytest.raises(SettingError, match=message):
        ShapedGRPOTrainer("no/such-model", right_or_wrong, **settings)


@pytest.mark.parametrize("options", [
    {"scale_rewards": "none"}, {"scale_rewards": "batch"}, {"multi_objective_aggregation": "normalize_then_sum"},
    {"mask_truncated_completions": True},  # made with rows whose rewards the method does not see
])  # fmt: skip
def test_a_division_that_trl_does_not_make_is_not_taken_back(options, tmp_path):
    with pytest.raises(SettingError, match=f"dr-grpo counts on a division by the group's standard deviation, which {min(options)}="):
        make_trainer(tmp_path, settings={"method": "pos+dr-grpo"}, **options)
    make_trainer(tmp_path, settings={"method": "pos"}, **options)


def test_the_reward_reads_texts_and_messages_and_says_none_for_what_was_not_scored(monkeypatch):
    right, wrong = r"\boxed{\frac{2}{4}}", r"\boxed{3}"
    assert right_or_wrong([right, [{"role": "assistant", "content": wrong}]], answer=["0.5", "0.5"], prompts=[]) == [1.0, -1.0]
    golds = [0.5, "Half of 1 is\n#### 0.5", r"so \boxed{0.5}", ["0.5"], None, ""]  # a column of GSM8K has solutions; no gold, no reward
    assert right_or_wrong([right] * 6, answer=golds) == [1.0, 1.0, 1.0, 1.0, None, None]
    monkeypatch.setattr(adapter, "rewards_from", lambda *_: [1.0, float("nan")])
    assert right_or_wrong([right, right], answer=["0.5", "0.5"]) == [1.0, None]
    with pytest.raises(SettingError, match="The answer of a row is a dict"):
        right_or_wrong([right], answer=[{"text": "0.5"}])
    with pytest.raises(SettingError, match="has no column 'answer'"):
        right_or_wrong([right], solution=["0.5"])


@pytest.mark.parametrize("version, method", [("1.15.0", ""), ("2.0.0", ""), ("1.99.0", "_compute_loss"), (None, "")])
def test_another_trl_is_one_sentence(version, method, tmp_path):
    """A TRL of another version, or of a known one whose methods take other things, or none at all."""
    if version:
        info = tmp_path / f"trl-{version}.dist-info"
        info.mkdir()
        (info / "METADATA").write_text(f"Metadata-Version: 2.1\nName: trl\nVersion: {version}\n")
        (tmp_path / "trl.py").write_text(f"class GRPOTrainer:\n    def {method or 'x'}(self, batch): pass\n")
        hide = ""
    else:
        hide = ("import importlib.metadata as m\nfind = m.version\n"
                "def version(name):\n    if name == 'trl': raise m.PackageNotFoundError(name)\n    return find(name)\nm.version = version\n")  # fmt: skip
    code = f"import sys\nsys.path[:0] = [{str(tmp_path)!r}, {str(ROOT)!r}]\n{hide}import rlvr.adapters.trl"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.returncode == 1 and done.stdout == "" and done.stderr.count("\n") == 1, done.stderr
    assert "pip install" in done.stderr and ("Traceback" not in done.stderr)
