"""A short run of the built-in model on the GPU, with the quick start's settings: does it learn there, and how long does a step take?"""

import csv
import statistics
import tempfile
from collections.abc import Iterator
from pathlib import Path

from rlvr.config import TrainConfig

from .checks import STORIES
from .processes import Options, at_least, at_most, row
from .shapes import device_of, needs_cuda


def eager(options: Options) -> Iterator[dict]:
    yield from _run(options, cuda_graphs=False)


def recorded(options: Options) -> Iterator[dict]:
    needs_cuda(device_of(options))
    yield from _run(options, cuda_graphs=True)


def _run(options: Options, cuda_graphs: bool) -> Iterator[dict]:
    from rlvr.run import figures
    from rlvr.train import train

    figures.draw_curves = lambda folder: folder / "curves.png"  # not what is measured here
    size = dict(steps=40, warmup_steps=5, final_eval_problems=200)
    if options.smoke:
        size = dict(steps=2, prompts_per_step=4, mini_batch_prompts=2, completions_per_prompt=4, final_eval_problems=2)
        size |= dict(max_new_tokens=12, overlong_buffer=0, data=STORIES, eval_data=STORIES)
    with tempfile.TemporaryDirectory() as folder:
        settings = dict(method="grpo", device=device_of(options), cuda_graphs=cuda_graphs, eval_every=0, show_every=0, save_every=0)
        summary = train(TrainConfig(**settings | size, out=folder, name="run"))
        with open(Path(folder, "run", "metrics.csv"), newline="", encoding="utf-8") as file:
            found = [line for line in csv.DictReader(file) if line["accuracy"]]
    steps = [line for line in found if line["step"] != "0"]

    def numbers(name: str) -> list[float]:
        return [float(line[name]) for line in steps if line[name]]

    parts = ", ".join(f"{part} {statistics.median(numbers(f'seconds_{part}')):.2f}" for part in ("sampling", "reward", "scoring", "update"))
    yield row("seconds of a step, the median", statistics.median(numbers("seconds_step")), "s", note=parts)
    accuracy = numbers("accuracy")
    yield row("accuracy in training, the first five steps", statistics.mean(accuracy[:5]))
    yield row(f"accuracy in training, the last five of {len(accuracy)} steps", statistics.mean(accuracy[-5:]))
    start, end = summary["pass_at_1_start"], summary["pass_at_1_end"]
    yield row("held-out pass@1 before", start)
    yield row("held-out pass@1 after", end) if options.smoke else at_least("held-out pass@1 after", end, start + 0.15)
    if drift := numbers("logp_drift"):
        yield at_most("log-probs of sampler and update, nats apart", statistics.mean(drift), 0.05, "nats")
