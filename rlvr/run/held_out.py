"""Held-out problems: they measure a policy during a run, always the same ones."""

from dataclasses import dataclass

from rlvr.common.text import say
from rlvr.config import TrainConfig
from rlvr.data import Problem, encode_prompts, prompt_ids
from rlvr.evaluate import Evaluation, evaluate
from rlvr.policy import Policy


@dataclass
class HeldOut:
    problems: list[Problem]
    prompts: list[list[int]]

    def measure(self, policy: Policy, c: TrainConfig, limit: int) -> Evaluation:
        """Sampling as in training (same temperature, no top-p), so that the curve and the training accuracy can be compared."""
        how = {key: getattr(c, key) for key in ("temperature", "max_new_tokens", "seed", "sampling_rows")} | {"top_p": 1.0}
        few = self.problems[:limit], self.prompts[:limit]
        return evaluate(policy, *few, completions=c.eval_completions, progress="evaluating", **how)


def encode(c: TrainConfig, policy: Policy, problems: list[Problem], what: str) -> tuple[list[Problem], list[list[int]]]:
    """Problems that fit, and their prompts; says how many were left out. what: problems, or held-out problems."""
    first, template = (policy.tokenizer, problems[0].problem, c.instruction), (c.template, c.template_args)
    if c.system and prompt_ids(*first, c.system, *template) == prompt_ids(*first, "", *template):
        say("note: the model's template leaves --system out, so it changes nothing")
    fitting, prompts, too_long = encode_prompts(policy.tokenizer, problems, c.instruction, c.max_prompt_tokens, c.system, *template)
    if too_long:
        say(f"{too_long} of {len(problems)} {what} left out, prompt over {c.max_prompt_tokens} tokens")
    return fitting, prompts
