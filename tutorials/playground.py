"""Write a real batch, and the look of the report, into the page to play with: python -m tutorials.playground.

`playground.html` is written by hand, except for what is between its markers. The batch is one group of the first step of
`python train.py --method grpo --seed 0`. The group belongs to the second of the two updates of that step. So its tokens have two log-probs,
as in the loss: those of the model that sampled them, and those after the first update. Takes ten seconds.
"""

import json
import re
from pathlib import Path

ROOT = Path(__file__).parents[1]
PAGE = ROOT / "tutorials" / "playground.html"
LOOK = ROOT / "rlvr" / "analysis" / "report" / "page.css"
PROBLEM = "Ana has 10 pens. Ana then has 2 times as many. Ana sells 9."  # how it begins: short answers, four right and four wrong


def real_batch() -> dict:
    """The problem, its answer, and eight completions: reward, tokens as text, old_logp and logp of each token."""
    from rlvr.config import TrainConfig
    from rlvr.train import set_up

    trainer, _ = set_up(TrainConfig(method="grpo", seed=0))
    step = trainer.begin()
    batch = step.rollouts
    row = next(i for i, p in enumerate(step.problem_ids) if trainer.problems[p].problem.startswith(PROBLEM))
    group, problem = int(batch.group[row]), trainer.problems[step.problem_ids[row]]
    assert group in step.mini_batches[1], "its second update has not come yet"
    trainer.update(step)
    rows = (batch.group == group).nonzero()[:, 0]
    part = batch.select(rows)
    logp = trainer.policy.logp_of(part, trainer.config.temperature)[0].detach()
    completions = []
    for i, length in enumerate(part.lengths.tolist()):
        tokens = [trainer.policy.tokenizer.decode([t], skip_special_tokens=True) for t in part.completion_ids[i, :length].tolist()]
        numbers = {"old_logp": part.old_logp, "logp": logp}
        completions.append({"reward": step.rewards[rows[i]].item(), "tokens": tokens}
                           | {name: [round(x, 4) for x in values[i, :length].tolist()] for name, values in numbers.items()})  # fmt: skip
    return {"problem": problem.problem, "answer": problem.answer, "completions": completions}


def write_between(text: str, name: str, new: str) -> str:
    """The text with what is between its markers NAME and "end of NAME" replaced. Raises ValueError if they are not there once."""
    pattern = re.compile(rf"(?<=/\* {name} \*/\n).*?(?=/\* end of {name} \*/)", re.DOTALL)
    if len(pattern.findall(text)) != 1:
        raise ValueError(f"The markers of {name} are not in the page. Put them back.")
    return pattern.sub(lambda _: new, text)


def read_batch(text: str) -> dict:
    """The batch that a page holds."""
    return json.loads(re.search(r"/\* the batch \*/\nconst BATCH = (.*?);\n/\* end of the batch \*/", text, re.DOTALL)[1])


def page_with(text: str, batch: dict) -> str:
    """The page with this batch, and with the look of the report as it is now."""
    lines = [json.dumps(c, ensure_ascii=True) for c in batch["completions"]]
    head = json.dumps({name: value for name, value in batch.items() if name != "completions"})
    data = (head[:-1] + ', "completions": [\n' + ",\n".join(lines) + "\n]}").replace("<", "\\u003c")  # no text may end the script
    text = write_between(text, "the batch", f"const BATCH = {data};\n")
    return write_between(text, "the look of the report", LOOK.read_text(encoding="utf-8"))


if __name__ == "__main__":
    PAGE.write_text(page_with(PAGE.read_text(encoding="utf-8"), real_batch()), encoding="utf-8")
    print(f"written: {PAGE}")
