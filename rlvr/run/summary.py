"""The end of a run: its model with a card, summary.json, curves.png, and the table that it prints."""

import json
from pathlib import Path

from rlvr.common.files import replace_folder, write_atomically
from rlvr.common.text import interval, say, table
from rlvr.loaders.adapters import save_lora
from rlvr.run.publish import merge, model_card


def summarise(run, stopped_by: str | None) -> dict:
    """What summary.json holds. run: a Session."""
    c, k = run.config, run.config.eval_completions
    out = {"method": c.method, "seed": c.seed, "steps": run.steps_done, "stopped_by": stopped_by}
    out |= {"wall_seconds": round(run.seconds(), 1), "saving_seconds": round(run.saving_seconds, 2)}
    for n in (1, k):
        for when, result in (("start", run.first), ("end", run.last)):
            out[f"pass_at_{n}_{when}"] = result["metrics"][f"pass@{n}"][0] if result else None
    return out | {"plateau_step": run.trainer.plateau}


def save_model(run, summary: dict) -> None:
    """Write the model with its tokenizer and card; with --lora-merge the adapter, and the whole model beside it."""
    c, policy = run.config, run.trainer.policy
    card = model_card(c, summary, {"start": run.first, "end": run.last})

    def write(folder: Path) -> None:
        save_lora(policy.model, folder) if c.lora_rank else policy.model.save_pretrained(folder)
        policy.tokenizer.save_pretrained(folder)
        (folder / "README.md").write_text(card, encoding="utf-8")

    replace_folder(run.folder / ("adapter" if c.lora_merge else "model"), write)
    if c.lora_merge:
        merge(run.folder / "adapter", run.folder / "model", str(policy.model.dtype).removeprefix("torch."))


def write_summary(run, summary: dict) -> Path:
    """summary.json, and curves.png, whose path is returned."""
    from rlvr.run.figures import draw_curves

    write_atomically(run.folder / "summary.json", json.dumps(summary, indent=2) + "\n")
    return draw_curves(run.folder)


def say_end(run, summary: dict, figure: Path) -> None:
    """The held-out table, how long the run took, and where its results are."""
    names = ["pass@1", f"pass@{run.config.eval_completions}", f"maj@{run.config.eval_completions}"]
    found = {when: result for when, result in (("start", run.first), ("end", run.last)) if result}
    rows = [[f"{when} ({r['problems']} problems)", *(interval(*r["metrics"][n], ".3f") for n in names)] for when, r in found.items()]
    if rows:
        say("\n" + table(["held-out, 95 % interval", *names], rows))
    if not run.updates and run.steps_done:
        say(
            "\nNo update was made: no group had both right and wrong completions. If nearly all are wrong (groups_all_wrong in "
            "metrics.csv), choose easier problems or a better model; if nearly all are right, harder problems."
        )
    minutes, seconds = divmod(round(summary["wall_seconds"]), 60)
    plateau = summary["plateau_step"]
    stage = f"the plateau began at step {plateau}" if plateau else "still in the rising stage"
    say(f"\n{minutes} min {seconds} s; {stage}\nmodel:  {run.folder / 'model'}\nfigure: {figure}")
