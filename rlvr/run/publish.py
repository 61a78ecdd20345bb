"""Give a run's model away: its model card, its adapter merged into the base, an upload to the Hugging Face Hub.

python -m rlvr.run.publish runs/pos-seed0 --merge my_model --push your-name/my-model
"""

import json
import os
import sys
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path, PurePosixPath, PureWindowsPath

if not __package__:  # run by its path, which works from any folder
    sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

from rlvr.common.files import remove_folder, replaced_folder
from rlvr.common.text import interval, markdown_table, one_line, say
from rlvr.config import BUILT_IN, PRESETS, TrainConfig, as_sentence, flag, refuse
from rlvr.run.cli import parse_command, run_program
from rlvr.run.settings import OF_THE_MACHINE, read_config

PAPER = "https://arxiv.org/abs/2508.02260"


@dataclass
class PublishConfig:
    """Give a run's model away: merge its adapter into a whole model, or upload it with its card.

    python -m rlvr.run.publish runs/pos-seed0 --push your-name/my-model  -- upload

    python -m rlvr.run.publish runs/grpo-seed0 --merge my_model  -- a whole model from a LoRA adapter
    """

    run: str
    """The run folder."""
    merge: str = ""
    """Write a whole model to this new folder: the base with the run's adapter merged into it."""
    push: str = ""
    """Upload the model (the merged one, with --merge) to this Hub id, a private one if it is new."""


def model_card(config: TrainConfig, summary: dict, metrics: dict[str, dict | None]) -> str:
    """README.md of a trained model: what it is, how it was made, what was measured.

    metrics: {"start": evaluation, "end": evaluation}, each {"problems": n, "metrics": {name: (mean, low, high)}} or None.
    """
    c, base = config, "the built-in model of this library" if config.model in BUILT_IN else shared_name(config.model)
    data, held_out = map(shared_name, (c.data, c.eval_data or c.data))
    steps = f"{summary['steps']} step{'' if summary['steps'] == 1 else 's'}"
    trained = f"a LoRA adapter of rank {c.lora_rank}" if c.lora_rank else "all weights"
    front = [f"library_name: {'peft' if c.lora_rank and not c.lora_merge else 'transformers'}", "pipeline_tag: text-generation"]
    if "/" in base:  # a Hub id, as far as one can tell from here
        front.append(f"base_model: {json.dumps(c.model)}")
    paragraphs = [
        "\n".join(["---", *front, "tags: [rlvr, grpo, reinforcement-learning]", "---"]),
        f"# {PurePosixPath(shared_name(c.model)).name}, {c.method}{', LoRA' if c.lora_rank else ''}",
        f"Trained from {base} on {data} by reinforcement learning with verifiable rewards: method `{c.method}`, {steps} of "
        f"{c.prompts_per_step} prompts x {c.completions_per_prompt} completions, {trained}. Shaping methods: [Deng et al. 2025]({PAPER}).",
    ]
    if measured := {when: result for when, result in metrics.items() if result}:
        intro = f"Held-out problems ({held_out}), sampled at temperature {c.temperature}, with 95 % intervals over problems:"
        paragraphs += [intro, _measured_table(measured)]
    paragraphs += [f"Settings that differ from those of the preset `{c.preset}`:", _settings_table(c)]
    paragraphs.append(f"Reward: {f'`{shared_name(c.reward)}`' if c.reward else 'is the boxed answer equal to the gold answer?'}")
    return "\n\n".join(paragraphs) + "\n"


def _measured_table(measured: dict[str, dict]) -> str:
    """A row for each evaluation. acc@N is left out: it is the same as pass@1."""
    names = [name for name in next(iter(measured.values()))["metrics"] if not name.startswith("acc@")]
    return markdown_table(["", "problems", *names], measured_rows(measured, names))


def measured_rows(measured: dict[str, dict | None], names: Sequence[str]) -> list[list[str]]:
    """For each evaluation that was made: start or end, how many problems, and the metrics of these names with their intervals."""
    made = {when: result for when, result in measured.items() if result}
    return [[when, str(r["problems"]), *(interval(*r["metrics"][name], ".3f") for name in names)] for when, r in made.items()]


def _settings_table(c: TrainConfig) -> str:
    """A row for each setting that says something about the model and differs from the preset's. It names no folder of this machine."""
    default, rows = type(c)(**PRESETS.get(c.preset, {})), []
    for name, value in vars(c).items():
        if value != getattr(default, name) and name not in OF_THE_MACHINE | {"preset", "resume", "name", "out"}:
            if isinstance(value, str):
                value = json.dumps(shared_name(value) if name in ("model", "data", "eval_data", "reward") else value)
            rows.append([f"`{flag(name)}`", str(value).replace("|", r"\|")])
    return markdown_table(["setting", "value"], rows)


def shared_name(name: str) -> str:
    """What a card says of a model, a data set or a reward function: a Hub id as it is; of a path the last part, as the rest is of this
    machine."""
    is_path = name.startswith(("/", "~", ".")) or "\\" in name or name.count("/") > 1 or ".py:" in name or Path(name).exists()
    return PureWindowsPath(os.path.abspath(name)).name if is_path else name  # which knows both kinds of slash


def check_hub(hub_id: str, base: str, merge: str) -> None:
    """Find out before hours of training whether an upload can work: is somebody logged in, and has everybody the base of an adapter?

    base: the model that the uploaded adapter would name; empty: a whole model. merge: the flag that makes one. Raises SettingError.
    """
    from huggingface_hub import HfApi

    def reason(error: Exception) -> str:  # a token that is no longer valid, no network
        return "you are not logged in to the Hub" if "token" in str(error).lower() else one_line(error)

    refuse(os.path.isdir(base), f"The adapter belongs to {shared_name(base)}, a folder that nobody else has. Upload a whole model: {merge}")
    with as_sentence(f"Nothing can be uploaded to {hub_id}", "Log in with: hf auth login", reason=reason):
        HfApi().whoami()


def push(folder: Path, hub_id: str) -> str:
    """Upload a model folder. Returns its address. Raises SettingError; the folder on the disk stays."""
    from huggingface_hub import HfApi

    with as_sentence(f"{folder} could not be uploaded to {hub_id}", "It is still there: upload it again later."):
        api = HfApi()
        url = api.create_repo(hub_id, private=True, exist_ok=True)
        api.upload_folder(repo_id=hub_id, folder_path=str(folder), commit_message="Trained with rlvr")
    return str(url)


def save_model(folder: Path, c: TrainConfig, policy, card: str) -> None:
    """Write the model into a run folder, with its tokenizer and card; with --lora-merge the adapter, and the whole model beside it."""

    with replaced_folder(folder / ("adapter" if c.lora_merge else "model")) as beside:
        _write_model(beside, c, policy)
        (beside / "README.md").write_text(card, encoding="utf-8")
    if c.lora_merge:
        merge(folder / "adapter", folder / "model", str(policy.model.dtype).removeprefix("torch."))


def _write_model(folder: Path, c: TrainConfig, policy) -> None:
    from rlvr.loaders.adapters import save_lora

    save_lora(policy.model, folder) if c.lora_rank else policy.model.save_pretrained(folder)
    policy.tokenizer.save_pretrained(folder)


def check_can_save(folder: Path, c: TrainConfig, policy) -> None:
    """Write the model before the first step as at the end, and delete it again. Raises SettingError if it is one that cannot be written."""
    trial = folder / "model.part"  # a name that is cleared if the run is killed meanwhile
    remedy = "Choose another model, such as one whose weights are not quantised."
    said = as_sentence(f"The model {c.model} could not be saved after training", remedy)
    try:
        with said, suppress(OSError):  # a full disk need not be full at the end; the run says so where it matters
            trial.mkdir(exist_ok=True)
            _write_model(trial, c, policy)
            if c.lora_merge:  # the whole model is made of the base
                policy.model.save_pretrained(trial)
    finally:
        remove_folder(trial)


def merge(folder: Path, out: Path, dtype: str) -> None:
    """Write the model of an adapter folder as a whole model: base weights + alpha / rank B A, with its tokenizer and card.

    dtype: "float32" or "bfloat16". Raises SettingError.
    """
    from rlvr.loaders.adapters import is_adapter
    from rlvr.loaders.models import load_model

    refuse(not is_adapter(folder), f"{folder} is a whole model already; there is no adapter to merge. Leave out --merge.")
    model, tokenizer, _ = load_model(str(folder), "cpu", dtype)
    with replaced_folder(out) as beside:
        model.save_pretrained(beside)
        tokenizer.save_pretrained(beside)
        if (folder / "README.md").is_file():
            card = (folder / "README.md").read_text(encoding="utf-8").replace("library_name: peft", "library_name: transformers")
            (beside / "README.md").write_text(card, encoding="utf-8")


def publish(p: PublishConfig) -> None:
    """Merge, upload, or both, as the command line says. Raises SettingError."""
    from rlvr.loaders.adapters import is_adapter
    from rlvr.loaders.models import chain, check_model_name

    config = read_config(Path(p.run))
    model = Path(check_model_name(p.run))
    refuse(not (p.merge or p.push), "There is nothing to do. Name a folder with --merge, or a Hub id with --push.")
    if p.push:
        check_hub(p.push, chain(str(model))[1] if is_adapter(model) and not p.merge else "", "--merge my_model")
    if p.merge:
        out = Path(p.merge)
        refuse(os.path.lexists(out), f"There is a file or folder {out} already. Choose another --merge.")
        merge(model, out, "bfloat16" if config.dtype == "bfloat16" else "float32")
        say(f"written to {out}")
        model = out
    if p.push:
        say(f"uploaded to {push(model, p.push)}")


if __name__ == "__main__":
    run_program(lambda: publish(parse_command(PublishConfig, "python -m rlvr.run.publish")))
