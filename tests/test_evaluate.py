"""Pass@k, majority vote, bootstrap intervals, and a whole evaluation."""

import dataclasses
import itertools
import json
import types
from fractions import Fraction
from pathlib import Path

import pytest
import torch
from helpers import make_rollouts

import rlvr.evaluate
from rlvr.config import EvalConfig
from rlvr.data import Problem
from rlvr.evaluate import bootstrap_interval, evaluate, majority, pass_at_k
from rlvr.policy import Policy
from rlvr.run import compare as module
from rlvr.run.compare import compare, prompts_of_the_run

# -- pass@k -----------------------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("n", [1, 2, 5, 8])
def test_pass_at_k_is_the_share_of_subsets_with_a_right_one(n):
    for c in range(n + 1):
        right = [True] * c + [False] * (n - c)
        for k in range(1, n + 1):
            subsets = list(itertools.combinations(right, k))
            assert pass_at_k(n, c, k) == pytest.approx(float(Fraction(sum(map(any, subsets)), len(subsets))), abs=1e-12)


def test_pass_at_k_is_not_the_biased_plug_in_estimate():
    """1 - (1 - c/n)^k draws with replacement and comes out too low: 0.4375 here instead of 0.5."""
    assert pass_at_k(4, 1, 2) == 0.5


def test_pass_at_k_of_large_counts():
    assert pass_at_k(10_000, 3, 1) == pytest.approx(3e-4, abs=1e-12)
    assert pass_at_k(10_000, 1, 5_000) == pytest.approx(0.5, abs=1e-12)


@pytest.mark.parametrize("n, c, k", [(4, 5, 1), (4, -1, 1), (4, 1, 0), (4, 1, 5), (0, 0, 1)])
def test_impossible_counts_raise(n, c, k):
    with pytest.raises(ValueError, match="pass@k needs"):
        pass_at_k(n, c, k)


# -- majority ---------------------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "keys, index",
    [
        (["5", "7", "7"], 1),  # the first completion that gave the most frequent answer
        (["5", "7"], 0),  # a tie: the answer seen first
        (["5", "7", "7", "5", "9"], 0),
        ([None, None, None, "3"], 3),  # no answer is no vote, however frequent
        ([None, None], None),
        ([], None),
    ],
)
def test_majority(keys, index):
    assert majority(keys) == index


# -- bootstrap --------------------------------------------------------------------------------------------------------------------------


def test_the_interval_is_reproducible_and_leaves_the_global_generator_alone():
    values = [0.0, 1.0, 0.5, 0.25] * 5
    before = torch.get_rng_state()
    assert bootstrap_interval(values) == bootstrap_interval(values)
    assert bootstrap_interval(values) != bootstrap_interval(values, seed=1)
    assert torch.equal(torch.get_rng_state(), before)


def test_the_interval_is_about_two_standard_errors_to_each_side():
    # 100 problems, half of them right: standard error 0.05, so 0.5 +- 0.098
    low, high = bootstrap_interval([0.0, 1.0] * 50)
    assert low == pytest.approx(0.402, abs=0.015) and high == pytest.approx(0.598, abs=0.015)
    narrow_low, narrow_high = bootstrap_interval([0.0, 1.0] * 50, level=0.5)  # +- 0.034
    assert narrow_low == pytest.approx(0.466, abs=0.015) and narrow_high == pytest.approx(0.534, abs=0.015)


def test_the_interval_of_equal_values_is_a_point():
    assert bootstrap_interval([0.25] * 7) == (0.25, 0.25)
    assert bootstrap_interval([1.0]) == (1.0, 1.0)


# -- a whole evaluation -----------------------------------------------------------------------------------------------------------------


def test_metrics_of_written_completions(monkeypatch, qwen, tokenizer):
    """Four completions of each of two problems, written by hand; the gold answers are 7 and 3."""
    texts = [r"\boxed{7}", r"\boxed{1}", r"so 7 \boxed{7}", "7 without a box"]  # two right; votes 7: 2, 1: 1
    texts += [r"\boxed{4}", r"\boxed{3} \boxed{5}", r"\boxed{4}", r"\boxed{3.0}"]  # one right, the last; votes 4: 2, 5: 1, 3: 1
    rollouts = make_rollouts([2] * 8, [4, 4, 6, 2, 1, 1, 1, 1], groups=[0] * 4 + [1] * 4, finished=[True] * 3 + [False] + [True] * 4)
    rollouts.text = texts
    monkeypatch.setattr(rlvr.evaluate, "sample", lambda *args, **settings: rollouts)
    result = evaluate(Policy(qwen, tokenizer, {2}), [Problem("a", "7"), Problem("b", "3")], [[1], [2]], completions=4)

    assert result.correct == [True, False, True, False, False, False, False, True]
    means = {name: mean for name, (mean, low, high) in result.metrics.items()}
    # pass@2: 1 - C(2,2)/C(4,2) = 5/6 and 1 - C(3,2)/C(4,2) = 1/2
    expected = {"acc@4": 3 / 8, "maj@4": 1 / 2, "pass@1": 3 / 8, "pass@2": (5 / 6 + 1 / 2) / 2, "pass@4": 1.0}
    assert means == pytest.approx(expected, abs=1e-12)
    assert all(low <= mean <= high for mean, low, high in result.metrics.values())
    assert result.metrics["acc@4"][1:] == (0.25, 0.5)  # intervals are over the two problems
    counts = [(r["correct"], r["majority_correct"], r["mean_length"], r["truncated"]) for r in result.rows]
    assert counts == [(2, True, 4.0, 1), (1, False, 1.0, 0)]


class BoxTokenizer:
    """Puts the first token of a completion in a box."""

    def batch_decode(self, rows, skip_special_tokens=True):
        return [rf"\boxed{{{row[0]}}}" for row in rows]


def test_an_evaluation_samples_every_problem_from_its_own_generator(qwen):
    policy = Policy(qwen, BoxTokenizer(), {2})
    prompts = [[3, 4, 5], [6], [7, 8]]

    def run(golds, **settings):
        return evaluate(policy, [Problem("?", str(g)) for g in golds], prompts, completions=5, max_new_tokens=4, **settings)

    greedy = run([0, 0, 0], temperature=0).rollouts.completion_ids[::5, 0].tolist()
    result = run([greedy[0], -1, greedy[2]], temperature=0)  # all completions of a problem are alike; the second is wrong
    assert {name: values[0] for name, values in result.metrics.items()} == pytest.approx(
        {"acc@5": 2 / 3, "maj@5": 2 / 3, "pass@1": 2 / 3, "pass@2": 2 / 3, "pass@4": 2 / 3, "pass@5": 2 / 3}
    )
    before = torch.get_rng_state()
    a, b, c = (run(greedy, temperature=1.0, top_p=1.0, seed=seed) for seed in (0, 0, 1))
    assert torch.equal(torch.get_rng_state(), before)
    assert a.metrics == b.metrics and a.rollouts.text == b.rollouts.text != c.rollouts.text
    first = a.rollouts.completion_ids[:, 0].reshape(3, 5)
    right = (first == torch.tensor(greedy)[:, None]).sum(1)
    assert [r["correct"] for r in a.rows] == right.tolist() and 0 < right.sum() < 15
    assert a.metrics["pass@5"][0] == pytest.approx((right > 0).double().mean().item())


def test_models_are_compared_in_one_table_and_one_file(model_folder, tmp_path, capsys):
    data = tmp_path / "problems.jsonl"
    data.write_text("".join(json.dumps({"problem": f"What is {i} + 1?", "answer": str(i + 1)}) + "\n" for i in range(3)))
    model, out = str(model_folder), tmp_path / "eval.json"
    compare(EvalConfig(models=[model, model], data=str(data), completions=2, max_new_tokens=6, out=str(out), device="cpu"))
    written = json.loads(out.read_text())
    assert written["settings"]["completions"] == 2
    result = written["results"][str(data)][model]
    assert result["max_new_tokens"] == 6
    assert set(result["metrics"]) == {"acc@2", "maj@2", "pass@1", "pass@2"} and len(result["problems"]) == 3
    assert result["metrics"]["acc@2"] == {"mean": 0.0, "low": 0.0, "high": 0.0}  # random weights write no box
    printed = capsys.readouterr().out
    assert printed.count(model) == 1 and "acc@2" in printed and "0.000 [0.000, 0.000]" in printed and "mean" not in printed


def test_several_sets_are_evaluated_in_one_go_with_a_table_in_the_layout_of_the_paper(tmp_path, monkeypatch, capsys):
    """Two models, two sets: every set with intervals, then a row for each model with all sets in percent, and their mean."""
    sets = {}
    for name, answers in (("one", ["1", "2"]), ("two", ["1"])):
        sets[name] = str(tmp_path / f"{name}.jsonl")
        Path(sets[name]).write_text("".join(json.dumps({"problem": f"{name} {i}", "answer": a}) + "\n" for i, a in enumerate(answers)))
    said = {"right": ["1", "1"], "half": ["1", "no"]}

    def sample(model, tokenizer, prompts, **settings):
        texts = [rf"\boxed{{{text}}}" for _ in prompts for text in said[model.name]]
        batch = make_rollouts([2] * len(texts), [3] * len(texts), groups=[i // 2 for i in range(len(texts))])
        return dataclasses.replace(batch, text=texts)

    monkeypatch.setattr(module, "check_model_name", lambda name: name)
    monkeypatch.setattr(module, "check_reachable", lambda name: None)
    model = {name: types.SimpleNamespace(name=name, config=None) for name in said}
    policy = {name: types.SimpleNamespace(model=model[name], tokenizer=None, stop_ids={2}, complete=None) for name in said}
    monkeypatch.setattr(module, "load_policy", lambda name, *_: policy[name])
    monkeypatch.setattr(module, "encode_prompts", lambda tokenizer, problems, *_: (problems, [[3]] * len(problems), 0))
    monkeypatch.setattr(module, "check_length", lambda *_: None)
    monkeypatch.setattr(module, "most_positions", lambda config: 512)
    monkeypatch.setattr(rlvr.evaluate, "sample", sample)
    out = tmp_path / "eval.json"
    written = compare(EvalConfig(models=["right", "half"], data=",".join(sets.values()), completions=2, out=str(out), device="cpu"))
    printed = capsys.readouterr().out
    # set one: the first problem's answer is 1, the second's 2
    assert [written["results"][sets["one"]][m]["metrics"]["acc@2"]["mean"] for m in said] == [0.5, 0.25]
    assert [written["results"][sets["two"]][m]["metrics"]["acc@2"]["mean"] for m in said] == [1.0, 0.5]
    assert printed.count("2 completions each") == 2 and "acc@2 / maj@2 / pass@2, in percent" in printed
    rows = {line.split()[0]: line for line in printed.splitlines() if line.startswith(("right", "half"))}
    assert rows["right"].split("  ")[-1].strip() == "75.0 / 75.0 / 75.0" and "100.0 / 100.0 / 100.0" in rows["right"]
    assert rows["half"].split("  ")[-1].strip() == "37.5 / 75.0 / 75.0"  # the first answer wins a tie
    assert json.loads(out.read_text()) == written


def test_a_run_and_what_it_is_compared_with_get_the_prompts_of_its_training(tmp_path, capsys):
    from rlvr.config import TrainConfig

    def run(name, **settings):
        folder = tmp_path / name
        folder.mkdir()
        (folder / "config.json").write_text(json.dumps(dataclasses.asdict(TrainConfig(**settings))))
        (folder / "metrics.csv").write_text("step\n")
        return str(folder)

    plain, own, same, other = run("a"), run("b", template="Q: {problem}"), run("c", template="Q: {problem}"), run("d", system="Think.")
    assert prompts_of_the_run(EvalConfig(models=["tiny", plain])).template == "auto" and not capsys.readouterr().out
    assert prompts_of_the_run(EvalConfig(models=["tiny", own, same])).template == "Q: {problem}"
    assert "as in training: " in (said := capsys.readouterr().out) and "--max-new-tokens 120" in said
    assert prompts_of_the_run(EvalConfig(models=[own])).max_new_tokens == 120  # a longer one would be another task
    assert prompts_of_the_run(EvalConfig(models=[own], max_new_tokens=7)).max_new_tokens == 7
    capsys.readouterr()
    (tmp_path / "old").mkdir()
    (tmp_path / "old" / "config.json").write_text('{"preset": "tiny", "method": "pos"}')  # of another version of this library
    (tmp_path / "old" / "metrics.csv").write_text("step\n")
    assert prompts_of_the_run(EvalConfig(models=[str(tmp_path / "old"), own])).template == "Q: {problem}"
    for c in (EvalConfig(models=[own, other]), EvalConfig(models=[own], system="Mine."), EvalConfig(models=["tiny"])):
        assert prompts_of_the_run(c) == c
    assert capsys.readouterr().out.count("note: these runs were trained with different prompts") == 1
