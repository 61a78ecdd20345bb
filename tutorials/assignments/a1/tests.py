"""Public tests of assignment 1: rewards and pass@k."""

import random
from fractions import Fraction
from math import comb

from tutorials.assignments.checks import Assignment, exchanged, expect, expect_error, need, on_random_inputs

tests = Assignment()
check = tests.check

# ---------------------------------------------------------------------------------------------------------------------------------------
tests.task("1.1", "the last box")


@check("1.1", 0.5, hint="Return the text between the braces, as a string; None if there is no box.")
def a_box_and_no_box(student):
    expect(student.last_boxed(r"3 + 4 = 7. The answer is \boxed{7}."), "7", "one box")
    expect(student.last_boxed("The answer is 7."), None, "no box")
    expect(student.last_boxed(""), None, "an empty text")


@check("1.1", 1, hint="A model that corrects itself boxes twice; the last word counts.")
def the_last_of_several_boxes(student):
    expect(student.last_boxed(r"\boxed{1}? No, \boxed{2}. Really \boxed{30}!"), "30")
    expect(student.last_boxed(r"\boxed{30} or \boxed{4}"), "4")


@check("1.1", 1, hint="Count braces: a pattern such as [^}]* stops at the first closing brace.")
def braces_inside_of_the_box(student):
    expect(student.last_boxed(r"so \boxed{\frac{1}{2}} it is"), r"\frac{1}{2}")
    expect(student.last_boxed(r"\boxed{x^{2^{3}}}"), "x^{2^{3}}")
    expect(student.last_boxed(r"\boxed{\frac{\sqrt{x^{2}}}{3}}"), r"\frac{\sqrt{x^{2}}}{3}")
    expect(student.last_boxed(r"\boxed{" + 9 * "{a" + 9 * "}" + "}"), 9 * "{a" + 9 * "}", "nine braces inside of each other")
    deep = 3000 * "{" + "4" + 3000 * "}"
    expect(student.last_boxed(rf"\boxed{{{deep}}}, and that is all"), deep, "three thousand braces inside of each other")


@check("1.1", 1, hint="A box that never closes has no content. It must not hide an earlier one, nor swallow the rest of the text.")
def a_box_that_never_closes(student):
    expect(student.last_boxed(r"The answer is \boxed{12"), None)
    expect(student.last_boxed(r"First \boxed{5}, then \boxed{7"), "5")
    expect(student.last_boxed(r"\boxed{5 no, \boxed{7}"), "7")
    expect(student.last_boxed(r"\boxed{" + 60 * "{a"), None, "sixty braces that never close")


def _random_text(dice: random.Random) -> tuple[str, str | None]:
    """A text without stray closing braces, and the content of its last complete box."""

    def inside(depth: int) -> str:
        parts = ["", "4", "-17", r"\frac", "x_", " ", "\n", r"\text", r"\boxe", "{" + inside(depth - 1) + "}" if depth else "0"]
        return "".join(dice.choice(parts) for _ in range(dice.randint(0, 4)))

    text, last = "", None
    for _ in range(dice.randint(0, 6)):
        kind = dice.choice(["box", "box", "open", "braces", "words", "other"])
        content = inside(5)
        other = dice.choice(["boxed", r"\notboxed", r"\fbox", r"\fboxed", r"\Boxed", r"\boxedtext", r"\text"]) + f"{{{content}}}"
        text += {"box": rf"\boxed{{{content}}}", "open": r"\boxed{" + inside(2), "braces": f"{{{content}}}", "other": other}.get(
            kind, " so boxed\n"
        )
        last = content if kind == "box" else last
    return text, last


@check("1.1", 0.5, follows="a box and no box", hint="The message has the text. Walk through it by hand, with a count of open braces.")
def fifty_random_texts(student):
    dice = random.Random(11)
    right = dict(_random_text(dice) for _ in range(70))
    right |= {r"\boxed{8}" + 2000 * " and so on\n": "8", 300 * r"\boxed{1} " + r"\boxed{2": "1"}  # long texts
    on_random_inputs(student, "last_boxed", [(text,) for text in right], right.get)


# ---------------------------------------------------------------------------------------------------------------------------------------
tests.task("1.2", "verify an answer")


@check("1.2", 1, hint="Compare the content of the last box with the gold answer. No box, no credit.")
def right_wrong_and_not_boxed(student):
    expect(student.verify(r"It is \boxed{42}.", "42"), True, r"\boxed{42}, gold 42")
    expect(student.verify(r"It is \boxed{41}.", "42"), False, r"\boxed{41}, gold 42")
    expect(student.verify("It is 42.", "42"), False, "42 without a box, gold 42")


@check("1.2", 1, hint="Turn both sides into exact numbers (fractions.Fraction) before comparing: 0.5, 1/2 and \\frac{1}{2} are one number.")
def one_number_in_several_spellings(student):
    for answer, gold in (
        ("0.5", "1/2"),
        (r"\frac{1}{2}", "0.5"),
        ("1,000", "1000"),
        ("+7", "7"),
        ("7.0", "7"),
        (" 7 ", "7"),
        ("-3/4", "-0.75"),
    ):
        expect(student.verify(rf"so \boxed{{{answer}}}", gold), True, f"answer {answer!r}, gold {gold!r}")
    expect(student.verify(r"so \boxed{8}", "7"), False, "answer '8', gold '7'")


NEAR = (  # equal as floats
    ("0.3333333333333333", "1/3"), ("0.1000000000000000055511151231257827", "0.1"), ("100000000000000000001", "100000000000000000000"),
    ("33333333333333333/100000000000000000", "1/3"), ("0.5000000000000000000000001", "1/2"),
)  # fmt: skip


@check("1.2", 1, hint="Exact comparison: no substrings, no rounding, no characters thrown away. 0.333 is not 1/3, and 4 2 is not 42.")
def near_is_not_equal(student):
    expect(student.verify(r"so \boxed{42}", "42"), True, "answer '42', gold '42'")
    for answer, gold in (("0.333", "1/3"), ("2", "12"), ("12", "2"), ("-3", "3"), ("10", "1"), ("41.9999999", "42"), *NEAR):
        expect(student.verify(rf"so \boxed{{{answer}}}", gold), False, f"answer {answer!r}, gold {gold!r}")
    for answer, gold in (("4 2", "42"), ("1,2", "12"), ("12,34", "1234"), ("1_0", "10")):
        expect(student.verify(rf"so \boxed{{{answer}}}", gold), False, f"answer {answer!r}, gold {gold!r}")


HUGE = ("1e99999999", "1E99999999", "-1E99999999", "1E99999999/7", "7/1E99999999", r"\frac{1E99999999}{3}", r"\frac{3}{1e99999999}")
NO_NUMBERS = (  # what they mean, perhaps, and what they are not
    ("1+1", "2"), ("6-1", "5"), ("2*3", "6"), ("2^2", "4"), ("2**3", "8"), (r"\sqrt{4}", "2"), ("3!", "6"), ("$5$", "5"), (r"\$5", "5"),
    ("50%", "1/2"), (r"50\%", "0.5"), ("50%", "50"), ("5 apples", "5"), ("5cm", "5"), (r"5^\circ", "5"), ("x=5", "5"), (r"\text{5}", "5"),
    ("(5)", "5"), ("[5]", "5"), ("{5}", "5"), ("5;", "5"), ("five", "5"), ("5 or 6", "5"), ("6, 5", "5"), ("0x5", "5"), ("1 1/2", "3/2"),
    (r"1\frac{1}{2}", "3/2"), ("about 5", "5"), ("'5'", "5"), ("5?", "5"), ("1/2/1", "1/2"), ("0.50.", "0.5"), ("(1)/(2)", "1/2"),
)  # fmt: skip


@check(
    "1.2",
    1,
    hint="Whatever a model writes, the answer is True or False: catch the errors of your number parser, and refuse exponents before "
    "Fraction sees them: 1e99999999 is a number of a hundred million digits.",
)
def nonsense_is_wrong_and_raises_nothing(student):
    expect(student.verify(r"so \boxed{3}", "3"), True, "answer '3', gold '3'")
    for answer in ("", "1/0", "abc", r"\frac{1}{0}", "1//2", "three", "nan", *HUGE):
        expect(student.verify(rf"so \boxed{{{answer}}}", "3"), False, f"answer {answer!r}, gold '3'")
    long = {
        "5,000 digits": 5000 * "3", "5,000 decimals": "3." + 4999 * "0" + "1", "a fraction of 5,000 digits": 5000 * "3" + "/7",
        "forty digits and a letter": 40 * "3" + "x", "forty digits, a comma and a letter": 40 * "3" + ",x", "sixty slashes": "3" + 60 * "/3",
        "forty groups and a letter": "3" + 40 * ",333" + "x", "a thousand spaces": "3" + 1000 * " " + "x",
        "a superscript": "3\u00b2", "half a fraction": r"\frac{3}", "a fraction of nothing": r"\frac{}{}", "only a sign": "-",
    }  # fmt: skip
    for answer, gold in NO_NUMBERS:
        expect(student.verify(rf"so \boxed{{{answer}}}", gold), False, f"answer {answer!r}, gold {gold!r}")
    for what, answer in long.items():
        expect(student.verify(rf"so \boxed{{{answer}}}", "8"), False, f"{what}, gold '8'")


def _decimal(value: Fraction, places: int) -> str:
    """A value as a decimal with so many places, which it must have."""
    sign, whole = "-" if value < 0 else "", abs(value * 10**places)
    digits = str(int(whole)).rjust(places + 1, "0")
    return f"{sign}{digits[:-places]}.{digits[-places:]}" if places else sign + digits


def _random_answer(dice: random.Random) -> tuple[str, str, bool]:
    """An answer, a gold answer, and whether they are equal."""
    places = dice.choice([0, 0, 1, 2, 4])
    digits = dice.choice([1, 2, 5, 9, 11, 30, 60, 200])
    gold = Fraction(dice.choice([1, -1]) * dice.randrange(10 ** (digits - 1), 10**digits), 10**places)
    if dice.random() < 0.1:
        gold, places = Fraction(0), dice.choice([0, 1, 3])
    elif dice.random() < 0.3:
        gold, places = Fraction(dice.randrange(-50, 50) * 2 + 1, dice.choice([3, 7, 9, 12, 64])), -1  # no decimal, or a long one
    a, b = gold.as_integer_ratio()
    said = f"{a}/{b}" if places < 0 or dice.random() < 0.2 else _decimal(gold, places)
    value, wrong = gold, dice.random() < 0.4
    if wrong:
        a_little = Fraction(dice.choice([1, -1]), 10 ** dice.choice([0, 1, 3, 9, 20, 60]))
        nearly = gold * (1 + a_little) if gold and abs(a_little) < 1 else gold + 3
        value = dice.choice([gold + a_little, nearly, gold + 1, 1 / gold if gold and abs(a) != b else gold + 2, -gold * 10 or 4, -gold or 5])
    a, b = value.as_integer_ratio()
    k = dice.randint(1, 4)
    forms = [f"{a * k}/{b * k}"] + ([rf"\frac{{{a * k}}}{{{b * k}}}"] if a > 0 else [])
    if (10**100) % b == 0:  # a decimal
        places = next(n for n in range(101) if 10**n % b == 0)
        plain = _decimal(value, places)
        whole, point, rest = plain.lstrip("-").partition(".")
        commas = "-" * (value < 0) + f"{int(whole):,}" + point + rest
        forms += [plain, commas, plain + ("" if point else ".") + "0" * dice.choice([1, 2, 100]), "+" * (value > 0) + plain]
    answer = dice.choice(forms)
    if not wrong and dice.random() < 0.15:  # no number at all
        return (
            dice.choice([answer + "x", answer + "!", answer + "/", "1_0", "1,0,0"]),
            said,
            False,
        )
    return " " * dice.randint(0, 2) + answer + " " * dice.randint(0, 2), said, not wrong


@check(
    "1.2",
    1,
    follows="one number in several spellings",
    hint="Is this a number as the handout has it? If so, of exactly the value of the gold answer?",
)
def fifty_random_answers(student):
    dice = random.Random(12)
    right = {(r"\boxed{8}" + 2000 * " and so on\n", "8"): True}
    for i in range(90):
        answer, gold, equal = _random_answer(dice)
        right[rf"3 boxes: \boxed{{{answer}}}", gold] = equal
        if equal and i % 4 == 0:  # the same text with another gold answer, for whoever remembers
            right[rf"3 boxes: \boxed{{{answer}}}", "7" if gold == "0" else gold + "1"] = False
    on_random_inputs(student, "verify", right, lambda *question: right[question])


# ---------------------------------------------------------------------------------------------------------------------------------------
tests.task("1.3", "overlong penalty")


@check("1.3", 1, hint="-factor * (length - (max_tokens - buffer)) / buffer inside the buffer, 0 before it.")
def it_falls_linearly_inside_the_buffer(student):
    for length, wanted in ((7680, -0.5), (7936, -0.75), (8192, -1.0)):
        expect(student.overlong_penalty(length, 8192, 1024, 1.0), wanted, f"length {length} of 8192, buffer 1024")
    expect(student.overlong_penalty(110, 120, 20, 2.0), -1.0, "length 110 of 120, buffer 20, factor 2")


@check("1.3", 1, hint="A penalty is never a bonus: min(0, ...). And a buffer of 0 means no penalty, not a division by zero.")
def it_is_zero_for_short_completions_and_without_a_buffer(student):
    expect(student.overlong_penalty(10, 8192, 1024, 1.0), 0.0, "length 10 of 8192, buffer 1024")
    expect(student.overlong_penalty(7168, 8192, 1024, 1.0), 0.0, "length 7168 of 8192, buffer 1024")
    expect(student.overlong_penalty(8192, 8192, 0, 1.0), 0.0, "no buffer")
    got = student.overlong_penalty(8000, 8192, 1024, 1.0)
    need(isinstance(got, (int, float)) and got != 0, f"length 8000 of 8192, buffer 1024: {got}, but this one is not short")


def _random_lengths(dice: random.Random):
    for i in range(50):
        limit = dice.choice([1, 200_000, *(dice.randint(1, 4000) for _ in range(4))])
        factor = dice.choice([0.0, 1.0, 0.5, dice.uniform(0, 3), 30.0])
        buffer = dice.choice([0, 1, limit, dice.randint(1, limit)])
        length = dice.choice([1, limit, limit - buffer, dice.randint(1, limit), dice.randint(max(1, limit - buffer), limit)])
        yield length, limit, buffer, factor


@check("1.3", 1, follows="it falls linearly inside the buffer", hint="The order of the arguments is length, max_tokens, buffer, factor.")
def fifty_random_lengths(student):
    def right(length, limit, buffer, factor):
        return min(0.0, -factor * (length - (limit - buffer)) / buffer) if buffer else 0.0

    questions = exchanged(_random_lengths(random.Random(13)), a2=lambda buffer: buffer // 2, a3=lambda factor: factor + 1)
    on_random_inputs(student, "overlong_penalty", questions, right)


# ---------------------------------------------------------------------------------------------------------------------------------------
tests.task("1.4", "pass@k")


def _pass_at_k(n: int, c: int, k: int) -> float:
    """As in rlvr.evaluate, whose import takes seconds, each time somebody grades."""
    if not 1 <= k <= n:
        raise ValueError
    return 1 - comb(n - c, k) / comb(n, k)


@check("1.4", 1, hint="1 - C(n-c, k) / C(n, k): the chance that k of the n completions, drawn without putting back, are all wrong.")
def the_unbiased_estimate(student):
    for n, c, k in ((8, 2, 4), (8, 1, 8), (16, 3, 2), (5, 2, 1), (1000, 3, 500)):
        expect(student.pass_at_k(n, c, k), _pass_at_k(n, c, k), f"n={n}, c={c}, k={k}")


@check("1.4", 1, hint="With fewer than k wrong completions, k of them cannot all be wrong.")
def all_wrong_and_hardly_any_wrong(student):
    expect(student.pass_at_k(8, 0, 4), 0.0, "none right")
    expect(student.pass_at_k(8, 8, 3), 1.0, "all right")
    expect(student.pass_at_k(8, 6, 3), 1.0, "two wrong, k=3")


@check("1.4", 1, hint="From n completions nothing can be said about more than n. Raise ValueError unless 1 <= k <= n.")
def k_out_of_range_raises(student):
    expect_error("ValueError", student.pass_at_k, 8, 2, 9)
    expect_error("ValueError", student.pass_at_k, 8, 2, 0)
    got = student.pass_at_k(8, 2, 1)
    need(isinstance(got, (int, float)), f"pass_at_k(8, 2, 1): {got} is no number")


@check(
    "1.4", 1, follows="the unbiased estimate", hint="comb(n - c, k) is 0 where n - c < k. Large n, too, and a k that is not from 1 to n."
)
def fifty_random_counts(student):
    dice, questions = random.Random(14), []
    for _ in range(60):
        n = dice.choice([1, 2, dice.randint(2, 20), dice.randint(2, 2000)])
        questions.append((n, dice.choice([0, n, dice.randint(0, n), dice.randint(0, min(n, 3))]), dice.randint(-1 if n < 3 else 1, n + 1)))
    questions += [(n, c, k) for n in (1, 7, 5000) for c in (0, 1, n) for k in (-1, 0, 1, n, n + 1, 2 * n + 1)]
    questions = exchanged(questions, a1=lambda c: max(c - 1, 0), a2=lambda k: k + 1)
    on_random_inputs(student, "pass_at_k", questions, _pass_at_k, 1e-9, relative=0.0)


# ---------------------------------------------------------------------------------------------------------------------------------------
tests.task("1.5", "majority vote")


@check("1.5", 1, hint="Count equal keys; return the index of the first completion that gave the winner, not the key.")
def the_most_frequent_answer(student):
    expect(student.majority(["3", "7", "7", "3", "7"]), 1)
    expect(student.majority(["5", "9", "9"]), 1)
    expect(student.majority(["4", "4", "9"]), 0)


@check("1.5", 1, hint="No box is no vote: leave None out before you count.")
def no_box_is_no_vote(student):
    expect(student.majority([None, None, None, "4", "4"]), 3)
    expect(student.majority([None, None]), None, "nobody answered")
    expect(student.majority(["", "", "4"]), 0, "an empty box, twice, is an answer too")


@check("1.5", 1, hint="Of equally frequent answers the one seen first wins, so that the result does not depend on chance.")
def the_first_seen_wins_a_tie(student):
    # More than two keys in most of them, so that the order of a set is right by chance once in thousands of times.
    ties = {
        ("8", "2", "2", "8"): 0, ("b", "a"): 0, ("5", "9", "1", "1", "9"): 1, ("z", "y", "x", "w", "v", "u"): 0,
        ("7", "e", "d", "c", "b", "a", "a", "b", "c", "d", "e"): 1, ("10", "2", "33", "4", "5", "61", "7"): 0,
        ("k", "9", "8", "7", "6", "5", "5", "6", "7", "8", "9"): 1,
    }  # fmt: skip
    got = [student.majority(list(keys)) for keys in ties]
    need(all(type(i) is int for i in got), f"{got} are no indices")
    for keys, index, right in zip(ties, got, ties.values()):
        need(index == right, f"majority({list(keys)}): {index} instead of {right}")


def _majority(keys: list) -> int | None:
    votes = [keys.count(key) if key is not None else 0 for key in keys]
    return votes.index(max(votes)) if any(votes) else None


@check("1.5", 1, follows="the most frequent answer", hint="Count by hand what the message shows, None left out; of a tie the first seen.")
def fifty_random_votes(student):
    dice = random.Random(15)
    some = ["0", "00", "", "7", "-7", "1/2", "None", None, None]
    alike = [["7", " 7", "7 "], ["7", "+7", "7.0"], ["x", "X", None], ["0", "-0", "0.0"], ["1/2", "2/4", "0.5"], ["7", "07", "7,"], ["", " ", None]]
    samples = [*(dice.sample(some, 3) for _ in range(50)), *alike, *alike, *alike]
    questions = [([dice.choice(said) for _ in range(dice.randint(1, 12))],) for said in samples]
    questions += [(keys[::-1],) for (keys,) in questions[::10]] + [([str(i % 151) for i in range(300)],)]
    on_random_inputs(student, "majority", questions, _majority)
