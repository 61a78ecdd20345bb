"""Public tests of assignment 1: rewards and pass@k."""

from math import comb

from tutorials.assignments.checks import Assignment, expect, expect_error, need

tests = Assignment()
check = tests.check

# ---------------------------------------------------------------------------------------------------------------------------------------
tests.task("1.1", "the last box")


@check("1.1", 1, hint="Return the text between the braces, as a string; None if there is no box.")
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


@check("1.1", 1, hint="A box that never closes has no content. It must not hide an earlier one, nor swallow the rest of the text.")
def a_box_that_never_closes(student):
    expect(student.last_boxed(r"The answer is \boxed{12"), None)
    expect(student.last_boxed(r"First \boxed{5}, then \boxed{7"), "5")
    expect(student.last_boxed(r"\boxed{5 no, \boxed{7}"), "7")


# ---------------------------------------------------------------------------------------------------------------------------------------
tests.task("1.2", "verify an answer")


@check("1.2", 1, hint="Compare the content of the last box with the gold answer. No box, no credit.")
def right_wrong_and_not_boxed(student):
    expect(student.verify(r"It is \boxed{42}.", "42"), True, r"\boxed{42}, gold 42")
    expect(student.verify(r"It is \boxed{41}.", "42"), False, r"\boxed{41}, gold 42")
    expect(student.verify("It is 42.", "42"), False, "42 without a box, gold 42")


@check("1.2", 2, hint="Turn both sides into exact numbers (fractions.Fraction) before comparing: 0.5, 1/2 and \\frac{1}{2} are one number.")
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


@check("1.2", 1, hint="Exact comparison: no substrings, no rounding, no characters thrown away. 0.333 is not 1/3, and 4 2 is not 42.")
def near_is_not_equal(student):
    expect(student.verify(r"so \boxed{42}", "42"), True, "answer '42', gold '42'")
    for answer, gold in (("0.333", "1/3"), ("2", "12"), ("12", "2"), ("-3", "3"), ("10", "1"), ("41.9999999", "42")):
        expect(student.verify(rf"so \boxed{{{answer}}}", gold), False, f"answer {answer!r}, gold {gold!r}")
    for answer, gold in (("4 2", "42"), ("1,2", "12"), ("12,34", "1234"), ("1_0", "10")):
        expect(student.verify(rf"so \boxed{{{answer}}}", gold), False, f"answer {answer!r}, gold {gold!r}")


@check(
    "1.2",
    1,
    hint="Whatever a model writes, the answer is True or False: catch the errors of your number parser, and refuse exponents before "
    "Fraction sees them: 1e99999999 is a number of a hundred million digits.",
)
def nonsense_is_wrong_and_raises_nothing(student):
    expect(student.verify(r"so \boxed{3}", "3"), True, "answer '3', gold '3'")
    for answer in ("", "1/0", "abc", r"\frac{1}{0}", "1//2", "three", "nan", "1e99999999"):
        expect(student.verify(rf"so \boxed{{{answer}}}", "3"), False, f"answer {answer!r}, gold '3'")


# ---------------------------------------------------------------------------------------------------------------------------------------
tests.task("1.3", "overlong penalty")


@check("1.3", 2, hint="-factor * (length - (max_tokens - buffer)) / buffer inside the buffer, 0 before it.")
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


# ---------------------------------------------------------------------------------------------------------------------------------------
tests.task("1.4", "pass@k")


@check("1.4", 2, hint="1 - C(n-c, k) / C(n, k): the chance that k of the n completions, drawn without putting back, are all wrong.")
def the_unbiased_estimate(student):
    for n, c, k in ((8, 2, 4), (8, 1, 8), (16, 3, 2), (5, 2, 1), (1000, 3, 500)):
        right = 1 - comb(n - c, k) / comb(n, k)  # spelled out: to import rlvr.evaluate takes seconds, each time somebody grades
        expect(student.pass_at_k(n, c, k), right, f"n={n}, c={c}, k={k}")


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


# ---------------------------------------------------------------------------------------------------------------------------------------
tests.task("1.5", "majority vote")


@check("1.5", 2, hint="Count equal keys; return the index of the first completion that gave the winner, not the key.")
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
    ties = (["8", "2", "2", "8"], ["b", "a"], ["5", "9", "1", "1", "9"])
    got = [student.majority(keys) for keys in ties]
    need(all(type(i) is int for i in got), f"{got} are no indices")
    need(got == [0, 0, 1], f"the ties of {', '.join(map(str, ties))} go to {got} instead of [0, 0, 1]")
