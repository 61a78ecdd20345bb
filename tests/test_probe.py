"""The probe: what it says of a token is what a slow reference says, and a step made again is the step that was made."""

import json
import math
import shutil
from dataclasses import replace

import pytest
import torch
from helpers import RUN, WORDS, WordTokenizer, make_rollouts, new_model, reference_logp_and_entropy, stock
from safetensors.torch import load_file

from rlvr.advantage import ppl_weights
from rlvr.analysis import probe
from rlvr.analysis.exchange import spread
from rlvr.analysis.probe import EARLY, FORK, LATE, WAYS, ProbeConfig, positions_to_replace, replace_tokens
from rlvr.analysis.replay import TOP, replay, replayable, token_stats, update_gradient
from rlvr.config import SettingError, TrainConfig
from rlvr.data import Problem
from rlvr.engine import scorer
from rlvr.policy import Policy
from rlvr.rollout import Rollouts
from rlvr.run import checkpoint
from rlvr.run.cli import run_program
from rlvr.run.figures import read_metrics
from rlvr.run.settings import read_config
from rlvr.run.state import restore_trainer
from rlvr.train import Step, set_up, train

PROBE = dict(runs=[], steps=3, shown=4, fixed=3, completions=12, continuations=2, problems=3, samples=4)


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """A run of four steps that kept all its checkpoints, and what the probe wrote."""
    folder = tmp_path_factory.mktemp("probe") / "run"
    train(TrainConfig(**(RUN | dict(out=str(folder.parent), name="run", keep_every=1, final_eval_problems=6))))
    probe.probe(folder, ProbeConfig(**(PROBE | dict(runs=[str(folder)]))))
    return folder


# ---------------------------------------------------------------------------------------------------------------------------------------
# Numbers of a token


def policy_of(model, plain: bool = False) -> Policy:
    return Policy(model, None, {2}) if plain else Policy(model, None, {2}, logp_and_entropy=scorer.logp_and_entropy, packed=True)


@pytest.mark.parametrize("temperature", [1.0, 0.7])
@pytest.mark.parametrize("chunk", [2**26, 40, "plain"])  # of a vocabulary of 29: one position at a time; without the packed scorer
def test_token_stats_are_those_of_the_whole_distribution(monkeypatch, temperature, chunk):
    plain = chunk == "plain"
    monkeypatch.setattr("rlvr.engine.scorer.LOGITS_AT_ONCE", 0 if plain else chunk)
    model, batch = new_model("qwen"), make_rollouts([3, 5, 2], [4, 1, 6], groups=[0, 1, 2])
    stats = token_stats(policy_of(stock(model) if plain else model, plain), batch, temperature, 16)
    twin = stock(model).double()
    for i, prompt in enumerate(batch.prompt_ids):
        completion = batch.completion_ids[i, : batch.lengths[i]].tolist()
        logp, entropy = reference_logp_and_entropy(model, prompt, completion, temperature)
        assert stats["logp"][i, : len(logp)].tolist() == pytest.approx(logp, abs=1e-4)
        assert stats["entropy"][i, : len(logp)].tolist() == pytest.approx(entropy, abs=1e-4)
        for t, token in enumerate(completion):
            with torch.no_grad():
                p = (twin(input_ids=torch.tensor([prompt + completion[:t]])).logits[0, -1] / temperature).softmax(0)
            order = p.argsort(descending=True).tolist()
            assert stats["grad_norm"][i, t].item() == pytest.approx((torch.eye(len(p))[token] - p).norm().item(), abs=1e-4)
            assert stats["top"][i, t].tolist() == order[:TOP]
            assert stats["top_p"][i, t].tolist() == pytest.approx(p[order[:TOP]].tolist(), abs=1e-5)
            assert stats["branching"][i, t] == next(k for k in range(1, len(p) + 1) if p[order[:k]].sum() >= 0.95 - 1e-6)
    for name in ("logp", "entropy", "grad_norm", "branching"):
        assert not stats[name][~batch.mask].any()


def test_the_gradient_of_an_update_is_that_of_its_loss_written_out():
    """One row at a time with transformers' own attention: the sum of ratio * advantage over the tokens of all rows, the idle ones included."""
    model, batch = new_model("qwen"), make_rollouts([3, 3, 2, 2], [4, 2, 6, 3], groups=[0, 0, 1, 1])
    twin, policy, advantages = stock(model), policy_of(model), torch.tensor([0.7, -0.7, 0.0, 0.0])
    batch.old_logp = token_stats(policy, batch, 1.0, 64)["logp"]  # the policy has not moved: every ratio is 1
    weights = ppl_weights(batch.old_logp, batch.mask, batch.group, 0.2)
    for i, prompt in enumerate(batch.prompt_ids):
        ids = prompt + batch.completion_ids[i, : batch.lengths[i]].tolist()
        logp = twin(input_ids=torch.tensor([ids])).logits[0].log_softmax(-1)
        for place in range(len(prompt), len(ids)):
            (-weights[i] * advantages[i] * logp[place - 1, ids[place]] / batch.mask.sum()).backward(retain_graph=True)
    wanted = torch.cat([p.grad.flatten() for p in twin.parameters()])
    got = update_gradient(policy, batch, advantages, "ppl", micro_batch_tokens=8, ppl_alpha=0.2)
    torch.testing.assert_close(got, wanted, rtol=0, atol=1e-5)
    plain = update_gradient(policy, batch, advantages, "grpo")
    assert (got - plain).norm() > 1e-3 and torch.equal(update_gradient(policy, batch, advantages, "ppl", ppl_alpha=0.0), plain)
    assert all(p.grad is None for p in model.parameters())


def test_watched_tokens_keep_their_places():
    policy, batch = policy_of(new_model("llama")), make_rollouts([3], [5])
    watch = torch.randint(0, 29, (1, 5, TOP), generator=torch.Generator().manual_seed(1))
    stats = token_stats(policy, batch, 1.0, 99, watch)
    everything = token_stats(policy, batch, 1.0, 99)
    assert torch.equal(stats["top"], watch)
    place = (everything["top"][0, 0] == watch[0, 0, 0]).nonzero()
    if len(place):
        assert stats["top_p"][0, 0, 0] == everything["top_p"][0, 0, place[0, 0]]
    assert (stats["top_p"] >= 0).all() and (stats["top_p"].max(-1).values <= everything["top_p"][..., 0] + 1e-6).all()


# ---------------------------------------------------------------------------------------------------------------------------------------
# Steps made again


def test_a_replayed_step_is_the_step_that_was_made(run):
    tensors, rows = (
        load_file(run / "probe" / "changes.safetensors"),
        {int(r["step"]): r for r in read_metrics(run) if r["accuracy"] is not None},
    )
    steps = tensors["row_step"].unique().tolist()
    assert steps == [1, 2, 4]  # from the start, and from two of the checkpoints 1, 2, 3
    for step in steps:
        mine = tensors["row_step"] == step
        assert tensors["row_correct"][mine].float().mean().item() == pytest.approx(rows[step]["accuracy"], abs=1e-6)  # nothing was filtered
        assert tensors["entropy"][tensors["step"] == step].mean().item() == pytest.approx(rows[step]["entropy"], rel=1e-4)


def test_the_state_after_a_replay_is_that_of_the_next_checkpoint(run):
    """Scored after step 3 means: with the weights of the checkpoint of step 3."""
    trainer, _ = set_up(replace(read_config(run), resume=str(run)))
    restore_trainer(trainer, *checkpoint.load(run / "checkpoints" / "step-000002"), Step)
    batch, correct, shaped, before, after = replay(trainer)
    assert shaped.shape == batch.mask.shape == before["logp"].shape and torch.equal(before["top"], after["top"])
    logged = next(row for row in read_metrics(run) if row["step"] == 3)
    assert correct.float().mean().item() == pytest.approx(logged["accuracy"], abs=1e-6)  # nothing was filtered
    saved = load_file(run / "checkpoints" / "step-000003" / "weights.safetensors")
    for name, p in trainer.policy.model.named_parameters():
        assert torch.equal(p, saved[name]), name


def test_changes_hold_together(run):
    found = load_file(run / "probe" / "changes.safetensors")
    tokens = len(found["token"])
    assert all(len(v) == (len(found["row_step"]) if name.startswith("row_") else tokens) for name, v in found.items())
    assert torch.equal(found["row_step"][found["row"]], found["step"])
    first = found["r"] == 0
    assert first.sum() == len(found["row_step"]) and found["r"].max() < 1
    for i in (0, len(found["row_step"]) - 1):  # log-perplexity by hand
        assert found["row_log_ppl"][i].item() == pytest.approx(-found["logp"][found["row"] == i].mean().item(), abs=1e-5)
    assert (found["logp_after"] != found["logp"]).any()


def test_a_step_without_updates_has_no_changes(tmp_path):
    (tmp_path / "hard.jsonl").write_text('{"problem": "1 + 1 =", "answer": "77"}\n' * 4)  # no group has a right answer
    settings = RUN | dict(steps=1, out=str(tmp_path), name="run", filter_groups=True, data=str(tmp_path / "hard.jsonl"))
    train(TrainConfig(**settings))
    probe.probe(tmp_path / "run", ProbeConfig(**(PROBE | dict(exploration=False, replacements=False))))
    assert load_file(tmp_path / "run" / "probe" / "changes.safetensors") == {}


def test_which_checkpoints(tmp_path):
    for name in ("step-000002", "step-000004", "step-000004+1", "step-000006", "step-000008"):
        (tmp_path / "checkpoints" / name).mkdir(parents=True)
    names = [p and p.name for p in replayable(tmp_path, 8, 9)]
    assert names == [None, "step-000002", "step-000004", "step-000006"]  # after the last step there is none
    assert [p and p.name for p in replayable(tmp_path, 8, 2)] == [None, "step-000006"]


@pytest.mark.slow
def test_a_run_that_was_stopped_is_not_replayed_beyond_its_end(tmp_path):
    """Its last checkpoint is followed by a step that was never made."""
    settings = RUN | dict(steps=3, out=str(tmp_path), name="run", keep_every=1)
    train(TrainConfig(**settings))
    config = tmp_path / "run" / "config.json"
    config.write_text(config.read_text().replace('"steps": 3', '"steps": 9'))  # as if it had been stopped after 3 of 9
    probe.probe(tmp_path / "run", ProbeConfig(**(PROBE | dict(steps=9, exploration=False, replacements=False))))
    assert load_file(tmp_path / "run" / "probe" / "changes.safetensors")["row_step"].unique().tolist() == [1, 2, 3]


@pytest.mark.slow
def test_a_model_with_the_plain_engine(tmp_path):
    train(TrainConfig(**(RUN | dict(steps=2, out=str(tmp_path), name="run", keep_every=1, engine="plain"))))
    probe.probe(tmp_path / "run", ProbeConfig(**PROBE))
    found = json.loads((tmp_path / "run" / "probe" / "exploration.json").read_text())
    assert all(model["entropy"] > 0 for model in found.values())


def test_spread():
    assert spread([1, 2, 3], 5) == [1, 2, 3]
    assert spread(list(range(11)), 3) == [0, 5, 10]
    assert spread([1, 2, 3], 1) == [3]
    assert spread([1, 2, 3], 0) == []


# ---------------------------------------------------------------------------------------------------------------------------------------
# Fixed text, replacements, exploration


def test_the_fixed_text_is_the_same_for_all_models(run):
    rows = [json.loads(line) for line in open(run / "probe" / "fixed.jsonl", encoding="utf-8")]
    steps = sorted({r["step"] for r in rows})
    assert steps == [0, 1, 3, 4] and len(rows) == 4 * PROBE["fixed"]
    for number in range(PROBE["fixed"]):
        mine = [r for r in rows if r["number"] == number]
        assert len({json.dumps([r["token_ids"], r["top"], r["correct"], r["prompt"]]) for r in mine}) == 1
        assert mine[0]["logp"] != mine[-1]["logp"]


def test_where_tokens_are_replaced():
    """Ten tokens, r = 0, 0.1 ... 0.9: early are 0 and 1, late is 9, which ends the text and is left alone."""
    entropy, possible = torch.tensor([0.1, 0.2, 0.9, 0.3, 0, 0, 0, 0, 0.5, 7.0, 99.0]), torch.ones(11, dtype=torch.bool)  # the last is padding
    assert positions_to_replace(entropy, possible, 10) == {"early": 1, "middle": 2}
    assert positions_to_replace(torch.tensor([0.1] * 18 + [0.7, 0.9]), possible.new_ones(20), 20) == {"early": 0, "middle": 4, "late": 18}
    possible[2] = False  # no other token is likely there
    assert positions_to_replace(entropy, possible, 10) == {"early": 1, "middle": 8}
    assert positions_to_replace(torch.tensor([1.0]), possible, 1) == {} and positions_to_replace(torch.tensor([1.0]), possible, 0) == {}
    assert EARLY == 0.2 and LATE == 0.8


class Boxes(WordTokenizer):
    """Token 5 is "5"; a text is right if it says 7 somewhere: \\boxed{7}."""

    def decode(self, ids, skip_special_tokens=True):
        return "\\boxed{7}" if 7 in ids else "\\boxed{0}"

    def batch_decode(self, rows, skip_special_tokens=True):
        return [self.decode(row) for row in rows]


def by_hand(monkeypatch, after: dict[int, int], lengths=(6,), max_new_tokens=20, continuations=3, **changed):
    """Completions 10 11 12 ... of which token 1 is undecided; after it, and after what `after` names, texts go on with that token and end.
    Returns (entries, prefixes that were sampled from)."""
    batch = make_rollouts([2] * len(lengths), lengths, groups=list(range(len(lengths))))
    batch.completion_ids = (10 + torch.arange(max(lengths))).repeat(len(lengths), 1)
    shape = batch.completion_ids.shape
    top, p = torch.zeros(*shape, TOP, dtype=torch.long), torch.zeros(*shape, TOP)
    top[:, :], p[:, :, 0] = torch.tensor([10, 11, 20, 21, 22]), 1.0
    p[:, 1] = torch.tensor([0.0, 0.5, 0.3, 0.2, 0.04])
    stats = {"logp": torch.full(shape, -0.5), "entropy": torch.full(shape, 0.1), "top": top, "top_p": p} | changed
    top[:, [0, *range(2, shape[1])], 0] = batch.completion_ids[:, [0, *range(2, shape[1])]]  # elsewhere the policy is sure
    monkeypatch.setattr(probe, "token_stats", lambda *a: stats)
    asked = []

    def fake(prompts, n, c, generator, progress=""):
        asked.extend(prompts)
        rows = [[next((new for old, new in after.items() if old in p), 7), 2] for p in prompts for _ in range(n)]
        k = len(rows)
        return Rollouts([p for p in prompts for _ in range(n)], torch.tensor(rows), torch.full((k,), 2), torch.ones(k, 2, dtype=torch.bool),
                        torch.ones(k, dtype=torch.bool), torch.zeros(k, 2), torch.zeros(k, 2), torch.arange(len(prompts)).repeat_interleave(n),
                        [""] * k)  # fmt: skip

    policy = Policy(None, Boxes(), {2})
    monkeypatch.setattr(policy, "sample", fake)
    problems = [Problem("", "7")] * len(lengths)
    found = replace_tokens(policy, TrainConfig(max_new_tokens=max_new_tokens), batch, problems, continuations, torch.Generator().manual_seed(0))
    return found, [prompt[2:] for prompt in asked]


def test_a_replacement_by_hand(monkeypatch):
    """With either of the likely other tokens the text goes on with 8 and is wrong; with the old one with 7. So the token matters, and both
    ways are finished a second time."""
    entries, asked = by_hand(monkeypatch, {20: 8, 21: 8})
    (entry,) = entries  # elsewhere no other token is likely
    assert asked == [[10, 11], [10, entry["other"]]] * 2 and entry["other"] in (20, 21)
    assert (entry["where"], entry["kept"], entry["replaced"], entry["log_ppl"], entry["token"]) == ("early", 1.0, 0.0, 0.5, 11)
    assert entry["r"] == pytest.approx(1 / 6) and entry["dependence"] == 1 and entry["problem"] == 0


def test_a_token_that_does_not_matter_is_not_finished_again(monkeypatch):
    entries, asked = by_hand(monkeypatch, {})
    assert len(asked) == 2 and entries[0]["dependence"] == 0 < FORK and entries[0]["kept"] is entries[0]["replaced"] is None


def test_the_other_token_is_drawn_from_the_policy_without_the_one_that_stands_there(monkeypatch):
    """0.3 and 0.2 are left, so three in five and two in five; 0.04 is too little, and the likeliest token is none of the others' rest."""
    entries, _ = by_hand(monkeypatch, {}, lengths=(6,) * 2000, continuations=1)
    others = [entry["other"] for entry in entries]
    assert set(others) == {20, 21} and others.count(20) / len(others) == pytest.approx(0.6, abs=0.04)
    rare = torch.zeros(1, 6, TOP)  # the token that stands there is a rare one: the first choice is drawn as often as it is likely
    rare[0, 1] = torch.tensor([0.6, 0.02, 0.3, 0.0, 0.0])
    entries, _ = by_hand(monkeypatch, {}, lengths=(6,) * 2000, continuations=1, top_p=rare.repeat(2000, 1, 1))
    others = [entry["other"] for entry in entries if entry["token"] == 11]
    assert set(others) == {10, 20} and others.count(10) / len(others) == pytest.approx(2 / 3, abs=0.04)


def test_ends_of_text_and_texts_cut_off(monkeypatch):
    """A stop token in place of another ends the text there, and a text that would be cut off is wrong."""
    top = torch.zeros(1, 6, TOP, dtype=torch.long)
    top[0, :, 0], top[0, 1] = 10 + torch.arange(6), torch.tensor([11, 2, 0, 0, 0])
    p = torch.zeros(1, 6, TOP)
    p[0, :, 0], p[0, 1] = 1.0, torch.tensor([0.5, 0.5, 0.0, 0.0, 0.0])
    entries, asked = by_hand(monkeypatch, {}, top=top, top_p=p)
    assert asked == [[10, 11]] * 2 and (entries[0]["kept"], entries[0]["replaced"]) == (1.0, 0.0)
    entries, asked = by_hand(monkeypatch, {20: 8, 21: 8}, max_new_tokens=3)
    assert asked == [[10, 11], [10, entries[0]["other"]]] and entries[0]["dependence"] == 0  # both empty


def test_completions_of_one_token_have_nothing_to_replace(monkeypatch):
    """The last token is left alone, so there is nothing to sample, to verify or to compare; nor is there without a right completion."""
    stats = {"logp": torch.zeros(2, 1), "entropy": torch.ones(2, 1), "top": torch.zeros(2, 1, TOP), "top_p": torch.full((2, 1, TOP), 0.2)}
    monkeypatch.setattr(probe, "token_stats", lambda *a: stats)
    policy = Policy(None, Boxes(), {2})
    assert replace_tokens(policy, TrainConfig(), make_rollouts([2, 2], [1, 1]), ["7"] * 2, 3, torch.Generator()) == []


def test_replacements_of_a_run(run):
    rows = [json.loads(line) for line in open(run / "probe" / "replacements.jsonl", encoding="utf-8")]
    assert {r["step"] for r in rows} == {4}  # no plateau: the last model
    assert rows and {r["completion"] for r in rows} <= set(range(PROBE["completions"])) and {r["problem"] for r in rows} <= {0, 1, 2}
    for r in rows:
        assert r["where"] in ("early", "middle", "late") and r["token"] != r["other"]
        assert (r["kept"] is None) is (r["replaced"] is None) is (r["dependence"] < FORK)
        assert (r["r"] < EARLY) if r["where"] == "early" else (r["r"] > LATE) if r["where"] == "late" else EARLY <= r["r"] <= LATE


def test_only_right_completions_are_changed(tmp_path, run, monkeypatch):
    """Four of each problem are sampled; those that are wrong have no right end to lose."""
    shutil.copytree(run, tmp_path / "run")
    seen = []
    monkeypatch.setattr(probe, "replace_tokens", lambda policy, c, batch, problems, *rest: seen.append((batch, problems)) or [])
    probe.probe(tmp_path / "run", ProbeConfig(**(PROBE | dict(exploration=False))))
    ((batch, problems),) = seen
    assert 0 < len(batch) < PROBE["completions"] and all(probe.right(batch.text, problems))
    assert set(batch.group.tolist()) <= set(range(PROBE["completions"] // WAYS))


def test_exploration_of_a_run(run):
    found = json.loads((run / "probe" / "exploration.json").read_text())
    assert set(found) == {"first", "last"}
    for model in found.values():
        assert model["samples"] == 4 and len(model["correct"]) == 3 and all(0 <= c <= 4 for c in model["correct"])
        assert 1 <= model["branching"] <= len(WORDS) and 1 <= model["different_answers"] <= 4 and 0 < model["entropy"] < math.log(len(WORDS))
    assert found["first"] != found["last"]


@pytest.mark.slow
def test_a_probe_twice_gives_the_same(run):
    before = {p.name: p.read_bytes() for p in (run / "probe").iterdir()}
    probe.probe(run, ProbeConfig(**(PROBE | dict(runs=[str(run)]))))
    after = {p.name: p.read_bytes() for p in (run / "probe").iterdir()}
    assert before == after


# ---------------------------------------------------------------------------------------------------------------------------------------
# What goes wrong


def test_a_run_that_is_not_finished(tmp_path, run):
    shutil.copytree(run, tmp_path / "run", ignore=shutil.ignore_patterns("model", "probe"))
    with pytest.raises(SettingError, match="not finished"):
        probe.probe(tmp_path / "run", ProbeConfig(**PROBE))


@pytest.mark.slow
def test_a_run_with_a_reward_of_its_own(tmp_path):
    def length_reward(completions, answers):
        return [float(len(c) % 2) for c in completions]

    train(TrainConfig(**(RUN | dict(steps=2, out=str(tmp_path), name="run", keep_every=1))), reward=length_reward)
    with pytest.raises(SettingError, match="reward function"):
        probe.probe(tmp_path / "run", ProbeConfig(**(PROBE | dict(exploration=False, replacements=False))))


@pytest.mark.slow
def test_a_damaged_checkpoint_is_left_out(tmp_path, run, capsys):
    shutil.copytree(run, tmp_path / "run", ignore=shutil.ignore_patterns("probe"))
    (tmp_path / "run" / "checkpoints" / "step-000001" / "weights.safetensors").write_bytes(b"")
    probe.probe(tmp_path / "run", ProbeConfig(**(PROBE | dict(exploration=False, replacements=False))))
    assert "damaged" in capsys.readouterr().out
    assert load_file(tmp_path / "run" / "probe" / "changes.safetensors")["row_step"].unique().tolist() == [1, 4]


def test_the_command_line(monkeypatch, capsys):
    monkeypatch.setattr("sys.argv", ["probe", "no/such/run"])
    with pytest.raises(SystemExit) as end:
        run_program(probe.main)
    assert end.value.code == 2 and "is not a run folder" in capsys.readouterr().err
