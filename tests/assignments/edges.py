"""More typical wrong submissions: those that are right for all but the ends of what the handouts allow. As in bank.py, but the change is code
that is written behind the right solution, where it replaces a function."""

EDGES = [
    (
        "a1",
        "boxes are looked for line by line",
        r"""
_lb = last_boxed
def last_boxed(text):
    found = [b for line in text.splitlines() if (b := _lb(line)) is not None]
    return found[-1] if found else None
""",
        {"fifty random texts"},
    ),
    (
        "a1",
        "recursive parser (RecursionError at depth)",
        r"""
def _end(text, i):
    while i < len(text):
        if text[i] == "}": return i
        if text[i] == "{":
            i = _end(text, i + 1)
            if i is None: return None
        i += 1
    return None
def last_boxed(text):
    best, start = None, text.find("\\boxed{")
    while start >= 0:
        end = _end(text, start + 7)
        if end is not None: best = text[start + 7:end]
        start = text.find("\\boxed{", start + 1)
    return best
""",
        {"braces inside of the box"},
    ),
    (
        "a1",
        "dollars, percent signs and \\text stripped",
        r"""
_n = number
def number(text):
    text = text.strip().strip("$").replace("\\$", "").replace("\\%", "").rstrip("%")
    if text.startswith("\\text{"): text = text[6:-1]
    return _n(text)
""",
        {"nonsense is wrong and raises nothing"},
    ),
    (
        "a1",
        "expressions are evaluated (1+1, 2^2)",
        r"""
import ast
_n = number
def _ev(n):
    if isinstance(n, ast.BinOp):
        a, b = _ev(n.left), _ev(n.right)
        return {ast.Add: lambda: a + b, ast.Sub: lambda: a - b, ast.Mult: lambda: a * b, ast.Div: lambda: a / b}[type(n.op)]()
    if isinstance(n, ast.UnaryOp): return -_ev(n.operand) if isinstance(n.op, ast.USub) else _ev(n.operand)
    return Fraction(str(n.value))
def number(text):
    try: return _n(text)
    except ValueError:
        if "_" in text or "," in text or len(text) > 40: raise
        try: return _ev(ast.parse(text.strip(), mode="eval").body)
        except (SyntaxError, KeyError, AttributeError, TypeError): raise ValueError
""",
        {"nonsense is wrong and raises nothing"},
    ),
    (
        "a1",
        "a number with its unit",
        r"""
_n = number
def number(text):
    m = re.fullmatch(r"\s*(\S+)\s+(apples|cm|km|dollars|[a-zA-Z]{2,})\.?\s*", text)
    return _n(m[1] if m else text)
""",
        {"nonsense is wrong and raises nothing"},
    ),
    (
        "a1",
        "Decimal of 28 digits",
        r"""
from decimal import Decimal, InvalidOperation
def number(text):
    f = text.strip()
    if re.search(r"[\s_]", f) or "," in f and not re.fullmatch(r"[-+]?\d{1,3}(,\d{3})+(\.\d+)?", f): raise ValueError
    f = f.replace(",", "")
    if f.startswith("\\frac{") and f.count("{") == 2: f = "/".join(f[6:-1].split("}{"))
    if len(f) > 4000 or not re.fullmatch(r"[-+]?[0-9]+(\.[0-9]+)?(/[0-9]+)?", f): raise ValueError
    try:
        a, _, b = f.partition("/")
        return Decimal(a) / Decimal(b) if b else Decimal(a)
    except InvalidOperation: raise ValueError
""",
        {"fifty random answers"},
    ),
    (
        "a1",
        "numbers longer than 40 characters refused",
        r"""
_n = number
def number(text):
    if len(text.strip()) > 40: raise ValueError
    return _n(text)
""",
        {"fifty random answers"},
    ),
    (
        "a1",
        "verdicts remembered by the completion",
        r"""
_v, _seen = verify, {}
def verify(completion, gold):
    if completion not in _seen: _seen[completion] = _v(completion, gold)
    return _seen[completion]
""",
        {"fifty random answers"},
    ),
    (
        "a1",
        "verdicts remembered by the box",
        r"""
_v, _seen = verify, {}
def verify(completion, gold):
    b = last_boxed(completion)
    if b not in _seen: _seen[b] = _v(completion, gold)
    return _seen[b]
""",
        {"fifty random answers"},
    ),
    (
        "a1",
        "votes stripped of spaces",
        r"""
_m = majority
def majority(keys):
    return _m([k.strip() if k is not None else None for k in keys])
""",
        {"fifty random votes"},
    ),
    (
        "a1",
        "votes without a trailing .0",
        r"""
_m = majority
def majority(keys):
    return _m([k.removesuffix(".0") if k is not None else None for k in keys])
""",
        {"fifty random votes"},
    ),
    (
        "a1",
        "only the end of a completion is read",
        r"""
_v = verify
def verify(completion, gold):
    return _v(completion[-6000:], gold)
""",
        {"fifty random answers"},
    ),
    (
        "a2",
        "equal by torch.allclose",
        r"""
def group_advantages(rewards, group):
    out = torch.zeros_like(rewards)
    for g in group.unique():
        rows = group == g
        r = rewards[rows]
        if len(r) > 1 and not torch.allclose(r, r[0].expand_as(r)):
            out[rows] = (r - r.mean()) / (r.std() + 1e-6)
    return out
""",
        {"a group of equal rewards gets zero"},
    ),
    (
        "a2",
        "equality left to float64",
        r"""
def group_advantages(rewards, group):
    out = torch.zeros_like(rewards)
    for g in group.unique():
        rows = group == g
        r = rewards[rows].double()
        if len(r) > 1:
            out[rows] = ((r - r.mean()) / (r.std() + 1e-6)).to(rewards.dtype)
    return out
""",
        {"a group of equal rewards gets zero"},
    ),
    (
        "a2",
        "rewards rounded to 6 places",
        r"""
_g = group_advantages
def group_advantages(rewards, group):
    return _g(torch.round(rewards, decimals=6), group)
""",
        {"a group of equal rewards gets zero"},
    ),
    (
        "a2",
        "rewards to float32 first",
        r"""
_g = group_advantages
def group_advantages(rewards, group):
    return _g(rewards.float(), group)
""",
        {"a group of equal rewards gets zero"},
    ),
    (
        "a2",
        "log-probs clamped at -1000",
        r"""
_t = token_logp
def token_logp(*a): return _t(*a).clamp(min=-1000)
""",
        {"fifty random logits"},
    ),
    (
        "a2",
        "advantages clipped to 3",
        r"""
_g = group_advantages
def group_advantages(rewards, group): return _g(rewards, group).clamp(-3, 3)
""",
        {"fifty random groups"},
    ),
    (
        "a2",
        "mask by int8 cumsum (overflow after 128 stop tokens)",
        r"""
def completion_mask(ids, stop_ids):
    stop = torch.isin(ids, torch.tensor(stop_ids)).to(torch.int8)
    return stop.cumsum(1, dtype=torch.int8) - stop == 0
""",
        {"fifty random completions"},
    ),
    (
        "a2",
        "masks remembered by their ids",
        r"""
_m, _seen = completion_mask, {}
def completion_mask(ids, stop_ids):
    key = (tuple(ids.shape), tuple(ids.flatten().tolist()))
    if key not in _seen: _seen[key] = _m(ids, stop_ids)
    return _seen[key]
""",
        {"fifty random completions"},
    ),
    (
        "a3",
        "log-ratio clamped to +-5",
        r"""
def clipped_loss(logp, old_logp, advantages, mask, clip_low, clip_high, denominator):
    ratio = torch.where(mask, logp - old_logp, 0.0).clamp(-5, 5).exp()
    per = torch.maximum(-ratio * advantages, -ratio.clamp(1 - clip_low, 1 + clip_high) * advantages)
    return torch.where(mask, per, 0.0).sum() / (mask.sum() if denominator is None else denominator)
""",
        {"fifty random batches"},
    ),
    (
        "a3",
        "ratio at most 20 (value clamp max)",
        r"""
def clipped_loss(logp, old_logp, advantages, mask, clip_low, clip_high, denominator):
    ratio = torch.where(mask, logp - old_logp, 0.0).exp().clamp(max=20)
    per = torch.maximum(-ratio * advantages, -ratio.clamp(1 - clip_low, 1 + clip_high) * advantages)
    return torch.where(mask, per, 0.0).sum() / (mask.sum() if denominator is None else denominator)
""",
        {"fifty random batches"},
    ),
    (
        "a3",
        "advantages clamped to +-10",
        r"""
_c = clipped_loss
def clipped_loss(logp, old_logp, advantages, *a):
    return _c(logp, old_logp, advantages.clamp(-10, 10), *a)
""",
        {"fifty random batches"},
    ),
    (
        "a3",
        "update: the gradient's norm clipped to 1",
        r"""
_u = update
def update(weights, before, ids, mask, rewards, group, old_logp, lr):
    step = weights - _u(weights, before, ids, mask, rewards, group, old_logp, lr)
    g = step / lr
    return weights - lr * g * min(1.0, 1.0 / (g.norm().item() + 1e-6))
""",
        {"twenty random updates"},
    ),
    (
        "a3",
        "update: equal rewards by allclose",
        r"""
def group_advantages(rewards, group):
    out = torch.zeros_like(rewards)
    for g in group.unique():
        r = rewards[group == g]
        if len(r) > 1 and r.std() > 1e-3: out[group == g] = (r - r.mean()) / (r.std() + 1e-6)
    return out
""",
        {"twenty random updates"},
    ),
    (
        "a3",
        "update: 1e-6 forgotten",
        r"""
def group_advantages(rewards, group):
    out = torch.zeros_like(rewards)
    for g in group.unique():
        r = rewards[group == g]
        if r.max() > r.min(): out[group == g] = (r - r.mean()) / r.std()
    return out
""",
        {"twenty random updates"},
    ),
    (
        "a3",
        "update: garbage outside the mask (old_logp NaN) poisons",
        r"""
def update(weights, before, ids, mask, rewards, group, old_logp, lr):
    w = weights.clone().requires_grad_()
    A = group_advantages(rewards, group)[:, None]
    logp = torch.log_softmax(w[before], -1).gather(-1, ids[..., None])[..., 0]
    ratio = (logp - old_logp).exp()
    loss = (torch.maximum(-ratio * A, -ratio.clamp(0.8, 1.28) * A) * mask).sum() / mask.sum()
    loss.backward()
    return weights - lr * w.grad
""",
        {"twenty random updates"},
    ),
    (
        "a3",
        "update: group ids without their sign",
        r"""
_ga = group_advantages
def group_advantages(rewards, group):
    return _ga(rewards, group.abs())
""",
        {"twenty random updates"},
    ),
    (
        "a4",
        "the 256 largest logits",
        r"""
_e = token_entropy
def token_entropy(logits, temperature):
    return _e(logits.topk(min(256, logits.shape[-1]), -1).values, temperature)
""",
        {"fifty random logits"},
    ),
    (
        "a4",
        "perplexity: log-probs clamped at -10",
        r"""
_p = perplexity
def perplexity(logp, mask): return _p(logp.clamp(min=-10), mask)
""",
        {"fifty random rows"},
    ),
    (
        "a4",
        "rows without tokens have entropy 0",
        r"""
def entropy_by_correctness(entropy, mask, correct):
    def mean(rows):
        if not rows.any(): return float("nan")
        m = mask[rows]
        return (torch.where(m, entropy[rows], 0.0).sum() / m.sum().clamp(min=1)).item()
    return mean(correct), mean(~correct)
""",
        {"nothing to average is nan"},
    ),
    (
        "a4",
        "a top_p of 1 refused",
        r"""
_b = branching_factor
def branching_factor(logits, top_p):
    if top_p >= 1: raise ValueError
    return _b(logits, top_p)
""",
        {"fifty random distributions"},
    ),
    (
        "a4",
        "branching: tolerance 1e-4",
        r"""
def branching_factor(logits, top_p):
    p = torch.softmax(logits, -1).sort(-1, descending=True).values
    return ((p.cumsum(-1) - p) < top_p - 1e-4).sum(-1)
""",
        {"fifty random distributions"},
    ),
    (
        "a4",
        "branching of at most 1000",
        r"""
def branching_factor(logits, top_p):
    p = torch.softmax(logits, -1).topk(min(1000, logits.shape[-1])).values
    return ((p.cumsum(-1) - p) < top_p - 1e-6).sum(-1)
""",
        {"fifty random distributions"},
    ),
    (
        "a4",
        "plateau: the largest s of the last 40",
        r"""
def plateau_step(entropies):
    smooth, steepest = [], 0.0
    for step, h in enumerate(entropies, start=1):
        smooth.append(0.7 * smooth[-1] + 0.3 * h if smooth else h)
        if step <= 8: continue
        slope = (smooth[-9] - smooth[-1]) / 8
        steepest = max(steepest, slope)
        if smooth[-1] <= 0.75 * max(smooth[-40:]) and slope < 0.1 * steepest: return step
    return None
""",
        {"sixty noisy curves"},
    ),
    (
        "a5",
        "a strength of at most 2",
        r"""
_p = position_bonus
def position_bonus(advantages, mask, alpha, direction):
    return _p(advantages, mask, min(alpha, 2.0), direction)
""",
        {"fifty random rows"},
    ),
    (
        "a5",
        "bonus: advantages above 2.5 capped",
        r"""
_p = position_bonus
def position_bonus(advantages, mask, alpha, direction):
    return _p(advantages.clamp(-2.5, 2.5), mask, alpha, direction)
""",
        {"fifty random rows"},
    ),
    (
        "a5",
        "strength below 0.01 is none",
        r"""
_s = shaped_advantages
def shaped_advantages(method, advantages, old_logp, mask, group, alpha):
    return _s(method if alpha >= 0.01 else "grpo", advantages, old_logp, mask, group, alpha)
""",
        {"thirty random batches"},
    ),
    (
        "a1",
        "zero is falsy: `value and value == gold`",
        r"""
def verify(completion, gold):
    box = last_boxed(completion)
    if box is None: return False
    try: value = number(box)
    except (ValueError, ZeroDivisionError): return False
    return bool(value) and value == number(gold)
""",
        {"fifty random answers"},
    ),
    (
        "a1",
        "fbox is a box too",
        r"""
_lb = last_boxed
def last_boxed(text):
    return _lb(text.replace("\\fbox{", "\\boxed{"))
""",
        {"fifty random texts"},
    ),
    (
        "a1",
        "boxed without its backslash",
        r"""
def last_boxed(text):
    best, start = None, text.find("boxed{")
    while start >= 0:
        depth, i = 1, start + 6
        while i < len(text) and depth:
            depth += {"{": 1, "}": -1}.get(text[i], 0); i += 1
        if depth == 0: best = text[start + 6:i - 1]
        start = text.find("boxed{", start + 1)
    return best
""",
        {"fifty random texts"},
    ),
    (
        "a2",
        "stop ids looked for in a byte (ids mod 256)",
        r"""
_m = completion_mask
def completion_mask(ids, stop_ids): return _m(ids % 256, [s % 256 for s in stop_ids])
""",
        {"fifty random completions"},
    ),
    (
        "a2",
        "group ids through float32 (2**24 and 2**24+1 are one)",
        r"""
_g = group_advantages
def group_advantages(rewards, group): return _g(rewards, group.float())
""",
        {"fifty random groups"},
    ),
    (
        "a2",
        "the logarithm of a softmax in float64",
        r"""
_t = token_logp
def token_logp(logits, ids, temperature): return torch.log(torch.softmax(logits.double() / temperature, -1).gather(-1, ids[..., None])[..., 0])
""",
        {"fifty random logits"},
    ),
    (
        "a3",
        "denominator given as float is cut to int",
        r"""
_c = clipped_loss
def clipped_loss(*a): return _c(*a[:-1], None if a[-1] is None else int(a[-1]))
""",
        {"fifty random batches"},
    ),
    (
        "a4",
        "minus the first logit, which may be forbidden",
        r"""
_e = token_entropy
def token_entropy(logits, temperature):
    z = logits - logits[..., :1]
    p = (z / temperature).softmax(-1)
    return -(p * torch.where(p > 0, p, 1).log()).sum(-1)
""",
        {"fifty random logits"},
    ),
    (
        "a5",
        "ppl: group ids through float",
        r"""
_p = ppl_weights
def ppl_weights(o, m, group, a, d): return _p(o, m, group.float(), a, d)
""",
        {"fifty random groups"},
    ),
    (
        "a5",
        "ppl: log-probs below -10 clamped",
        r"""
_p = ppl_weights
def ppl_weights(o, m, g, a, d): return _p(o.clamp(min=-10), m, g, a, d)
""",
        {"fifty random groups"},
    ),
    (
        "a5",
        "means rounded to three decimals",
        r"""
_mi = mean_interval
def mean_interval(d): return tuple(round(x, 3) if abs(x) < 9 else x for x in _mi(d))
""",
        {"fifty random differences"},
    ),
]
