"""Rows of a table -> pairs of problem and answer: which columns hold them, what a cell says, what to do with rows that repeat."""

import re

from rlvr.common.text import say
from rlvr.config import SettingError
from rlvr.reward import last_boxed, verify
from rlvr.verifier import MAX_CHARS

MAX_PROBLEM_CHARS = 100_000  # a longer text is no prompt; tokenizers take minutes over megabytes, or crash
NO_TEXT = re.compile("[\0\ud800-\udfff]")  # NUL, and half a surrogate pair (JSON can spell it), which no encoding can write
# Columns of published sets, tried in this order: (columns of the problem, joined by a space; column of the answer).
COLUMNS = [
    (("problem",), "answer"), (("question",), "answer"), (("prompt",), "answer"),  # MATH500, AIME, AMC; GSM8K, AMC
    (("input",), "target"), (("Body", "Question"), "Answer"),  # MAWPS; SVAMP
    (("problem",), "solution"),  # MATH, Minerva: the answer is in the last box of the solution
]  # fmt: skip


def problem_answer_pairs(
    rows: list[dict], where: str, problem: str = "", answer: str = "", around: str = "", strict: bool = True
) -> list[tuple[str, str]]:
    """(problem, answer) of every row, each problem once.

    where: the name of the file or set, for messages. problem, answer: columns (empty: the usual names). around: see HubSet.
    A row that cannot be used is an error that names it. Unless not `strict`: nobody can mend a published set, so its unusable rows are
    counted and left out, as long as one usable row remains. Raises SettingError.
    """
    if not rows:
        raise SettingError(f"The data {where} holds no problem. Name a file or a set with at least one row.")
    questions, answer_column = _columns(rows[0], where, problem, answer)
    found: dict[str, tuple[int, str]] = {}  # problem -> the number of its first row, and the answer in it
    faults: list[str] = []
    for number, row in enumerate(rows, start=1):
        try:
            question, text = _read_row(row, number, where, questions, answer_column, around)
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
    return [(question, text) for question, (_, text) in found.items()]


def has_columns(row: dict, *columns: str) -> bool:
    """Whether a row has these columns. An empty name is passed over."""
    return all(not column or column in row or _cell(row, column) is not None for column in columns)


def _columns(row: dict, where: str, problem: str, answer: str) -> tuple[tuple[str, ...], str]:
    """The columns of the problem and the column of the answer. Where one is not named, the usual names are tried. Raises SettingError."""
    parts = tuple(problem.split("+"))
    for questions, usual in COLUMNS:
        questions, usual = parts if problem else questions, answer or usual
        if has_columns(row, *questions, usual):
            return questions, usual
    found, named = str(list(row))[1:-1][:100], " and ".join(f"'{c}'" for c in (problem, answer) if c)
    but = f", not {named}" if named else ""
    raise SettingError(f"The data {where} has the columns {found}{but}. Say which to use with --problem-column and --answer-column.")


def _cell(row: dict, path: str):
    """What a row has in a column; the path prompt.0.content goes into lists and objects. None if the row has no such place."""
    if path in row:
        return row[path]
    value = row
    for part in path.split("."):
        if isinstance(value, list) and part.isdigit() and int(part) < len(value):
            value = value[int(part)]
        elif isinstance(value, dict) and part in value:
            value = value[part]
        else:
            return None
    return value


def _read_row(row: dict, number: int, where: str, questions: tuple[str, ...], answer_column: str, around: str) -> tuple[str, str]:
    """Problem and answer of a row. Raises SettingError with its number."""
    columns = (*questions, answer_column)
    *parts, published = (_cell_text(_cell(row, c), f"The {c} in row {number} of {where}") for c in columns)
    question, boxed = " ".join(parts), last_boxed(published)
    # What a published solution ends with is its answer: '#### 72', or the last box of a worked one. Anything else is an answer itself.
    text = (published.rsplit("####", 1)[-1] if "####" in published or boxed is None else boxed).strip()
    if around and (match := re.fullmatch(around, question, re.DOTALL)):
        question = match[1]
    unboxed = columns == ("problem", "solution") and boxed is None  # a proof, which has no answer
    if not all(parts) or not question or not text or unboxed:
        raise SettingError(f"Row {number} of {where} lacks its {' or '.join(columns)}. Fill it in, or leave the row out.")
    if len(question) > MAX_PROBLEM_CHARS or len(text) > MAX_CHARS:
        cause = f"Row {number} of {where} has {len(question)} characters in the problem and {len(text)} in the answer"
        raise SettingError(f"{cause}. Leave it out: {MAX_PROBLEM_CHARS} and {MAX_CHARS} are the most.")
    return question, text


def _cell_text(value, cell: str) -> str:
    """A cell as text: 43.0 -> 43, ["1", "2"] -> 1, 2, and nothing for a missing value. `cell` says in a message which cell it is.

    Raises SettingError for anything that is neither text nor a number.
    """
    if value is None or value != value:  # pandas writes a missing number as NaN
        return ""
    if isinstance(value, list) and not any(isinstance(x, (list, dict)) for x in value):  # several answers, as in OlympiadBench
        return ", ".join(_cell_text(x, cell) for x in value)
    if isinstance(value, (list, dict)):
        inside = f"{cell.split()[1]}.{'0.content' if isinstance(value, list) else next(iter(value), 'name')}"
        raise SettingError(f"{cell} is a {type(value).__name__}. Name the place inside it, as in {inside}.")
    if isinstance(value, bool) or not isinstance(value, (str, int, float)) or value in (float("inf"), float("-inf")):
        kind = value if isinstance(value, (bool, float)) else f"a {type(value).__name__}"
        raise SettingError(f"{cell} is {kind}. Write it as text or as a number.")
    text = str(int(value) if isinstance(value, float) and value.is_integer() else value).strip()
    if NO_TEXT.search(text):
        raise SettingError(f"{cell} has a character that is no text (NUL, or half a surrogate pair). Write it again as UTF-8.")
    return text
