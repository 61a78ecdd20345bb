"""Typical wrong submissions: an assignment, the mistake, the change that makes it out of a right solution, and the checks that must fail.

The right solutions are a1.py to a5.py beside this file, written as a student would, without rlvr. (old, new) pairs: `old` occurs once.
"""

E = "(r - r.mean()) / (r.std() + 1e-6)"
MAX = "torch.maximum(-ratio * advantages, -clipped * advantages)"
ENTROPY = "-(logp.exp() * logp.clamp(min=-1e9)).sum(-1)"
LAST = {"a box and no box", "the last of several boxes", "braces inside of the box", "a box that never closes"}
MAJORITY = {"the most frequent answer", "no box is no vote", "the first seen wins a tie"}
ADVANTAGES = {"the table of the handout", "groups may be mixed", "a group of equal rewards gets zero", "a group of one gets zero"}
UPDATE = {
    "a step of gradient descent",
    "right completions become more probable",
    "without contrast nothing changes",
    "padding moves no weight",
}

BANK = [
    # --- 1: rewards and pass@k
    (
        "a1",
        "the first box, not the last",
        [("        if depth == 0:", "        if depth == 0 and best is None:")],
        {"the last of several boxes"},
    ),
    (
        "a1",
        "a box ends at the first closing brace",
        [('depth += {"{": 1, "}": -1}.get(text[i], 0)', 'depth -= text[i] == "}"')],
        {"braces inside of the box", "one number in several spellings"},
    ),
    ("a1", "an open box takes the rest of the text", [("        if depth == 0:", "        if True:")], {"a box that never closes"}),
    ("a1", "an empty text for no box", [("best = None", 'best = ""')], {"a box and no box", "a box that never closes"}),
    (
        "a1",
        "answers compared letter by letter",
        [("return number(box) == number(gold)", "return box == gold")],
        {"one number in several spellings"},
    ),
    (
        "a1",
        "the gold answer somewhere in the box",
        [("return number(box) == number(gold)", "return gold in box")],
        {"one number in several spellings", "near is not equal", "nonsense is wrong and raises nothing"},
    ),
    ("a1", "spaces thrown away", [("text = text.strip()", 'text = "".join(text.split())')], {"near is not equal"}),
    (
        "a1",
        "every comma thrown away",
        [("    if re.search", '    text = text.replace(",", "")\n    if re.search')],
        {"near is not equal"},
    ),
    (
        "a1",
        "equal up to a hundredth",
        [("return number(box) == number(gold)", "return abs(float(number(box)) - float(number(gold))) < 0.01")],
        {"near is not equal"},
    ),
    (
        "a1",
        "a division by zero gets out",
        [("except (ValueError, ZeroDivisionError)", "except ValueError")],
        {"nonsense is wrong and raises nothing"},
    ),
    (
        "a1",
        "no box, but the text will do",
        [("        return False\n    try", "        return gold in completion\n    try")],
        {"right wrong and not boxed"},
    ),
    (
        "a1",
        "a bonus for short completions",
        [("min(0.0, -factor * over / buffer)", "-factor * over / buffer")],
        {"it is zero for short completions and without a buffer"},
    ),
    (
        "a1",
        "no buffer: division by zero",
        [("    if buffer == 0:\n        return 0.0\n", "")],
        {"it is zero for short completions and without a buffer"},
    ),
    ("a1", "the penalty over the whole length", [("over / buffer", "over / max_tokens")], {"it falls linearly inside the buffer"}),
    (
        "a1",
        "the penalty begins at the end",
        [("over = length - (max_tokens - buffer)", "over = length - max_tokens")],
        {"it falls linearly inside the buffer", "it is zero for short completions and without a buffer"},
    ),
    (
        "a1",
        "pass@k with putting back: biased",
        [("1 - comb(n - c, k) / comb(n, k)", "1 - (1 - c / n) ** k")],
        {"the unbiased estimate", "all wrong and hardly any wrong"},
    ),
    (
        "a1",
        "pass@k without a look at k",
        [('    if not 1 <= k <= n:\n        raise ValueError("k must be from 1 to n")\n', "")],
        {"k out of range raises"},
    ),
    ("a1", "no box votes", [("Counter(key for key in keys if key is not None)", "Counter(keys)")], {"no box is no vote"}),
    ("a1", "an empty box is no vote", [("key is not None", "key")], {"no box is no vote"}),
    (
        "a1",
        "a box that never closes ends the search",
        [
            (
                "            i += 1\n        if depth == 0:",
                "            i += 1\n        if depth:\n            break\n        if depth == 0:",
            )
        ],
        {"a box that never closes"},
    ),
    ("a1", "the answer instead of its index", [("return keys.index(winner)", "return winner")], MAJORITY),
    (
        "a1",
        "ties go to the smallest text",
        [("max(votes, key=votes.get)", "max(sorted(votes), key=votes.get)")],
        {"the first seen wins a tie"},
    ),
    (
        "a1",
        "the last completion with the answer",
        [("return keys.index(winner)", "return len(keys) - 1 - keys[::-1].index(winner)")],
        MAJORITY,
    ),
    # --- 2: group advantages, masks, log-probs
    ("a2", "population instead of sample std", [("r.std()", "r.std(correction=0)")], {"the table of the handout"}),
    (
        "a2",
        "NaN on a group without variance",
        [("        if r.max() > r.min():\n            out[rows] = " + E, "        out[rows] = (r - r.mean()) / r.std()")],
        {"a group of equal rewards gets zero", "a group of one gets zero"},
    ),
    ("a2", "NaN on a group of one", [("if r.max() > r.min():", "if len(r) == 1 or r.max() > r.min():")], {"a group of one gets zero"}),
    ("a2", "normalised over the batch", [("rows = group == g", "rows = group == group")], ADVANTAGES),
    (
        "a2",
        "groups by neighbourhood",
        [
            (
                "    for g in group.unique():\n        rows = group == g",
                "    run = torch.cat([torch.tensor([0]), (group[1:] != group[:-1]).long().cumsum(0)])\n    for g in run.unique():\n        rows = run == g",
            )
        ],
        {"groups may be mixed"},
    ),
    ("a2", "1e-6 forgotten", [("(r.std() + 1e-6)", "r.std()")], {"a group of equal rewards gets zero"}),
    ("a2", "a small std taken for none", [("if r.max() > r.min():", "if r.std() > 1e-6:")], {"a group of equal rewards gets zero"}),
    (
        "a2",
        "no look at equal rewards",
        [("        if r.max() > r.min():\n            out[rows]", "        out[rows]")],
        {"a group of equal rewards gets zero", "a group of one gets zero"},
    ),
    ("a2", "not divided by the std", [(E, "r - r.mean()")], {"the table of the handout", "groups may be mixed"}),
    ("a2", "not centred", [("(r - r.mean()) /", "r /")], {"the table of the handout", "groups may be mixed"}),
    (
        "a2",
        "no stop token",
        [("stopped_before = stop.long().cumsum(1) - stop.long()", "stopped_before = stop.long().cumsum(1)")],
        {"the stop token belongs to the completion"},
    ),
    (
        "a2",
        "the mask from the pad token",
        [("return stopped_before == 0", "return ids != 0")],
        {"padding is not known by its token", "several stop tokens"},
    ),
    ("a2", "only one kind of stop token", [("for s in stop_ids:", "for s in stop_ids[:1]:")], {"several stop tokens"}),
    (
        "a2",
        "mask off by one",
        [("return stopped_before == 0", "return torch.nn.functional.pad(stopped_before, (1, 0))[:, :-1] == 0")],
        {"the stop token belongs to the completion", "padding is not known by its token", "several stop tokens"},
    ),
    (
        "a2",
        "argmax of no stop token",
        [
            (
                "    stopped_before = stop.long().cumsum(1) - stop.long()\n    return stopped_before == 0",
                "    return torch.arange(ids.shape[1])[None] <= stop.long().argmax(1)[:, None]",
            )
        ],
        {"a truncated completion counts to its end", "padding is not known by its token"},
    ),
    (
        "a2",
        "temperature forgotten",
        [("log_softmax(logits / temperature, dim=-1)", "log_softmax(logits, dim=-1)")],
        {"the temperature counts"},
    ),
    (
        "a2",
        "temperature the wrong way round",
        [("log_softmax(logits / temperature, dim=-1)", "log_softmax(logits * temperature, dim=-1)")],
        {"the temperature counts"},
    ),
    (
        "a2",
        "log of a softmax",
        [("torch.log_softmax(logits / temperature, dim=-1)", "torch.softmax(logits / temperature, dim=-1).log()")],
        {"improbable tokens and large logits stay finite"},
    ),
    (
        "a2",
        "probabilities instead of log-probs",
        [("torch.log_softmax(logits / temperature, dim=-1)", "torch.softmax(logits / temperature, dim=-1)")],
        {"the log prob of each token", "the temperature counts", "improbable tokens and large logits stay finite"},
    ),
    (
        "a2",
        "softmax over the positions",
        [("log_softmax(logits / temperature, dim=-1)", "log_softmax(logits / temperature, dim=1)")],
        {"the log prob of each token", "the temperature counts", "improbable tokens and large logits stay finite"},
    ),
    ("a2", "logits not shifted", [("logits[i, p - 1 : p + n - 1]", "logits[i, p : p + n]")], {"logits predict the next token"}),
    (
        "a2",
        "the temperature forgotten behind a prompt",
        [("logits[i, p - 1 : p + n - 1] / temperature", "logits[i, p - 1 : p + n - 1]")],
        {"logits predict the next token"},
    ),
    ("a2", "one prompt length for all", [("int(prompt_lengths[i])", "int(prompt_lengths[0])")], {"rows of unlike length"}),
    (
        "a2",
        "as wide as the whole row",
        [("int(lengths.max())", "ids.shape[1]")],
        {"logits predict the next token", "rows of unlike length"},
    ),
    # --- 3: the loss and one update
    (
        "a3",
        "the sign of the loss",
        [("return per_token.sum()", "return -per_token.sum()")],
        {
            "at ratio one it is the policy gradient",
            "the loss is minus ratio times advantage",
            "every token weighs the same",
            "parts of a batch add up",
            "a step of gradient descent",
            "right completions become more probable",
        },
    ),
    (
        "a3",
        "the sign of the clip: min for max",
        [(MAX, MAX.replace("maximum", "minimum"))],
        {
            "beyond the clip the gradient is zero",
            "on the wrong side the gradient stays",
            "the two bounds differ",
        },
    ),
    (
        "a3",
        "only the clipped term",
        [(MAX, "-clipped * advantages")],
        {"on the wrong side the gradient stays"},
    ),
    ("a3", "no clip", [(MAX, "-ratio * advantages")], {"beyond the clip the gradient is zero", "the two bounds differ"}),
    ("a3", "one bound for both sides", [("1 + clip_high", "1 + clip_low")], {"the two bounds differ"}),
    ("a3", "the bounds swapped", [("clamp(1 - clip_low, 1 + clip_high)", "clamp(1 - clip_high, 1 + clip_low)")], {"the two bounds differ"}),
    (
        "a3",
        "ratio without exp",
        [("ratio = log_ratio.exp()", "ratio = 1 + log_ratio")],
        {"the loss is minus ratio times advantage", "parts of a batch add up", "a step of gradient descent"},
    ),
    (
        "a3",
        "logp detached",
        [("torch.where(mask, logp - old_logp, 0.0)", "torch.where(mask, logp.detach() - old_logp, 0.0)")],
        {
            "at ratio one it is the policy gradient",
            "the loss that is zero still learns",
            "beyond the clip the gradient is zero",
            "on the wrong side the gradient stays",
            "the two bounds differ",
            "every token weighs the same",
            "garbage outside the mask changes nothing",
            *UPDATE,
        },
    ),
    (
        "a3",
        "sequence mean instead of token mean",
        [
            (
                "    if denominator is None:\n        denominator = mask.sum()\n",
                "    if denominator is None:\n        return (per_token.sum(1) / mask.sum(1)).mean()\n",
            )
        ],
        {"every token weighs the same", "a step of gradient descent"},
    ),
    (
        "a3",
        "padding in the denominator",
        [("denominator = mask.sum()", "denominator = mask.numel()")],
        {"every token weighs the same", "a step of gradient descent"},
    ),
    (
        "a3",
        "the mask multiplied in",
        [("torch.where(mask, logp - old_logp, 0.0)", "(logp - old_logp) * mask")],
        {"garbage outside the mask changes nothing"},
    ),
    (
        "a3",
        "the mask after exp alone",
        [("torch.where(mask, logp - old_logp, 0.0)", "logp - old_logp")],
        {"garbage outside the mask changes nothing"},
    ),
    (
        "a3",
        "old log-probs not masked",
        [
            ("torch.where(mask, logp - old_logp, 0.0)", "torch.where(mask, logp, 0.0) - old_logp"),
            ("per_token = torch.where(mask, per_token, 0.0)", "per_token = per_token * mask"),
        ],
        {"garbage outside the mask changes nothing"},
    ),
    (
        "a3",
        "advantages not masked",
        [("    per_token = torch.where(mask, per_token, 0.0)\n", "    per_token = per_token * mask\n")],
        {"garbage outside the mask changes nothing"},
    ),
    (
        "a3",
        "each part by its own tokens",
        [("    if denominator is None:\n        denominator", "    denominator")],
        {"parts of a batch add up"},
    ),
    (
        "a3",
        "up the loss",
        [("weights.detach() - lr", "weights.detach() + lr")],
        {"a step of gradient descent", "right completions become more probable"},
    ),
    (
        "a3",
        "rewards for advantages",
        [("group_advantages(rewards, group)[:, None]", "rewards[:, None]")],
        {"a step of gradient descent", "without contrast nothing changes"},
    ),
    (
        "a3",
        "padding learned",
        [("advantages, mask, 0.2, 0.28, None)", "advantages, torch.ones_like(mask), 0.2, 0.28, None)")],
        {"a step of gradient descent", "padding moves no weight"},
    ),
    (
        "a3",
        "the bounds of the update swapped",
        [("advantages, mask, 0.2, 0.28, None)", "advantages, mask, 0.28, 0.2, None)")],
        {"a step of gradient descent"},
    ),
    ("a3", "an update without a clip", [("mask, 0.2, 0.28, None)", "mask, 9.0, 9.0, None)")], {"a step of gradient descent"}),
    (
        "a3",
        "old log-probs ignored",
        [("clipped_loss(logp, old_logp, advantages, mask, 0.2", "clipped_loss(logp, logp.detach(), advantages, mask, 0.2")],
        {"a step of gradient descent"},
    ),
    # --- 4: entropy, perplexity, stages
    ("a4", "bits instead of nats", [(ENTROPY, ENTROPY + " / 0.6931")], {"the entropy of each position"}),
    ("a4", "the minus forgotten", [(ENTROPY, ENTROPY[1:])], {"the entropy of each position", "the temperature counts"}),
    ("a4", "mean over the vocabulary", [(ENTROPY, ENTROPY.replace("sum", "mean"))], {"the entropy of each position"}),
    (
        "a4",
        "minus the largest log-prob",
        [(ENTROPY, "-logp.max(-1).values")],
        {"the entropy of each position", "the temperature counts"},
    ),
    ("a4", "temperature forgotten", [("logits / temperature", "logits")], {"the temperature counts"}),
    ("a4", "0 times -inf", [(".clamp(min=-1e9)", "")], {"a forbidden token has probability zero"}),
    (
        "a4",
        "softmax by hand",
        [
            (
                "logp = torch.log_softmax(logits / temperature, -1)",
                "e = torch.exp(logits / temperature)\n    logp = (e / e.sum(-1, keepdim=True)).log()",
            )
        ],
        {"large logits stay finite"},
    ),
    (
        "a4",
        "perplexity without exp",
        [("torch.exp(-total / mask.sum(1).clamp(min=1))", "-total / mask.sum(1).clamp(min=1)")],
        {"the mean is over valid tokens", "an empty row has perplexity one"},
    ),
    ("a4", "perplexity per padded length", [("mask.sum(1).clamp(min=1)", "mask.shape[1]")], {"the mean is over valid tokens"}),
    (
        "a4",
        "perplexity of the sum",
        [("torch.exp(-total / mask.sum(1).clamp(min=1))", "torch.exp(-total)")],
        {"the mean is over valid tokens"},
    ),
    ("a4", "an empty row is NaN", [(".clamp(min=1))", ")")], {"an empty row has perplexity one"}),
    ("a4", "the mask multiplied in", [("torch.where(mask, logp, 0.0)", "(logp * mask)")], {"garbage outside the mask changes nothing"}),
    (
        "a4",
        "one token too few",
        [("(before < top_p - 1e-6)", "(p.cumsum(-1) < top_p - 1e-6)")],
        {"the smallest set that holds top p", "a sum that is just reached"},
    ),
    (
        "a4",
        "tokens above a threshold",
        [("(before < top_p - 1e-6)", "(p > 1 - top_p)")],
        {"the smallest set that holds top p", "a sum that is just reached"},
    ),
    (
        "a4",
        "not sorted",
        [("torch.softmax(logits, -1).sort(-1, descending=True).values", "torch.softmax(logits, -1)")],
        {"the smallest set that holds top p"},
    ),
    ("a4", "one more when the sum is reached", [("top_p - 1e-6", "top_p + 1e-6")], {"a sum that is just reached"}),
    (
        "a4",
        "mean of row means",
        [
            ("entropy[correct][mask[correct]].mean()", "((entropy * mask).sum(1) / mask.sum(1))[correct].mean()"),
            ("entropy[~correct][mask[~correct]].mean()", "((entropy * mask).sum(1) / mask.sum(1))[~correct].mean()"),
        ],
        {"means are over tokens"},
    ),
    ("a4", "padding in the mean", [("entropy[correct][mask[correct]].mean()", "entropy[correct].mean()")], {"means are over tokens"}),
    (
        "a4",
        "zero for nothing",
        [("return right.item(), wrong.item()", "return right.nan_to_num().item(), wrong.nan_to_num().item()")],
        {"nothing to average is nan"},
    ),
    ("a4", "no smoothing", [("0.7 * smooth[-1] + 0.3 * h if smooth else h", "h")], {"the step of the rule"}),
    (
        "a4",
        "steps from 0",
        [("return step\n    return None", "return step - 1\n    return None")],
        {"the step of the rule", "the future does not matter"},
    ),
    ("a4", "no fall needed", [("fallen = smooth[-1] <= 0.75 * max(smooth)", "fallen = True")], {"a flat beginning is no plateau"}),
    ("a4", "fallen by half, not a quarter", [("0.75 * max(smooth)", "0.5 * max(smooth)")], {"a flat beginning is no plateau"}),
    ("a4", "fallen by a tenth", [("0.75 * max(smooth)", "0.9 * max(smooth)")], {"a flat beginning is no plateau"}),
    ("a4", "fallen below the first value", [("0.75 * max(smooth)", "0.75 * smooth[0]")], {"a flat beginning is no plateau"}),
    ("a4", "a fixed threshold", [("slope < 0.1 * steepest", "slope < 0.02")], {"the step of the rule", "no plateau while it falls"}),
    (
        "a4",
        "the steepest fall of the whole run",
        [
            (
                "            return step\n    return None",
                "            pass\n    for i in range(9, len(smooth) + 1):\n        fall = (smooth[i - 9] - smooth[i - 1]) / 8\n        if smooth[i - 1] <= 0.75 * max(smooth) and fall < 0.1 * steepest:\n            return i\n    return None",
            )
        ],
        {"the future does not matter"},
    ),
    # --- 5: the two methods and a study
    ("a5", "sample instead of population std", [("kept.std(correction=0)", "kept.std()")], {"the factor of each completion"}),
    (
        "a5",
        "the wrong side weighs more",
        [('if direction == "low" else', 'if direction == "high" else')],
        {
            "the factor of each completion",
            "low perplexity weighs more",
            "an outlier moves neither mean nor std",
            "the factor stays between 0 8 and 1 2",
        },
    ),
    ("a5", "both directions alike", [("else 1 + alpha * w", "else 1 - alpha * w")], {"low perplexity weighs more"}),
    (
        "a5",
        "outliers kept",
        [("kept = x[(x >= q1 - 1.5 * (q3 - q1)) & (x <= q3 + 1.5 * (q3 - q1))]", "kept = x")],
        {"an outlier moves neither mean nor std"},
    ),
    ("a5", "only outliers above left out", [("(x >= q1 - 1.5 * (q3 - q1)) & ", "")], {"an outlier moves neither mean nor std"}),
    (
        "a5",
        "three quartile ranges",
        [("(x >= q1 - 1.5 * (q3 - q1)) & (x <= q3 + 1.5 * (q3 - q1))", "(x >= q1 - 3 * (q3 - q1)) & (x <= q3 + 3 * (q3 - q1))")],
        {"an outlier moves neither mean nor std"},
    ),
    (
        "a5",
        "quartiles picked, not interpolated",
        [("torch.quantile(x, 0.25), torch.quantile(x, 0.75)", "x.sort().values[len(x) // 4], x.sort().values[3 * len(x) // 4]")],
        {"an outlier moves neither mean nor std"},
    ),
    (
        "a5",
        "outliers thrown away",
        [
            (
                "        w[rows] = (x - kept.mean())",
                "        x = torch.where((x >= q1 - 1.5 * (q3 - q1)) & (x <= q3 + 1.5 * (q3 - q1)), x, kept.mean())\n        w[rows] = (x - kept.mean())",
            )
        ],
        {"an outlier moves neither mean nor std", "equal perplexities weigh the same"},
    ),
    ("a5", "no clamp", [("return factor.clamp(0.8, 1.2)", "return factor")], {"the factor stays between 0 8 and 1 2"}),
    ("a5", "clamp on one side", [("factor.clamp(0.8, 1.2)", "factor.clamp(min=0.8)")], {"the factor stays between 0 8 and 1 2"}),
    (
        "a5",
        "standardised over the batch",
        [("rows = group == g", "rows = group == group")],
        {"the factor of each completion", "equal perplexities weigh the same"},
    ),
    (
        "a5",
        "NaN on equal perplexities",
        [("        if x.max() == x.min():\n            continue\n", ""), ("(std if std > 1e-6 else 1.0)", "std")],
        {"equal perplexities weigh the same"},
    ),
    ("a5", "NaN beside outliers", [("(std if std > 1e-6 else 1.0)", "std")], {"equal perplexities weigh the same"}),
    (
        "a5",
        "perplexity, not its logarithm",
        [("/ mask.sum(1).clamp(min=1)\n    w", "/ mask.sum(1).clamp(min=1)\n    log_ppl = log_ppl.exp()\n    w")],
        {"the factor of each completion", "an outlier moves neither mean nor std"},
    ),
    (
        "a5",
        "positions from 1",
        [("torch.arange(mask.shape[1])[None] / lengths", "torch.arange(1, mask.shape[1] + 1)[None] / lengths")],
        {"the bonus of ten tokens"},
    ),
    (
        "a5",
        "bonus on the wrong side",
        [("slope = 15.0 if direction", "slope = -15.0 if direction"), ("else -15.0", "else 15.0")],
        {"the bonus of ten tokens"},
    ),
    (
        "a5",
        "a linear ramp",
        [("alpha * torch.sigmoid(slope * (r - 0.5))", "alpha * (r if slope > 0 else 1 - r)")],
        {"the bonus of ten tokens"},
    ),
    ("a5", "a bonus for wrong answers too", [("a.sign() * bonus * mask", "bonus * mask")], {"it has the sign of the advantage"}),
    ("a5", "the bonus has no cap", [("    bonus = torch.minimum(bonus, a.abs() / 2)\n", "")], {"it is at most half the advantage"}),
    ("a5", "early is late", [('slope = 15.0 if direction == "late" else -15.0', "slope = 15.0")], {"early is the mirror image"}),
    (
        "a5",
        "positions of the padded batch",
        [("lengths = mask.sum(1, keepdim=True).clamp(min=1)", "lengths = mask.shape[1]")],
        {"each row has its own length"},
    ),
    (
        "a5",
        "a bonus behind the stop token",
        [("a.sign() * bonus * mask", "a.sign() * bonus")],
        {"each row has its own length", "the bonus is added"},
    ),
    (
        "a5",
        "weight computed and dropped",
        [("shaped = shaped * ppl_weights(", "weights = shaped * ppl_weights(")],
        {"the factor is applied"},
    ),
    (
        "a5",
        "the factor added",
        [("shaped = shaped * ppl_weights(", "shaped = shaped + ppl_weights(")],
        {"the factor is applied", "strength zero is grpo"},
    ),
    (
        "a5",
        "the bonus multiplied",
        [("shaped = shaped + position_bonus(", "shaped = shaped * (1 + position_bonus("), ('"late")\n    return', '"late"))\n    return')],
        {"the bonus is added"},
    ),
    ("a5", "a gradient through the factor", [("    old_logp = old_logp.detach()\n", "")], {"no gradient passes through the factor"}),
    ("a5", "1.96 for Student's t", [("T_QUANTILES[n - 1]", "1.96")], {"students interval"}),
    (
        "a5",
        "population std of the differences",
        [("stdev(differences) / n**0.5", "stdev(differences) * ((n - 1) / n) ** 0.5 / n**0.5")],
        {"students interval"},
    ),
    ("a5", "the spread, not the error of the mean", [(" / n**0.5", "")], {"students interval"}),
    ("a5", "degrees of freedom n", [("T_QUANTILES[n - 1]", "T_QUANTILES[n]")], {"students interval"}),
    ("a5", "sure after one seed", [('return m, float("-inf"), float("inf")', "return m, m, m")], {"of one seed nothing is known"}),
    # --- mistakes that few numbers show: those of the random inputs, and of checks made for them
    (
        "a1",
        "two levels of braces by a pattern",
        [
            (
                "    best = None\n    start = text.find",
                "    found = re.findall(r'\\\\boxed\\{((?:[^{}]|\\{[^{}]*\\})*)\\}', text)\n    return found[-1] if found else None\n    start = text.find",
            )
        ],
        {"braces inside of the box"},
    ),
    (
        "a1",
        "the box stripped of spaces",
        [("best = text[start + 7 : i - 1]", "best = text[start + 7 : i - 1].strip()")],
        {"fifty random texts"},
    ),
    ("a1", "an empty box is none", [("    return best\n", "    return best or None\n")], {"fifty random texts"}),
    (
        "a1",
        "equal as floats",
        [("return number(box) == number(gold)", "return float(number(box)) == float(number(gold))")],
        {"near is not equal"},
    ),
    (
        "a1",
        "a pattern that hangs",
        [
            (
                "    text = text.strip()\n",
                '    text = text.strip()\n    if re.fullmatch(r"x*", text) or len(text) > 30 and text[-1] == "x":\n        raise TimeoutError\n',
            )
        ],
        {"nonsense is wrong and raises nothing"},
    ),
    ("a1", "no more than three groups of digits", [("(,\\d{3})+", "(,\\d{3})")], {"fifty random answers"}),
    (
        "a1",
        "no signs before a fraction",
        [("        text = text[1:]\n", "        text = text[1:]\n        if '/' in text:\n            raise ValueError(text)\n")],
        {"one number in several spellings"},
    ),
    (
        "a1",
        "rounded to nine places",
        [("return number(box) == number(gold)", "return round(number(box), 9) == round(number(gold), 9)")],
        {"near is not equal"},
    ),
    (
        "a1",
        "whole tokens of the buffer",
        [("-factor * over / buffer", "-factor * (over // max(1, buffer // 1024)) / (buffer / max(1, buffer // 1024))")],
        {"fifty random lengths"},
    ),
    (
        "a1",
        "the factor as a limit",
        [
            (
                "min(0.0, -factor * over / buffer)",
                "min(0.0, max(-1.0 * factor, -over / buffer) if factor == 1 else -factor * over / buffer if factor > 0.5 else -over / buffer)",
            )
        ],
        {"fifty random lengths"},
    ),
    (
        "a1",
        "no penalty for a buffer as long as the limit",
        [("if buffer == 0:", "if buffer == 0 or buffer == max_tokens:")],
        {"fifty random lengths"},
    ),
    (
        "a1",
        "pass@k by a product in floats of one k too few",
        [("1 - comb(n - c, k) / comb(n, k)", "1 - comb(n - c, k) / comb(n, k) if n < 20 or c > 3 else 1 - (1 - k / n) ** c")],
        {"the unbiased estimate"},
    ),
    (
        "a1",
        "pass@1 taken for granted",
        [("    if not 1 <= k <= n:", "    if n == 1:\n        return float(c)\n    if not 1 <= k <= n:")],
        {"fifty random counts"},
    ),
    (
        "a1",
        "pass@k rounded",
        [("return 1 - comb(n - c, k) / comb(n, k)", "return round(1 - comb(n - c, k) / comb(n, k), 6)")],
        {"fifty random counts"},
    ),
    (
        "a1",
        "numbers counted, not texts",
        [
            (
                "    votes = Counter(key for key in keys if key is not None)",
                "    keys = [key.lstrip('0') or '0' if key else key for key in keys]\n    votes = Counter(key for key in keys if key is not None)",
            )
        ],
        {"fifty random votes"},
    ),
    ("a1", "the text None is no vote", [("if key is not None)", "if key not in (None, 'None'))")], {"fifty random votes"}),
    (
        "a1",
        "votes in the caller's list",
        [("    votes = Counter(", "    while keys and keys[-1] is None:\n        keys.pop()\n    votes = Counter(")],
        {"fifty random votes"},
    ),
    (
        "a2",
        "equal means a small std",
        [("if r.max() > r.min():", "if len(r) > 1 and r.std() >= 1e-7:")],
        {"a group of equal rewards gets zero"},
    ),
    (
        "a2",
        "equal up to float32's relative rounding",
        [("if r.max() > r.min():", "if r.max() - r.min() > 1e-3 * r.abs().max() + 1e-7:")],
        {"a group of equal rewards gets zero"},
    ),
    ("a2", "the spread clipped at 3", [("(r.std() + 1e-6)", "(r.std() + 1e-6).clamp(max=3)")], {"groups may be mixed"}),
    (
        "a2",
        "rewards centred in place",
        [("        r = rewards[rows]\n", "        rewards[rows] -= 0.5\n        r = rewards[rows]\n")],
        {"fifty random groups"},
    ),
    (
        "a2",
        "only groups of positive number",
        [("for g in group.unique():", "for g in range(int(group.max()) + 1 if group.max() < 100 else 0):")],
        {"groups may be mixed", "a group of one gets zero"},
    ),
    ("a2", "two stop tokens at most", [("for s in stop_ids:", "for s in stop_ids[:2]:")], {"several stop tokens"}),
    ("a2", "the mask as numbers", [("return stopped_before == 0", "return (stopped_before == 0).long()")], {"fifty random completions"}),
    (
        "a2",
        "ids behind the end overwritten",
        [("    return stopped_before == 0", "    ids[stopped_before > 0] = 0\n    return stopped_before == 0")],
        {"fifty random completions"},
    ),
    (
        "a2",
        "log-probs of no less than -20",
        [
            (
                "return logp.gather(-1, ids[:, :, None])[:, :, 0]",
                "return logp.gather(-1, ids[:, :, None])[:, :, 0].clamp(min=-20) if logits.shape[-1] > 3 else logp.gather(-1, ids[:, :, None])[:, :, 0]",
            )
        ],
        {"fifty random logits"},
    ),
    (
        "a2",
        "temperatures below a half taken for a half",
        [("torch.log_softmax(logits / temperature, dim=-1)", "torch.log_softmax(logits / max(temperature, 0.5), dim=-1)")],
        {"fifty random logits"},
    ),
    (
        "a2",
        "temperature twice",
        [("logits[i, p - 1 : p + n - 1] / temperature", "logits[i, p - 1 : p + n - 1] / temperature**2")],
        {"logits predict the next token"},
    ),
    (
        "a2",
        "the last token of the widest row lost",
        [
            ("out[i, :n] = logp", "n = min(n, 5)\n        out[i, :n] = logp[:n]"),
            ("ids[i, p : p + n, None])[:, 0]", "ids[i, p : p + n, None])[:, 0]  # cut"),
        ],
        {"fifty random rows"},
    ),
    (
        "a2",
        "log-probs detached",
        [("return logp.gather(-1, ids[:, :, None])[:, :, 0]", "return logp.gather(-1, ids[:, :, None])[:, :, 0].detach()")],
        {"fifty random logits"},
    ),
    (
        "a2",
        "the normaliser detached",
        [("torch.log_softmax(logits / temperature, dim=-1)", "logits / temperature - (logits / temperature).logsumexp(-1, True).detach()")],
        {"fifty random logits"},
    ),
    (
        "a2",
        "log-probs without a graph",
        [("def token_logp", "@torch.no_grad()\ndef token_logp")],
        {"fifty random logits"},
    ),
    (
        "a2",
        "rows made of items",
        [
            (
                "out[i, :n] = logp.gather(-1, ids[i, p : p + n, None])[:, 0]",
                "out[i, :n] = torch.tensor(logp.gather(-1, ids[i, p : p + n, None])[:, 0].tolist())",
            )
        ],
        {"fifty random rows"},
    ),
    (
        "a2",
        "the first token of a completion detached",
        [("ids[i, p : p + n, None])[:, 0]\n", "ids[i, p : p + n, None])[:, 0]\n        out[i, 0] = out[i, 0].item()\n")],
        {"fifty random rows"},
    ),
    (
        "a3",
        "the gradient of log-probs where it should be that of the ratio",
        [
            (
                "    per_token = torch.where(mask, per_token, 0.0)\n",
                "    per_token = torch.where(mask, per_token, 0.0).detach()\n    a = torch.where(mask, advantages, 0.0)\n"
                "    learned = torch.where(per_token == -ratio * a, log_ratio * -a, 0.0)\n"
                "    per_token = per_token + learned - learned.detach()\n",
            )
        ],
        {"fifty random batches", "a step of gradient descent"},
    ),
    (
        "a3",
        "tokens beyond the clip leave the mask",
        [
            (
                "    per_token = torch.where(mask, per_token, 0.0)\n",
                "    mask = mask & ~(((advantages > 0) & (ratio > 1 + clip_high)) | ((advantages < 0) & (ratio < 1 - clip_low)))\n    per_token = torch.where(mask, per_token, 0.0)\n",
            )
        ],
        {"beyond the clip the gradient is zero"},
    ),
    (
        "a3",
        "clipped in logs",
        [("clipped = ratio.clamp(1 - clip_low, 1 + clip_high)", "clipped = log_ratio.clamp(-clip_low, clip_high).exp()")],
        {"the two bounds differ"},
    ),
    (
        "a3",
        "a third clip at 3 (dual clip)",
        [(MAX, MAX.replace("torch.maximum", "torch.minimum(3 * advantages.abs(), torch.maximum") + ")")],
        {"on the wrong side the gradient stays"},
    ),
    (
        "a3",
        "the ratio cut off at 10",
        [("ratio = log_ratio.exp()", "ratio = log_ratio.clamp(-1.6, 2.3).exp()")],
        {"on the wrong side the gradient stays"},
    ),
    (
        "a3",
        "mean over the batch where a denominator is given",
        [("return per_token.sum() / denominator", "return per_token.sum() / min(denominator, mask.sum())")],
        {"parts of a batch add up"},
    ),
    (
        "a3",
        "normalised again",
        [("    ratio = log_ratio.exp()\n", "    ratio = log_ratio.exp()\n    if len(mask) > 2:\n        advantages = advantages / 2\n")],
        {"fifty random batches", "a step of gradient descent"},
    ),
    (
        "a3",
        "the weights changed in place",
        [
            ("return weights.detach() - lr * weights.grad", "return given.sub_(lr * weights.grad)"),
            ("    weights = weights.clone().requires_grad_()", "    given, weights = weights, weights.clone().requires_grad_()"),
        ],
        {"twenty random updates"},
    ),
    (
        "a3",
        "a step of half the weights at most",
        [("return weights.detach() - lr * weights.grad", "return weights.detach() - min(lr, 0.5) * weights.grad")],
        {"twenty random updates"},
    ),
    (
        "a4",
        "the fifty largest logits",
        [
            (
                "logp = torch.log_softmax(logits / temperature, -1)",
                "logp = torch.log_softmax((logits / temperature).topk(min(50, logits.shape[-1]), -1).values, -1)",
            )
        ],
        {"the entropy of each position"},
    ),
    (
        "a4",
        "small probabilities left out",
        [("logp.clamp(min=-1e9)", "logp.clamp(min=-1e9) * (logp > -5)")],
        {"the entropy of each position", "the temperature counts"},
    ),
    ("a4", "the temperature rounded", [("logits / temperature", "logits / round(temperature, 1)")], {"fifty random logits"}),
    (
        "a4",
        "perplexity up to 10",
        [("return torch.exp(-total / mask.sum(1).clamp(min=1))", "return torch.exp(-total / mask.sum(1).clamp(min=1)).clamp(max=10)")],
        {"fifty random rows"},
    ),
    (
        "a4",
        "the mask taken for lengths",
        [
            (
                "total = torch.where(mask, logp, 0.0).sum(1)",
                "total = torch.where(torch.arange(mask.shape[1]) < mask.sum(1)[:, None], logp, 0.0).nan_to_num(0, 0, 0).sum(1)",
            )
        ],
        {"fifty random rows"},
    ),
    (
        "a4",
        "sums rounded to two places",
        [("(before < top_p - 1e-6)", "((before * 100).round() / 100 < top_p - 1e-6)")],
        {"a sum that is just reached"},
    ),
    (
        "a4",
        "a factor that is a float",
        [("(before < top_p - 1e-6).sum(-1)", "(before < top_p - 1e-6).sum(-1).float()")],
        {"fifty random distributions"},
    ),
    (
        "a4",
        "at most ten",
        [("(before < top_p - 1e-6).sum(-1)", "(before < top_p - 1e-6).sum(-1).clamp(max=60)")],
        {"a sum that is just reached"},
    ),
    ("a4", "a loose tolerance", [("top_p - 1e-6", "top_p - 1e-2")], {"a sum that is just reached", "the smallest set that holds top p"}),
    (
        "a4",
        "rows weighed by the square of their length",
        [
            (
                "wrong = entropy[~correct][mask[~correct]].mean()",
                "wrong = entropy[~correct][mask[~correct]].mean() if correct.sum() < 3 else entropy[~correct].nan_to_num().mean()",
            )
        ],
        {"fifty random pools"},
    ),
    (
        "a4",
        "entropies of zero left out",
        [("right = entropy[correct][mask[correct]].mean()", "right = entropy[correct][mask[correct] & (entropy[correct] > 0.05)].mean()")],
        {"fifty random pools"},
    ),
    (
        "a4",
        "a quarter below, unsmoothed",
        [("fallen = smooth[-1] <= 0.75 * max(smooth)", "fallen = h <= 0.75 * max(entropies[:step])")],
        {"the step of the rule"},
    ),
    (
        "a4",
        "the median of the last steps",
        [("slope < 0.1 * steepest", "slope < 0.1 * steepest and h <= max(smooth[-9:])")],
        {"the step of the rule"},
    ),
    ("a4", "eight steps before the ninth", [("if step <= 8:", "if step <= 9:")], {"sixty noisy curves"}),
    (
        "a5",
        "the mask multiplied in",
        [("torch.where(mask, old_logp, 0.0)", "(old_logp * mask)")],
        {"garbage outside the mask changes nothing"},
    ),
    ("a5", "1e-6 added to the spread", [("(std if std > 1e-6 else 1.0)", "(std + 1e-6)")], {"equal perplexities weigh the same"}),
    ("a5", "a small spread taken for none", [("std > 1e-6", "std > 0.05")], {"fifty random groups"}),
    ("a5", "groups of two not weighed", [("if x.max() == x.min():", "if x.max() == x.min() or len(x) == 3:")], {"fifty random groups"}),
    (
        "a5",
        "the cap on alpha",
        [
            (
                "    bonus = torch.minimum(bonus, a.abs() / 2)\n",
                "    bonus = torch.minimum(bonus, a.abs() / 2 * bonus / alpha) if alpha else bonus\n",
            )
        ],
        {"it is at most half the advantage"},
    ),
    (
        "a5",
        "the cap for the whole row",
        [
            (
                "    bonus = torch.minimum(bonus, a.abs() / 2)\n",
                "    bonus = bonus * (a.abs() / 2 / bonus.amax(1, keepdim=True).clamp(min=1e-9)).clamp(max=1)\n",
            )
        ],
        {"it is at most half the advantage"},
    ),
    (
        "a5",
        "a sigmoid that is cut off",
        [("alpha * torch.sigmoid(slope * (r - 0.5))", "alpha * torch.sigmoid((slope * (r - 0.5)).clamp(max=6.5))")],
        {"early is the mirror image"},
    ),
    (
        "a5",
        "the advantages changed in place",
        [("    a = advantages[:, None]\n", "    a = advantages.mul_(1.0 + (advantages.abs() < 0.01))[:, None]\n")],
        {"fifty random rows"},
    ),
    (
        "a5",
        "a gradient through the bonus",
        [('"late")\n    return', '"late") * (old_logp - old_logp.detach()).exp()\n    return')],
        {"thirty random batches"},
    ),
    (
        "a5",
        "small advantages not shaped",
        [("shaped = advantages[:, None] * mask", "shaped = advantages[:, None] * mask * (advantages.abs() > 0.45)[:, None]")],
        {"thirty random batches"},
    ),
    (
        "a5",
        "wrong answers keep their weight",
        [("    return shaped\n", "    return shaped if method != 'ppl' else shaped.maximum(advantages[:, None] * mask)\n")],
        {"the factor is applied"},
    ),
    ("a5", "1.96 from seven seeds on", [("T_QUANTILES[n - 1]", "(T_QUANTILES[n - 1] if n < 7 else 1.96)")], {"fifty random differences"}),
    (
        "a5",
        "the median for the mean",
        [
            (
                "m, n = mean(differences), len(differences)",
                "m, n = (mean(differences) if len(differences) != 4 else sorted(differences)[1]), len(differences)",
            )
        ],
        {"fifty random differences"},
    ),
    ("a5", "spread of at most 1e-3 taken for none", [("std > 1e-6", "std > 1e-3")], {"fifty random groups"}),
    (
        "a5",
        "equal perplexities by allclose",
        [("if x.max() == x.min():", "if torch.allclose(x, x[:1].expand_as(x), atol=1e-3):")],
        {"fifty random groups"},
    ),
    (
        "a5",
        "w clipped to +-10",
        [("(x - kept.mean()) / (std if std > 1e-6 else 1.0)", "((x - kept.mean()) / (std if std > 1e-6 else 1.0)).clamp(-10, 10)")],
        {"fifty random groups"},
    ),
]

A6_MAX = "torch.maximum(-ratio * advantages, -clipped * advantages).mean()"
A6_EQUAL = 're.fullmatch(r"[+-]?\\d+(/\\d+)?", boxes[-1]) is not None and Fraction(boxes[-1]) == Fraction(gold)'
SLOW, POOR = "it learns as much as it should", "it is right more often than before"
LOSS = "its value and its gradient"
NOTHING = {"every weight is a number and some have moved", SLOW, POOR, LOSS}

# Mistakes of A6: what, the changes to a6.py, the checks that must fail, the steps of training after which it is certain that they do (0: all
# that the grader makes), what the message says.
LEARNERS = [
    ("min for max", [(A6_MAX, A6_MAX.replace("maximum", "minimum"))], {LOSS, SLOW}, 0, "not above 0.5"),
    ("the sign of the loss", [(A6_MAX, "-" + A6_MAX)], {LOSS, SLOW, POOR}, 6, ""),
    ("log-probs shifted by one", [("logits[i, p - 1 : p + n - 1]", "logits[i, p : p + n]")], {LOSS, SLOW, POOR}, 7, ""),
    ("a reward for any box", [("bool(boxes) and " + A6_EQUAL, "bool(boxes)")], {SLOW, POOR, "right completions earn one"}, 7, ""),
    ("no mask", [("logp[mask], old_logp[mask], advantages[mask]", "logp, old_logp, advantages")], NOTHING, 1, "the loss of step 1 is nan"),
    (
        "the mask multiplied in",
        [
            ("logp[mask], old_logp[mask], advantages[mask]", "logp * mask, old_logp * mask, advantages * mask"),
            (A6_MAX, A6_MAX.replace("mean()", "sum() / mask.sum()")),
        ],
        NOTHING, 1, "the loss of step 1 is nan",
    ),
    ("the loss detached", [("(logp - old_logp).exp()", "(logp - old_logp).exp().detach()")], NOTHING, 1, "does not require grad"),
    ("advantages that are all 0", [("if r.max() > r.min():", "if r.max() > r.min() + 2:")], NOTHING, 1, "every weight is what it was"),
]  # fmt: skip

A6_MASKED = "logp, old_logp, advantages = logp[mask], old_logp[mask], advantages[mask]"
A6_GROUPS = "for g in group.unique():\n        r = rewards[group == g]"
A6_FULL = "return clipped_loss(logp, batch.old_logp[:, :t], advantages[:, :t], mask[:, :t], 0.2, 0.28)"

# Losses of A6: what, the changes to a6.py, whether the gradient is still near enough to the right one to have taught a model.
A6_LOSSES = [
    ("right", [], True),
    ("right, in float64", [("logits[i, p - 1 : p + n - 1] / temperature", "logits[i, p - 1 : p + n - 1].double() / temperature")], True),
    ("min for max", [(A6_MAX, A6_MAX.replace("maximum", "minimum"))], True),
    ("the sign", [(A6_MAX, "-" + A6_MAX)], False),
    ("log-probs shifted by one", [("logits[i, p - 1 : p + n - 1]", "logits[i, p : p + n]")], False),
    ("the sum", [(A6_MAX, A6_MAX.replace("mean()", "sum()"))], True),
    ("a mean of row means", [(A6_MASKED, "m = mask"), ("ratio = (logp", "logp, old_logp = logp.where(m, 0), old_logp.where(m, 0)\n    ratio = (logp"),
                             (A6_MAX, A6_MAX.replace("mean()", "where(m, 0).sum(1).div(m.sum(1)).mean()"))], True),
    ("no clip", [(A6_MAX, "(-ratio * advantages).mean()")], True),
    ("only the clipped term", [(A6_MAX, "(-clipped * advantages).mean()")], True),
    ("bounds exchanged", [("0.2, 0.28)", "0.28, 0.2)")], True),
    ("one bound for both", [("0.2, 0.28)", "0.2, 0.2)")], True),
    ("no old log-probs", [("(logp - old_logp).exp()", "(logp - logp.detach()).exp()")], True),
    ("the stop token left out", [("stop.cumsum(1) - stop == 0", "stop.cumsum(1) == 0")], True),
    ("no mask", [(A6_MASKED, "pass")], False),
    ("detached", [("(logp - old_logp).exp()", "(logp - old_logp).exp().detach()")], False),
    ("not centred", [("(r - r.mean()) /", "r /")], True),
    ("no standard deviation", [(" / (r.std() + 1e-6)", "")], True),
    ("the population's standard deviation", [("r.std()", "r.std(correction=0)")], True),
    ("normalised over the batch", [(A6_GROUPS, "for g in group[:1]:\n        group, r = g.expand(group.shape), rewards")], True),
    ("groups by their place", [("out[group == g] =", "out[: len(r)] =")], True),
    ("temperature 0.9", [("/ temperature", "/ 0.9")], True),
    ("an entropy bonus", [(A6_FULL, A6_FULL + " + 0.1 * logp.exp().mean()")], True),
    ("imitation of right completions", [(A6_FULL, "return -(logp * (rewards > 0)[:, None])[mask[:, :t]].mean()")], True),
    ("entropy without rewards", [(A6_FULL, "return -(model(batch.ids).softmax(-1) * model(batch.ids).log_softmax(-1)).sum(-1).mean()")], False),
    ("none at all", [(A6_FULL, "return torch.tensor(0.0)")], False),
]  # fmt: skip

STUDY = {"two arms on equal seeds", "the numbers are those of the file", "the verdict follows from the interval"}

# Mistakes of the study: what happens to answer.md (old, new) or results.csv of study/, the checks that must fail, what they say.
STUDIES = [
    (
        "answer.md",
        "a verdict that is hoped for",
        "verdict: open",
        "verdict: better",
        {"the verdict follows from the interval"},
        "but the verdict is 'better'",
    ),
    (
        "answer.md",
        "a sign lost",
        "difference: -0.005",
        "difference: 0.005",
        {"the numbers are those of the file"},
        "difference and interval in answer.md",
    ),
    (
        "answer.md",
        "another level",
        "[-0.021, 0.011]",
        "[-0.017, 0.007]",
        {"the numbers are those of the file"},
        "difference and interval in answer.md",
    ),
    ("answer.md", "no verdict", "verdict: open\n", "", {"the verdict follows from the interval"}, "has no line 'verdict: ...'"),
    ("answer.md", "an arm that was not run", "arm: pos-strong", "arm: pos", STUDY, "'pos'"),
    ("results.csv", "one seed twice", "\npos-strong,21,", "\npos-strong,20,", STUDY, "two rows of arm 'pos-strong', seed 20"),
    ("results.csv", "a percentage", "grpo,20,0.5621875", "grpo,20,56.21875", STUDY, "a share is from 0 to 1"),
    ("results.csv", "less than nothing", "grpo,20,0.5621875", "grpo,20,-0.01", STUDY, "a share is from 0 to 1"),
    ("results.csv", "no number", "grpo,20,0.5621875", "grpo,20,nan", STUDY, "a share is from 0 to 1"),
    ("results.csv", "infinity", "grpo,20,0.5621875", "grpo,20,inf", STUDY, "a share is from 0 to 1"),
    ("results.csv", "a word", "grpo,20,0.5621875", "grpo,20,good", STUDY, "is no number"),
    (
        "results.csv",
        "the same difference at every seed",
        """20,0.5543750,0.2987,0.8300,0.2083,63.90
pos-strong,21,0.5918750,0.3205,0.8650,0.2240,64.15
pos-strong,22,0.5559375,0.2999,0.8275,0.2161,64.01
pos-strong,23,0.5846875,""",
        """20,0.5721875,0.2987,0.8300,0.2083,63.90
pos-strong,21,0.5934375,0.3205,0.8650,0.2240,64.15
pos-strong,22,0.5809375,0.2999,0.8275,0.2161,64.01
pos-strong,23,0.6003125,""",
        STUDY,
        "runs with different seeds differ",
    ),
]
