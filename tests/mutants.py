"""Break the library on purpose, one line at a time, and see whether the tests notice:  python tests/mutants.py [word in a name | --tenth]

Each mutant is a mistake that learners make or copy. In a copy of the repository one piece of text is replaced, and the tests that should
notice run until the first failure. A mutant is caught if a test fails that passes without it. With --tenth every tenth mutant is tried,
others each day. Exit code 1 if a mutant is not caught, for whatever reason.
"""

import multiprocessing
import os
import sys
import tempfile
import time
from concurrent.futures import ProcessPoolExecutor, as_completed
from pathlib import Path

os.environ["OMP_NUM_THREADS"] = "1"  # mutants are tried side by side, one on each core
import datasets  # noqa: E402, F401 (what tests import, once, before the mutants are tried; nothing of rlvr)
import hypothesis  # noqa: E402, F401
import matplotlib.pyplot  # noqa: E402, F401
import pytest  # noqa: E402
import tyro  # noqa: E402, F401
from transformers import GPT2LMHeadModel, LlamaForCausalLM, PreTrainedTokenizerFast, Qwen2ForCausalLM  # noqa: E402, F401

from conditions import copy_repository  # noqa: E402

SECONDS = 300  # for the tests of one mutant; a mutant that hangs is caught
CONTEXT = multiprocessing.get_context("fork" if sys.platform == "linux" else "spawn")
sys.dont_write_bytecode = True  # the bytecode of the last mutant must not run
os.environ["PYTHONDONTWRITEBYTECODE"] = "1"

ALL_SLOW = ("test_lora", "test_trackers")  # their packages are among the extra ones, so their tests are among the longer ones

LOOP = "train -k not it_learns"  # the slowest test would add half a minute to each

# (name, tests that should notice, file, old text, new text). Tests: names of test files, perhaps with pytest's -k; "loss" is
# tests/test_loss.py. File: "loss" is rlvr/loss.py.
MUTANTS = [
    # -- advantages
    ("advantage: batch statistics instead of the group's", "advantage", "advantage",
     "rows = (group == g) & scored\n        r = rewards[rows]", "rows = (group == g) & scored\n        r = rewards[scored]"),
    ("advantage: groups are taken for runs of rows 0..G-1", "advantage", "advantage",
     "for g in group[scored].unique():", "for g in range(len(group.unique())):"),
    ("advantage: NaN rewards poison the group", "advantage properties faults", "advantage",
     "scored = ~rewards.isnan()", "scored = rewards.new_ones(rewards.shape).bool()"),
    ("advantage: population standard deviation", "advantage", "advantage", "(r.std() + 1e-6)", "(r.std(correction=0) + 1e-6)"),
    ("advantage: no 1e-6", "advantage", "advantage", "(r.std() + 1e-6)", "r.std()"),
    ("advantage: a millionth becomes 1e-4", "advantage", "advantage", "(r.std() + 1e-6)", "(r.std() + 1e-4)"),
    ("advantage: equal rewards are divided like others", "advantage", "advantage", "if r.max() > r.min():", "if len(r) > 1:"),
    ("advantage: a group of one is NaN", "advantage", "advantage", "if r.max() > r.min():", "if True:"),
    ("advantage: mean not subtracted", "advantage", "advantage", "(r - r.mean()) / (r.std()", "r / (r.std()"),
    # -- perplexity shaping
    ("ppl: weight computed and never applied", "advantage", "advantage",
     "return shaped * weights[:, None] if ppl_apply else shaped", "return shaped"),
    ("ppl: the control applies its factor", "advantage", "advantage",
     "return shaped * weights[:, None] if ppl_apply else shaped", "return shaped * weights[:, None]"),
    ("signs: positive and negative swapped", "advantage", "advantage",
     'shaped.clamp(min=0) if learn_from == "positive" else shaped.clamp(max=0)',
     'shaped.clamp(max=0) if learn_from == "positive" else shaped.clamp(min=0)'),
    ("signs: chosen and not kept", "train -k signs", "train", "rewards, keep_sign(shaped, c.learn_from), mini", "rewards, shaped, mini"),
    ("signs: a denominator for each", "train -k signs", "train",
     "denominator = int(batch.mask[rows].sum())", "denominator = int(batch.mask[rows][step.shaped[rows] != 0].numel() and (step.shaped[rows] != 0).sum())"),
    ("level: always the first", "tiny", "tiny/task", "else level]", "else 1]"),
    ("level 3: the web has the long stories", "tiny", "tiny/task", 'LEVELS[1 if (split, level) == ("web", 3) else level]', "LEVELS[level]"),
    ("level 3: the number before the last is the last", "tiny", "tiny/task", "lambda v: v[-2]", "lambda v: v[-1]"),
    ("level 3: the difference has a sign", "tiny", "tiny/task", "abs(v[-1] - v[0])", "v[-1] - v[0]"),
    ("level 3: questions as frequent as on the web", "tiny", "tiny/task", ' if split == "web" else None)[0]', ")[0]"),
    ("level 3: nobody is lazy", "tiny", "tiny/task", "rng.random() >= author.lazy", "rng.random() >= 0"),
    ("level 3: everybody chooses right", "tiny", "tiny/task", "rng.random() < author.wrong_choice", "False"),
    ("level 3: a difference is no equation", "tiny", "tiny/task", 'len(self.ops) + (self.asks == "difference")', "len(self.ops)"),
    ("level 3: every question is taken for the first", "tiny", "tiny/task", "q.text.format(things=things) == question", "True"),
    ("level 3: the first level's web", "tiny -k pre_trained", "tiny/pretrain", "clean_share, level)", "clean_share)"),
    ("level 3: from random weights", "tiny -k pre_trained", "tiny/pretrain", "if recipe.start:", "if False:"),
    ("level 3: the base of level 1", "config -k level_3", "config", 'return "tiny3" if model == "tiny" and level == 3 else model', "return model"),
    ("level 3: the settings of level 1", "config -k level_3", "run/cli", '"tiny3" if named.level == "3" else ', ""),
    ("errors: a false result is a wrong copy", "defects", "run/defects", "if int(c) != value:\n            return \"calculation\"", "if int(c) != value:\n            return \"copying\""),
    ("errors: the operands are not compared", "defects", "run/defects", "(int(a), op, int(b)) != (value, *step)", "(op, int(b)) != step"),
    ("errors: a false difference is a choice", "defects", "run/defects", "equations[len(story.ops) :]", "[]"),
    ("errors: an empty box is a choice", "defects", "run/defects", 'if (last_boxed(text) or "").strip() else "form"', 'if last_boxed(text) is not None else "form"'),
    ("checkpoint: none is kept besides the newest", "checkpoint -k manyth", "run/checkpoint",
     "step_of(old) % keep_every == 0", "step_of(old) % keep_every == 0 and False"),
    ("checkpoint: half-made steps are kept for good", "checkpoint -k manyth", "run/checkpoint", 'keep_every and "+" not in old.name and', "keep_every and"),
    # -- the analysis
    ("drop: shares of the first step alone", "exchange", "analysis/exchange", "return (x[1:] + x[:-1]) / 2", "return x[:-1]"),
    ("drop: rows for tokens", "exchange", "analysis/exchange", "np.asarray(tokens_right, float) + np.asarray(tokens_wrong, float)", "2.0"),
    ("drop: the mix counted twice", "exchange", "analysis/exchange", '{"total": sum(parts.values())}', '{"total": sum(parts.values()) + parts["mix"]}'),
    ("gradient norm: p not doubled", "exchange probe", "analysis/exchange", "(1 - 2 * p + sum_of_squares)", "(1 - p + sum_of_squares)"),
    ("largest: falls do not count", "exchange", "analysis/exchange", "np.argsort(-np.abs(change)", "np.argsort(-change"),
    ("over-representation: of the others", "exchange", "analysis/exchange", "member[chosen].mean()", "member[~chosen].mean()"),
    ("low half: the high one", "exchange", "analysis/exchange", "log_ppl < np.median", "log_ppl > np.median"),
    ("position: r runs to 1", "exchange", "analysis/exchange", "np.arange(length) / max(length, 1)", "np.arange(1, length + 1) / max(length, 1)"),
    ("unsolved: solved by one is not enough", "exchange report", "analysis/exchange", "if c == 0}", "if c <= 1}"),
    ("probe: scored with the weights before", "probe", "analysis/replay", "    while not step.finished:\n        trainer.update(step)\n    after = token_stats(policy, batch",
     "    after = token_stats(policy, batch, c.temperature, c.micro_batch_tokens, watch=before[\"top\"])\n    while not step.finished:\n        trainer.update(step)\n    token_stats(policy, batch"),
    ("probe: temperature forgotten", "probe", "analysis/replay", "logits.float() / temperature", "logits.float()"),
    ("probe: the second is the first", "probe", "analysis/replay", 'z.scatter(-1, y, float("-inf")).argmax(-1)', "z.argmax(-1)"),
    ("probe: the token is replaced one place later", "probe", "analysis/probe", "(i, [*ids[:t], other])", "(i, [*ids[: t + 1], other])"),
    ("probe: what would be cut off counts", "probe", "analysis/probe", "fits = [len(ids) <= c.max_new_tokens for ids in ways]", "fits = [True for ids in ways]"),
    ("probe: a step is made again from the wrong state", "probe", "analysis/probe", "restore_trainer(trainer, tensors, state, Step)", "pass"),
    ("report: the intervals are one-sided", "report", "analysis/report/run", "np.quantile(values, [0.025, 0.975])", "np.quantile(values, [0.0, 0.5])"),
    ("report: the drop the other way", "report", "analysis/report/instance", 'r["kept"] - r["replaced"] for r in rows]', 'r["replaced"] - r["kept"] for r in rows]'),
    ("report: the stages swapped", "report", "analysis/report/changes", '(("rising", ~inside), ("plateau", inside))', '(("rising", inside), ("plateau", ~inside))'),
    ("report: pairs are drawn apart", "report", "analysis/report/run", "        if paired:\n", "        if False:\n"),
    ("report: a run that was not probed is asked", "report", "analysis/report/section", "if not needs or getattr(run, needs)", "if True"),
    ("experiment: unpaired", "experiment", "analysis/compare_arms", "sorted(by_seed[0].keys() & by_seed[1].keys())", "sorted(by_seed[0])"),
    ("intervals: a larger p may become smaller than one before it", "experiment -k holm", "analysis/intervals", "largest = max(largest, ", "largest = max(0.0, "),
    ("intervals: each p times their number", "experiment -k holm", "analysis/intervals", "(len(asked) - rank) * p[i]", "len(asked) * p[i]"),
    ("intervals: one side of p alone", "experiment -k tables", "analysis/intervals", "0, x, regularized=True))", "0, x, regularized=True)) / 2"),
    ("experiment: normal instead of Student", "experiment", "analysis/intervals", "half = t_quantile(n - 1, level)", "half = 1.96"),
    ("experiment: the area is a plain mean", "experiment", "analysis/compare_arms", "(x2 - x1) * (y1 + y2) / 2", "(y1 + y2) / 2"),
    ("ppl: direction swapped", "advantage", "advantage", '1 - alpha * w if direction == "low"', '1 - alpha * w if direction == "high"'),
    ("ppl: outliers not left out", "advantage", "advantage", "kept = x[(x >= q1 - reach) & (x <= q3 + reach)]", "kept = x"),
    ("ppl: fences at 3 ranges", "advantage", "advantage", "reach = 1.5 *", "reach = 3.0 *"),
    ("ppl: sample standard deviation", "advantage", "advantage", "kept.std(correction=0)", "kept.std()"),
    ("ppl: no clamp", "advantage", "advantage", ".clamp(0.8, 1.2)", ""),
    ("ppl: sum instead of mean log-prob", "advantage", "advantage",
     "log_ppl = log_perplexity(old_logp.detach(), mask)", "log_ppl = log_perplexity(old_logp.detach(), mask) * mask.sum(1)"),
    ("ppl: padding counts", "advantage", "advantage",
     "log_perplexity(old_logp.detach(), mask)", "-old_logp.detach().mean(1)"),
    ("entropy: perplexity NaN for a row without tokens", "entropy", "entropy", "/ mask.sum(-1).clamp(min=1)", "/ mask.sum(-1)"),
    ("ppl: equal perplexities divided by their deviation", "advantage", "advantage", "(std if std > 1e-6 else 1.0)", "std"),
    ("ppl: gradient through the weight", "advantage", "advantage",
     "log_perplexity(old_logp.detach(), mask)", "log_perplexity(old_logp, mask)"),
    # -- position shaping
    ("pos: early and late swapped", "advantage", "advantage",
     'slope = k if direction == "late" else -k', 'slope = -k if direction == "late" else k'),
    ("pos: sign lost for negative advantages", "advantage", "advantage", "return a.sign() * (alpha", "return (alpha"),
    ("pos: cap missing", "advantage", "advantage",
     ".minimum(0.5 * a.abs()) * valid", " * valid"),
    ("pos: relative to the batch's width", "advantage", "advantage", "/ valid.sum(1, keepdim=True).clamp(min=1)", "/ valid.shape[1]"),
    ("pos: positions from 1", "advantage", "advantage", "(valid.cumsum(1) - 1) /", "valid.cumsum(1) /"),
    ("pos: bonus outside the mask", "advantage", "advantage", "0.5 * a.abs()) * valid", "0.5 * a.abs())"),
    ("pos: direction not passed on", "advantage", "advantage",
     "position_bonus(advantages, mask, pos_alpha, pos_direction)", "position_bonus(advantages, mask, pos_alpha)"),
    ("methods: only the first of several applied", "advantage", "advantage",
     "for name in method_parts(method):", "for name in method_parts(method)[:1]:"),
    ("methods: strengths keep their defaults", "advantage", "advantage", "strengths.get(key, STRENGTHS[key].default)", "STRENGTHS[key].default"),
    ("methods: a strength is not checked for its range", "config -k declared_later", "config", "limits = at_least(0", "limits = {} and at_least(0"),
    # -- data that users bring, and families of problems
    ("answers: the lines after the first count", "data -k later_lines", "loaders/rows", '.strip().split("\\n")[0] if "####"', '.strip() if "####"'),
    ("answers: empty parts are joined", "data -k later_lines", "loaders/rows", "filter(None, (_cell_text(x, cell) for x in value))", "(_cell_text(x, cell) for x in value)"),
    ("answers: whatever equals itself can be matched", "data -k gold", "loaders/rows", "if equal is False or NO_ANSWER.match(text)", "if equal is False"),
    ("answers: what differs from itself is not seen", "data -k gold", "loaders/rows", "if equal is False or NO_ANSWER.match(text)", "if NO_ANSWER.match(text)"),
    ("answers: most may be unmatchable", "data -k gold", "loaders/rows", "if 2 * len(bad) > len(answers):", "if False:"),
    ("answers: looked at under a reward of one's own", "data -k gold", "run/set_up", "    if reward is None:\n", "    if True:\n"),
    ("answers: not looked at in an evaluation", "data -k gold", "run/compare", "if problems[data][0].reward is None:", "if False:"),
    ("data: the wrapping stays", "data -k another_form", "loaders/rows", "if (match := pattern.fullmatch(question))", "if (match := None)"),
    ("data: shared words are not said", "data -k all_problems_share", "loaders/rows", "if len(text) >= 40:", "if False:"),
    ("data: the first message is the problem", "data -k of_messages", "loaders/rows", 'in ("user", "human"):', 'in ("user", "human", "system", "assistant"):'),
    ("data: rows that give one problem are not said", "data -k give_one_problem", "loaders/rows", "if total > 2 and 2 * times > total:", "if False:"),
    ("data: the question without its body", "data -k body_and_question", "loaders/rows", '(("body", "question"), "answer"), (("question",), "answer")', '(("question",), "answer"), (("body", "question"), "answer")'),
    ("data: other columns are not said", "data -k body_and_question", "loaders/rows", "    if others:\n", "    if False:\n"),
    ("data: a bad row of a file is an error", "data -k bad_rows", "data", "usable_rows(rows, data, *columns, strict)", "usable_rows(rows, data, *columns, strict or is_table(data))"),
    ("data: strict is not passed on", "data -k bad_rows", "data", "usable_rows(rows, data, *columns, strict)", "usable_rows(rows, data, *columns)"),
    ("data: .json is always one list", "data -k other_kinds", "loaders/sources", 'is_list = text.lstrip().startswith("[")', 'is_list = path.suffix == ".json"'),
    ("data: packed only by name", "data -k other_kinds", "loaders/sources", "if start.startswith(magic)), open)", "if start.startswith(magic) and path.suffix != '.jsonl'), open)"),
    ("data: columns to the letter", "data -k other_kinds", "loaders/rows", "str(column).strip().lower() == plain", "column == plain"),
    ("data: no limit to what is unpacked", "data -k packed_file", "loaders/sources", "if len(content) > MOST_BYTES:", "if False:"),
    ("data: a pattern is a name", "data -k pattern", "loaders/sources", "sorted(glob.glob(data)) if glob.has_magic(data) and", "sorted(glob.glob(data)) if False and"),
    ("rows: handed over themselves", "reward -k parameter_rows", "reward", "copy.deepcopy(lists)", "([*x] for x in lists)"),
    ("rows: not for one completion alone", "reward -k parameter_rows", "reward", "zip(responses, golds, *more, strict=True)", "zip(responses, golds, strict=True)"),
    ("rows: of another problem", "train -k row_of_its_problem", "train", "columns_for(self.reward, problems)", "columns_for(self.reward, problems[::-1])"),
    ("gym: the verifier decides in evaluations", "gym -k part_of_a_point", "evaluate", "own = problems[0].reward if problems else None", "own = None"),
    ("gym: training and held-out problems overlap", "gym -k come_from_seeds", "loaders/gym", "if question not in rows]", "]"),
    ("gym: the seeds of two runs overlap", "gym -k come_from_seeds", "loaders/gym", "seed=seed % 2000 * 10**6", "seed=seed"),
    ("gym: the order of sets is left to chance", "gym -k come_from_seeds", "loaders/gym", '{"PYTHONHASHSEED": "0"}', "{}"),
    ("gym: a part of a point counts as right", "gym -k part_of_a_point", "loaders/gym", "p if p is None or p >= 1 else p - 1", "p"),
    ("gym: an answer may write and start", "gym -k python_does_no_harm", "loaders/gym_child", "if writes or acts:", "if False:"),
    ("gym: exit() ends the child", "gym -k python_does_no_harm", "loaders/gym_child", "questions, sys.stdin = sys.stdin, None", "questions = sys.stdin"),
    ("gym: a run with settings of a family cannot go on", "gym -k resumed_by_the_family", "run/session", "tuple(value) if isinstance(value, list) else value for name, value in state", "value for name, value in state"),
    ("gym: no limit to a batch", "gym -k many_hostile", "loaders/gym", "and child.killed < most:", "and True:"),
    # -- loss
    ("loss: ratio only, no clip", "loss", "loss", "torch.maximum(-ratio * advantages, -clipped * advantages)", "(-ratio * advantages)"),
    ("loss: clipped only, no maximum", "loss", "loss",
     "torch.maximum(-ratio * advantages, -clipped * advantages)", "(-clipped * advantages)"),
    ("loss: minimum of the negated", "loss", "loss", "torch.maximum(-ratio", "torch.minimum(-ratio"),
    ("loss: clip bounds swapped", "loss", "loss", "ratio.clamp(1 - clip_low, 1 + clip_high)", "ratio.clamp(1 - clip_high, 1 + clip_low)"),
    ("loss: third clip for negative advantages", "loss", "loss",
     "loss = torch.maximum(-ratio * advantages, -clipped * advantages)",
     "loss = torch.maximum(-ratio * advantages, -clipped * advantages).minimum(torch.where(advantages < 0, -3 * advantages, torch.inf))"),
    ("loss: denominator of the micro-batch", "loss", "loss",
     "if denominator is None:\n        denominator =", "if True:\n        denominator ="),
    ("loss: NaN for a batch without tokens", "loss", "loss", "max(int(mask.sum()), 1)", "mask.sum()"),
    ("loss: mean of row means", "loss", "loss",
     "-clipped * advantages).sum() / denominator", "-clipped * advantages).sum(1).div(mask.sum(1).clamp(min=1)).mean()"),
    ("loss: masked after exp", "loss", "loss",
     "torch.where(mask, logp - old_logp, 0.0).clamp(-20, 20)\n", "logp - old_logp\n    mask_after = mask\n"),
    ("loss: multiplied by the mask instead of chosen by it", "loss", "loss",
     "torch.where(mask, logp - old_logp, 0.0)", "(logp - old_logp) * mask"),
    ("loss: new log-probs used as old ones", "loss", "loss", "logp - old_logp, 0.0)", "logp - logp.detach(), 0.0)"),
    ("loss: old log-probs not held fixed (ratio is constant)", "loss", "loss", "logp - old_logp, 0.0)", "logp - logp, 0.0)"),
    ("loss: sign", "loss", "loss",
     "torch.maximum(-ratio * advantages, -clipped * advantages).sum()", "-torch.maximum(-ratio * advantages, -clipped * advantages).sum()"),
    ("loss: KL sign", "loss", "loss", "loss = loss + kl_coef * kl", "loss = loss - kl_coef * kl"),
    ("loss: KL direction", "loss", "loss", "torch.where(mask, ref_logp - logp, 0.0)", "torch.where(mask, logp - ref_logp, 0.0)"),
    ("loss: KL is the plain log-ratio", "loss", "loss", "log_ref.expm1() - log_ref, 0.0)", "-log_ref, 0.0)"),
    ("loss: entropy bonus sign", "loss", "loss", "loss = loss - entropy_coef", "loss = loss + entropy_coef"),
    ("loss: clipped tokens counted whatever the sign", "loss", "loss",
     "((ratio > 1 + clip_high) & (advantages > 0))", "(ratio > 1 + clip_high)"),
    # -- entropy
    ("entropy: temperature ignored", "entropy", "entropy", "(logits.float() / temperature)", "logits.float()"),
    ("entropy: NaN at a logit of -inf", "entropy", "entropy", "logp.clamp(min=-1e4)", "logp"),
    ("entropy: mean negative log-prob over the vocabulary", "entropy", "entropy",
     "-(logp.exp() * logp.clamp(min=-1e4)).sum(-1)", "-logp.mean(-1)"),
    ("entropy: in bits", "entropy", "entropy", "logp.clamp(min=-1e4)).sum(-1)", "logp.clamp(min=-1e4)).sum(-1) / 0.6931472"),
    ("perplexity: padding counts", "entropy", "entropy", "mask.sum(-1).clamp(min=1)", "mask.shape[-1]"),
    ("branching: one too few", "entropy", "entropy", "(p.cumsum(-1) - p) < top_p", "p.cumsum(-1) < top_p"),
    ("branching: not sorted", "entropy", "entropy", ".sort(dim=-1, descending=True).values", ""),
    ("stages: plateau never found", "entropy", "entropy", "slope < fraction * steepest", "slope < -fraction * steepest - 1"),
    ("stages: plateau at once", "entropy", "entropy", "slope < fraction * steepest", "slope <= steepest"),
    ("stages: plateau while entropy never fell", "entropy", "entropy", "if has_fallen and slope", "if slope"),
    ("stages: no smoothing", "entropy", "entropy", "smoothing * smooth[-1] + (1 - smoothing) * value if smooth else value", "value"),
    # -- policy
    ("plain: off by one, the logits of the token itself", "policy", "policy",
     "before = torch.tensor([len(p) - 1 for", "before = torch.tensor([len(p) for"),
    ("policy: log-probs at temperature 1", "policy rollout", "engine/scorer",
     "z = logits.float() if temperature == 1 else logits.float() / temperature", "z = logits.float()"),
    ("policy: entropy is the negative log-prob of the token", "policy", "engine/scorer",
     "entropy = log_total - torch.linalg.vecdot(p, z)", "entropy = log_total - z.gather(-1, targets[:, None])[:, 0]"),
    ("plain: rows start at the longest prompt", "policy", "policy",
     "[len(p) - 1 for p in prompt_ids]", "[max(map(len, prompt_ids)) - 1 for p in prompt_ids]"),
    ("plain: log-probs at temperature 1", "policy", "policy", "torch.log_softmax(logits / temperature, dim=-1)", "torch.log_softmax(logits, dim=-1)"),
    ("plain: the entropy has no gradient", "policy", "policy", "logits if with_grad_entropy else logits.detach()", "logits.detach()"),
    ("plain: the padding is scored", "policy", "policy",
     "row, t = mask.nonzero(as_tuple=True)", "row, t = torch.ones_like(mask).nonzero(as_tuple=True)"),
    ("policy: all logits at once", "policy", "engine/scorer", "zip(hidden.split(chunk), targets.split(chunk))",
     "zip(hidden.split(len(hidden) or 1), targets.split(len(hidden) or 1))"),
    ("policy: chunked logits kept for the backward pass", "policy", "engine/scorer",
     "partial(checkpoint, _head_logp_entropy, use_reentrant=False)", "_head_logp_entropy"),
    ("policy: chunks drop the entropy's gradient", "policy", "engine/scorer",
     "head(model, h, y, temperature, with_grad_entropy)", "head(model, h, y, temperature, with_grad_entropy and len(targets) <= chunk)"),
    ("policy: micro-batches not counted with padding", "policy properties", "policy",
     "tokens = (len(batch) + 1) * key[i]",
     "tokens += key[i]"),
    ("policy: the last micro-batch is lost", "policy", "policy",
     "        batch.append(i)\n    if batch:", "        batch.append(i)\n    if len(batch) > 1:"),
    ("policy: masters never written back", "policy", "engine/optimizer", "p.copy_(master)", "pass"),
    ("policy: masters in the model's precision", "policy", "engine/optimizer",
     "torch.nn.Parameter(p.detach().float())", "torch.nn.Parameter(p.detach().clone())"),
    ("policy: gradients replaced, not added", "policy", "engine/optimizer", "grad if master.grad is None else master.grad.add_(grad)", "grad"),
    # -- rollout
    ("rollout: mask from token != pad, the stop token left out", "rollout", "rollout",
     "mask = torch.arange(ids.shape[1]) < lengths[:, None]", "mask = torch.arange(ids.shape[1]) < (lengths - finished.long())[:, None]"),
    ("rollout: mask from token != 0", "rollout", "rollout",
     "mask = torch.arange(ids.shape[1]) < lengths[:, None]", "mask = (torch.arange(ids.shape[1]) < lengths[:, None]) & (ids != 0)"),
    ("rollout: only one stop token honoured", "rollout", "rollout",
     "torch.tensor(sorted(stop_ids), device=ids.device)", "torch.tensor(sorted(stop_ids)[:1], device=ids.device)"),
    ("rollout: length without the stop token", "rollout", "rollout",
     "stop.int().argmax(1) + 1, ids.shape[1])", "stop.int().argmax(1), ids.shape[1])"),
    ("rollout: the last stop token counts, not the first", "rollout", "rollout",
     "stop.int().argmax(1) + 1, ids.shape[1])", "stop.shape[1] - stop.flip(1).int().argmax(1), ids.shape[1])"),
    ("rollout: truncated counts as finished", "rollout", "rollout",
     "lengths, finished = completion_lengths(ids, stop_ids)",
     "lengths, finished = completion_lengths(ids, stop_ids)[0], torch.ones(len(ids), dtype=torch.bool)"),
    ("rollout: position ids count the left padding", "rollout", "engine/decoder",
     "position = self.valid.cumsum(1) - 1", "position = torch.ones_like(self.valid).cumsum(1) - 1"),
    ("rollout: left padding visible to the prompt", "rollout", "engine/decoder",
     "masked_fill_(~valid[:, None, None], self.hidden)", "masked_fill_(~valid[:, None, None] & False, self.hidden)"),
    ("rollout: left padding visible while decoding", "rollout", "engine/decoder",
     "torch.matmul(self._to_prompts(query), layer.prompt_keys).add_(prompt_mask)", "torch.matmul(self._to_prompts(query), layer.prompt_keys)"),
    ("rollout: the cache keeps its rows when others leave", "rollout", "engine/decoder",
     "layer.rearrange(prompts, self.alive, steps", "layer.rearrange(prompts, torch.arange(len(self.alive)), steps"),
    ("rollout: positions keep their rows when others leave", "rollout", "engine/decoder",
     "self.rows[self.alive], self.position[self.alive]", "self.rows[self.alive], self.position[: len(self.alive)]"),
    ("rollout: positions stand still", "rollout", "engine/decoder", "self.position += 1", "self.position += 0"),
    ("rollout: temperature ignored", "rollout", "engine/decoder",
     "z = logits.float() if temperature in (0, 1) else logits.float() / temperature", "z = logits.float()"),
    ("rollout: log-prob at temperature 1", "rollout", "engine/decoder",
     "    logp = z.gather(-1, token[:, None])[:, 0] - total.log()",
     "    logp = torch.log_softmax(logits.float(), -1).gather(-1, token[:, None])[:, 0]"),
    ("rollout: log-prob after top-p", "rollout", "engine/decoder",
     "    logp = z.gather(-1, token[:, None])[:, 0] - total.log()",
     "    logp = z.gather(-1, token[:, None])[:, 0] - (total * line[:, -1] if top_p < 1 else total).log()"),
    ("rollout: top-p ignored", "rollout", "engine/decoder", "if top_p < 1:", "if top_p < 0:"),
    ("rollout: top-p drops the token that crosses the border", "rollout", "rollout",
     "ordered.cumsum(-1) - ordered >= top_p", "ordered.cumsum(-1) >= top_p"),
    ("rollout: entropy is the negative log-prob of the token", "rollout", "engine/decoder",
     "return token, logp, total.log() - z.mul_(weight).sum(-1) / total", "return token, logp, -logp"),
    ("rollout: noise from the global generator", "rollout", "rollout", "max_new_tokens, generator=generator)", "max_new_tokens)"),
    ("rollout: draws go by the place in the batch", "rollout faults -k neighbours or sampling_halves or rows", "engine/decoder",
     "self.u[self.rows, self.column]", "self.u[: len(self.rows), self.column].flatten()"),
    ("rollout: every part of a group draws the same", "rollout faults -k neighbours", "rollout", "u[batch, done : done + repeats]", "u[batch, :repeats]"),
    ("rollout: top-p not renormalised", "rollout", "engine/decoder", "u[:, None] * line[:, -1:]", "u[:, None]"),
    ("rollout: completions stay sorted by length", "rollout", "rollout", "whole.select(whole.group.argsort(stable=True))", "whole"),
    ("rollout: query heads folded in the wrong order", "rollout", "engine/decoder",
     "query.view(rows, key.shape[1], -1, dim)  #", "query.view(rows, -1, key.shape[1], dim).transpose(1, 2).contiguous()  #"),
    ("rollout: columns not written yet are visible", "rollout", "engine/decoder", "(0, steps), value=self.hidden)", "(0, steps))"),
    ("rollout: a new token does not see itself", "rollout", "engine/decoder", "self.layout.mask.index_fill_(3, self.column, 0.0)", "pass"),
    ("rollout: the prompts of rows that left are kept in place of others", "rollout", "engine/decoder",
     "self.prompt_keys[prompts], self.prompt_values[prompts]", "self.prompt_keys[: len(prompts)], self.prompt_values[: len(prompts)]"),
    ("rollout: a row reads the slot of another", "rollout", "engine/decoder",
     "slot = row - (counts.cumsum(0) - counts)[prompt_of]", "slot = (row - (counts.cumsum(0) - counts)[prompt_of]).flip(0) % most"),
    ("rollout: a sliding window is ignored while sampling", "rollout", "engine/decoder",
     "- (window or len(self.column))", "- len(self.column)"),
    ("rollout: a sliding window is one column too wide", "rollout", "engine/decoder",
     "self.column > self.query_columns[:, None] - (window", "self.column >= self.query_columns[:, None] - (window"),
    ("rollout: a number of Python in the recorded step", "rollout -k recorded", "engine/decoder",
     "self.layout.mask.index_fill_(3, self.column, 0.0)", "self.layout.mask[..., int(self.column)] = 0.0"),
    ("plain: left padding is read", "rollout policy -k definition or engine", "rollout",
     "attention_mask=valid,", "attention_mask=torch.ones_like(valid),"),
    ("plain: position ids count the left padding", "rollout policy -k definition or engine", "rollout",
     "(valid.cumsum(1) - 1).clamp(min=0)", "torch.ones_like(valid).cumsum(1) - 1"),
    ("plain: positions stand still", "rollout policy -k definition or engine", "rollout", "position[:, -1:] + 1", "position[:, -1:]"),
    ("plain: the cache is thrown away", "rollout policy -k definition or engine", "rollout",
     "cache, ids, position = out.past_key_values,", "cache, ids, position = None,"),
    ("plain: temperature ignored", "rollout", "rollout", "logits.float() / (temperature or 1.0)", "logits.float()"),
    ("plain: top-p not renormalised", "rollout", "rollout", "u[:, None] * line[:, -1:]", "u[:, None]"),
    ("plain: rows that ended are not counted", "rollout", "rollout", "ended |= newly", "pass"),
    ("choice: by length, draws go by the place", "policy -k one_length", "engine/choice", "u[same].flatten(0, 1)", "u[: len(same)].flatten(0, 1)"),
    ("choice: completions stay sorted by length", "policy -k one_length", "engine/choice",
     "(len(prompts), repeats))[back]", "(len(prompts), repeats))"),
    ("choice: without a cache, the text is forgotten", "policy -k one_length or engine", "engine/choice",
     "if past_key_values is None else torch.cat([past_key_values, input_ids], 1)", "if True else None"),
    ("choice: the plain engine is not checked", "policy -k engine", "engine/choice",
     "            _check_same(model, rows, score, sampled, together)\n            return candidate", "            return candidate"),
    ("packed: the second completion begins where the first ended", "policy -k packed", "engine/attention",
     "positions += range(len(prompt), len(prompt) + len(queries))", "positions += range(len(ids), len(ids) + len(queries))"),
    ("packed: prompts padded on the right", "policy -k packed", "engine/attention", "mask & (column >= self.start)", "mask"),
    ("packed: the queries see all of the completion", "policy -k packed", "engine/attention", "(column <= query) & ", ""),
    ("packed: results of the first row for all", "policy -k packed", "engine/attention", "[own].argsort()]", "[own].argsort() % 3]"),
    ("packed: a window is ignored", "policy -k packed", "engine/attention",
     "min(window or width, width)", "width"),
    ("packed: a window is one column too wide", "policy -k packed", "engine/attention", "(column > query - window)", "(column >= query - window)"),
    ("packed: off by one, a token is predicted two places before its own", "policy -k packed", "engine/attention",
     "[seen[-1], *queries]", "[seen[-1], seen[-1], *queries][: len(completion)]"),
    ("packed: a prompt of any length counts each time", "policy properties", "policy", "(0 if known else prompt[i])", "prompt[i]"),
    ("policy: the gradient of the log-prob forgets the temperature", "policy", "engine/scorer",
     "grad = (grad / ctx.temperature)[:, None]", "grad = grad[:, None]"),
    ("policy: the gradient of the log-prob has no softmax", "policy", "engine/scorer", "(p * -grad).scatter_add_", "(p * 0).scatter_add_"),
    ("policy: a scale of the logits is ignored", "policy -k scales", "engine/scorer", "logits = logits / scale", "pass"),
    ("policy: our attention is not compared with the model's own", "policy -k cannot_follow", "engine/choice",
     'raise ValueError("other log-probs")', "pass"),
    ("train: later updates compare with the sampler", "train -k later", "policy",
     "groups = sum(mini_batches[1 if self.first_update_is_on_policy(c) else 0 :], [])", "groups = []"),
    ("train: every update compares with itself", "train -k later", "train",
     "                old_logp = logp.detach() if policy", "            old_logp = logp.detach() if policy"),
    ("policy: what is scored again is not used", "train -k later", "policy",
     "rollouts.old_logp.index_copy(0, rows, logp[rows])", "rollouts.old_logp.clone()"),
    ("policy: drift of the training forward against itself", "train -k later", "policy", "(logp - before)[rows]", "(logp - rollouts.old_logp)[rows]"),
    ("policy: perplexity shaping reads the sampler's log-probs", "train -k later", "policy",
     "torch.float32 and not reads", "torch.float32"),
    ("policy: entropies of the sampler beside log-probs of the training forward", "train -k bring", "policy",
     'entropy if c.old_logp == "recompute" else rollouts.entropy', "rollouts.entropy"),
    ("methods: two own one strength", "advantage -k one_method", "advantage", "if other != name and (taken", "if False and (taken"),
    ("methods: position shaping is said to read log-probs", "advantage -k whether", "advantage",
     '@method("pos", reads_logp=False,', '@method("pos",'),
    ("metrics: drift of what is scored again is not shown", "train -k later or recomputed", "run/metrics",
     "self.seen.update(drift=rescore(*args))", "rescore(*args)"),
    ("metrics: drift over all tokens and not those compared", "train -k recomputed", "run/metrics",
     'sums["drift"] / sums["first_tokens"]', 'sums["drift"]'),
    ("prepare: activations are kept", "faults policy -k checkpointing or dropout", "policy", "module.training = True  #", "pass  #"),
    ("prepare: dropout as a number stays", "policy -k dropout", "policy", "setattr(module, name, 0.0)", "pass"),
    ("prepare: training mode, with all that it does", "policy -k dropout", "policy", "self.model.eval()  #", "self.model.train()  #"),
    ("sample: modes of modules are not restored", "policy rollout faults -k mode or checkpointing", "rollout", "            module.training = True", "            pass"),
    ("rehearse: left out", "policy -k found_out", "policy", "        rehearse(self.model", "        0 and rehearse(self.model"),
    ("rehearse: one pass is enough", "policy -k found_out", "engine/choice", "torch.allclose(first, second, equal_nan=True", "torch.allclose(first, first, equal_nan=True"),
    ("rehearse: gradients stay", "policy -k dropout", "engine/choice", "        model.zero_grad()", "        pass"),
    ("causal: an error of the model comes through", "policy -k cannot_read", "engine/choice", "    except Exception as error:  # an architecture that", "    except ZeroDivisionError as error:  # an architecture that"),
    ("positions: longrope to its longest", "policy -k original_length", "loaders/models", 'in ("longrope", "dynamic")]', 'in ("dynamic",)]'),
    ("positions: dynamic rope to its longest", "policy -k original_length", "loaders/models", 'in ("longrope", "dynamic")]', 'in ("longrope",)]'),
    ("positions: rope of one kind of layer is not seen", "policy -k original_length", "loaders/models", "kinds = [rope, *(kind for kind in rope.values() if isinstance(kind, dict))]", "kinds = [rope]"),
    ("models: merged weights stay frozen", "lora -k trained_on", "loaders/models", "p.requires_grad_(p.is_floating_point())", "pass"),
    ("models: attention from the Hub", "trust -k fetched", "loaders/models", "config._attn_implementation = config._experts_implementation = None", "config._experts_implementation = None"),
    ("models: experts from the Hub", "trust -k fetched", "loaders/models", "config._attn_implementation = config._experts_implementation = None", "config._attn_implementation = None"),
    ("models: the problems first", "bad_input -k reached", "run/set_up", "    check_reachable(c.model)\n", ""),
    ("models: the problems first, in an evaluation", "bad_input -k reached", "run/compare", "        check_reachable(name)\n", "        pass\n"),
    ("models: a file is no such folder", "bad_input -k holds", "loaders/models", "        if os.path.exists(path):\n", "        if False:\n"),
    ("models: tokenizer.model alone without a remedy", "bad_input -k alone", "loaders/models", '    except Exception as error:\n        if not os.path.isfile', '    except ZeroDivisionError as error:\n        if not os.path.isfile'),
    ("lora: what peft refuses comes through", "lora -k takes_no", "loaders/adapters", "except Exception as error:  # an architecture", "except ZeroDivisionError as error:  # an architecture"),
    ("lora: the built-in base by its path", "lora -k everybody", "run/set_up", 'c.model if c.model in BUILT_IN else resolve_model(c.model))', "resolve_model(c.model))"),
    ("chat: no limits", "trust -k little_time", "loaders/chat", "limited(lambda: [*map(fill, problems, contents)], SECONDS + SECONDS_EACH * len(problems), ROOM)", "[*map(fill, problems, contents)]"),
    ("chat: megabytes of each problem", "trust -k little_time", "loaders/chat", "LONGEST = 2**20", "LONGEST = 2**60"),
    ("chat: arguments dropped", "tokenizers -k reach", "loaders/chat", " | dated | arguments", " | dated"),
    ("chat: False is a word", "tokenizers -k reach", "loaders/chat", "words.get(value.lower(), int(value) if value.isdecimal() else value)", "value"),
    ("chat: an argument that no template knows", "tokenizers -k reach", "loaders/chat", "if name in taken or not re.search", "if name in taken and not re.search"),
    ("chat: arguments without a template", "tokenizers -k at_once", "run/settings", "refuse(c.template_args and c.template not in", "refuse(False and c.template not in"),
    ("prompt: a template may cut it", "tokenizers -k cuts", "data", 'if any(texts) and "".join(problem.split()) not in "".join(text.split()):', "if False:"),
    ("prompt: white space counts", "tokenizers -k cuts", "data", 'if any(texts) and "".join(problem.split()) not in "".join(text.split()):', "if problem not in text:"),
    ("prompt: BOS twice", "tokenizers -k begins_once", "data", "written = chat or bool(", "written = chat and bool("),
    ("prompt: after EOS", "tokenizers -k begins_once", "data", "return ids[:-1] if added_end else ids", "return ids"),
    ("prompt: the user's EOS is dropped", "tokenizers -k begins_once", "data", " and not text.rstrip().endswith(tokenizer.eos_token)", ""),
    ("publish: texts are cut as paths", "publish -k card_keeps", "run/publish", 'shared_name(value) if name in ("model", "data", "eval_data", "reward") else value', "shared_name(value)"),
    ("publish: the reward's folder is told", "publish -k card_keeps", "run/publish", "`{shared_name(c.reward)}`", "`{c.reward}`"),
    ("publish: an adapter of a folder goes to the Hub", "publish -k nobody", "run/publish", "    refuse(os.path.isdir(base), f", "    refuse(False, f"),
    ("publish: saved for the first time at the end", "publish -k cannot_be_saved", "run/session", "        check_can_save(self.folder, c, self.trainer.policy)\n", ""),
    # -- evaluate
    ("pass@k: biased", "evaluate", "evaluate", "1.0 - comb(n - c, k) / comb(n, k)", "1.0 - (1 - c / n) ** k"),
    ("majority: no answer counts as a vote", "evaluate", "evaluate", "Counter(key for key in keys if key is not None)", "Counter(keys)"),
    ("majority: the last answer wins a tie", "evaluate", "evaluate", "max(votes, key=votes.get)", "max(reversed(votes), key=votes.get)"),
    ("evaluate: intervals without replacement", "evaluate", "evaluate", "means = x[picks].mean(1)", "means = x.expand(draws, -1).mean(1)"),
    ("evaluate: maj@N is right if any completion is", "evaluate", "evaluate",
     "chosen is not None and correct[mine[chosen]]", "any(correct[j] for j in mine)"),
    ("evaluate: finished counted as truncated", "evaluate", "evaluate",
     "(~rollouts.finished[list(mine)])", "(rollouts.finished[list(mine)])"),
    # -- reward
    ("reward: the first box instead of the last", "reward -k box", "reward", "if start > best:", "if best < 0:"),
    ("reward: overlong penalty above 0", "reward -k overlong", "reward", "/ buffer).clamp(max=0)", "/ buffer)"),
    ("verifier: the deadline is not kept", "reward -k deadline", "verifier/process", "if time.monotonic() >= _end.get():", "if False:"),
    ("verifier: an answer that is killed is not counted", "reward -k hangs", "verifier/process",
     '"timeouts" if end.args[0] == -getattr(signal, "SIGPROF", 0) else "crashes"', '"crashes"'),
    ("verifier: the order of a point does not count", "reward -k exact_values", "verifier/equality",
     'if both & {"()", "[]", "(]", "[)"}:', "if False:"),
    ("verifier: words are dropped, whatever they say", "reward -k pairs", "verifier/words", "if MEANING & {word", "if False and {word"),
    ("verifier: two units are equal", "reward -k pairs", "verifier/equality", "unit and gold_unit and unit != gold_unit or", "False or"),
    ("verifier: a word for a number is dropped", "reward -k pairs", "verifier/exact", "value * SCALES[scale[1]]", "value"),
    ("verifier: degrees are dropped inside a function", "reward -k pairs", "verifier/child",
     r'text = _DEGREES.sub(r"(\\frac{\1\\pi}{180})", text)', r'text = _DEGREES.sub(r"\1", text)'),
    ("verifier: an expression whose value is 0 equals nothing", "reward -k pairs", "verifier/child", " or exact.equals(0))", ")"),
    ("verifier: the derivative of a letter is 0", "reward -k pairs", "verifier/child", "if _of_letters_alone(x)}", "if False}"),
    ("verifier: what says nothing equals what says nothing", "reward -k pairs", "verifier/child",
     "or not first.free_symbols or first.equals(0) or second.equals(0):", "and False:"),
    ("verifier: R is r", "reward -k pairs", "verifier/child", "lowercase_symbols=False", "lowercase_symbols=True"),
    ("verifier: 3(4) is 7", "reward -k pairs", "verifier/child", r'text = _PRODUCT.sub(r"\g<0>\\cdot ", text)', "pass"),
    ("verifier: letters are a product", "reward -k pairs", "verifier/equality", "if both_are_letters or any(", "if any("),
    ("verifier: a false chain says what it ends in", "reward -k pairs", "verifier/equality",
     "return peel(sides[-1]) if all(map(_equal, numbers, numbers[1:])) else None", "return peel(sides[-1])"),
    ("verifier: 1 1/4 is 11/4", "reward -k pairs", "verifier/exact", r'_MIXED.sub(r"\1\\frac{\2}{\3}", text.strip())', 'text.strip().replace(" ", "")'),
    ("verifier: repeating decimals are not read", "reward -k pairs", "verifier/exact", "if (match := _REPEATING.fullmatch(text)) else None", "if (match := None) else None"),
    ("verifier: what the parser drops is dropped", "reward -k pairs", "verifier/equality", " or _UNREADABLE.search(text) is not None", ""),
    ("verifier: the last of several equations is the answer", "reward -k pairs", "verifier/equality",
     'if any(re.search(r"(?:[ &/]|\\\\wedge ?)[a-z]$", side) for side in sides[1:-1]):', "if False:"),
    ("verifier: brackets inside a set do not count", "reward -k pairs", "verifier/equality",
     "(not enclosed[0] and not enclosed[1] or None not in enclosed and enclosed[0][1] == enclosed[1][1]) and", ""),
    ("verifier: conditions for x are conditions for y", "reward -k pairs", "verifier/child", "or len(letters | gold_letters) > 1:", "or False:"),
    ("verifier: one child for all", "reward -k several_children", "verifier/process", "for _ in range(CHILDREN)]:", "for _ in range(1)]:"),
    ("verifier: what was not checked is wrong", "reward -k child_ends", "reward",
     "_plain(verdict) for verdict in verify_all(", "_plain(bool(verdict)) for verdict in verify_all("),
    ("verifier: a no is a failure", "reward -k hangs", "verifier/process",
     "if (verdict := _ask(answer, gold)) is None:", "if not (verdict := _ask(answer, gold)):"),
    ("verifier: what was killed is asked again", "reward -k hangs", "verifier/process",
     "        raise TooSlow\n", "        _ask.cache_clear()\n        raise TooSlow\n"),
    ("checkpoint: a folder that cannot be read has none", "checkpoint -k cannot_be_read", "run/checkpoint", "for path in (folder.iterdir() if folder.is_dir() else ())", 'for path in folder.glob("*")'),
    ("text: tqdm does not know its stream", "faults -k tqdm_knows", "common/text", "return self._wrapped == getattr(other", "return self is getattr(other"),
    ("branch: moments left behind", "branch -k moments", "run/branch", "restore_trainer(trainer, tensors, state",
     "restore_trainer(trainer, tensors | {'optimizer': {}}, state"),
    ("branch: the other run's draws go on", "branch -k moments", "run/branch", '("queue", "shuffle", "generator")', '("queue", "shuffle")'),
    ("branch: the other run's order goes on", "branch -k moments", "run/branch", '("queue", "shuffle", "generator")', '("generator",)'),
    ("branch: forgotten when resumed too early", "branch -k killed", "run/session", "if c.branch and not self.saved:\n            start",
     "if c.branch and not c.resume:\n            start"),
    ("branch: begins anew when resumed", "branch -k never_stopped", "run/session", "if c.branch and not self.saved:\n            start",
     "if c.branch:\n            start"),
    ("branch: any model", "branch -k one_sentence", "run/branch", 'refuse(state["model"] != model', "refuse(False"),
    ("branch: damage unseen", "branch -k damaged", "run/branch", "refuse(reason,", "refuse(None,"),
    ("branch: the reward is dropped without a word", "branch -k reward", "run/branch", "parent.reward and not c.reward", "False"),
    ("branch: its first model is not measured", "branch -k arms", "run/session", "self.trainer.step_number == self.first:\n            self._ev",
     "self.trainer.step_number == 0:\n            self._ev"),
    ("branch: any first row will do", "branch -k metrics", "run/figures", "(first, first + 1)", "range(10**6)"),
    # -- the loop
    ("train: method named and never applied", LOOP, "train", 'method = c.method if self.shaping_is_on() else "grpo"', 'method = "grpo"'),
    ("train: gradient depends on the micro-batches", LOOP, "train",
     "denominator=denominator, entropy=entropy", "denominator=None, entropy=entropy"),
    ("train: skipped rows change the denominator", LOOP, "train",
     "rows = rows[(step.shaped[rows] != 0).any(1)]  #", "rows = rows[(step.shaped[rows] != 0).any(1)]; denominator = int(batch.mask[rows].sum())  #"),
    ("train: groups filtered by reward", "train -k filter", "train",
     "groups = self.teachable_groups(rollouts.group, rewards)",
     "groups = self.teachable_groups(rollouts.group, grpo_advantages(rewards + overlong_penalty(rollouts.lengths, c.max_new_tokens, c.overlong_buffer, c.overlong_factor), rollouts.group))"),
    ("train: group ids start anew in each round", LOOP, "train",
     "part.group += sum(map(len, parts)) // c.completions_per_prompt", "part.group += 0"),
    ("train: log-probs at temperature 1", LOOP, "train", "policy.logp_of(part, c.temperature, with", "policy.logp_of(part, 1.0, with"),
    ("train: old log-probs taken anew for each update", LOOP, "train", "for x in (part.old_logp, part.mask", "for x in (logp.detach(), part.mask"),
    ("train: non-finite gradient not skipped", "train -k finite", "engine/optimizer",
     "finite = math.isfinite(norm) and math.isfinite(loss)", "finite = True"),
    ("train: infinite gradient not skipped", "train -k finite", "engine/optimizer", "math.isfinite(norm) and", "norm == norm and"),
    ("train: weights not written back", LOOP, "engine/optimizer", "self.weights.write_back()", "pass"),
    ("train: gradients not cleared", LOOP, "engine/optimizer", "for p in (*self.parameters, *(p for p, _ in self.pairs)):", "for p in ():"),
    ("train: gradient norm not limited", "train -k norm_limit", "engine/optimizer",
     "clip_grad_norm_(self.weights.parameters, self.config.max_grad_norm)", 'clip_grad_norm_(self.weights.parameters, float("inf"))'),
    ("train: warm-up starts at the full rate", "train -k learning_rate", "engine/optimizer",
     "return c.lr * number / (c.warmup_steps + 1)", "return c.lr"),
    ("train: linear schedule stays constant", "train -k learning_rate", "engine/optimizer",
     'return c.lr if c.lr_schedule == "constant" else', "return c.lr if True else"),
    ("train: shaping does not stop", "train -k window", "train", "<= self.step_number <= stop", "<= self.step_number"),
    ("train: overlong penalty left out", LOOP, "train",
     "grpo_advantages(rewards + penalty, rollouts.group)", "grpo_advantages(rewards, rollouts.group)"),
    ("train: a batch shuffles problems without going through all", "train -k all_problems", "data",
     "return queue[:n], queue[n:]", "return queue[:n], []"),
    ("train: plateau never noticed", "train -k plateau", "train",
     "self.plateau = self.plateau or plateau_step(self.entropies)", "self.plateau = None"),
    ("train: learning rate never set", "train -k reach_the_optimizer", "engine/optimizer", 'group["lr"] = self.learning_rate(number)', "pass"),
    ("train: weight decay ignored", "train -k reach_the_optimizer", "engine/optimizer", "weight_decay=config.weight_decay", "weight_decay=0.0"),
    ("train: every update sees the first groups", "train -k each_kept_group", "train",
     "step.mini_batches[len(step.updates)]", "step.mini_batches[0]"),
    ("train: rewards 0 and 1", "train -k minus_1", "reward",
     "_plain(verdict) for verdict in verify_all(", "max(0.0, _plain(verdict)) for verdict in verify_all("),
    ("reward: True and False are 1 and 0", "faults -k reward", "reward", "return 1.0 if reward else -1.0", "return 1.0 if reward else 0.0"),
    ("train: overlong factor ignored", "train -k overlong", "train", "c.overlong_buffer, c.overlong_factor)", "c.overlong_buffer)"),
    ("train: clipped tokens counted, not their share", "train -k shares", "run/metrics",
     'sums[name] / tokens for name in ("loss",', 'sums[name] for name in ("loss",'),
    ("train: gradient checkpointing ignored", "train -k checkpointing", "policy", "if config.gradient_checkpointing:", "if False:"),
    ("train: progress measured with top-p", "train -k progress", "run/held_out", "top_p=1.0,", "top_p=0.5,"),
    ("train: defects counted without the solution's steps", "train -k defects", "run/metrics",
     "[trainer.problems[i].solution_steps for i in step.problem_ids]", "[None for i in step.problem_ids]"),
    # -- faults
    ("train: a loss that is not finite is learned from", "faults -k finite", "engine/optimizer", " and math.isfinite(loss)", ""),
    ("memory: a second try draws anew", "faults -k sampling_halves", "engine/memory",
     'self.rows = _half("--sampling-rows", n)', 'self.rows, u = _half("--sampling-rows", n), 1 - torch.rand_like(u)'),
    ("train: a second try adds to the gradient of the first", "faults -k twice", "train",
     "self.optimizer.weights.zero_grad()  # of a try", "pass  # of a try"),
    ("train: a step that fails has used up its draws", "faults -k loses_no_step", "run/state",
     "        set_counters(trainer, state)\n        restore",
     '        set_counters(trainer, state | {"generator": _hex(trainer.generator.get_state())})\n        restore'),
    ("train: a step that fails leaves its new pass over the data", "faults -k new_pass", "data", "queue = queue + order  #", "queue += order  #"),
    ("train: a step whose evaluation fails is lost", "faults -k evaluation_fails", "run/session",
     "        finally:  # whatever", "        except ZeroDivisionError:\n            pass\n        if True:  # whatever"),
    ("stop: what nohup ignores is handled", "faults -k ignored", "run/stop", " if signal.getsignal(number) is not signal.SIG_IGN]", "]"),
    ("train: a step that fails has used up its problems", "faults -k loses_no_step", "run/state",
     "        set_counters(trainer, state)\n        restore", '        set_counters(trainer, state | {"queue": trainer.queue})\n        restore'),
    ("train: what was not scored counts as wrong", "faults -k poison", "advantage",
     "(rewards[group == g] <= 0).any()", "(~(rewards[group == g] > 0)).any()"),
    ("train: nothing is saved when a step fails", "faults -k loses_no_step", "run/session", "except Exception:\n            run.save_what_was_done()", "except Exception:\n            pass"),
    ("memory: every error is out of memory", "faults -k other_errors", "engine/memory", "if not out_of_memory(error):", "if False:"),
    ("memory: how many rows fit is not remembered", "faults -k sampling_halves", "engine/memory",
     'self.rows = _half("--sampling-rows", n)', '_half("--sampling-rows", n)'),
    ("memory: the halves draw what other rows would", "faults -k sampling_halves", "engine/memory",
     "prompts[len(prompts) // 2 :], u[cut:])", "prompts[len(prompts) // 2 :], u[cut:].flip(0))"),
    ("session: a run that has ended keeps its weights", "faults -k keeps_no_memory", "run/session", "self.watch.end()", "pass"),
    ("session: a second signal does not stop between updates", "checkpoint -k between_two", "run/session",
     "return self.stop.count < 2", "return True"),
    ("session: updates that come to nothing go on for ever", "faults -k diagnosis", "run/session",
     "if optimizer.skipped_in_a_row < NON_FINITE_LIMIT:", "if True:"),
    ("session: half a step forgets how it was sampled", "checkpoint -k between_two", "run/session",
     'self.watch.seen.update(state["watch"][1])', "pass"),
    ("memory: torch's words for the CPU are not known", "faults -k micro_batch", "engine/memory", '"can\'t allocate memory" in said or ', ""),
    ("reward: number of rewards not checked", "faults -k cannot_be_used", "reward", "if len(rewards) != len(responses):", "if False:"),
    ("reward: one bad completion fails the batch", "faults -k costs_only_itself", "reward", "    if problem:\n", "    if False:\n"),
    ("reward: infinite rewards count", "faults -k no_numbers", "reward", "float(reward) if abs(reward) < 1e15 else math.nan", "float(reward)"),
    ("reward: what is finite in float64 counts", "faults -k no_numbers", "reward", "abs(reward) < 1e15", "math.isfinite(reward)"),
    ("reward: sys.exit ends the run", "faults -k cannot_be_used", "reward", "except BaseException as error:", "except Exception as error:"),
    ("reward: the lists of the record are handed over", "faults -k gets_copies", "reward", "*copy.deepcopy(lists)", "*lists"),
    ("reward: a function that sorts pays other rows", "faults -k gets_copies", "run/reward_function", "sorted(map(str, completions)) == sorted(before)", "False"),
    ("reward: keys are rewards", "faults -k in_order", "run/reward_function", "(Mapping, Set, str, bytes)", "(Set, str, bytes)"),
    ("reward: elements of a set are rewards", "faults -k in_order", "run/reward_function", "(Mapping, Set, str, bytes)", "(Mapping, str, bytes)"),
    ("reward: bytes are rewards", "faults -k in_order", "run/reward_function", "(Mapping, Set, str, bytes)", "(Mapping, Set, str)"),
    ("reward: columns are rewards", "faults -k in_order", "run/reward_function", 'hasattr(found, "columns")', "False"),
    ("reward: a run is not fenced", "faults -k switches_over", "run/set_up", "fenced(reward) if reward else", "reward if reward else"),
    ("reward: gradients stay off", "faults -k switches_over", "run/reward_function", "torch.inference_mode(False)", "torch.device('cpu')"),
    ("reward: the precision stays", "faults -k switches_over", "run/reward_function", "torch.set_default_dtype(dtype)", "pass"),
    ("reward: the device stays", "faults -k switches_over", "run/reward_function", "if torch.get_default_device() != device:", "if False:"),
    ("reward: the folder stays", "faults -k switches_over", "run/reward_function", "os.chdir(folder)", "pass"),
    ("reward: stdout stays closed", "faults -k switches_over", "run/reward_function", "redirect_stdout(Patient(sys.stdout))", "redirect_stdout(sys.stdout)"),
    ("reward: its file may switch over what it likes", "faults -k switches_over", "run/reward_function", "        with _put_back():\n            if where", "        if True:\n            if where"),
    ("reward: a KeyboardInterrupt of its own loses steps", "faults -k ends_the_program", "run/session", "if not stop.count:  #", "if stop.count:  #"),
    ("reward: what is not scored is not spoken of", "faults -k spoken_of", "run/session", 'if row["reward_failures"] and not self.unscored:', "if False:"),
    ("reward: a gold integer of 5,000 digits raises", "reward -k any_number_of_digits", "verifier/equality",
     'f"{Decimal(gold):f}" if type(gold) is int else str(gold)', "str(gold)"),
    ("report: nothing is escaped", "report -k no_text_of", "analysis/report/page", "autoescape=True", "autoescape=False"),
    ("report: what no run writes is a traceback", "report -k no_run_writes", "analysis/report/__main__", "except Exception as error:", "except OSError as error:"),
    ("report: a label is taken for style", "report -k what_a_label", "analysis/report/section", 'return re.sub(r"<[^>]*>", of_the_page, svg)',
     'return re.sub(r"(?s).+", of_the_page, svg)'),
    ("places: publish finds rlvr from the root alone", "docs -k program", "run/publish", "if not __package__:", "if False:"),
    ("places: the report looks for rlvr in its own folder", "docs -k program", "analysis/report/__main__", ".parents[3]", ".parents[2]"),
    ("probe: nothing to replace is a traceback", "probe -k of_one_token", "analysis/probe", ".view(len(entries), 2", ".view(-1, 2"),
    ("stop: the first signal stops between updates", "checkpoint -k stopped", "run/session", "return self.stop.count < 2", "return not self.stop.count"),
    ("stop: the handlers stay", "faults -k given_back", "run/stop", "for number, handler in self.before.items():", "for number, handler in ():"),
    ("files: a write that was cut short is forgotten", "faults -k wait", "common/files",
     "self.waiting = self.waiting[self.file.write(self.waiting) :]", 'self.file.write(self.waiting); self.waiting = b""'),
    ("files: what is written follows a link", "faults -k replaces_a_link", "common/files", "beside.unlink(missing_ok=True)\n    try:\n        with open(beside, \"xb\")",
     "try:\n        with open(beside, \"wb\")"),
    ("files: a picture follows a link", "faults -k replaces_a_link", "run/figures", "write_atomically(path, png.getvalue())", "path.write_bytes(png.getvalue())"),
    ("files: a link stands in the way of a folder", "faults -k replaces_a_link", "common/files", "path.unlink() if path.is_symlink() else shutil", "shutil"),
    *((f"folder: {name} may be a link", tests, place, old, new) for name, tests, place, old, new in (
        ("a file of a run", "checkpoint -k link", "run/folder", "not path.is_symlink() and (path.is_dir()", "(path.is_dir()"),
        ("a file with two names", "checkpoint -k link", "run/folder", " and path.stat().st_nlink == 1", ""),
        ("a checkpoint", "checkpoint -k link", "run/folder", ', *folder.glob("checkpoints/*")', ""),
        ("a log of an experiment", "experiment -k link", "analysis/experiment", "refuse_links(runs[-1].folder, _log(runs[-1]))", "pass"),
        ("a report", "report -k linked", "analysis/report/__main__", "refuse(not config.out and out.is_symlink(),", "refuse(False,"))),
    ("files: a failed write leaves its half", "faults -k whole_or", "common/files", "beside.unlink(missing_ok=True)  #", "pass  #"),
    ("files: control characters reach the terminal", "faults -k cursor", "common/text", "unicodedata.category(c)[0] != \"C\"", "True"),
    ("files: half a line stays", "faults -k half_a_line", "common/files", 'if line.endswith(b"\\n") and keep(line):', "if keep(line):"),
    # -- checkpoints
    ("checkpoint: weights not restored", "checkpoint -k stopped_after", "run/state", 'weight.copy_(tensors["weights"][name])', "pass"),
    ("checkpoint: master weights not written back", "checkpoint -k bfloat16", "run/state", "optimizer.weights.write_back()", "pass"),
    ("checkpoint: optimiser begins anew", "checkpoint -k stopped_after", "run/state",
     "place[name] = int(value) if value.dtype == torch.int64 else value", "pass"),
    *((f"checkpoint: {name} forgotten", tests, "run/state", f', "{name}"', "") for name, tests in (
        ("queue", "checkpoint -k stopped_after or passes"), ("entropies", "checkpoint -k detector"), ("plateau", "checkpoint -k detector"))),
    ("checkpoint: sampling generator forgotten", "checkpoint -k stopped_after or generator", "run/state",
     'trainer.generator.set_state(_unhex(state["generator"]))', "pass"),
    ("checkpoint: shuffle forgotten", "checkpoint -k passes or generator", "run/state",
     "trainer.shuffle.setstate((version, tuple(numbers), gauss))", "pass"),
    ("checkpoint: numpy's generator forgotten", "checkpoint -k generator", "run/state",
     'numpy.random.set_state(state["numpy"])', "pass"),
    ("checkpoint: the half-used batch is dropped", "checkpoint -k between_two", "run/state",
     'kind) if state["unfinished"] is not None else None', "kind) if False else None"),
    ("checkpoint: hashes not compared", "checkpoint -k damaged", "run/checkpoint", 'if _sha256(file) != facts["sha256"]:', "if False:"),
    ("checkpoint: sizes not compared", "checkpoint -k damaged", "run/checkpoint", 'if size != facts["size"]:', "if False:"),
    ("checkpoint: a damaged one counts as the newest", "checkpoint -k damaged", "run/checkpoint", 'bad.rename(bad.with_name(bad.name + ".damaged"))', "pass"),
    ("checkpoint: one too many kept", "checkpoint -k kept", "run/checkpoint", "checkpoints(folder)[keep:]", "checkpoints(folder)[keep + 1 :]"),
    ("checkpoint: names in the order of letters", "checkpoint -k kept", "run/checkpoint", "key=lambda path: [int(number) for number in re.findall(r\"\\d+\", path.name)], reverse=True", "reverse=True"),
    ("data: a template sees today's date", "checkpoint -k another_day", "loaders/chat", "ON_ONE_DAY + tokenizer", "tokenizer"),
    ("settings: a run cannot be moved", "checkpoint -k moved", "run/settings", "not in MAY_CHANGE | MAY_MOVE]", "not in MAY_CHANGE]"),
    ("settings: a run goes on where it was started alone", "checkpoint -k moved", "run/settings", "return _found_again(train_config()(**saved), folder)", "return train_config()(**saved)"),
    ("settings: a reward function must stay where it is", "checkpoint -k moved_too", "run/settings", "Path(c.reward).name != Path(saved.reward).name", "c.reward != saved.reward"),
    ("cli: a command to go on is not quoted", "runlog -k pasted", "run/cli", "return shlex.join(", 'return " ".join('),
    ("text: a word of a command is not quoted", "runlog -k pasted", "common/text", "return shlex.quote(str(word))", "return str(word)"),
    ("cli: the first flag that is like it is suggested", "bad_input -k mean", "run/cli", "difflib.get_close_matches(cause.removeprefix(\"Unrecognized options: \"), near, n=1, cutoff=0)", "near"),
    ("text: a bar fills a log file", "runlog -k log_file or bar", "common/text", 'disable=False if "ipykernel" in sys.modules else None', "disable=False"),
    ("text: no bar in a notebook", "runlog -k bar", "common/text", 'disable=False if "ipykernel" in sys.modules else None', "disable=None"),
    ("rollout: a bar fills a log file", "runlog -k log_file", "rollout", "disable=not progress or None", "disable=not progress"),
    ("session: skipped updates are taken for groups without a difference", "runlog -k skipped", "run/session", 'if skipped := self.totals["skipped_updates"]:', "if skipped := 0:"),
    ("session: skipped updates are forgotten", "runlog -k skipped", "run/session", 'Counter(state["log"]["updates"])', "self.totals"),
    ("sound: a trainer is put into any state", "checkpoint -k no_run_can", "run/state", "check_trainer_state(trainer, _names(trainer), tensors, state)", "pass"),
    ("sound: any step goes on", "checkpoint -k no_run_can", "run/state", "check_step(trainer, step)", "pass"),
    ("sound: any record is taken over", "checkpoint -k was_edited_is", "run/session", "check_log(state[\"log\"]", "(lambda *_: None)(state[\"log\"]"),
    ("sound: an edit is a traceback", "checkpoint -k was_edited_is", "run/session", "with edits_as_sentence(self.saved):", "if self.saved:"),
    *((f"sound: {name} may be impossible", "checkpoint -k no_run", "run/sound", f"        {name}=", f"        {name}=False and ") for name in (
        "weights", "moments", "step_number", "queue", "entropies", "plateau", "machine", "texts", "tokens", "problems", "groups", "updates",
        "counts", "evaluations", "seconds", "rows")),
    ("sound: numpy reads beyond its end", "checkpoint -k no_run_can", "run/sound", "check_sound(generator=", "dict(generator="),
    ("checkpoint: a manifest names any file", "checkpoint -k device", "run/checkpoint", "if file.parent != path or not", "if not"),
    ("checkpoint: a manifest is a pipe", "checkpoint -k device", "run/checkpoint", '(path / "manifest.json").exists() and not', "False and not"),
    ("state: a machine moves the cursor", "checkpoint -k another_machine", "run/state", 'printable(", ".join(changed))', '", ".join(changed)'),
    ("runlog: a checkpoint without its rows", "faults -k wait", "run/session", "self.log_files.sync()  #", "pass  #"),
    ("runlog: rows after the checkpoint stay", "checkpoint -k cut_from", "run/log", "cut_back(rollouts, lambda line: 0 <=",
     "cut_back(rollouts, lambda line: True or 0 <="),
    ("runlog: rows after the checkpoint stay in metrics.csv", "checkpoint -k cut_from", "run/log", "write_atomically(self.path, whole)", "self.path.touch()"),
    ("runlog: an edited metrics.csv stays", "checkpoint -k spoiled", "run/log", ".startswith(whole)):", ".startswith(b\"\")):"),
    ("runlog: an edited metrics.csv is lost", "checkpoint -k spoiled", "run/log", 'self.path.rename(first_free(self.path.with_stem("metrics-edited"))).name', '"none"'),
    ("runlog: a metrics.csv that is a folder cannot be put back", "checkpoint -k folder_or", "run/log", "(self.path.is_dir() or not", "(not"),
    ("runlog: edited during the run, it stays so", "checkpoint -k during_the_run", "run/session", "self.log_files.mend()", "pass"),
    ("session: an error while the folder is opened is lost", "checkpoint -k still_full", "run/session",
     "and self.trainer.step_number and self.log_files and", "and self.trainer.step_number and"),
    ("experiment: an error leaves runs behind", "experiment -k outlive", "analysis/experiment", "except BaseException:", "except KeyboardInterrupt:"),
    ("experiment: an edited log is found at the end", "experiment -k edited", "analysis/experiment", "read_metrics(runs[-1].folder)  #", "pass  #"),
    ("session: settings edited in config.json count", "checkpoint -k settings_that_were_edited", "run/session", "refuse(edited,", "refuse(False,"),
    ("settings: a mark of the encoding is damage", "checkpoint -k settings_that_were_edited", "run/settings", "utf-8-sig", "utf-8"),
    ("figures: a mark of the encoding is damage", "checkpoint -k mark", "run/figures", "utf-8-sig", "utf-8"),
    *((f"figures: {name} is read", "checkpoint -k named_where", "run/figures", old, new) for name, old, new in (
        ("another table", "if reader.fieldnames != COLUMNS:", "if False:"), ("half a row", ', restval="nothing"', ""),
        ("NaN", "if row[name] != row[name]:", "if False:"), ("a row too many", 'if row["step"] not in', "if False and row in"))),
    ("runlog: no lock", "checkpoint -k processes or together", "run/folder", "lock.acquire(timeout=0)", "pass"),
    ("runlog: other problems not noticed", "checkpoint -k other_problems", "run/session", 'refuse(state["data"] != self.data,', "refuse(False,"),
    ("runlog: another model not noticed", "checkpoint -k another_model", "run/session", 'refuse(state["model"] != self.model,', "refuse(False,"),
    ("runlog: a finished run begins anew", "checkpoint -k begun_anew", "run/session", 'and (self.folder / "summary.json").exists():', "and False:"),
    ("runlog: a longer run reports its old end", "checkpoint -k no_end", "run/session",
     '            self.measured["end"] = None\n        return', "            pass\n        return"),
    ("config: the learning rate may change", "checkpoint -k cannot_change", "run/settings", '"engine save_every', '"lr engine save_every'),
    ("config: ranges are not checked", "config -k train_refuses", "run/settings", "refuse(not low <= value", "refuse(False and low <= value"),
    ("config: nothing may change", "checkpoint -k result_can", "run/settings", " and f.name not in MAY_CHANGE | MAY_MOVE]", "]"),
    # -- the record of a run
    ("runlog: right and wrong swapped", "runlog", "run/metrics",
     '("_right", correct), ("_wrong", ~correct)):\n        metrics', '("_right", ~correct), ("_wrong", correct)):\n        metrics'),
    ("runlog: entropy of the padding counts", "runlog", "run/metrics", "mean(rollouts.entropy[rollouts.mask])", "mean(rollouts.entropy)"),
    ("runlog: the summary's end is the start", "runlog", "run/session",
     "in self.measured.items():\n                out[", 'in zip(self.measured, [self.measured["start"]] * 2):\n                out['),
    ("runlog: entropies written as advantages", "runlog", "run/log", '"advantage": shaped}', '"advantage": batch.entropy}'),
    # -- real models
    ("lora: the reference keeps the adapter", "lora", "policy",
     "self.reference = partial(without_lora, self.model)", "self.reference = partial(nullcontext, self.model)"),
    ("lora: the adapter is not drawn from the seed", "lora", "loaders/adapters", "torch.manual_seed(seed)", "torch.manual_seed(torch.initial_seed())"),
    ("lora: no scale", "lora", "loaders/adapters", "lora_alpha=alpha", "lora_alpha=rank"),
    ("data: a bad row of a published set ends the run", "data", "loaders/rows", "            if strict:\n                raise\n", "            raise\n"),
    ("data: a bad row of a file is left out", "data", "loaders/rows", "            if strict:\n                raise\n", ""),
    ("data: the columns that were named are not used", "data", "loaders/rows", "questions, usual = parts if problem else questions, answer or usual", "pass"),
    ("prompt: the system message is dropped", "tokenizers", "loaders/chat",
     '([{"role": "system", "content": system}] if system else []) +', "[] +"),
    ("prompt: plain keeps the chat template", "tokenizers", "data", 'tokenizer.chat_template and template in ("auto", "chat")', "tokenizer.chat_template"),
    ("estimate: no float32 masters", "estimate", "engine/estimate", " + (4 if size == 2 else 0))\n    gradients", ")\n    gradients"),
    ("estimate: gradients in bfloat16 alone", "estimate", "engine/estimate", "trained * (4 + (2 if size == 2 else 0))", "trained * 2"),
    ("estimate: keys without values", "estimate", "engine/estimate", "cache = 2 * key", "cache = key"),
    ("evaluate: the mean of the paper's table is the last set's", "evaluate", "run/compare",
     "sum(column) / len(column) for column in zip(*cells)", "column[-1] for column in zip(*cells)"),
    ("trust: a run folder's reward function is imported", "trust", "run/cli", 'resume=named.resume, reward="")', "resume=named.resume)"),
    ("probe: the gradient of a method over the rows that can teach", "probe", "analysis/replay",
     "trainer.gradient(Step(batch, [], advantages, shaped, []), torch.arange(len(batch))",
     "trainer.gradient(Step(batch, [], advantages, shaped, []), advantages.nonzero()[:, 0]"),
    ("report: intervals of the largest changes resample tokens", "report", "analysis/report/run",
     'order = np.argsort(problem, kind="stable")', "problem = np.arange(len(problem)); order = problem"),
    ("trust: the probe imports a run folder's reward function", "trust", "analysis/probe", "    if config.reward:", "    if False:"),
    ("trackers: numbers go to the step before", "trackers", "run/trackers", "self.writer.log(numbers, step=step)", "self.writer.log(numbers, step=step - 1)"),
    ("trackers: one that fails ends the run", "trackers", "run/trackers", "except Exception as error:  # a network", "except OSError as error:  # a network"),
    ("publish: an upload to a public place", "publish", "run/publish", "private=True", "private=False"),
]  # fmt: skip


def run_tests(folder: Path, files: list[str], selection: str = "") -> tuple[int, str]:
    """pytest's exit code (0: all passed, 1: a test failed, 124: no end in sight) and the first test that failed."""
    process = CONTEXT.Process(target=_pytest, args=(folder, files, selection))
    process.start()
    process.join(SECONDS)
    if process.is_alive():
        process.kill()
        process.join()
        return 124, ""
    said = folder / "failed"
    first = said.read_text(encoding="utf-8") if said.exists() else ""
    said.unlink(missing_ok=True)
    return process.exitcode, first


class _FirstFailure:
    def __init__(self, file: Path):
        self.file = file

    def pytest_runtest_logreport(self, report):
        if report.failed:
            self.file.write_text(report.nodeid, encoding="utf-8")


def _pytest(folder: Path, files: list[str], selection: str) -> None:
    """In a process of its own, which has imported torch already where the system can fork: seconds saved on every mutant."""
    silence = os.open(os.devnull, os.O_RDWR)
    for stream in (0, 1, 2):
        os.dup2(silence, stream)
    os.chdir(folder)
    sys.path.insert(0, str(folder))
    os.environ["PYTHONPATH"] = str(folder)
    marks = "slow or not slow" if any(name in file for name in ALL_SLOW for file in files) else "not slow"
    arguments = ["-x", "-q", "-n", "0", "-p", "no:cacheprovider", "-m", marks, "-k", selection, *files]
    sys.exit(int(pytest.main(arguments, plugins=[_FirstFailure(folder / "failed")])))


def try_mutant(folder: Path, tests: str, file: str, old: str, new: str) -> str:
    """The verdict on one mutant, in a copy of the repository: "caught" by which test, or why not."""
    names, _, selection = tests.partition(" -k ")
    files = [f"tests/test_{name}.py" for name in names.split()]
    path = folder / "rlvr" / f"{file}.py"
    text = path.read_text(encoding="utf-8")
    if text.count(old) != 1:
        return f"NOT TRIED: its text is found {text.count(old)} times"
    path.write_text(text.replace(old, new), encoding="utf-8")
    try:
        code, test = run_tests(folder, files, selection)
    finally:
        path.write_text(text, encoding="utf-8")
    if code == 0:
        return "SURVIVED"
    if code == 124:  # is it the mutant that hangs, or are the tests that slow?
        return "caught: no end in sight" if run_tests(folder, files, selection)[0] == 0 else "NOT TRIED: its tests fail or hang without it too"
    if code == 1:
        return f"caught by {test.removeprefix('tests/')}" if run_tests(folder, [test])[0] == 0 else f"NOT TRIED: {test} fails without it too"
    return f"NOT TRIED: pytest ends with exit code {code}"


def prepare(folder: Path) -> None:
    """A worker's own copy of the repository, and a folder for what its tests leave behind."""
    global own
    own = folder / str(os.getpid())
    copy_repository(own / "repository")
    (own / "tmp").mkdir()
    os.environ["TMPDIR"] = tempfile.tempdir = str(own / "tmp")


def work(mutant: tuple) -> str:
    return try_mutant(own / "repository", *mutant[1:])


def main(word: str = "") -> int:
    assert "rlvr" not in sys.modules, "the tests would run on it, and not on the mutants"
    day = int(time.time() // 86400) % 10
    chosen = MUTANTS[day::10] if word == "--tenth" else [m for m in MUTANTS if word in m[0]]
    if not chosen:
        print(f"No mutant has {word!r} in its name.")
        return 2
    if word == "--tenth":
        print(f"every tenth of {len(MUTANTS)} mutants, from number {day + 1} on")
    started, missed = time.perf_counter(), []
    workers = min(os.cpu_count() or 1, len(chosen), 4)
    with tempfile.TemporaryDirectory() as temporary, ProcessPoolExecutor(workers, CONTEXT, prepare, (Path(temporary),)) as pool:
        verdicts = {pool.submit(work, mutant): mutant[0] for mutant in chosen}
        for number, done in enumerate(as_completed(verdicts), start=1):
            name, verdict = verdicts[done], done.result()
            print(f"{number:3}/{len(chosen)} {time.perf_counter() - started:5.0f} s  {name}: {verdict}", flush=True)
            if not verdict.startswith("caught"):
                missed.append(f"{name}: {verdict}")
    minutes = (time.perf_counter() - started) / 60
    print(f"\n{len(chosen) - len(missed)} of {len(chosen)} mutants caught in {minutes:.1f} min" + ("" if missed else ": all caught"))
    for line in missed:
        print(line)
    return int(bool(missed))


if __name__ == "__main__":
    sys.exit(main(*sys.argv[1:2]))
