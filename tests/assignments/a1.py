import re
from collections import Counter
from fractions import Fraction
from math import comb


def last_boxed(text):
    best = None
    start = text.find("\\boxed{")
    while start >= 0:
        depth, i = 1, start + 7
        while i < len(text) and depth:
            depth += {"{": 1, "}": -1}.get(text[i], 0)
            i += 1
        if depth == 0:
            best = text[start + 7 : i - 1]
        start = text.find("\\boxed{", start + 1)
    return best


def number(text):
    text = text.strip()
    if re.search(r"[\s_]", text) or "," in text and not re.fullmatch(r"[-+]?\d{1,3}(,\d{3})+(\.\d+)?", text):
        raise ValueError(text)
    text = text.replace(",", "")
    sign = 1
    if text[:1] in ("+", "-"):
        sign = -1 if text[0] == "-" else 1
        text = text[1:]
    if text.startswith("\\frac{") and text.endswith("}") and text.count("{") == 2:
        a, b = text[6:-1].split("}{")
        text = a + "/" + b
    if not text or text[0] not in "0123456789." or "e" in text.lower():
        raise ValueError(text)
    return sign * Fraction(text)


def verify(completion, gold):
    box = last_boxed(completion)
    if box is None:
        return False
    try:
        return number(box) == number(gold)
    except (ValueError, ZeroDivisionError):
        return box.strip() == gold.strip()


def overlong_penalty(length, max_tokens, buffer, factor):
    if buffer == 0:
        return 0.0
    over = length - (max_tokens - buffer)
    return min(0.0, -factor * over / buffer)


def pass_at_k(n, c, k):
    if not 1 <= k <= n:
        raise ValueError("k must be from 1 to n")
    return 1 - comb(n - c, k) / comb(n, k)


def majority(keys):
    votes = Counter(key for key in keys if key is not None)
    if not votes:
        return None
    winner = max(votes, key=votes.get)
    return keys.index(winner)
