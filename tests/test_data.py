"""Problems from files and from the Hub: every published format is read as it is, and every mistake in a file is named with its remedy."""

import bz2
import gzip
import json
import lzma
import re
import types
from pathlib import Path

import pytest

from rlvr.config import SettingError
from rlvr.data import Problem, encode_prompts, has_test_split, load_problems, prompt_ids
from rlvr.loaders.rows import check_answers
from rlvr.loaders.sources import HUB

DATA = Path(__file__).parent / "data"
GOOD = '{"problem": "p", "answer": 1}\n'
LINE_SEPARATOR = "\u2028"  # a line break for str.splitlines(), but an ordinary character in JSON and CSV


def error_of(data, split="train", **options) -> str:
    """The message of the SettingError, with --strict. It must be one line: a sentence of cause, then a sentence of remedy."""
    with pytest.raises(SettingError) as caught:
        load_problems(str(data), split, strict=True, **options)
    message = str(caught.value)
    assert re.fullmatch(r"[^\n]+[.)] [A-Z][^\n]*\.", message), message
    assert len(message.replace(str(data), "")) < 300
    return message


def save(path: Path, text: str | bytes) -> Path:
    path.write_bytes(text if isinstance(text, bytes) else text.encode())
    return path


# ---------------------------------------------------------------------------------------------------------------------------------------
# Published columns


@pytest.mark.parametrize(
    "name, answers",
    [
        ("gsm8k", ["18", "71", "6,250"]),  # a worked solution that ends in "#### 18"
        ("math500", [r"\left( 3, \frac{\pi}{2} \right)", "12"]),
        ("aime", ["025", r"360^\circ"]),  # the leading zero stays: the verifier compares as numbers
        ("amc", ["142", "0.5"]),  # 142.0 and 0.5 in the file
        ("mawps", ["43", "3.75"]),
        ("svamp", ["145", "-3"]),
        ("minerva", ["7.2e-3", r"\frac{1}{4}"]),  # the last box of the solution
    ],
)
def test_answers_come_out_as_plain_text(name, answers):
    problems = load_problems(str(DATA / f"{name}.jsonl"))
    assert [p.answer for p in problems] == answers
    assert all(p.problem and p.solution_steps is None for p in problems)


def test_the_question_is_kept_as_it_stands_and_svamp_gets_both_parts():
    first = [load_problems(str(DATA / f"{name}.jsonl"))[0].problem for name in ("gsm8k", "mawps", "svamp")]
    assert first[0].startswith("Janet\u2019s ducks lay 16 eggs per day.")
    assert first[1] == "Ann had 70 shells and gave away 27 . How many does she have now ?"
    assert first[2] == "A shop has 290 bananas in 2 crates. How many bananas are in each crate?"


def test_an_answer_column_wins_over_the_solution_beside_it(tmp_path):
    row = {"problem": "p", "solution": r"\boxed{1}", "answer": "2"}
    assert load_problems(str(save(tmp_path / "a.jsonl", json.dumps(row)))) == [Problem("p", "2")]


@pytest.mark.parametrize(
    "published, answer",
    [
        ("#### 1,000", "1,000"),
        ("2+2=<<2+2=4>>4\n#### 4", "4"),
        (43.0, "43"),
        (43, "43"),
        (-0.25, "-0.25"),
        (r"so $\boxed{\frac{1}{2}}$.", r"\frac{1}{2}"),
        (" 025 ", "025"),
        ("east", "east"),
    ],
)
def test_one_answer(published, answer, tmp_path):
    path = save(tmp_path / "a.jsonl", json.dumps({"question": "q", "answer": published}))
    assert load_problems(str(path)) == [Problem("q", answer)]


# ---------------------------------------------------------------------------------------------------------------------------------------
# File formats

ROWS = [{"problem": "What is 1+1?", "answer": "2"}, {"problem": 'A "quoted", long\nquestion\u00e9', "answer": "3"}]
PROBLEMS = [Problem(row["problem"], row["answer"]) for row in ROWS]


def test_json_lines_and_json(tmp_path):
    lines = save(tmp_path / "a.jsonl", "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in ROWS))
    whole = save(tmp_path / "a.json", json.dumps(ROWS, indent=2))
    assert load_problems(str(lines)) == load_problems(str(whole)) == PROBLEMS


def test_csv_with_commas_quotes_and_line_breaks_in_a_field(tmp_path):
    text = 'problem,answer\nWhat is 1+1?,2\n"A ""quoted"", long\nquestion\u00e9",3\n'
    assert load_problems(str(save(tmp_path / "a.csv", text))) == PROBLEMS
    assert load_problems(str(save(tmp_path / "b.csv", "problem,answer\r\np,1\r\nq,2\r\n"))) == [Problem("p", "1"), Problem("q", "2")]


@pytest.mark.parametrize(
    "name, content",
    [
        ("lines.json", "".join(json.dumps(row) + "\n" for row in ROWS)),
        ("list.jsonl", json.dumps(ROWS, indent=1)),
        ("a.ndjson", "".join(json.dumps(row) + "\n" for row in ROWS)),
        ("a.tsv", 'problem\tanswer\nWhat is 1+1?\t2\n"A ""quoted"", long\nquestion\u00e9"\t3\n'),
        ("A.JSONL.GZ", gzip.compress("".join(json.dumps(row) + "\n" for row in ROWS).encode())),
        ("packed.jsonl", gzip.compress("".join(json.dumps(row) + "\n" for row in ROWS).encode())),  # its name does not say so
        ("a.json.xz", lzma.compress(json.dumps(ROWS).encode())),
        ("a.csv.bz2", bz2.compress('problem,answer\nWhat is 1+1?,2\n"A ""quoted"", long\nquestion\u00e9",3\n'.encode())),
        ("semicolon.csv", 'problem;answer\nWhat is 1+1?;2\n"A ""quoted"", long\nquestion\u00e9";3\n'),  # as spreadsheets write it in half of Europe
        ("field.json", json.dumps({"data": ROWS})),
        ("names.jsonl", "".join(json.dumps({" Problem": r["problem"], "ANSWER ": r["answer"]}) + "\n" for r in ROWS)),
        ("names.csv", 'Problem, answer\nWhat is 1+1?, 2\n"A ""quoted"", long\nquestion\u00e9", 3\n'),
    ],
    ids=lambda value: value if isinstance(value, str) and len(value) < 20 else "",
)
def test_other_kinds_of_files_and_spellings_of_columns(name, content, tmp_path):
    assert load_problems(str(save(tmp_path / name, content))) == PROBLEMS


def test_a_pattern_means_all_its_files_in_order(tmp_path):
    for i in (1, 0):
        save(tmp_path / f"train-{i}.jsonl", json.dumps(ROWS[i]) + "\n")
    assert load_problems(str(tmp_path / "train-*.jsonl")) == PROBLEMS
    assert "There is no file" in error_of(tmp_path / "test-*.jsonl")
    save(tmp_path / "test-1.txt", "")
    assert "test-1.txt is not a" in error_of(tmp_path / "test-*")
    save(tmp_path / "[a].jsonl", json.dumps(ROWS[0]) + "\n")  # a name, though it looks like a pattern
    assert load_problems(str(tmp_path / "[a].jsonl")) == PROBLEMS[:1]


def test_what_a_packed_file_may_become_is_limited(tmp_path, monkeypatch):
    from rlvr.loaders import sources

    monkeypatch.setattr(sources, "MOST_BYTES", 2**20)
    assert "more than 0 GiB" in error_of(save(tmp_path / "a.jsonl.gz", gzip.compress(b" " * 2**21)))


def test_parquet(tmp_path):
    import pyarrow
    import pyarrow.parquet

    table = pyarrow.Table.from_pylist([{"input": "p", "target": 43.0}, {"input": "q", "target": 0.5}])
    pyarrow.parquet.write_table(table, tmp_path / "a.parquet")
    assert load_problems(str(tmp_path / "a.parquet")) == [Problem("p", "43"), Problem("q", "0.5")]


def test_byte_order_mark_blank_lines_and_windows_line_ends(tmp_path):
    text = '\ufeff\n{"problem": "p", "answer": 1}\r\n\r\n   \n{"problem": "q", "answer": 2}'  # and no line end at the end
    assert load_problems(str(save(tmp_path / "a.jsonl", text))) == [Problem("p", "1"), Problem("q", "2")]
    assert load_problems(str(save(tmp_path / "a.csv", "\ufeffproblem,answer\np,1\n"))) == [Problem("p", "1")]


def test_a_unicode_line_separator_does_not_break_a_row(tmp_path):
    question = f"one{LINE_SEPARATOR}two\u0085three\x0bfour"
    rows = save(tmp_path / "a.jsonl", json.dumps({"problem": question, "answer": 1}, ensure_ascii=False))
    assert load_problems(str(rows)) == [Problem(question, "1")]
    for field in (question, f'"{question}"'):
        assert load_problems(str(save(tmp_path / "a.csv", f"problem,answer\n{field},1\n"))) == [Problem(question, "1")]


def test_limit_keeps_the_first_problems():
    path = str(DATA / "gsm8k.jsonl")
    everything = load_problems(path)
    assert load_problems(path, limit=2) == everything[:2] and load_problems(path, limit=0) == everything == load_problems(path, limit=99)


def test_the_built_in_problems_know_their_steps():
    problems = load_problems("tiny", "test", limit=20, seed=3)
    assert len(problems) == 20 and all(2 <= p.solution_steps <= 5 for p in problems)
    assert problems == load_problems("tiny", "test", limit=20, seed=3)
    assert not set(problems) & set(load_problems("tiny", "test", limit=20, seed=4))
    assert len(load_problems("tiny", "train")) == 8192


# ---------------------------------------------------------------------------------------------------------------------------------------
# Mistakes

@pytest.mark.parametrize(
    "name, content, fragments",
    [
        ("empty.jsonl", "", ["holds no problem", "at least one row"]),
        ("blank.jsonl", "\n \n", ["holds no problem"]),
        ("empty.json", "[]", ["holds no problem"]),
        ("empty.csv", "", ["holds no problem"]),
        ("header.csv", "problem,answer\n", ["holds no problem"]),
        ("broken.jsonl", GOOD + "\n" + '{"problem": "p", "answer": }\n', ["line 3", "not valid JSON"]),
        ("two.jsonl", '{"problem": "p", "answer": 1} {"problem": "q", "answer": 2}\n', ["line 1", "per line"]),
        ("deep.jsonl", "[" * 100_000, ["not valid JSON"]),
        ("digits.jsonl", GOOD + '{"problem": "p", "answer": ' + "9" * 5000 + "}", ["line 2"]),
        ("broken.json", '[{"problem": "p"', ["not valid JSON"]),
        ("text.json", '"p"', ["other than objects"]),
        ("cut.jsonl.gz", gzip.compress(GOOD.encode())[:-9], ["cannot be read", "unpack it"]),
        ("packed.zip", GOOD, ["is not a .jsonl, .json, .csv or .parquet file"]),
        ("list.jsonl", GOOD + "[1, 2]\n", ["other than objects"]),
        ("latin.jsonl", '{"problem": "caf\u00e9", "answer": 1}'.encode("latin-1"), ["not UTF-8", "Save it as UTF-8"]),
        ("latin.csv", "problem,answer\ncaf\u00e9,1\n".encode("latin-1"), ["not UTF-8"]),
        ("columns.json", '{"problem": ["p", "q"], "answer": ["1", "2"]}', ["row 1", "a list of 2 texts", "a row for each problem"]),
        ("huge.csv", "problem,answer\n" + "x" * 200_000 + ",1\n", ["huge.csv"]),
        ("columns.jsonl", '{"frage": "p", "antwort": 1}\n', ["'frage', 'antwort'", "--problem-column"]),
        ("half.jsonl", '{"problem": "p"}\n', ["the columns 'problem'."]),
        ("null.jsonl", GOOD + '{"problem": "p", "answer": null}\n', ["Row 2", "answer"]),
        ("missing.jsonl", GOOD + GOOD + '{"problem": "p"}\n', ["Row 3", "answer"]),
        ("blank_answer.jsonl", '{"problem": "p", "answer": "  "}\n', ["Row 1", "answer"]),
        ("blank_problem.jsonl", '{"problem": "", "answer": "1"}\n', ["Row 1", "problem"]),
        ("short_row.csv", "problem,answer\np,1\nq\n", ["Row 2", "answer"]),
        ("nan.jsonl", GOOD + '{"problem": "p", "answer": NaN}\n', ["Row 2", "answer"]),  # how pandas writes a missing number
        ("no_number.jsonl", GOOD + '{"question": "p", "problem": "p", "answer": "so it is\\n####"}\n', ["Row 2", "answer"]),
        ("empty_box.jsonl", '{"problem": "p", "answer": "\\\\boxed{}"}\n', ["Row 1", "answer"]),
        ("no_box.jsonl", '{"problem": "p", "solution": "\\\\boxed{1}"}\n{"problem": "p", "solution": "One."}\n', ["Row 2", "solution"]),
        ("junk.parquet", "not parquet at all", ["cannot be read as parquet"]),
        ("problems.txt", GOOD, [".jsonl, .json, .csv or .parquet"]),
        ("problems", GOOD, [".jsonl, .json, .csv or .parquet"]),
    ],
    ids=lambda value: value if isinstance(value, str) and re.fullmatch(r"[\w.]+", value) else "",
)  # fmt: skip
def test_a_mistake_in_a_file_is_named_with_its_remedy(name, content, fragments, tmp_path):
    message = error_of(save(tmp_path / name, content))
    assert name in message
    for fragment in fragments:
        assert fragment in message


def test_missing_file_and_directory(tmp_path):
    assert "There is no file" in error_of(tmp_path / "nowhere.jsonl")
    assert "is a folder" in error_of(tmp_path)
    (tmp_path / "folder.jsonl").mkdir()
    assert "is a folder" in error_of(tmp_path / "folder.jsonl")


# ---------------------------------------------------------------------------------------------------------------------------------------
# The Hub


# A row of each set, in the columns in which it is published, and what the reader must make of it.
STILL = (
    "A conversation between User and Assistant. The Assistant shows its reasoning, for example:\n\n<answer>\nanswer here\n</answer>\n\n"
    "User: What is\n1 + 1?\nAssistant:\n<think>\n"
)
PUBLISHED = {
    "gsm8k": ({"question": "p", "answer": "One.\n#### 1"}, Problem("p", "1")),
    "svamp": ({"ID": "c", "Body": "Ann has 2.", "Question": "How many?", "Answer": "2.0", "Equation": "", "Type": "x"}, ("Ann has 2. How many?", "2.0")),
    "math": ({"problem": "p", "level": "Level 1", "type": "Algebra", "solution": r"So \boxed{\frac{1}{2}}."}, ("p", r"\frac{1}{2}")),
    "dapo-math-17k": ({"prompt": "p", "solution": "34", "data_source": "math_dapo", "source_prompt": [{"role": "user"}]}, ("p", "34")),
    "still-3-rl-90k": ({"prompt": [{"role": "user", "content": STILL}], "reward_model": {"ground_truth": "2"}}, ("What is\n1 + 1?", "2")),
    "math500": ({"problem": "p", "solution": r"\boxed{9}", "answer": "9"}, ("p", "9")),
    "aime24": ({"id": 60, "problem": "p", "solution": "", "answer": "204"}, ("p", "204")),
    "aime25": ({"problem": "p", "answer": "70", "id": "0"}, ("p", "70")),
    "amc": ({"id": 0, "problem": "p", "answer": 142.0, "url": "u"}, ("p", "142")),
    "amc23": ({"id": 0, "question": "p", "answer": "27"}, ("p", "27")),
    "minerva": ({"question": "p", "answer": "7.2e-3"}, ("p", "7.2e-3")),
    "olympiadbench": ({"question": "p", "final_answer": ["2", "3"], "solution": ["s"]}, ("p", "2, 3")),
    "somebody/some-set": ({"question": "p", "answer": "1"}, ("p", "1")),
}


@pytest.fixture
def hub(monkeypatch):
    """`datasets.load_dataset` without a network: returns two rows and remembers how it was called."""
    import datasets

    calls = []

    def load_dataset(path, name=None, *, split):
        calls.append((path, name, split))
        short = next((short for short, known in HUB.items() if known.hub_id == path), path)
        return datasets.Dataset.from_list([PUBLISHED[short][0]])

    monkeypatch.setattr(datasets, "load_dataset", load_dataset)
    return calls


def test_every_short_name_has_a_published_row_here():
    assert set(HUB) == set(PUBLISHED) - {"somebody/some-set"}


@pytest.mark.parametrize(
    "name, split, call",
    [
        *((name, "train", (known.hub_id, known.configuration, known.train)) for name, known in HUB.items() if known.train),
        *((name, "test", (known.hub_id, known.configuration, known.test)) for name, known in HUB.items() if known.test),
        ("somebody/some-set", "train", ("somebody/some-set", None, "train")),
        ("somebody/some-set", "test", ("somebody/some-set", None, "test")),
    ],
)
def test_a_name_means_a_set_a_configuration_and_a_split(name, split, call, hub):
    expected = PUBLISHED[name][1]
    assert load_problems(name, split, limit=1) == [expected if isinstance(expected, Problem) else Problem(*expected)]
    assert hub == [call]


def test_where_the_splits_of_the_sets_are():
    """The facts of the table, written down a second time: a slip of the pen in one of the two shows."""
    facts = {name: (known.train, known.test, known.configuration) for name, known in HUB.items()}
    assert facts["gsm8k"] == ("train", "test", "main") and facts["math"] == ("train", "test", "default")
    assert facts["aime24"] == facts["amc"] == (None, "train", None)  # their only split is called train
    assert facts["dapo-math-17k"] == ("train", None, "en") and facts["still-3-rl-90k"] == ("train", None, None)


@pytest.mark.parametrize("name", ["dapo-math-17k", "still-3-rl-90k"])
def test_a_training_set_has_no_held_out_problems(name, hub):
    assert "training set" in error_of(name, "test") and hub == []


def test_any_set_with_columns_of_your_own(monkeypatch):
    """BytedTsinghua-SIA/DAPO-Math-17k, as it was first published: messages inside, and every problem a hundred times."""
    import datasets

    row = {"data_source": "math_dapo", "prompt": [{"content": "Solve: p", "role": "user"}], "reward_model": {"ground_truth": "34"}}
    monkeypatch.setattr(datasets, "load_dataset", lambda *args, split: datasets.Dataset.from_list([row, row, row]))
    columns = dict(problem_column="prompt.0.content", answer_column="reward_model.ground_truth")
    assert load_problems("a/b", **columns) == [Problem("Solve: p", "34")]
    assert load_problems("a/b", problem_column="prompt", answer_column="reward_model.ground_truth") == [Problem("Solve: p", "34")]
    assert load_problems("a/b") == [Problem("Solve: p", "34")]  # the columns that verl reads are usual ones
    with pytest.raises(SettingError, match=r"reward_model in row 1 of a/b is a dict. Name the place inside it, as in reward_model.ground_truth"):
        load_problems("a/b", problem_column="prompt", answer_column="reward_model")
    with pytest.raises(SettingError, match="not 'no.such'"):
        load_problems("a/b", problem_column="no.such", answer_column="data_source")


def test_columns_of_your_own_in_a_file(tmp_path):
    data = save(tmp_path / "d.jsonl", '{"frage": "p", "teil": "q", "antwort": 1}\n')
    assert load_problems(str(data), problem_column="frage+teil", answer_column="antwort") == [Problem("p q", "1")]
    data = save(tmp_path / "e.jsonl", '{"problem": "p", "answer": 1, "gold": 2}\n')
    assert load_problems(str(data), answer_column="gold") == [Problem("p", "2")]


def test_the_columns_that_are_named_hold_for_the_held_out_problems_too_if_they_are_there(tmp_path, capsys):
    from rlvr.config import TrainConfig
    from rlvr.train import set_up

    own, usual = (save(tmp_path / f"{k}.jsonl", json.dumps({k: "p", a: "1"}) + "\n") for k, a in (("q", "gold"), ("problem", "answer")))
    columns = dict(problem_column="q", answer_column="gold", max_prompt_tokens=512)
    for held_out in (own, usual):
        _, progress = set_up(TrainConfig(data=str(own), eval_data=str(held_out), out=str(tmp_path), name="r", **columns))
        assert progress.problems == [Problem("p", "1")]
        assert "note: 1 of 1 held-out problems are among those of --data too" in capsys.readouterr().out


def test_a_system_message_that_the_template_leaves_out_is_said_to_change_nothing(tmp_path, capsys):
    from rlvr.config import TrainConfig
    from rlvr.train import set_up

    data = save(tmp_path / "d.jsonl", '{"problem": "p", "answer": "1"}\n')
    for system, template, said in (("Think.", "auto", True), ("", "auto", False), ("Think.", "plain", False)):
        set_up(TrainConfig(data=str(data), system=system, template=template, max_prompt_tokens=512, out=str(tmp_path), name="r"))
        assert ("leaves --system out, so it changes nothing" in capsys.readouterr().out) == said


def test_bad_rows_are_left_out_and_counted_in_a_file_as_in_a_published_set_and_strict_makes_them_errors(monkeypatch, tmp_path, capsys):
    import datasets

    rows = [{"problem": "p", "answer": "1"}, {"problem": "q", "answer": ""}, {"problem": "p", "answer": "2"}, {"problem": "r", "answer": "3"}]
    monkeypatch.setattr(datasets, "load_dataset", lambda *args, split: datasets.Dataset.from_list(rows))
    local = str(save(tmp_path / "d.jsonl", "".join(json.dumps(row) + "\n" for row in rows)))
    for data in ("a/b", local):
        assert load_problems(data) == [Problem("p", "1"), Problem("r", "3")]
        assert f"2 of 4 rows cannot be used and are left out; the first: Row 2 of {data} lacks its problem or answer" in capsys.readouterr().out
        assert "Row 2" in error_of(data)
    monkeypatch.setattr(datasets, "load_dataset", lambda *args, split: datasets.Dataset.from_list(rows[1:2]))
    assert "Row 1 of a/b" in error_of("a/b")


# ---------------------------------------------------------------------------------------------------------------------------------------
# What is read, and is not the problem or the answer


def table(tmp_path, rows: list[dict]) -> str:
    return str(save(tmp_path / "d.jsonl", "".join(json.dumps(row) + "\n" for row in rows)))


DAPO = (
    "Solve the following math problem step by step. The last line of your response should be of the form Answer: $Answer (without quotes) "
    'where $Answer is the answer to the problem.\n\n{}\n\nRemember to put your answer on its own line after "Answer:".'
)


@pytest.mark.parametrize(
    "around", [DAPO, STILL.replace("What is\n1 + 1?", "{}"), "{} Let's think step by step and output the final answer after \"####\"."]
)
def test_instructions_for_another_form_of_answer_are_taken_off_of_any_set(around, tmp_path):
    question = "What is\n\nthe last line?"
    assert load_problems(table(tmp_path, [{"problem": around.replace("{}", question), "answer": 1}])) == [Problem(question, "1")]
    mine = "Solve the following math problem: the sum\nof 1 and 2"  # asks for no form
    assert load_problems(table(tmp_path, [{"problem": mine, "answer": 3}])) == [Problem(mine, "3")]


def test_words_that_all_problems_share_are_said(tmp_path, capsys):
    shared = "You are a careful solver; write the answer after the sign %%."
    load_problems(table(tmp_path, [{"problem": f"{shared} {i}+1? {shared}", "answer": i} for i in range(8)]))
    said = capsys.readouterr().out
    assert f"begin with '{shared} '" in said and f"end with '+1? {shared}'" in said
    load_problems(table(tmp_path, [{"problem": f"What is {i}+1?", "answer": i} for i in range(8)]))
    assert not capsys.readouterr().out


@pytest.mark.parametrize(
    "messages",
    [
        [{"role": "system", "content": "Be good."}, {"role": "user", "content": "p"}],
        [{"content": "p", "role": "user"}],
        [{"role": "system", "content": "s"}, {"role": "user", "content": "p"}, {"role": "assistant", "content": "a"}],
        [{"role": "user", "content": "example"}, {"role": "assistant", "content": "a"}, {"role": "user", "content": "p"}],
        [{"role": "user", "content": [{"type": "image"}, {"type": "text", "text": "p"}]}],
        [{"from": "system", "value": "s"}, {"from": "human", "value": "p"}],
    ],
)
def test_of_messages_the_one_of_the_user_is_the_problem(messages, tmp_path):
    assert load_problems(table(tmp_path, [{"prompt": messages, "answer": 1}])) == [Problem("p", "1")]
    assert load_problems(table(tmp_path, [{"chat": {"turns": messages}, "answer": 1}]), problem_column="chat.turns") == [Problem("p", "1")]


def test_rows_that_give_one_problem_are_said(tmp_path, capsys):
    rows = [{"prompt": [{"role": "system", "content": "Be good."}, {"role": "user", "content": f"p{i}"}], "answer": i % 2} for i in range(4)]
    load_problems(table(tmp_path, rows), problem_column="prompt.0.content")
    assert "note: 4 of 4 rows of" in (said := capsys.readouterr().out) and "give one problem, 'Be good.'" in said
    load_problems(table(tmp_path, rows), problem_column="prompt")
    assert not capsys.readouterr().out


def test_body_and_question_belong_together_and_other_columns_that_may_be_the_problem_are_said(tmp_path, capsys):
    assert load_problems(table(tmp_path, [{"body": "Ann has 2.", "question": "How many?", "answer": 2}])) == [Problem("Ann has 2. How many?", "2")]
    assert not capsys.readouterr().out
    rows = [{"question": "q", "Context": "", "answer": 1}, {"question": "r", "Context": "c", "answer": 2}]
    load_problems(table(tmp_path, rows))
    assert "read from question of" in (said := capsys.readouterr().out) and "has context too. --problem-column context+question joins them" in said
    load_problems(table(tmp_path, [{"question": "q", "choices": ["1", "2"], "scenario": "s", "answer": "B"}]))
    assert "--problem-column scenario+question+choices joins them" in capsys.readouterr().out
    assert load_problems(table(tmp_path, [{"question": "q", "choices": ["1", "2"], "answer": "B"}]), problem_column="question+choices") == [
        Problem("q 1, 2", "B")]
    for quiet in (dict(problem_column="question"), dict(problem_column="context+question")):
        load_problems(table(tmp_path, rows[1:]), **quiet)
        assert not capsys.readouterr().out
    load_problems(table(tmp_path, [{"problem": "p", "question": "p", "prompt": None, "answer": 1}]))
    assert not capsys.readouterr().out


@pytest.mark.parametrize("published, answer", [(["", ""], None), (["", "5"], "5"), (["1", "", "2"], "1, 2"), ("x #### 5\nThe answer is: 5", "5")])
def test_empty_parts_and_later_lines_are_no_answers(published, answer, tmp_path):
    data = table(tmp_path, [{"problem": "p", "answer": published}])
    if answer is None:
        assert "lacks its problem or answer" in error_of(data)
    else:
        assert load_problems(data) == [Problem("p", answer)]


NOTHING_MATCHES = [
    "5\nThe answer is: 5", "proof", "Proof.", "notfound", "N/A", "See solution.", "9 (apples)", "1,200 [square feet]", "The final answer is 5",
    "Answer: 5", "['5']", "<answer>5</answer>", "We see that both sides are equal to each other, so x = 5.",
    "The sum of 2 and 3 is of course 5.", r"\frac{1}{2", "nan", "5\nsince it is odd",
]  # fmt: skip
MATCHED = [
    "5", "-3.5", "1,000", r"\frac{1}{2}", "east", r"\text{Evelyn}", "(3, 4)", "3 (mod 7)", "10 cm", "2 hours 30 minutes", "x^2+2x", r"\{1, 2\}", "mother-in-law",
    "\\begin{pmatrix}\n1 & 2\n\\end{pmatrix}", "cat, dog, hen, owl, bee, ant, cow, pig", "12 March 2024", "1 2\n3 4", "(D)", "a<b>c", "2(a+b)",
]  # fmt: skip


def test_gold_answers_that_no_box_can_match_are_counted_and_refused_if_they_are_most(capsys):
    for answer in NOTHING_MATCHES:
        with pytest.raises(SettingError, match="1 of 1 gold answers of x can be matched by no box; the first: "):
            check_answers([answer], "x")
    check_answers(MATCHED, "x")
    assert not capsys.readouterr().out
    check_answers([*MATCHED[:1], "proof"], "x")
    assert "1 of 2 gold answers of x can be matched by no box; the first: 'proof'" in capsys.readouterr().out


def test_gold_answers_are_looked_at_before_a_run_unless_a_reward_function_judges(tmp_path, monkeypatch):
    from rlvr.config import EvalConfig, TrainConfig
    from rlvr.run import compare
    from rlvr.train import set_up

    data = table(tmp_path, [{"problem": "p", "answer": "9 (apples)"}])
    settings = dict(data=data, max_prompt_tokens=512, out=str(tmp_path), name="r")
    with pytest.raises(SettingError, match="can be matched by no box"):
        set_up(TrainConfig(**settings))
    set_up(TrainConfig(**settings), lambda completions, answers: [0.0] * len(answers))
    monkeypatch.setattr(compare, "load_policy", lambda *args: pytest.fail("found too late"))
    with pytest.raises(SettingError, match="can be matched by no box"):
        compare.compare(EvalConfig(models=["tiny"], data=data, out=str(tmp_path / "e.json")))


@pytest.mark.parametrize("name", ["math500", "aime24", "aime25", "amc23"])
def test_an_evaluation_set_is_not_trained_on(name, hub):
    assert "evaluation set" in error_of(name) and "--eval-data" in error_of(name)
    assert hub == []


def test_a_set_that_cannot_be_loaded_is_one_sentence(monkeypatch):
    import datasets

    def offline(*args, **kwargs):
        raise ConnectionError("Couldn't reach\n  the Hub " + "and so on " * 100)

    monkeypatch.setattr(datasets, "load_dataset", offline)
    message = error_of("somebody/some-set")
    for fragment in ("'somebody/some-set' (train split) cannot be loaded", "Couldn't reach the Hub", "name a file"):
        assert fragment in message


def test_which_sets_bring_held_out_problems():
    mine = {name for name in [*HUB, "tiny", "reasoning-gym:maze", "somebody/some-set", "mine.jsonl"] if has_test_split(name)}
    assert mine == {"tiny", "reasoning-gym:maze", "gsm8k", "math", "svamp"}


# ---------------------------------------------------------------------------------------------------------------------------------------
# Prompts


def word_tokenizer(chat_template: str | None = None):
    """One token per word; adds the BOS token by itself, as Llama's tokenizer does."""
    from tokenizers import Tokenizer, models, pre_tokenizers, processors
    from transformers import PreTrainedTokenizerFast

    words = ["<s>", "</s>", "<unk>", "user", "assistant", "one", "two", "three", "box", ":"]
    core = Tokenizer(models.WordLevel({w: i for i, w in enumerate(words)}, unk_token="<unk>"))
    core.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    core.post_processor = processors.TemplateProcessing(single="<s> $A", special_tokens=[("<s>", 0)])
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=core, bos_token="<s>", eos_token="</s>", unk_token="<unk>")
    tokenizer.chat_template = chat_template
    return tokenizer


TEMPLATE = (
    "{{ bos_token }} {% for m in messages %}{{ m['role'] }} : {{ m['content'] }} {% endfor %}"
    "{% if add_generation_prompt %}assistant :{% endif %}"
)


def words(tokenizer, ids):
    return tokenizer.convert_ids_to_tokens(ids)


def test_prompt_without_a_chat_template_is_the_plain_text():
    tokenizer = word_tokenizer()
    assert words(tokenizer, prompt_ids(tokenizer, "one two", "box")) == ["<s>", "one", "two", "box"]
    assert words(tokenizer, prompt_ids(tokenizer, "one two", "")) == ["<s>", "one", "two"]


def test_prompt_with_a_chat_template_has_exactly_one_bos_and_asks_for_an_answer():
    tokenizer = word_tokenizer(TEMPLATE)
    assert words(tokenizer, prompt_ids(tokenizer, "one two", "box")) == ["<s>", "user", ":", "one", "two", "box", "assistant", ":"]


def test_the_instruction_stands_on_a_line_of_its_own():
    seen = []

    def tokenizer(text, **kwargs):
        seen.append(text)
        return types.SimpleNamespace(input_ids=[1])

    tokenizer.chat_template = tokenizer.bos_token = tokenizer.eos_token_id = None
    prompt_ids(tokenizer, "one two", "box")
    tokenizer.chat_template = TEMPLATE
    tokenizer.apply_chat_template = lambda messages, **kwargs: messages[0]["content"]
    prompt_ids(tokenizer, "one two", "box")
    assert seen == ["one two\nbox\n", "one two\nbox"]


def test_prompts_that_are_too_long_are_left_out_whole_and_counted():
    problems = [Problem("one", "1"), Problem("one two three", "2"), Problem("two", "3")]
    kept, prompts, too_long = encode_prompts(word_tokenizer(), problems, "box", max_prompt_tokens=3)
    assert (kept, too_long) == ([problems[0], problems[2]], 1)
    assert list(map(len, prompts)) == [3, 3]
    assert encode_prompts(word_tokenizer(), problems, "box", max_prompt_tokens=5)[2] == 0


def test_no_prompt_fits():
    with pytest.raises(SettingError, match=r"All 2 prompts are longer than 2 tokens \(the shortest has 3\)\. Raise --max-prompt-tokens\."):
        encode_prompts(word_tokenizer(), [Problem("one", "1"), Problem("one two", "2")], "box", max_prompt_tokens=2)


def test_a_bad_row_of_the_held_out_problems_is_named_not_its_columns(tmp_path):
    from rlvr.data import load_held_out

    data = save(tmp_path / "d.jsonl", '{"q": "p", "gold": "1"}\n{"q": "r", "gold": ""}\n')
    with pytest.raises(SettingError, match="Row 2 of .* lacks its q or gold"):
        load_held_out(str(data), 0, problem_column="q", answer_column="gold", strict=True)
