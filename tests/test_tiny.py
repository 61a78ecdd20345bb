"""The built-in task and the built-in model: no leak between splits, right answers, and a base policy that leaves room to learn."""

import csv
import random
import re
from collections import Counter
from dataclasses import replace

import pytest
import torch

from rlvr.config import BUILT_IN, INSTRUCTION, TINY_MODEL, SettingError
from rlvr.data import load_problems, prompt_ids
from rlvr.reward import last_boxed, verify
from rlvr.run.defects import ERRORS
from rlvr.tiny import task
from rlvr.tiny.task import (
    ASKED, AUTHORS, AUTHORS_3, CLEAN, MAX_VALUE, VERBS, Author, apply_op, read_story, sample_document, sample_stories, sample_story,
    split_of, write, write_asked,
)  # fmt: skip

SPLITS = ("web", "train", "test")


@pytest.fixture(scope="module")
def stories():
    """2000 stories of each split."""
    return {split: sample_stories(split, 2000, seed=0) for split in SPLITS}


def skeleton(problem: str) -> tuple[int, tuple[tuple[str, int], ...]]:
    """The numbers and operators of a problem, read back from its text."""
    first, *steps, _ = re.findall(r"[^.?]+[.?]", problem)
    ops = []
    for step in steps:
        plain = re.sub(r"\d+", "{n}", step.split(maxsplit=1)[1])
        op = next(op for op, verbs in VERBS.items() if "{name} " + plain in verbs)
        ops.append((op, int(re.search(r"\d+", step).group())))
    return int(re.search(r"\d+", first).group()), tuple(ops)


# ---------------------------------------------------------------------------------------------------------------------------------------
# Stories


def test_the_splits_share_no_number_skeleton(stories):
    sets = {split: {(s.start, s.ops) for s in stories[split]} for split in SPLITS}
    assert not sets["web"] & sets["train"] and not sets["web"] & sets["test"] and not sets["train"] & sets["test"]
    assert all(split_of(*s) == split for split in SPLITS for s in sets[split])


@pytest.mark.parametrize("split", ["train", "test"])
def test_the_harder_level_has_longer_stories_of_the_same_kind(split):
    stories = sample_stories(split, 300, 0, level=2)
    assert {len(s.ops) for s in stories} == {4, 5, 6, 7}
    assert all(split_of(s.start, s.ops) == split and skeleton(s.problem) == (s.start, s.ops) for s in stories)
    assert [p.problem for p in load_problems("tiny", split, 300, level=2)] == [s.problem for s in stories]
    assert {len(s.ops) for s in sample_stories(split, 300, 0)} == {2, 3, 4, 5}


@pytest.mark.parametrize("level", [1, 2, 3])
def test_no_problem_of_one_split_reaches_another_by_any_door(level):
    """Nor one of another level, although levels 2 and 3 have stories with the same numbers: a split is a set of numbers, at any level."""
    rng = random.Random(0)
    assert {split_of(*skeleton(sample_document(rng, 0.5, level)[0])) for _ in range(500)} == {"web"}  # what the base model is made from
    assert {split_of(*skeleton(p.problem)) for p in load_problems("tiny", "train", 500, level=level)} == {"train"}
    assert {split_of(*skeleton(p.problem)) for p in load_problems("tiny", "test", 500, seed=5, level=level)} == {"test"}


def test_the_text_says_what_the_numbers_say(stories):
    for story in stories["train"]:
        assert skeleton(story.problem) == (story.start, story.ops)
        assert re.match(rf"{story.name} has {story.start} \w+\.", story.problem)


def test_the_answer_is_what_the_steps_give_and_values_stay_in_range(stories):
    for story in sum(stories.values(), ()):
        value = story.start
        for op, n in story.ops:
            value = apply_op(value, op, n)
            assert 1 <= value <= MAX_VALUE == 60
        assert value == story.answer and 3 <= story.start <= 30 and 2 <= len(story.ops) <= 5


def test_stories_are_pairwise_different(stories):
    for split in SPLITS:
        assert len({(s.start, s.ops) for s in stories[split]}) == 2000


def test_one_seed_one_set_of_stories():
    assert sample_stories("train", 50, 7) == sample_stories("train", 80, 7)[:50]
    assert not set(sample_stories("train", 50, 7)) & set(sample_stories("train", 50, 8))
    documents = [[sample_document(random.Random(seed), 0.3) for _ in range(20)] for seed in (1, 1, 2)]
    assert documents[0] == documents[1] != documents[2]


def test_all_steps_and_lengths_occur(stories):
    lengths = Counter(len(s.ops) for s in stories["test"])
    ops = Counter(op for s in stories["test"] for op, _ in s.ops)
    assert min(lengths[n] for n in (2, 3, 4, 5)) > 100 and min(ops[op] for op in "+-*") > 300


# ---------------------------------------------------------------------------------------------------------------------------------------
# Level 3: the question decides

QUESTIONS = {
    "last": "How many books are left?",
    "largest": "What was the largest number of books?",
    "smallest": "What was the smallest number of books?",
    "before": "How many books before the last step?",
    "difference": "How far is the last number of books from the first?",
}
UP = "Eva has 8 books. Eva picks up 12. Eva finds 5 more. Eva loses 6. ", " Eva starts with 8. 8+12=20. 20+5=25. 25-6=19."
DOWN = "Leo has 9 books. Leo sells 6. Leo then has 2 times as many. Leo buys 1. ", " Leo starts with 9. 9-6=3. 3*2=6. 6+1=7."


@pytest.mark.parametrize(
    "story, asks, answer, sentence",
    [
        (UP, "last", 19, ""), (UP, "largest", 25, " The largest is 25."), (UP, "smallest", 8, " The smallest is 8."),
        (UP, "before", 25, " Before the last step it is 25."), (UP, "difference", 11, " 19-8=11."),
        (DOWN, "last", 7, ""), (DOWN, "largest", 9, " The largest is 9."), (DOWN, "smallest", 3, " The smallest is 3."),
        (DOWN, "before", 6, " Before the last step it is 6."), (DOWN, "difference", 2, " 9-7=2."),
    ],
)  # fmt: skip
def test_the_question_decides_which_number_is_wanted(story, asks, answer, sentence):
    (problem, steps), rng = story, random.Random(0)
    read = read_story(problem + QUESTIONS[asks])
    assert (read.asks, read.answer, read.equations) == (asks, answer, 4 if asks == "difference" else 3)
    assert write_asked(rng, read, CLEAN) == f"{steps}{sentence} The answer is \\boxed{{{answer}}}."
    lazy = write_asked(rng, read, Author(1, 0, 0, 0, lazy=1))
    assert lazy == f"{steps} The answer is \\boxed{{{19 if story is UP else 7}}}."
    others = {last_boxed(write_asked(rng, read, Author(1, 0, 0, 0, wrong_choice=1))) for _ in range(60)}
    seen = {"8", "20", "25", "19"} if story is UP else {"9", "3", "6", "7"}
    assert others == {"last": {str(answer)}, "difference": {str(answer + slip) for slip in (-1, 1, 10)}}.get(asks, seen)


@pytest.mark.parametrize("split", ["train", "test"])
def test_level_3_asks_each_question_as_often(split):
    stories = sample_stories(split, 1000, 0, level=3)
    assert {len(s.ops) for s in stories} == {3, 4, 5, 6, 7}
    asked = Counter(s.asks for s in stories)
    assert set(asked) == set(ASKED) == set(QUESTIONS) and 150 < min(asked.values()) and max(asked.values()) < 250
    problems = load_problems("tiny", split, 1000, level=3)
    assert [(p.problem, p.answer, p.solution_steps) for p in problems] == [(s.problem, str(s.answer), s.equations) for s in stories]
    assert all(read_story(f"Q: {s.problem}\nA:") == s for s in stories)


def test_the_web_of_level_3_has_shorter_stories_and_asks_for_the_last_number_most_often():
    rng = random.Random(0)
    stories = [sample_story(rng, "web", 3) for _ in range(1000)]
    assert {len(s.ops) for s in stories} == {2, 3, 4, 5}
    asked = Counter(s.asks for s in stories)
    assert 340 < asked.pop("last") < 460 and 100 < min(asked.values()) and max(asked.values()) < 200


def test_a_story_is_read_back_from_its_text_and_from_no_other(stories):
    assert all(read_story(s.problem) == s for s in stories["test"][:500])
    for text in ("", "Ann has 3 apples.\nShe buys 4.\n\nHow many has she?", "Eva has 8 books. Eva eats 6. How many books are left?"):
        assert read_story(text) is None


@pytest.mark.parametrize("name", AUTHORS_3)
def test_every_author_of_level_3_is_right_only_sometimes(name):
    rng = random.Random(0)
    stories = [sample_story(rng, "web", 3) for _ in range(1000)]
    right = sum(verify(write_asked(rng, story, AUTHORS_3[name]), str(story.answer)) for story in stories)
    assert (700 if name == "careful" else 150) < right < (850 if name == "careful" else 350)
    assert sum(author.share for author in AUTHORS_3.values()) == pytest.approx(1)


# ---------------------------------------------------------------------------------------------------------------------------------------
# The web


def test_a_clean_author_always_boxes_the_right_answer(stories):
    rng = random.Random(0)
    for story in stories["web"]:
        text = write(rng, story, CLEAN)
        assert text.startswith(" ") and verify(text, str(story.answer))


def test_a_clean_author_writes_every_step(stories):
    rng = random.Random(0)
    for story in stories["web"][:500]:
        value, equations = story.start, []
        for op, n in story.ops:
            equations.append(f"{value}{op}{n}={apply_op(value, op, n)}")
            value = apply_op(value, op, n)
        assert re.findall(r"\d+[-+*]\d+=\d+", write(rng, story, CLEAN)) == equations


@pytest.mark.parametrize("name", AUTHORS)
def test_every_author_is_right_only_sometimes(name, stories):
    rng = random.Random(0)
    right = [verify(write(rng, story, AUTHORS[name]), str(story.answer)) for story in stories["web"][:1000]]
    low, high = {"careful": (0.6, 0.9), "guessing": (0.005, 0.1)}.get(name, (0.1, 0.5))
    assert low < sum(right) / len(right) < high


def test_the_curriculum_begins_with_clean_documents():
    rng = random.Random(0)
    assert all(last_boxed(sample_document(rng, clean_share=1.0)[1]) for _ in range(300))
    assert sum(last_boxed(sample_document(rng, clean_share=0.0)[1]) is None for _ in range(300)) > 60


def test_noise_is_made_of_words_alone():
    text = " ".join(task.STOCK + task.SALAD)
    assert not re.search(r"[\d\\{}=]", text) and len(set(task.SALAD)) == len(task.SALAD)


# ---------------------------------------------------------------------------------------------------------------------------------------
# The model that comes with the library


@pytest.fixture(scope="module")
def shipped():
    assert (TINY_MODEL / "config.json").is_file(), "the weights of the built-in model are missing"
    return str(TINY_MODEL)


@pytest.fixture(scope="module")
def tokenizer(shipped):
    from transformers import AutoTokenizer

    return AutoTokenizer.from_pretrained(shipped)


@pytest.fixture(scope="module")
def model(shipped):
    from transformers import AutoModelForCausalLM

    return AutoModelForCausalLM.from_pretrained(shipped, dtype=torch.float32).eval()


def web(n: int) -> list[str]:
    rng = random.Random(99)
    return [f"Q: {problem}\nA:{completion}" for problem, completion in (sample_document(rng, 0.0) for _ in range(n))]


def test_the_model_is_small_and_fits_its_tokenizer(model, tokenizer):
    assert sum(p.numel() for p in model.parameters()) < 1_000_000
    assert model.config.vocab_size == len(tokenizer)
    assert model.generation_config.eos_token_id == tokenizer.eos_token_id == model.config.eos_token_id
    assert tokenizer.pad_token_id != tokenizer.eos_token_id


def test_the_tokenizer_survives_saving_and_loading(tokenizer):
    """AutoTokenizer decides by the model's type how to split text. The split must be the one the model was trained with."""
    from rlvr.tiny.pretrain import train_tokenizer

    trained = train_tokenizer(0)
    texts = web(200) + ["12 345", "\\boxed{7}\n\n", "  two  blanks ", "Zebra's caf\u00e9: 3.5%?", "\u2028 \U0001f600"]
    assert tokenizer(texts).input_ids == trained(texts).input_ids
    assert tokenizer.chat_template == trained.chat_template and len(tokenizer) == len(trained)


def test_decoding_gives_the_text_back(tokenizer):
    for text in web(200):
        assert tokenizer.decode(tokenizer(text).input_ids) == text


def test_one_token_for_each_digit(tokenizer):
    assert len(tokenizer("12345").input_ids) == 5


def test_the_chat_template_asks_the_way_the_model_has_learned(tokenizer):
    problem = load_problems("tiny", "test", 1)[0].problem
    expected = tokenizer(f"Q: {problem}\nA:").input_ids
    assert prompt_ids(tokenizer, problem, INSTRUCTION) == prompt_ids(tokenizer, problem, "") == expected


def test_a_problem_of_several_lines_is_asked_whole(tokenizer):
    problem = "Ann has 3 apples.\nShe buys 4.\n\nHow many has she?"
    assert tokenizer.decode(prompt_ids(tokenizer, problem, INSTRUCTION)) == f"Q: {problem}\nA:"
    whole = tokenizer.apply_chat_template([{"role": "user", "content": problem}], tokenize=False)  # by other programs, too
    assert whole == f"Q: {problem}\nA:"


def test_plain_transformers_can_use_the_model(model, tokenizer):
    problem = load_problems("tiny", "test", 1)[0].problem
    messages = [{"role": "user", "content": problem}]
    inputs = tokenizer.apply_chat_template(messages, add_generation_prompt=True, return_tensors="pt", return_dict=True)
    output = model.generate(**inputs, max_new_tokens=60, do_sample=False)
    completion = tokenizer.decode(output[0, inputs["input_ids"].shape[1] :], skip_special_tokens=True)
    assert re.search(r"\d+[-+*]\d+=\d+", completion)


def test_the_model_travels_light():
    files = [path for path in TINY_MODEL.parent.rglob("*") if path.is_file() and "__pycache__" not in path.parts]
    assert sum(path.stat().st_size for path in files) < 4_000_000
    assert [path.name for path in files if path.suffix not in (".py", ".json", ".jinja", ".txt", ".md")] == ["model.safetensors"] * 2


@pytest.mark.slow
def test_the_base_policy_leaves_room_to_learn():
    """Right sometimes, able to be right nearly always, and undecided where it is wrong."""
    from rlvr.analysis.base_model import describe

    base = describe("tiny", problems=400)
    assert 0.15 <= base["pass@1"] <= 0.35
    assert base["pass@8"] >= 0.75
    assert base["entropy, wrong answers"] >= 0.3
    assert base["entropy, wrong answers"] > base["entropy, right answers"]
    assert base["mean length"] < 100


def test_base_models_are_compared_side_by_side(capsys):
    from rlvr.analysis.base_model import compare

    compare(["tiny", "tiny"], problems=4)
    header, _, *rows = capsys.readouterr().out.splitlines()
    assert header.split() == "on 4 test problems tiny tiny".split()
    numbers = {row[:-16].strip(): row.split()[-2:] for row in rows}
    assert {"pass@1", "entropy, wrong answers", "mean length", "wrong step"} <= numbers.keys()
    assert all(one == two for one, two in numbers.values())
    compare(["tiny"], problems=2, level=3, temperature=0.6, top_p=0.95)
    assert capsys.readouterr().out.splitlines()[0].split() == "on 2 test problems tiny3".split()
    with pytest.raises(SettingError, match="no model folder ./nowhere"):
        compare(["tiny", "./nowhere"])
    with pytest.raises(SettingError, match="No model was named"):
        compare([])


# ---------------------------------------------------------------------------------------------------------------------------------------
# The base model of level 3


@pytest.mark.slow
def test_the_base_of_level_3_is_right_in_one_answer_of_three():
    """At the temperature of evaluations it is right in one answer of three, and what goes wrong is of every kind."""
    from rlvr.analysis.base_model import describe

    base = describe("tiny3", problems=400, level=3, temperature=0.6, top_p=0.95)
    assert 0.25 <= base["pass@1"] <= 0.45
    assert base["pass@1"] + 0.1 < base["pass@8"] < 0.9
    assert base["mean length"] > 60
    errors = {name: share for name, share in base.items() if name.startswith("error")}
    assert sum(errors.values()) == pytest.approx(1 - base["pass@1"])
    assert min(errors[f"error: {kind}"] for kind in ("copying", "calculation", "selection")) > 0.01


def test_the_base_of_level_3_reads_as_the_first_one_does(tokenizer):
    for file in ("tokenizer.json", "chat_template.jinja"):
        assert (BUILT_IN["tiny3"] / file).read_text(encoding="utf-8") == (BUILT_IN["tiny"] / file).read_text(encoding="utf-8")


def test_the_base_of_level_3_is_pre_trained_from_that_of_level_1_on_its_own_web(tmp_path, model, tokenizer, monkeypatch):
    from transformers import AutoModelForCausalLM

    from rlvr.tiny import pretrain

    levels, weights = [], {}
    draw = pretrain.sample_document
    monkeypatch.setattr(pretrain, "sample_document", lambda rng, clean, level: (levels.append(level), draw(rng, clean, level))[1])
    monkeypatch.setitem(pretrain.RECIPES, 3, replace(pretrain.RECIPES[3], documents=64))
    for name, seed in (("a", 0), ("b", 0), ("c", 1)):
        pretrain.pretrain(tmp_path / name, seed, steps=2, level=3)
        weights[name] = AutoModelForCausalLM.from_pretrained(tmp_path / name, dtype=torch.float32).state_dict()["model.norm.weight"]
    assert set(levels) == {3}
    assert torch.equal(weights["a"], weights["b"]) and not torch.equal(weights["a"], weights["c"])
    before = model.state_dict()["model.norm.weight"]
    assert 0 < (weights["a"] - before).abs().max() < 1e-3  # two steps of the warm-up
    assert (tmp_path / "a" / "tokenizer.json").read_text() == (TINY_MODEL / "tokenizer.json").read_text()


@pytest.mark.slow
def test_a_run_of_level_3_is_trained_evaluated_and_its_errors_are_drawn(tmp_path, capsys):
    from rlvr.analysis.errors import ErrorsConfig, errors
    from rlvr.run.cli import parse_eval, parse_train
    from rlvr.run.compare import compare
    from rlvr.train import train

    small = "--steps 3 --prompts-per-step 4 --mini-batch-prompts 2 --final-eval-problems 4 --eval-every 0 --log-completions 32"
    train(parse_train(f"--level 3 --method grpo --out {tmp_path} --name run {small}".split()))
    run = tmp_path / "run"
    with (run / "metrics.csv").open(newline="", encoding="utf-8") as file:
        accuracy = [float(row["accuracy"]) for row in csv.DictReader(file) if row["accuracy"]]
    assert len(accuracy) == 3 and 0 < sum(accuracy) < 1.5
    errors(ErrorsConfig(str(run), stretch=2))
    with (run / "errors.csv").open(newline="", encoding="utf-8") as file:
        rows = list(csv.DictReader(file))
    assert [(row["step"], row["completions"]) for row in rows] == [("2", "64"), ("3", "32")]
    assert float(rows[1]["right"]) == pytest.approx(accuracy[2])  # all completions of the step are logged
    assert sum(float(rows[0][kind]) for kind in ("right", *ERRORS)) == pytest.approx(1)
    assert (run / "errors.png").read_bytes().startswith(b"\x89PNG")
    written = compare(parse_eval(f"tiny {run} --level 3 --problems 4 --completions 2 --out {tmp_path}/eval.json".split()))
    assert list(written["results"]["tiny"]) == ["tiny3", str(run)]
    asked = [read_story(problem["problem"]).answer for problem in written["results"]["tiny"]["tiny3"]["problems"]]
    assert asked == [s.answer for s in sample_stories("test", 4, 0, level=3)]
    (run / "rollouts.jsonl").write_text("")
    with pytest.raises(SettingError, match="has logged no answers to the built-in stories"):
        errors(ErrorsConfig(str(run)))
