"""Rows of a table -> pairs of problem and answer: which columns hold them, what a cell says, what to do with rows that repeat."""

import os
import re
from collections import Counter

from rlvr.common.text import say
from rlvr.config import SettingError, refuse
from rlvr.reward import last_boxed, verify, verify_all
from rlvr.verifier import MAX_CHARS

MAX_PROBLEM_CHARS = 100_000  # a longer text is no prompt; tokenizers take minutes over megabytes, or crash
NO_TEXT = re.compile("[\0\ud800-\udfff]")  # NUL, and half a surrogate pair (JSON can spell it), which no encoding can write
# Columns of published sets, tried in this order: (columns of the problem, joined by a space; column of the answer).
COLUMNS = [
    (("problem",), "answer"), (("body", "question"), "answer"), (("question",), "answer"),  # MATH500, AIME, AMC; SVAMP; GSM8K, AMC
    (("prompt",), "answer"), (("prompt",), "reward_model.ground_truth"), (("input",), "target"),  # what verl reads; MAWPS
    (("problem",), "solution"),  # MATH, Minerva: the answer is in the last box of the solution
]  # fmt: skip
# Columns that may hold the problem, or a part of it; the last two are what it lets one choose from.
LIKE_A_PROBLEM = """problem question prompt input body context passage story instruction query text background scenario premise setup
    description paragraph document facts choices options""".split()
# What published sets put around a problem: instructions that ask for another form of answer than the box. The first group is the problem.
WRAPPINGS = [re.compile(pattern, re.DOTALL) for pattern in (
    r"Solve the following math problem[^\n]*\bAnswer\b[^\n]*\n\s*(.*?)(?:\s*Remember to put your answer on its own line[^\n]*)?",  # DAPO-Math
    r"A conversation between User and Assistant.*?\nUser:\s*(.*?)\s*\nAssistant:.*",  # STILL-3, Open-Reasoner-Zero
    r"(.*?)\s*Let's think step by step and output the final answer after \"####\"\.?",  # GSM8K as verl prepares it
)]  # fmt: skip
# Answers that no box will match: what stands for a missing one, and an answer in the midst of other text.
NO_ANSWER = re.compile(
    r"""\W*(?:proof|not\s?found|n/a|null|unknown|see\s(?:the\s)?solution.*)\W*\Z
    | -?[\d.,/]+\s+[(\[][a-z\s]{3,}[)\]]\Z  # 9 (apples)
    | .*\b(?:answer|result)\s?(?:is|:|=)  # The answer is: 5
    | \[\s*['"] | <(\w+)>.*</\1>  # ['5'], a list that became text; <answer>5</answer>
    | .*(?:[^\W\d_]{2,}\s+(?:\S{1,9}\s+)?){6}  # a sentence, perhaps with numbers between its words
    | [^\\]*\n[^\\]*[^\W\d_]{3}  # several lines with words""",
    re.IGNORECASE | re.DOTALL | re.VERBOSE,
)


def usable_rows(rows: list[dict], where: str, problem="", answer="", strict: bool = False) -> list[tuple[str, str, dict]]:
    """(problem, answer, row) of every row, each problem once.

    where: the name of the file or set, for messages. problem, answer: columns (empty: the usual names).
    Rows that cannot be used are counted and left out, as long as one usable row remains; with `strict` the first is an error that names
    it. Raises SettingError.
    """
    refuse(not rows, f"The data {where} holds no problem. Name a file or a set with at least one row.")
    questions, answer_column = _columns(rows[0], where, problem, answer)
    if not problem:
        _say_other_columns(rows, where, questions)
    found: dict[str, tuple[int, str]] = {}  # problem -> the number of its first row, and the answer in it
    faults: list[str] = []
    seen: Counter[str] = Counter()
    for number, row in enumerate(rows, start=1):
        try:
            question, text = _read_row(row, number, where, questions, answer_column)
            seen[question] += 1
            first, known = found.setdefault(question, (number, text))
            if known != text and not verify(rf"\boxed{{{text}}}", known):  # 1/2 and 0.5 are one answer
                cause = f"Rows {first} and {number} of {where} give one problem two answers, {known[:30]!r} and {text[:30]!r}"
                raise SettingError(f"{cause}. Keep the one that is right.")
        except SettingError as error:
            if strict:
                raise
            faults.append(str(error))
    if not found:
        raise SettingError(faults[0])
    if faults:
        say(f"{where}: {len(faults)} of {len(rows)} rows cannot be used and are left out; the first: {faults[0].split('. ')[0]}")
    if repeated := len(rows) - len(faults) - len(found):
        say(f"{where}: {repeated} of {len(rows)} rows repeat a problem and its answer; each problem is used once")
    _say_alike(seen, where)
    return [(question, text, rows[number - 1]) for question, (number, text) in found.items()]


def check_answers(answers: list[str], where: str) -> None:
    """Say how many gold answers no box can match, for they will look like a weak model. Raises SettingError if they are most."""
    verdicts = verify_all([rf"\boxed{{{answer}}}" for answer in answers], answers)
    plain = [re.sub(r"\\[A-Za-z]+", "\\\\ ", answer) for answer in answers]  # LaTeX commands are no words
    bad = [answer for answer, text, equal in zip(answers, plain, verdicts) if equal is False or NO_ANSWER.match(text)]
    if bad:
        cause = f"{len(bad)} of {len(answers)} gold answers of {where} can be matched by no box; the first: {bad[0][:60]!r}"
        refuse(2 * len(bad) > len(answers), f"{cause}. Choose another --answer-column, or write each answer alone, as in 9.")
        say(f"note: {cause}")


def _say_other_columns(rows: list[dict], where: str, questions: tuple[str, ...]) -> None:
    """Name the columns beside the chosen ones that look like the problem, or a part of it."""
    chosen = {c.lower() for c in questions}
    others = [c for c in LIKE_A_PROBLEM if c not in chosen and any(_may_be_problem(row, c, questions) for row in rows[:100])]
    if others:
        joined = sorted((*others, *questions), key=lambda column: (column in LIKE_A_PROBLEM[-2:], column in questions))
        said = f"note: the problem is read from {'+'.join(questions)} of {where}, which has {', '.join(others)} too"
        say(f"{said}. --problem-column {'+'.join(joined)} joins them")


def _may_be_problem(row: dict, column: str, questions: tuple[str, ...]) -> bool:
    cell = _cell(row, column)
    filled = bool(cell) if column in LIKE_A_PROBLEM[-2:] else isinstance(cell, str) and bool(cell.strip())
    return filled and all(cell != _cell(row, c) for c in questions)


def _say_alike(seen: Counter, where: str) -> None:
    """Warn if most rows give one problem, or all of them the same words around it: then what is read is not the problem alone."""
    (question, times), total = seen.most_common(1)[0], seen.total()
    if total > 2 and 2 * times > total:
        say(f"note: {times} of {total} rows of {where} give one problem, {question[:60]!r}. Is that the column? See --problem-column")
    if len(seen) < 8:
        return
    begin, end = os.path.commonprefix(list(seen)), os.path.commonprefix([question[::-1] for question in seen])[::-1]
    for text, verb in ((begin, "begin"), (end, "end")):
        if len(text) >= 40:
            say(f"note: all problems of {where} {verb} with {text[:80]!r}, which stands in each prompt beside --instruction")


def has_columns(row: dict, *columns: str) -> bool:
    """Whether a row has these columns. An empty name is passed over."""
    return all(not column or _named(row, column) is not None or _cell(row, column) is not None for column in columns)


def _named(row: dict, name: str) -> str | None:
    """The column that a name means: the one of that name, or else one that differs in capitals and in spaces around it. None without one."""
    plain = name.strip().lower()
    return name if name in row else next((column for column in row if str(column).strip().lower() == plain), None)


def _columns(row: dict, where: str, problem: str, answer: str) -> tuple[tuple[str, ...], str]:
    """The columns of the problem and the column of the answer. Where one is not named, the usual names are tried. Raises SettingError."""
    for questions, usual in COLUMNS:
        questions, usual = tuple(problem.split("+")) if problem else questions, answer or usual
        if has_columns(row, *questions, usual):
            return questions, usual
    found, named = str(list(row))[1:-1][:100], " and ".join(f"'{c}'" for c in (problem, answer) if c)
    but = f", not {named}" if named else ""
    raise SettingError(f"The data {where} has the columns {found}{but}. Say which to use with --problem-column and --answer-column.")


def _cell(row: dict, path: str):
    """What a row has in a column; the path prompt.0.content goes into lists and objects. None if the row has no such place."""
    if (column := _named(row, path)) is not None:
        return row[column]
    value = row
    for part in path.split("."):
        if isinstance(value, list) and part.isdigit() and int(part) < len(value):
            value = value[int(part)]
        elif isinstance(value, dict) and (column := _named(value, part)) is not None:
            value = value[column]
        else:
            return None
    return value


def _user_message(value):
    """What the user says last in a list of messages, such as prompts for a chat; any other value as it is."""
    for message in reversed(value if isinstance(value, list) else []):
        if isinstance(message, dict) and (message.get("role") or message.get("from")) in ("user", "human"):
            content = message.get("content", message.get("value"))
            parts = content if isinstance(content, list) and all(isinstance(part, dict) for part in content) else None
            return content if parts is None else " ".join(str(part["text"]) for part in parts if part.get("text"))
    return value


def _read_row(row: dict, number: int, where: str, questions: tuple[str, ...], answer_column: str) -> tuple[str, str]:
    """Problem and answer of a row. Raises SettingError with its number."""
    columns = (*questions, answer_column)
    cells = (*(_user_message(_cell(row, c)) for c in questions), _cell(row, answer_column))
    *parts, published = (cell_text(cell, f"The {c} in row {number} of {where}") for cell, c in zip(cells, columns))
    if len(parts) == 1 and isinstance(cells[0], list) and len(cells[0]) > 1:
        raise SettingError(f"The {columns[0]} in row {number} of {where} is a list of {len(cells[0])} texts. Write a row for each problem.")
    question, text = " ".join(parts), gold_answer(published)
    question = next((match[1] for pattern in WRAPPINGS if (match := pattern.fullmatch(question))), question)
    if not all(parts) or not question or not text or columns == ("problem", "solution") and last_boxed(published) is None:  # a proof
        raise SettingError(f"Row {number} of {where} lacks its {' or '.join(columns)}. Fill it in, or leave the row out.")
    if len(question) > MAX_PROBLEM_CHARS or len(text) > MAX_CHARS:
        cause = f"Row {number} of {where} has {len(question)} characters in the problem and {len(text)} in the answer"
        raise SettingError(f"{cause}. Leave it out: {MAX_PROBLEM_CHARS} and {MAX_CHARS} are the most.")
    return question, text


def gold_answer(published: str) -> str:
    """What a published solution ends with: '#### 72' (a line), or the last box of a worked one. Anything else is an answer itself."""
    boxed = last_boxed(published)
    return (published.rsplit("####", 1)[-1].strip().split("\n")[0] if "####" in published else published if boxed is None else boxed).strip()


def cell_text(value, cell: str) -> str:
    """A cell as text: 43.0 -> 43, ["1", "2"] -> 1, 2, and nothing for a missing value. `cell` says in a message which cell it is.

    Raises SettingError for anything that is neither text nor a number.
    """
    if value is None or value != value:  # pandas writes a missing number as NaN
        return ""
    if isinstance(value, list) and not any(isinstance(x, (list, dict)) for x in value):  # several answers, as in OlympiadBench
        return ", ".join(filter(None, (cell_text(x, cell) for x in value)))
    if isinstance(value, (list, dict)):
        inside = f"{cell.split()[1]}.{'0.content' if isinstance(value, list) else next(iter(value), 'name')}"
        raise SettingError(f"{cell} is a {type(value).__name__}. Name the place inside it, as in {inside}.")
    if isinstance(value, bool) or not isinstance(value, (str, int, float)) or value in (float("inf"), float("-inf")):
        kind = value if isinstance(value, (bool, float)) else f"a {type(value).__name__}"
        raise SettingError(f"{cell} is {kind}. Write it as text or as a number.")
    text = str(int(value) if isinstance(value, float) and value.is_integer() else value).strip()
    refuse(NO_TEXT.search(text), f"{cell} has a character that is no text (NUL, or half a surrogate pair). Write it again as UTF-8.")
    return text
