"""Every setting once, with its help text, its range and the presets. No torch here, so that `--help` answers at once."""

import contextlib
import dataclasses
import inspect
import io
import json
import os
import re
import sys
import tempfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, get_args, get_origin

from rlvr.common.files import first_free
from rlvr.common.text import printable

LOCK = ".lock"  # the file in a run folder that its process holds
TINY_MODEL = Path(__file__).parent / "tiny" / "model"
WORKED_EXAMPLE = (  # the prompt of the preset for SmolLM2, which boxes hardly any answer of itself
    "Problem: Tom has 3 apples and buys 5 more. How many has he?\nSolution: 3 + 5 = 8. The answer is \\boxed{8}.\n\n"
    "Problem: {problem}\nSolution:"
)
INSTRUCTION = "Please reason step by step, and put your final answer within \\boxed{}."  # Deng et al. 2025, released code


class SettingError(ValueError):
    """Something the user can mend. The message is one sentence of cause and one of remedy; the command line prints it and exits with 2.

    It stays one line of moderate length, whatever names and values it quotes.
    """

    exit_code = 2

    def __init__(self, message: str):
        line = printable(message).replace("\n", " ")
        super().__init__(line if len(line) <= 340 else f"{line[:165]} ... {line[-165:]}")


@dataclass
class TrainConfig:
    """GRPO on one device. Without --model it trains the built-in model on the built-in stories: minutes on a laptop CPU, no download.

    python train.py --method pos  -- a first run

    python train.py --method grpo  -- the baseline

    python train.py --preset qwen2.5-0.5b-gsm8k  -- a real model on one GPU

    python train.py --model path/to/model --data my_problems.jsonl  -- your own model and problems
    """

    # What to train
    preset: str = "tiny"
    """A named set of defaults, listed above; any other flag overrides it. Without one: tiny, or hf with another --model."""
    model: str = "tiny"
    """'tiny' (built in), a model folder, a run folder, or a Hub id. A folder with a LoRA adapter is merged into its base first."""
    data: str = "tiny"
    """'tiny' (built in), a short name (gsm8k, math, dapo-math-17k, still-3-rl-90k, svamp), a .jsonl, .json, .csv or .parquet file, or a Hub
    id."""
    problem_column: str = ""
    """Where --data has the problem: a column, prompt.0.content for what is nested, Body+Question for two; empty: the usual names."""
    answer_column: str = ""
    """Where --data has the answer, as in answer, or reward_model.ground_truth for what is nested; empty: the usual names are tried."""
    level: Literal[1, 2] = 1
    """Of the built-in problems. 1: 2 to 5 steps. 2: 4 to 7, where the built-in model has seen 2 to 5, so that learning takes longer."""
    eval_data: str = ""
    """Held-out problems to measure progress on, like --data; empty: the test split of --data if it has one, else no evaluation."""
    method: str = "pos"
    """grpo (baseline), ppl (perplexity shaping), pos (position shaping), or several joined by +, as in ppl+pos."""
    name: str = ""
    """Name of the run folder; empty: method and seed, and a number if that is taken."""
    out: str = "runs"
    """Folder that holds the run folders."""
    seed: int = 0
    """Seeds the choice of problems and the sampling."""

    # Length of the run and optimiser
    steps: int = 100
    """Steps. A step samples one batch of completions and makes one or more updates with it."""
    lr: float = 1e-3
    """Peak learning rate of AdamW."""
    lr_schedule: Literal["constant", "linear"] = "linear"
    """After the warm-up: constant (the paper), or linear decay to a tenth of --lr (the tiny model needs it)."""
    warmup_steps: int = 5
    """Steps over which the learning rate rises from 0 (paper: 10)."""
    weight_decay: float = 0.0
    """AdamW weight decay (paper: 0.1)."""
    optimizer: Literal["adamw", "adamw8bit"] = "adamw"
    """adamw8bit keeps AdamW's two moments in 8 bits: 2 bytes for each weight instead of 8 (needs bitsandbytes)."""
    lora_rank: int = 0
    """Train low-rank adapters of this rank on all linear layers instead of the weights themselves (needs peft); 0: train the weights. An
    adapter wants a learning rate ten times as high or more."""
    lora_alpha: float = 32.0
    """The adapter's output is scaled by --lora-alpha / --lora-rank."""
    lora_merge: bool = False
    """Merge the adapter into the weights when the run ends: the run's model is then a whole one, and the adapter stands beside it."""
    max_grad_norm: float = 1.0
    """Gradients with a larger norm are scaled down to it."""

    # A batch
    prompts_per_step: int = 32
    """Prompts (groups) in the batch of one step (paper: 512)."""
    completions_per_prompt: int = 8
    """Completions sampled for each prompt: the group (paper: 8)."""
    mini_batch_prompts: int = 16
    """Prompts per optimiser update; smaller than --prompts-per-step means several updates on one batch (paper: 32)."""
    micro_batch_tokens: int = 4096
    """Tokens that go through the model at once in an update; a prompt counts once for all its completions there. Changes memory and speed,
    not the result (but rounding). Halved when memory runs out."""
    filter_groups: bool = True
    """Drop groups that are all right or all wrong, whose advantage is zero (dynamic sampling)."""
    sampling_rounds: int = 2
    """At most so many rounds of sampling to refill the batch after filtering; then the step uses what it has (paper: 5 to 10, then it
    stops)."""

    # Sampling
    max_new_tokens: int = 120
    """Longest completion, in tokens (paper: 8192)."""
    max_prompt_tokens: int = 128
    """Problems with a longer prompt are left out, and counted (paper: 1024)."""
    temperature: float = 1.0
    """Sampling temperature; log-probs and entropies are taken at the same one."""
    sampling_rows: int = 512
    """Completions sampled side by side. Changes memory and speed, not the result (but rounding). Halved when memory runs out."""
    sampler: Literal["rlvr", "generate"] = "rlvr"
    """rlvr: this library's, several times faster. generate: transformers' generate(), and rows with padding in the update, for models
    whose attention ours cannot follow (it says so)."""
    cuda_graphs: bool = False
    """On a GPU: record a sampling step once and play it back, so that starting its kernels takes no time. Not yet tried on a GPU."""
    old_logp: Literal["auto", "sampler", "recompute"] = "auto"
    """Where the old log-probs come from: the sampler, or a pass of the training forward over all completions. auto: the sampler in
    float32; in bfloat16 the first update's own, and a pass for those that later updates compare with."""

    # Reward
    reward: str = ""
    """A reward function of yours, as in my_rewards:short or my_rewards.py:short; it is imported, so its code runs. Empty: is the answer
    right? See tutorials/rewards.md."""
    overlong_buffer: int = 15
    """Completions lose reward over the last so many tokens before --max-new-tokens; 0: no penalty (paper: 1024 of 8192)."""
    overlong_factor: float = 1.0
    """Reward lost at --max-new-tokens."""

    # Objective
    clip_low: float = 0.2
    """The probability ratio is clipped below at 1 - clip_low."""
    clip_high: float = 0.28
    """The probability ratio is clipped above at 1 + clip_high ("clip-higher")."""
    kl_coef: float = 0.0
    """Weight of a KL penalty against the starting model (paper: 0). Above 0 a frozen copy of the model is kept."""
    entropy_coef: float = 0.0
    """Weight of an entropy bonus (paper: 0)."""

    # The two methods of Deng et al. 2025
    ppl_alpha: float = 0.01
    """Strength of perplexity shaping (released code: 0.01, a very weak re-weighting; try 0.2)."""
    ppl_direction: Literal["low", "high"] = "low"
    """Which completions weigh more: those of low perplexity (the paper's method) or of high (its opposite arm)."""
    ppl_apply: bool = True
    """--no-ppl-apply computes the factor of perplexity shaping and drops it, as the released code does: a control, bit for bit grpo."""
    pos_alpha: float = 0.1
    """Strength of position shaping: the largest bonus (released code: 0.1)."""
    pos_direction: Literal["late", "early"] = "late"
    """Which tokens get the bonus: late ones (the paper's method) or early ones (its opposite arm)."""
    shape_start: int | Literal["plateau"] = 1
    """First step that is shaped, or 'plateau': from the step at which the entropy stops falling (released code, position: step 201)."""
    shape_stop: int = 0
    """Last step that is shaped; 0: to the end (released code, position: step 299)."""

    learn_from: Literal["all", "positive", "negative"] = "all"
    """Which advantages the loss keeps: all, or only the positive (those of right answers, overlong ones aside) or the negative ones."""

    # Prompt
    instruction: str = INSTRUCTION
    """Put on a new line after each problem. The built-in model has never seen one: its template leaves it out."""
    system: str = ""
    """System message before each problem; empty: none (a chat template may bring its own)."""
    template: str = "auto"
    """chat: the model's chat template. plain: the text alone. auto: chat if the model has a template. Or a text of yours with {problem} in
    it, and {system} and {instruction} where you want them: the whole prompt, as in 'Problem: {problem} Solution:'."""

    # Saving and resuming
    resume: str = ""
    """Continue this run folder from its newest checkpoint, as in --resume runs/pos-seed0, with the settings it was started with. --steps
    may be raised to train longer (a linear --lr-schedule then follows the new length); else only flags that cannot change the result
    (machine, saving, watching) may be given."""
    save_every: int = 1
    """Steps between two checkpoints; 0: only at the end, and when a signal ends the run. A run that is killed loses the steps after the
    last one, and --resume makes them again, exactly."""
    keep: int = 2
    """Checkpoints to keep: the newest ones. Each holds the weights in float32 and the optimiser's two numbers for each."""
    keep_every: int = 20
    """Also keep every checkpoint whose step is a multiple of this, for python -m rlvr.analysis.probe to go back to; 0: none."""

    # Watching
    eval_every: int = 10
    """Steps between two evaluations; 0: only at the start and the end."""
    eval_problems: int = 128
    """Problems of an evaluation during the run."""
    final_eval_problems: int = 400
    """Problems of the evaluations at the start and at the end; 0: none at all."""
    eval_completions: int = 8
    """Completions for each problem of an evaluation."""
    show_every: int = 20
    """Steps between two printed samples; 0: none."""
    log_completions: int = 16
    """Completions written to rollouts.jsonl in each step."""
    report_to: Literal["none", "tensorboard", "wandb", "trackio"] = "none"
    """Send every number of metrics.csv to a tracker too (needs its package). TensorBoard's files lie in the run folder."""
    push_to_hub: str = ""
    """Upload the finished model with its card to this Hub id, as in your-name/my-model (a private one if it is new)."""

    # Machine
    device: Literal["auto", "cpu", "cuda", "mps"] = "cpu"
    """auto (the default for any other model): cuda if there is one, else mps, else cpu. The built-in model is fastest on the cpu."""
    dtype: Literal["auto", "float32", "bfloat16"] = "auto"
    """Precision of the forward and backward pass; bfloat16 keeps float32 master weights. auto: bfloat16 on cuda, else float32."""
    gradient_checkpointing: bool = False
    """Recompute activations in the backward pass: less memory, a third more time."""
    threads: int = 0
    """CPU threads; 0: torch's own choice."""


@dataclass
class EvalConfig:
    """Acc@N, Maj@N and Pass@k of one or more models on one set of problems, side by side.

    python eval.py tiny runs/pos-seed0  -- the built-in model and a run

    python eval.py Qwen/Qwen2.5-Math-1.5B --data aime24,aime25,amc,math500,minerva --max-new-tokens 2048  -- the paper's table
    """

    models: list[str]
    """Run folders, model folders, Hub ids, or 'tiny' (the built-in model)."""
    data: str = "tiny"
    """'tiny' (built-in test problems), a short name (gsm8k, math, math500, aime24, aime25, amc, amc23, minerva, olympiadbench, svamp), a
    file or a Hub id; or several of them joined by commas."""
    problem_column: str = ""
    """Where --data has the problem; empty: the usual names are tried."""
    answer_column: str = ""
    """Where --data has the answer; empty: the usual names are tried."""
    level: Literal[1, 2] = 1
    """Of the built-in problems. 1: 2 to 5 steps. 2: 4 to 7, where the built-in model has seen 2 to 5."""
    problems: int = 0
    """At most so many problems, the first ones; 0: 400 of the built-in ones, all of any other set."""
    completions: int = 8
    """N, completions for each problem (paper: 8)."""
    temperature: float = 0.6
    """Sampling temperature (paper: 0.6; 0: greedy)."""
    top_p: float = 0.95
    """Nucleus sampling (paper: 0.95; 1: off)."""
    max_new_tokens: int = 0
    """Longest completion; 0: 120 for the built-in problems, 1024 for others."""
    max_prompt_tokens: int = 1024
    """Problems with a longer prompt are left out, and counted."""
    instruction: str = INSTRUCTION
    """Put on a new line after each problem."""
    system: str = ""
    """System message before each problem."""
    template: str = "auto"
    """chat: the model's chat template. plain: the text alone. auto: chat if the model has a template. Or a text with {problem} in it: the
    whole prompt."""
    seed: int = 0
    """Seeds the sampling."""
    sampling_rows: int = 512
    """Completions sampled side by side. Changes memory and speed, not the result (but rounding). Halved when memory runs out."""
    sampler: Literal["rlvr", "generate"] = "rlvr"
    """rlvr: this library's, several times faster. generate: transformers' generate(), for models whose attention ours cannot follow."""
    cuda_graphs: bool = False
    """On a GPU: record a sampling step once and play it back. Not yet tried on a GPU."""
    out: str = ""
    """The JSON file to write; empty: runs/eval-<data>.json."""
    device: Literal["auto", "cpu", "cuda", "mps"] = "auto"
    """auto: cuda if there is one, else mps, else cpu."""
    dtype: Literal["auto", "float32", "bfloat16"] = "auto"
    """auto: bfloat16 on cuda, else float32."""
    threads: int = 0
    """CPU threads; 0: torch's own choice."""


# A preset is what differs from the defaults above, which are those of the built-in model.
_REAL = dict(
    data="gsm8k", lr=1e-6, lr_schedule="constant", warmup_steps=10, weight_decay=0.1, steps=200, max_new_tokens=512, max_prompt_tokens=512,
    overlong_buffer=64, micro_batch_tokens=8192, sampling_rows=256, eval_problems=64, final_eval_problems=200, show_every=5, device="auto",
    save_every=10, keep_every=0, log_completions=4,
)  # fmt: skip
_MATH = _REAL | dict(
    model="Qwen/Qwen2.5-Math-1.5B", data="math", eval_data="math500", prompts_per_step=128, mini_batch_prompts=32, max_new_tokens=2048,
    max_prompt_tokens=1024, overlong_buffer=256, micro_batch_tokens=16384, sampling_rows=512, sampling_rounds=3,
    gradient_checkpointing=True, dtype="bfloat16",
)  # fmt: skip
PRESETS = {
    "tiny": {},
    "hf": _REAL,
    "smollm2-135m": _REAL | dict(
        model="HuggingFaceTB/SmolLM2-135M-Instruct", data="svamp", template=WORKED_EXAMPLE, temperature=0.7, lr=2e-5, steps=60,
        warmup_steps=5, prompts_per_step=16, mini_batch_prompts=8, sampling_rounds=1, max_new_tokens=32, max_prompt_tokens=192,
        overlong_buffer=8, micro_batch_tokens=2048, sampling_rows=128, eval_every=20, eval_completions=4, save_every=5, dtype="float32",
    ),
    "qwen2.5-0.5b-gsm8k": _REAL | dict(
        model="Qwen/Qwen2.5-0.5B-Instruct", max_new_tokens=400, gradient_checkpointing=True, dtype="bfloat16",
    ),
    "qwen2.5-math-1.5b": _MATH,
    "qwen2.5-math-1.5b-lora": _MATH | dict(
        lora_rank=32, lora_alpha=64.0, lr=2e-5, prompts_per_step=64, mini_batch_prompts=16, micro_batch_tokens=8192, sampling_rows=192,
    ),
    "paper-7b": _MATH | dict(
        model="Qwen/Qwen2.5-7B", data="still-3-rl-90k", eval_data="aime24", steps=600, prompts_per_step=512,
        sampling_rounds=10, max_new_tokens=8192, overlong_buffer=1024, sampling_rows=256,
    ),
}  # fmt: skip
PRESET_MEMORY = {  # GiB, from rlvr.engine.estimate (a test compares): no torch here
    "smollm2-135m": 8, "qwen2.5-0.5b-gsm8k": 12, "qwen2.5-math-1.5b": 55, "qwen2.5-math-1.5b-lora": 17, "paper-7b": 218,
}  # fmt: skip
PRESET_HELP = {
    "tiny": "the built-in model on its stories; any CPU",
    "hf": "any other model, on GSM8K; memory as printed before it loads",
    "smollm2-135m": "135 M parameters on word problems of one or two steps; a CPU with {} GiB free",
    "qwen2.5-0.5b-gsm8k": "0.5 B parameters on GSM8K; {} GiB at most: one GPU of 16 to 24 GB",
    "qwen2.5-math-1.5b": "1.5 B parameters on MATH, all weights; {} GiB at most: one GPU of 80 GB",
    "qwen2.5-math-1.5b-lora": "the same, with a LoRA adapter of rank 32; {} GiB at most: one GPU of 24 GB",
    "paper-7b": "the settings of Deng et al. 2025, for the record: {} GiB, more than one GPU has",
}

# Settings that may differ when a run is resumed: the length of the run, and what cannot change its numbers (but rounding).
MAY_CHANGE = set(
    "steps save_every keep keep_every show_every log_completions device threads micro_batch_tokens sampling_rows cuda_graphs "
    "gradient_checkpointing lora_merge report_to push_to_hub".split()
)


def _flag_value(argv: list[str], flag: str) -> str | None:
    """The value of `--flag value` or `--flag=value`, before the real parse (which needs to know the preset)."""
    for i, word in enumerate(argv):
        if word == flag and i + 1 < len(argv):
            return argv[i + 1]
        if word.startswith(flag + "="):
            return word.split("=", 1)[1]
    return None


def _preset_for(model: str) -> str:
    """The preset when none is named: that of a run for its run folder, tiny for the built-in model, hf for any other."""
    for folder in (Path(model), Path(model).parent):  # a run folder, or the model in it
        try:
            path = folder / "config.json"
            preset = json.loads(path.read_text(encoding="utf-8"))["preset"] if path.is_file() else None
            if isinstance(preset, str):
                return preset
        except (OSError, ValueError, KeyError, TypeError, RecursionError):  # no run folder (a model's config.json names no preset)
            pass
    return "tiny" if model == "tiny" else "hf"


def parse_train(argv: list[str] | None = None) -> TrainConfig:
    """Command line -> checked settings. A preset, or the run that is resumed, gives the defaults; flags override. Raises SettingError."""
    argv = sys.argv[1:] if argv is None else argv
    folder = _flag_value(argv, "--resume")
    if folder is not None:
        config = _parse(
            TrainConfig, argv, "python train.py", default=dataclasses.replace(read_config(Path(folder)), resume=folder, reward="")
        )
    else:
        preset = _flag_value(argv, "--preset") or _preset_for(_flag_value(argv, "--model") or "tiny")
        if preset not in PRESETS:
            raise SettingError(f"There is no preset {preset!r}. Choose one of: {', '.join(PRESETS)}.")
        default = TrainConfig(**{"preset": preset} | PRESETS[preset])
        config = _parse(TrainConfig, argv, "python train.py", default=default, description=_about_presets())
    check_train(config)
    return config


def _about_presets() -> str:
    """What `train.py --help` says first: examples, and the presets with their memory."""
    lines = [f"{name:24}{text.format(PRESET_MEMORY.get(name))}" for name, text in PRESET_HELP.items()]
    heading = "Presets (--preset NAME; --preset NAME --help shows its settings):"
    return "\n\n".join([inspect.cleandoc(TrainConfig.__doc__), heading, *lines])


def parse_eval(argv: list[str] | None = None) -> EvalConfig:
    """Command line -> checked settings. Raises SettingError."""
    import tyro

    config = _parse(EvalConfig, argv, "python eval.py", config=(tyro.conf.PositionalRequiredArgs,))
    check_eval(config)
    return config


def parse_command(kind: type, program: str, argv: list[str] | None = None):
    """Command line -> a dataclass of another program, such as `python -m rlvr.analysis.report`. Raises SettingError."""
    import tyro

    return _parse(kind, argv, program, config=(tyro.conf.PositionalRequiredArgs,))


def run_program(work: Callable[[], object]) -> None:
    """Run a program of the command line: a mistake of the user is one line and exit code 2, Ctrl-C is exit code 130."""
    try:
        work()
    except KeyboardInterrupt:
        sys.exit(130)
    except SettingError as error:
        print(f"error: {error}", file=sys.stderr)
        sys.exit(error.exit_code)


def _parse(kind, argv: list[str] | None, program: str, **options):
    """tyro's parse, with its box of an error message made into our one line. `--help` prints and exits as usual."""
    import tyro

    box = io.StringIO()
    try:
        with contextlib.redirect_stderr(box):
            return tyro.cli(kind, args=argv, prog=program, **options)
    except SystemExit as end:
        if not end.code:
            raise
    lines = [line.strip("│ ") for line in box.getvalue().splitlines() if line.startswith("│")]
    sections = " ".join("─" if line.startswith("─") else line for line in lines).split("─")
    cause = " ".join(sections[0].split(" Got errors:")[0].split())[:200].rstrip(".")
    meant = re.search(r"Perhaps you meant:.*?(--[a-z-]+)", " ".join(sections))
    raise SettingError(f"{cause}. " + (f"Did you mean {meant[1]}? " if meant else "") + f"See {program} --help.")


def read_config(folder: Path) -> TrainConfig:
    """The settings that a run folder was made with. Raises SettingError for anything but what a run has written."""
    path = folder / "config.json"
    try:
        if not path.is_file():  # reading a pipe might never end
            raise FileNotFoundError
        saved = json.loads(path.read_text(encoding="utf-8"))
    except OSError:
        raise SettingError(f"{folder} is not a run folder (no readable config.json). Name one, as in --resume runs/pos-seed0.") from None
    except (ValueError, RecursionError):
        raise SettingError(f"{path} is damaged (not JSON). Put back the file that the run wrote.") from None
    fields = {f.name: f for f in dataclasses.fields(TrainConfig)}
    if not isinstance(saved, dict) or not {"preset", "method"} <= saved.keys():
        raise SettingError(f"{path} does not belong to a run. Name a run folder, as in --resume runs/pos-seed0.")
    if set(saved) != set(fields):
        wrong = sorted(set(saved) ^ set(fields))
        raise SettingError(f"{path} was written by another version (it differs in {', '.join(wrong)[:100]}). Resume with that version.")
    for name, value in saved.items():
        if not _has_type(fields[name], value):
            raise SettingError(f"{path} has {value!r} for {name}. Put back the file that the run wrote.")
    return TrainConfig(**saved)


def _has_type(field: dataclasses.Field, value) -> bool:
    """Whether a value of a TrainConfig is of the kind that the command line would give."""
    if get_origin(field.type) is Literal:
        return value in get_args(field.type)
    if field.name == "shape_start" and value == "plateau":
        return True
    kinds = {float: (float, int), bool: bool, int: int, str: str}[type(field.default)]
    return isinstance(value, kinds) and (kinds is bool or not isinstance(value, bool))


def _check_resumed(c: TrainConfig) -> None:
    """A run that is resumed keeps its settings, but for those of MAY_CHANGE. Raises SettingError."""
    saved = dataclasses.replace(read_config(Path(c.resume)), resume=c.resume)
    if saved.reward and not c.reward:  # a run folder may come from somebody else: no code is run because a file says so
        raise SettingError(f"{c.resume} was trained with a reward function of yours. Name it again: add --reward {saved.reward}")
    changed = [f.name for f in dataclasses.fields(c) if getattr(c, f.name) != getattr(saved, f.name)]
    if c.reward != saved.reward:
        own = f"Give the run's own, --reward {saved.reward}" if saved.reward else "Leave it out"
        raise SettingError(f"--reward cannot change in a run that is resumed. {own}, or start a new run with --model {c.resume}.")
    if fixed := [f"--{name.replace('_', '-')}" for name in changed if name not in MAY_CHANGE]:
        raise SettingError(
            f"{' and '.join(fixed)} cannot change in a run that is resumed. Leave it out, or start a new run from these weights with "
            f"--model {c.resume}."
        )


def _check_ranges(config, at_least: dict[int, str], positive: str = "") -> None:
    for low, names in at_least.items():
        for name in names.split():
            if not low <= getattr(config, name) < float("inf"):
                raise SettingError(f"--{name.replace('_', '-')} is {getattr(config, name)}. Choose {low} or more.")
    for name in positive.split():
        if not 0 < getattr(config, name) < float("inf"):
            raise SettingError(f"--{name.replace('_', '-')} is {getattr(config, name)}. Choose a positive number.")


def _check_values(config) -> None:
    """Numbers of a size that can be computed with, texts that can be encoded, and names that a file system takes."""
    for field in dataclasses.fields(config):
        value, flag = getattr(config, field.name), "The model" if field.name == "models" else f"--{field.name.replace('_', '-')}"
        if isinstance(value, (int, float)) and 10**15 <= abs(value) < float("inf"):
            raise SettingError(f"{flag} is out of all bounds. Choose a number of at most 15 digits.")
        for text in value if isinstance(value, list) else [value] if isinstance(value, str) else []:
            is_name = field.name not in ("instruction", "system", "template")
            if re.search("[\0-\x1f\x7f-\x9f\u2028\u2029\ud800-\udfff]" if is_name else "[\0\ud800-\udfff]", text):
                raise SettingError(f"{flag} {text[:40]!r} has characters that cannot be shown. Choose plain text.")
            if is_name and (len(text) > 1000 or max(len(part.encode()) for part in text.split("/")) > 200):
                raise SettingError(f"{flag} {text[:40] + '...'!r} is too long for a file name. Choose a shorter one.")
            if not text and field.name in ("model", "models", "data"):
                raise SettingError(f"{flag} is empty. Choose a name, or leave it out for the built-in one.")
    if config.template not in ("auto", "chat", "plain") and "{problem}" not in config.template:
        raise SettingError(f"--template is {config.template[:40]!r}. Choose auto, chat or plain, or write a text with {{problem}} in it.")
    if 0 < config.temperature < 0.01:  # divided by less, logits overflow
        raise SettingError(f"--temperature is {config.temperature}. Choose 0.01 or more.")
    if config.threads > 1024:
        raise SettingError(f"--threads is {config.threads}. Choose at most as many as there are processor cores.")


def check_size(completions: int, max_new_tokens: int, flags: str) -> None:
    """Refuse batches that no memory holds: sampling keeps about 20 bytes for every token that may come. Raises SettingError."""
    if completions * max_new_tokens > 2**31:
        raise SettingError(
            f"{flags} make {completions} completions of up to {max_new_tokens} tokens, too many for any memory. Choose fewer."
        )


def check_can_write(folder: Path, what: str) -> None:
    """Refuse a folder in which no file can be made, before any work is done for it. Raises SettingError."""
    there = folder
    while not os.path.lexists(there):  # what does not exist yet can be made if the nearest parent lets us; a dead link is there
        there = there.parent
    try:
        tempfile.TemporaryFile(dir=there).close()  # on Linux it never has a name
    except OSError as error:
        raise SettingError(f"Nothing can be written to {what}, {folder} ({error.strerror}). Choose another one.") from None


def _check_sampler(c) -> None:
    if c.sampler == "generate" and c.cuda_graphs:
        raise SettingError("--cuda-graphs has no effect with --sampler generate. Leave one of them out.")


def check_train(c: TrainConfig) -> None:
    """Refuse settings that cannot work, before anything is loaded. Raises SettingError."""
    for field in dataclasses.fields(c):  # the command line cannot get these wrong, Python can
        if not _has_type(field, value := getattr(c, field.name)):
            raise SettingError(f"--{field.name.replace('_', '-')} is {value!r}. Choose a value of the kind that --help shows.")
    if c.resume:
        _check_resumed(c)
    _check_values(c)
    if c.completions_per_prompt < 2:
        raise SettingError(
            f"--completions-per-prompt is {c.completions_per_prompt}, but the advantage compares the completions of one prompt. "
            "Choose 2 or more."
        )
    _check_ranges(
        c,
        {
            1: "steps prompts_per_step mini_batch_prompts micro_batch_tokens sampling_rounds max_new_tokens max_prompt_tokens "
            "sampling_rows eval_completions keep",
            0: "lora_rank save_every keep_every warmup_steps weight_decay overlong_buffer overlong_factor kl_coef entropy_coef ppl_alpha "
            "pos_alpha shape_stop "
            "eval_every final_eval_problems show_every log_completions threads seed",
        },
        positive="lr temperature max_grad_norm lora_alpha",
    )
    _check_sampler(c)
    if c.lora_merge and not c.lora_rank:
        raise SettingError("--lora-merge has nothing to merge without --lora-rank. Leave it out, or choose a rank, such as 32.")
    if c.push_to_hub and not re.fullmatch(r"[\w.-]+/[\w.-]+", c.push_to_hub):
        raise SettingError(f"--push-to-hub {c.push_to_hub!r} is no Hub id. Write it as your-name/my-model.")
    if c.data == "tiny" and (c.problem_column or c.answer_column):
        raise SettingError("The built-in problems have no columns. Leave out --problem-column and --answer-column, or name other --data.")
    if c.sampler == "generate" and c.old_logp == "sampler":
        raise SettingError("--sampler generate gives no log-probs for --old-logp sampler. Choose --old-logp auto.")
    if c.eval_every and c.final_eval_problems and c.eval_problems < 1:
        raise SettingError(
            f"--eval-problems is {c.eval_problems}. Choose 1 or more, or --eval-every 0 to evaluate only at the start and the end."
        )
    if not (0 <= c.clip_low < 1 and c.clip_high >= 0):
        raise SettingError(
            f"Clip values {c.clip_low} and {c.clip_high} leave no valid range for the ratio. "
            "Choose --clip-low from 0 to below 1, and --clip-high 0 or more."
        )
    if c.overlong_buffer > c.max_new_tokens:
        raise SettingError(
            f"--overlong-buffer {c.overlong_buffer} is longer than --max-new-tokens {c.max_new_tokens}. "
            "Choose a shorter buffer, or 0 for none."
        )
    if c.shape_start != "plateau":
        if not 1 <= c.shape_start:
            raise SettingError(f"--shape-start is {c.shape_start}, but steps count from 1. Choose 1 or more, or 'plateau'.")
        if c.shape_start > c.steps:
            raise SettingError(f"--shape-start {c.shape_start} comes after the last step, {c.steps}. Choose an earlier one.")
        if c.shape_stop and c.shape_stop < c.shape_start:
            raise SettingError(
                f"The window from --shape-start {c.shape_start} to --shape-stop {c.shape_stop} is empty. "
                "Choose a stop that is not before the start."
            )
    if c.name and (c.name != Path(c.name).name or c.name in (".", "..")):
        raise SettingError(
            f"--name {c.name!r} is not a plain folder name. Choose a name without slashes, and --out for the folder around it."
        )
    check_size(c.prompts_per_step * c.completions_per_prompt, c.max_new_tokens, "--prompts-per-step and --completions-per-prompt")
    check_size(c.final_eval_problems * c.eval_completions, c.max_new_tokens, "--final-eval-problems and --eval-completions")
    if c.eval_data and not c.final_eval_problems:
        raise SettingError("--eval-data names problems, but --final-eval-problems 0 evaluates none. Choose one of the two.")
    if not c.resume:
        check_can_write(Path(c.out, c.name), "the run folder")


def check_eval(c: EvalConfig) -> None:
    """The same for an evaluation. Raises SettingError."""
    if not c.models:
        raise SettingError("No model was named. Name one or more, as in: python eval.py tiny runs/pos-seed0")
    _check_values(c)
    _check_ranges(c, {1: "completions max_prompt_tokens sampling_rows", 0: "problems temperature max_new_tokens threads seed"})
    _check_sampler(c)
    if not 0 < c.top_p <= 1:
        raise SettingError(f"--top-p is {c.top_p}. Choose a number above 0 and at most 1.")
    check_size(max(c.problems, 1) * c.completions, max(c.max_new_tokens, 1), "--problems and --completions")


def resume_command(c: TrainConfig, folder: Path) -> str:
    """What to type to go on with a run."""
    return f"python train.py --resume {folder}" + (f" --reward {c.reward}" if c.reward else "")


def run_folder(c: TrainConfig) -> Path:
    """The folder of this run. A name the user chose must be free; without one, the first free of method-seed, method-seed-2, ..."""
    out = Path(c.out)
    if any(path.is_file() for path in (out, *out.parents)):
        raise SettingError(f"--out {out} is a file or lies in one. Choose a folder.")

    if c.name:
        if in_use(out / c.name):
            folder = out / c.name
            raise SettingError(f"The run folder {folder} is not empty. Choose another --name, or go on with it: --resume {folder}")
        return out / c.name
    return first_free(out / f"{c.method}-seed{c.seed}", in_use)


def in_use(path: Path) -> bool:
    """Whether a path is anything but free, an empty folder, or one whose run was killed before it wrote its settings."""
    return path.exists() and not (path.is_dir() and all(p.name == LOCK or p.suffix == ".part" for p in path.iterdir()))
