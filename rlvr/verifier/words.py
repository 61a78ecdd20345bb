r"""The words of an answer: which are units or plain nouns and may go, and which change what is said. tutorials/answers.md says it in words.

`as_text` puts every word into ``\text{...}``, `split_unit` takes the words after a value away, and `same_words` compares what stays.
"""

import re

# A value with one of these is not the value alone: "at least 5", "5 or more", "5 million", "negative 5".
MEANING = frozenset("""
    no not none neither nor never non without except excluding wrong false incorrect is are isn was if when where whenever while
    unless for all any some every and or but then else of off by from to than at between among until since ago hence about around
    roughly nearly almost approximately approx near circa least most more less fewer greater smaller larger bigger over under above
    below beyond up down exceeding maximum minimum max min half halves third thirds fourth fourths quarter quarters fifth fifths sixth
    sixths seventh sevenths eighth eighths ninth ninths tenth tenths hundredth hundredths thousandth thousandths twice thrice double
    triple dozen dozens score pair pairs couple gross hundred hundreds thousand thousands million millions billion billions trillion
    trillions lakh crore zero one two three four five six seven eight nine ten eleven twelve plus minus times divided multiplied
    squared cubed root power log ln sqrt exp sin cos tan mod modulo remainder factorial choose percent out negative positive odd even
    prime composite true increasing decreasing convex concave rational irrational real imaginary east west north south clockwise
    counterclockwise anticlockwise forward backward upward downward bc ad bce ce first last infinity infinite undefined impossible
    quadrillion tens twenty thirty forty fifty sixty seventy eighty ninety thirteen fourteen fifteen sixteen seventeen eighteen
    nineteen cannot can doesn don didn won too extraneous rejected invalid repeating recurring inverse assume suppose k bn mn permille
    base maybe contradiction onward onwards estimated rounded order next mil mln bil before after later earlier higher lower perhaps
    nope hundredfold thousandfold tenfold fold ish tuple googol myriad grand ppm bps basis percentile permil binary octal hex
    hexadecimal inclusive exclusive loss deficit debt owed owing decrease decreased reduction drop behind leftward leftwards northeast
    northwest southeast southwest missing absent lacking halved doubled tripled quadrupled reciprocal opposite complement conjugate
    transposed inverted negated reversed refuted disproved contradicts mistaken erroneous doubtful questionable fake nonsense inaccurate
    indeterminate congruent quotient exponent logarithm sine cosine tangent lesser upper bound vice versa contrary nil null void empty
    dne besides barring sans upto margin tolerance nicht kein keine nein falsch pas faux falso mille
""".split())  # fmt: skip
# Words of that kind by how they begin or end: millionths, fifteenth, possibly (not daily), 5 th, nonzero, unlikely (not units).
_MEANS = re.compile(
    "illi?on(?:e[ns]|s)?$|(?:teen|tie|elf|even|illion)ths?$|^(?:st|nd|rd|th|t)$"
    "|^(?!on|dai|week|month|year|hour|fami)[a-z]+ly$|^non|^un(?!it|ion|cle|der)"
)
SCALES = {"hundred": 100, "thousand": 1000, "million": 10**6, "billion": 10**9, "trillion": 10**12, "dozen": 12}

_NAMES = """
    mm millimeter millimetre | cm centimeter centimetre | dm decimeter decimetre | m meter metre | km kilometer kilometre
    in inch inches | yd yard | ft foot feet | mi mile | mg milligram | g gram gramme | kg kilogram | lb lbs | oz ounce
    L l liter litre | ml milliliter millilitre | s sec second | min minute | h hr hour | yr year | wk week | ms millisecond
    degree deg | rad radian | usd dollar | eur euro | pound | rupee rs | hz hertz | N newton | J joule | W watt | V volt
    A ampere amp | K kelvin | C celsius | F fahrenheit | pa pascal | mol mole | gal gallon | person people | child children | man men
    woman women | sq square | cu cubic | ha hectare | day | month | cent | yen | mph | kph kmh | kj | kw | am AM | pm PM | ohm | unit
    per | old | way
"""
_NAME_OF = {name: names.split()[0] for names in _NAMES.replace("\n", "|").split("|") for name in names.split()}
_LETTERS = "msgLhNJWVAKCF"  # a unit when in \text, as in 5\text{ N}; without it the first four alone, and only after a digit
_CURRENCY = {r"US\$": "dollar", r"\$": "dollar", "USD": "dollar", "£": "pound", "€": "euro", "EUR": "euro", "¥": "yen"}
_CURRENCY |= {"₹": "rupee", "Rs.": "rupee", "Rs": "rupee"}  # the longer one first
_LEAD = frozenset("so thus therefore hence the final correct answer answers result value solution total sum is are it we get".split())
# "for any real c" after a formula says what its letters are, and no more
_LETTERS_ARE = frozenset(
    "for any all every each some where with is are a an the and real integer integers numbers number constant constants arbitrary".split()
)

_COMMAND = re.compile(r"\\(?:text(?:bf|it|rm|tt|sf|up|normal)?|[mh]box|math(?:rm|it)|operatorname) ?\{((?:[^{}]|\{-?\d\})*)\}")
_IN_COMMAND = re.compile(rf"(?<!\\)\b[A-Za-z][A-Za-z']+|(?<![A-Za-z\\])[{_LETTERS}](?![A-Za-z])")  # words, and letters that may be units
_SHORT = {name for name in _NAME_OF if 1 < len(name) < 4} | {word for word in MEANING if 1 < len(word) < 4}
_ALONE = frozenset("of or and is no not if for odd all any the are max min out per".split())  # words wherever they stand between spaces
_RUN = re.compile(r"(?<![A-Za-z\\_])(?<!_\{)(?<!\\begin\{)(?<!\\end\{)[A-Za-z][A-Za-z']*(?: [A-Za-z][A-Za-z']*)*(?![A-Za-z(_])")
_TEXT = re.compile(r"\\text\{([^{}]*)\}")
_POWER = r"(?: ?\^ ?(?:\{ ?-?\d ?\}|-?\d))?"
_UNIT = rf"\\text\{{[^{{}}]*\}}{_POWER}(?: ?(?:(?:/|\\cdot) ?)?(?:\\text\{{[^{{}}]*\}}|(?<=[/ ])[a-zA-Z](?![a-zA-Z])){_POWER})*"
_TAIL = re.compile(
    rf" ?(?:\^\\circ ?(?:\\text\{{[CF]\}}|[CF])?|\( ?{_UNIT} ?\)|{_UNIT}|(?<=\d) ?[msgL]{_POWER}(?: ?/ ?[a-z]{_POWER})?)\.?$"
)


def as_text(text: str) -> str:
    r"""All words in one spelling: each run of them in one \text{}, letters that may be variables outside.

    >>> as_text("5 square cm"), as_text(r"18\operatorname{ km}/h"), as_text("£18"), as_text(r"5\text{x}")
    ('5\\text{square cm}', '18\\text{km}/h', '18\\text{pound}', '5 x')
    """
    signs = "|".join(map(re.escape, _CURRENCY))
    text = re.sub(rf"^ ?({signs}) ?([\d.,]+(?: [a-z]+)?) ?$", lambda match: f"{match[2]} {_CURRENCY[match[1]]}", text)
    text = re.sub(rf"^ ?([\d.,]+) ?({signs}) ?$", lambda match: f"{match[1]} {_CURRENCY[match[2]]}", text).replace(r"\$", "")
    text = re.sub(r"\b([ap])\.m\.?(?![a-z])", r"\1m", text, flags=re.IGNORECASE)
    text = _COMMAND.sub(lambda match: " " + _IN_COMMAND.sub(r"\\text{\g<0>}", match[1]) + " ", text)
    parts = re.split(r"(\\text\{[^{}]*\})", text)
    parts[::2] = [_RUN.sub(_wrapped, part) for part in parts[::2]]
    text = re.sub(r",? ?\\text\{and\},? ?", ", ", "".join(parts), flags=re.IGNORECASE)
    text = re.sub(r",? ?\\text\{or\} ?", r" \\lor ", text, flags=re.IGNORECASE)
    text = re.sub(r"(?<=[)\]]) ?\\lor ?(?=[(\[])", r"\\cup ", text)  # (0,1) or (2,3)
    return re.sub(r" *((?:\\text\{[^{}]*\} *)+)", lambda match: r"\text{%s}" % " ".join(_TEXT.findall(match[1])), text).strip()


def _wrapped(match: re.Match) -> str:
    """The words of a run of letters and spaces in \\text{}. Short ones may be products: `by` in ax + by, but not `cm` in 5 cm."""
    before = match.string[max(0, match.start() - 2) : match.start()]
    after_number, after_space = re.search(r"[\d})] ?$|\}/$", before), before.endswith(" ")
    words = match[0].split(" ")
    for i, word in enumerate(words):
        is_word = len(word) > 3 or after_number and (word.lower() in _SHORT or word.lower().removesuffix("s") in _SHORT)
        is_word = is_word or after_number and after_space and len(word) > 2 or (words[1:] or after_space) and word.lower() in _ALONE
        if is_word or (i and "\\" in words[i - 1] and len(word) > 1):
            words[i], after_number = rf"\text{{{word}}}", None
    return " ".join(words)


def words_in(text: str) -> list[str]:
    return " ".join(_TEXT.findall(text)).lower().replace("'", " ").replace("-", " ").split()


def split_unit(text: str) -> tuple[str, dict[str, int]]:
    r"""A value and its unit, each name with its power; ({}) without one, or if the words change what is said.

    >>> split_unit(r"9.8\text{m}/\text{s}^2"), split_unit(r"5\text{square cm}"), split_unit(r"5\text{or more}")
    (('9.8', {'m': 1, 's': -2}), ('5', {'cm': 2}), ('5\\text{or more}', {}))
    """
    if (lead := re.match(r"\\text\{([^{}]*)\}:? ?(?=.)", text)) and set(lead[1].lower().split()) <= _LEAD:
        text = text[lead.end() :]
    tail = _TAIL.search(text)
    value = text[: tail.start()].strip() if tail else ""
    degrees_in_it = tail and re.search("circ|deg", tail[0]) and re.search(r"\\(?:sin|cos|tan|cot|sec|csc|circ)(?![a-z])|[<>]", value)
    if not value or "\\text" in value or degrees_in_it:
        return _with_degrees(text)
    tail = tail[0]
    if scale := re.match(rf" ?\\text\{{(({'|'.join(SCALES)})s?) (?=.)", tail):  # 5 million dollars
        value, tail = rf"{value}\text{{{scale[1]}}}", r"\text{" + tail[scale.end() :]
    words = words_in(tail)
    if len(words) > 4 or any(map(_MEANS.search, words)) or MEANING & {word for name in words for word in (name, name.removesuffix("s"))}:
        return text, {}
    return value, _unit(tail)


def _with_degrees(text: str) -> tuple[str, dict[str, int]]:
    r"""An expression that degrees stand in. They are its unit if it is a sum of numbers of degrees.

    >>> _with_degrees(r"180^\circ-60^\circ"), _with_degrees(r"\sin(30\text{degrees})")
    (('180-60', {'degree': 1}), ('\\sin(30^\\circ )', {}))
    """
    text = re.sub(r" ?\\text\{deg(?:ree)?s?\}", r"^\\circ ", text)
    terms = re.split(r"[-+=,]", re.sub(r"\([^()\\]*\)", "", text))
    letters = re.search("[A-Za-z]", re.sub(r"\\(?:circ|frac|cdot|times)(?![a-z])", "", text))
    if letters or not all(r"\circ" in term for term in terms):
        return text, {}
    return re.sub(r" ?\^ ?\\circ ?", "", text), {"degree": 1}


def _unit(tail: str) -> dict[str, int]:
    tail = re.sub(r"\^\\circ ?", r"\\text{degree}", tail) if not re.search("[CF]", tail) else tail.replace("^\\circ", "")
    unit, sign, next_power = {}, 1, 1
    for slash, word, power in re.findall(r"(/)|([A-Za-z]+)(?: ?\}? ?\^ ?\{? ?(-?\d))?", tail.replace(r"\text", "").replace(r"\cdot", "")):
        name = _name(word)
        if slash or name == "per":
            sign = -1
        elif name in ("sq", "cu"):
            next_power = {"sq": 2, "cu": 3}[name]
        else:
            unit[name] = unit.get(name, 0) + sign * (int(power) if power else next_power)
            next_power = 1
    return unit


def _name(word: str) -> str:
    """One name for all spellings of a unit or noun: cm for centimetres, apple for apples. Mm is not mm."""
    names = [word] if len(word) < 3 else [word, word.lower(), word.lower().removesuffix("s")]
    known = [_NAME_OF[name] for name in names if name in _NAME_OF]
    if known:
        return known[0]
    for plural, one in (("ies", "y"), ("ses", "s"), ("xes", "x"), ("oes", "o"), ("ches", "ch"), ("shes", "sh"), ("ss", "ss"), ("s", "")):
        if word.endswith(plural):
            return word.lower().removesuffix(plural) + one
    return word.lower() if len(word) > 3 else word


def without_domain(text: str) -> str:
    r"""The formula without what its letters are: ``3k\text{for}k\in\mathbb{N}`` and ``3k, k\in\mathbb{Z}`` become ``3k``."""
    in_a_set = r"[a-z] ?\\in ?\\mathbb ?\{?[NZQRC]\}?"
    if match := re.search(rf"(?:, ?| ?\(){in_a_set}\)?$", text):
        return text[: match.start()].strip()
    match = re.search(rf"(?:, ?)?\\text\{{(?:for|where|with)(?: [^{{}}]*)?\}}(?: ?[a-z] ?|{in_a_set}|\\text\{{[^{{}}]*\}}|, ?)*$", text)
    return text[: match.start()].strip() if match and set(words_in(match[0])) <= _LETTERS_ARE else text


def same_words(answer: str, gold: str) -> bool:
    """Words of an answer are compared without case, as in yes and Yes; letters such as ABC and abc are names of different things."""
    if answer == gold:
        return True
    if not re.fullmatch("[A-Za-z' ]+", answer):
        return False
    if re.search("[A-Za-z]{2} | [A-Za-z]{2}", answer):
        return answer.lower().removesuffix("s") == gold.lower().removesuffix("s")  # no solutions
    return answer.lower() == gold.lower() and (answer.lower() in MEANING | {"yes"} or answer[1:] == gold[1:] and len(answer) > 1)
