"""Character by character, with whole numbers."""


def last_boxed(text):
    opened, found = ([], None)  # of each open brace: where its content begins, and whether it is a box
    for i, c in enumerate(text):
        if c == "{":
            opened.append((i + 1, text.endswith("\\boxed", 0, i)))
        elif c == "}" and opened:
            start, box = opened.pop()
            if box:
                found = text[start:i]
    return found


def digits(text):
    return text != "" and all(c in "0123456789" for c in text)


def pair(text):
    """A number as (above, below), or None."""
    text = text.strip(" ")
    for before, between, behind in (("\\frac{", "}{", "}"), ("", "/", "")):
        if text.startswith(before) and text.endswith(behind) and text.count(between) == 1 and len(text) < 4000:
            a, b = text[len(before) : len(text) - len(behind)].split(between)
            sign = -1 if a[:1] == "-" else 1
            a = a.removeprefix("-")
            return (sign * int(a), int(b)) if digits(a) and digits(b) and int(b) else None
    sign = -1 if text[:1] == "-" else 1
    text = text[1:] if text[:1] in "+-" else text
    whole, point, rest = text.partition(".")
    if "," in whole:
        first, *groups = whole.split(",")
        if not (digits(first) and len(first) <= 3 and all(digits(g) and len(g) == 3 for g in groups)):
            return None
        whole = first + "".join(groups)
    if not digits(whole) or point and not digits(rest) or len(text) > 4000:
        return None
    return sign * int(whole + rest), 10 ** len(rest)


def verify(completion, gold):
    box = last_boxed(completion)
    a, b = (None if box is None else pair(box)), pair(gold)
    return a is not None and b is not None and a[0] * b[1] == b[0] * a[1]


def overlong_penalty(length, max_tokens, buffer, factor):
    begins = max_tokens - buffer
    return -factor * (length - begins) / buffer if length > begins else 0


def pass_at_k(n, c, k):
    if k < 1 or k > n:
        raise ValueError(k)
    none = 1.0
    for i in range(k):  # the next one drawn is wrong too
        none *= max(n - c - i, 0) / (n - i)
    return 1.0 - none


def majority(keys):
    best, most = None, 0
    for i, key in enumerate(keys):
        if key is not None and sum(other == key for other in keys) > most:
            best, most = i, sum(other == key for other in keys)
    return best
