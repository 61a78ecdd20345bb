"""What the adapters do without their engines: rows in any order, problems as verl reads them, our verifier as a reward."""

import pytest
import torch
from datasets import load_dataset

from rlvr import adapters, config
from rlvr.adapters import parquet
from rlvr.adapters.verl import check, compute_score, method_of, shape_rows
from rlvr.advantage import METHODS, Strength, grpo_advantages, keep_sign, method, shape
from rlvr.config import SettingError
from rlvr.methods import STRENGTHS
from rlvr.run.cli import parse_command

N, T = 24, 12
NOT_DEFAULT = {"ppl_alpha": 0.3, "pos_alpha": 0.2, "clip_cov_share": 0.1, "clip_cov_low": 0.05}


@pytest.fixture
def rows():
    """Three groups of eight whose rows lie in any order, of unequal length."""
    draw = torch.Generator().manual_seed(0)
    group = (torch.arange(N) // 8)[torch.randperm(N, generator=draw)]
    mask = torch.arange(T) < torch.randint(2, T + 1, (N, 1), generator=draw)
    rewards = torch.zeros(N, T)
    rewards[:, 0] = torch.randint(0, 2, (N,), generator=draw) * 2.0 - 1
    logp = -torch.rand(N, T, generator=draw) * torch.rand(N, 1, generator=draw)  # of some rows all near 0, as that of a row without a token
    entropy = torch.rand(N, T, generator=draw)
    names = [f"problem {g}" for g in group.tolist()]
    first = {name: number for number, name in enumerate(dict.fromkeys(names))}
    group = torch.tensor([first[name] for name in names])
    return dict(rewards=rewards, mask=mask, names=names, group=group, logp=logp, entropy=entropy)


def by_hand(rows, name: str, **strengths):
    rewards = rows["rewards"].sum(1)
    more = dict(entropy=rows["entropy"], rewards=rewards, step=7)
    return shape(name, grpo_advantages(rewards, rows["group"]), rows["logp"], rows["mask"], rows["group"], **more, **strengths)


def by_rows(rows, name: str, **given):
    given = {"entropy": rows["entropy"], "step": 7} | given
    return shape_rows(rows["rewards"], rows["mask"].long(), rows["names"], rows["logp"], name, **given)


@pytest.mark.parametrize("name", [*METHODS, "ppl+pos", "pos+forks"])
def test_rows_get_the_advantages_of_rlvr_advantage(name, rows):
    shaped = by_rows(rows, name, **NOT_DEFAULT)
    assert torch.equal(shaped, by_hand(rows, name, **NOT_DEFAULT))
    assert (name == "grpo") == torch.equal(shaped, by_hand(rows, "grpo"))


def test_a_method_that_is_declared_later_needs_no_line_in_the_adapters(rows, monkeypatch):
    monkeypatch.setattr(config, "TrainConfig", config.TrainConfig)  # so that it is given back as it was

    @method("twice", reads="entropy", twice_power=Strength(2.0, "How much."))
    def twice(shaped, advantages, old_logp, mask, group, *, entropy, twice_power):
        return shaped * twice_power * entropy

    try:
        assert torch.equal(by_rows(rows, "twice", twice_power=3.0), by_hand(rows, "grpo") * 3.0 * rows["entropy"])
        assert method_of(Algorithm(adv_estimator="rlvr_twice")) == "twice"
    finally:
        del METHODS["twice"], STRENGTHS["twice_power"]


class Algorithm(dict):
    """Settings as omegaconf has them: by name and by attribute."""

    __getattr__ = dict.get


def test_estimators_are_named_after_methods():
    names = {"rlvr_ppl": "ppl", "rlvr_ppl_pos": "ppl+pos", "rlvr_entropy_adv": "entropy-adv", "gae": None}
    assert {name: method_of(Algorithm(adv_estimator=name)) for name in names} == names
    assert method_of(Algorithm(adv_estimator="rlvr", rlvr={"method": "ppl+forks"})) == "ppl+forks"


def test_rows_without_a_token_take_no_part_in_the_statistics_of_their_group(rows):
    first = int((rows["group"] == 0).nonzero()[0])
    without = by_rows(rows, "ppl", ppl_alpha=0.3)
    rows["mask"][first] = False
    rows["logp"][first] = -50.0
    there = by_rows(rows, "ppl", ppl_alpha=0.3)
    others = (torch.arange(N) != first) & (rows["group"] == 0)
    plain = grpo_advantages(rows["rewards"].sum(1), rows["group"])
    wanted = shape("ppl", plain[others], rows["logp"][others], rows["mask"][others], rows["group"][others], ppl_alpha=0.3)
    assert torch.equal(there[others], wanted) and not torch.equal(without[others], wanted) and not there[first].any()


@pytest.mark.parametrize("name", [*METHODS, "ppl+forks"])
def test_a_batch_without_a_token_has_nothing_to_shape(name, rows):
    """As when every completion was cut, and the engine masks those."""
    rows["mask"][:] = False
    assert torch.equal(by_rows(rows, name), torch.zeros(N, T))


@pytest.mark.parametrize("name", ["ppl+pos", "dr-grpo"])
def test_numbers_of_any_kind_give_the_same(name, rows):
    """Log-probs in bfloat16, rewards that are integers, groups that are named by a tensor."""
    rows["logp"] = rows["logp"].bfloat16().float()
    wanted = by_rows(rows, name)
    assert torch.equal(by_rows(rows | {"logp": rows["logp"].bfloat16()}, name), wanted)
    assert torch.equal(by_rows(rows | {"rewards": rows["rewards"].long()}, name), wanted)
    assert torch.equal(by_rows(rows | {"names": rows["group"]}, name), wanted)


def test_the_window_and_the_sign_are_those_of_train(rows):
    assert torch.equal(by_rows(rows, "pos", shape_start=8), by_hand(rows, "grpo"))
    assert torch.equal(by_rows(rows, "pos", shape_start=3, shape_stop=7), by_hand(rows, "pos"))
    assert torch.equal(by_rows(rows, "pos", learn_from="negative"), keep_sign(by_hand(rows, "pos"), "negative"))


@pytest.mark.parametrize("given, message", [
    ({"method": "best"}, "There is no method 'best'"),
    ({"method": "pos", "alpha": 1}, "alpha is no setting of shaping"),
    ({"method": "pos", "pos_alpha": -1.0}, "--pos-alpha is -1"),
    ({"method": "pos", "shape_start": "plateau", "step": 1}, "verl keeps no entropy"),
    ({"method": "pos", "shape_start": 9, "step": None}, "There is no step"),
    ({"method": "forks", "entropy": None}, "needs entropy"),
    ({"method": "ppl-sham", "step": None}, "needs step"),
])  # fmt: skip
def test_what_is_wrong_or_missing_is_said(given, message, rows):
    with pytest.raises(ValueError, match=message):
        by_rows(rows, given.pop("method"), **given)
    with pytest.raises(ValueError, match="needs the old log-probs, and none reached it"):
        shape_rows(rows["rewards"], rows["mask"], rows["names"], None, "ppl")
    assert torch.equal(shape_rows(rows["rewards"], rows["mask"], rows["names"], None, "pos"), by_hand(rows, "pos"))


@pytest.mark.parametrize("rlvr, message", [
    ({"method": "best"}, "There is no method 'best'"),
    ({"method": "ppl", "ppl_alhpa": 0.1}, "ppl_alhpa is no setting of shaping"),
    ({"method": "pos", "shape_start": "plateau"}, "verl keeps no entropy"),
    ({"method": "pos+forks"}, "computes no entropies with rollout_correction.bypass_mode=True"),
    ({"method": "ppl+dr-grpo"}, "drops rewards with rollout_correction.rollout_rs=seq_mean_k1, and ppl.dr-grpo needs them"),
])  # fmt: skip
def test_settings_that_would_fail_at_the_first_advantage_are_refused_at_the_start(rlvr, message):
    bypass = {"rollout_correction": {"bypass_mode": True, "rollout_rs": "seq_mean_k1"}}
    with pytest.raises(ValueError, match=message):
        check(Algorithm(adv_estimator="rlvr", rlvr=rlvr, **bypass))
    check(Algorithm(adv_estimator="gae", rlvr=rlvr))  # not ours
    check(Algorithm(adv_estimator="rlvr_ppl", rlvr={"ppl_alpha": 0.1}, **bypass))
    check(Algorithm(adv_estimator="rlvr_forks", rollout_correction={"bypass_mode": False}))


@pytest.mark.parametrize("name, message", [("rlvr_plp", "no estimator rlvr_plp"), ("RLVR_PPL", "no estimator RLVR_PPL"), ("rlvr_ppl", "names its method")])
def test_a_name_that_is_wrong_or_one_too_many_is_refused_at_the_start(name, message):
    with pytest.raises(ValueError, match=message):
        check(Algorithm(adv_estimator=name, rlvr={"method": "pos"}))


def test_the_reward_is_our_verifier():
    assert compute_score("gsm8k", r"so \boxed{\frac{2}{4}}", "0.5", extra_info={}) == {"score": 1.0, "acc": True}
    assert compute_score("gsm8k", r"so 0.5", "0.5") == {"score": -1.0, "acc": False}


def test_problems_are_written_as_verl_reads_them(tmp_path, capsys):
    file, out = tmp_path / "mine.jsonl", tmp_path / "train.parquet"
    file.write_text('{"problem": "1 + 1?", "answer": "2"}\n{"problem": "2 + 2?", "answer": 4}\n')
    parquet.write(parse_command(parquet.ParquetConfig, "x", [str(file), str(out)]))
    assert "2 problems" in capsys.readouterr().out
    first, second = load_dataset("parquet", data_files=str(out), split="train", cache_dir=str(tmp_path / "cache"))
    assert first["prompt"] == [{"role": "user", "content": "1 + 1?\n" + parquet.INSTRUCTION}] and first["data_source"] == str(file)
    assert [row["reward_model"] for row in (first, second)] == [{"style": "rule", "ground_truth": answer} for answer in ("2", "4")]
    assert second["extra_info"] == {"split": "train", "index": 1} and second["ability"] == "math"
    with pytest.raises(SettingError, match="Nothing can be written"):
        parquet.write(parquet.ParquetConfig(str(file), "/dev/null/x.parquet"))
    for taken in (str(tmp_path), "", str(file)):
        with pytest.raises(SettingError, match="is a folder or the data"):
            parquet.write(parquet.ParquetConfig(str(file), taken))
    file.write_text('{"task": "1 + 1?", "gold": "2"}\n')
    parquet.write(parse_command(parquet.ParquetConfig, "x", [str(file), str(out), "--problem-column", "task", "--answer-column", "gold"]))
    assert "1 problems" in capsys.readouterr().out


@pytest.mark.parametrize("found, fits", [("1.16.0", True), ("1.99", True), ("1.15.9", False), ("2.0.0", False)])
def test_a_version_that_an_adapter_does_not_know_ends_the_program_with_a_sentence(found, fits, monkeypatch):
    monkeypatch.setattr(adapters, "version", lambda package: found)
    if fits:
        adapters.need("trl", ">=1.16,<2")
    else:
        with pytest.raises(SystemExit, match="is not a version that this adapter knows. Install one: pip install 'trl>=1.16,<2'"):
            adapters.need("trl", ">=1.16,<2")


def test_a_private_method_that_takes_other_things_ends_it_too():
    class Trainer:
        def _loss(self, model, inputs): ...

    adapters.need_method(Trainer, "_loss", "model inputs", "trl==1.16.0")
    for name, parameters in (("_loss", "model batch"), ("_gone", "model")):
        with pytest.raises(SystemExit, match=f"Trainer.{name} is another here .* pip install trl==1.16.0"):
            adapters.need_method(Trainer, name, parameters, "trl==1.16.0")
