"""Every setting once: its default, its range and its help text. And the presets. No torch here, so that `--help` answers at once."""

import importlib.util
from collections.abc import Callable
from contextlib import contextmanager
from dataclasses import dataclass, field, fields, make_dataclass
from pathlib import Path
from typing import Literal

from rlvr.advantage import Strength
from rlvr.common.text import one_line, printable
from rlvr.methods import STRENGTHS

TINY_MODEL = Path(__file__).parent / "tiny" / "model"
BUILT_IN = {"tiny": TINY_MODEL, "tiny3": TINY_MODEL.parent / "model3"}  # tiny3: pre-trained for level 3 of the problems
GYM = "reasoning-gym:"  # --data reasoning-gym:NAME is a family of the package reasoning-gym
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


def refuse(wrong, message: str) -> None:
    """Raises SettingError with the message if something is wrong."""
    if wrong:
        raise SettingError(message)


def why(error: Exception) -> str:
    """What the system says of an error, or else what the error says itself."""
    return getattr(error, "strerror", None) or one_line(error)


@contextmanager
def as_sentence(cause: str, remedy: str, *kinds: type[Exception], reason: Callable = why, unless: Callable = lambda error: False):
    """Inside, an error of these kinds (none named: of any) becomes the SettingError "CAUSE (reason). REMEDY".

    What is a SettingError already stays as it is, and so does an error for which `unless` says yes.
    """
    try:
        yield
    except SettingError:
        raise
    except kinds or Exception as error:
        if unless(error):
            raise
        said = reason(error)
        raise SettingError(f"{cause} ({said}). {remedy}" if said else f"{cause}. {remedy}") from None


@contextmanager
def in_its_own_words(*kinds: type[Exception]):
    """Inside, an error of these kinds, which is a sentence for the user already, becomes a SettingError."""
    try:
        yield
    except kinds as error:
        raise SettingError(str(error)) from None


def need(package: str, what: str) -> None:
    """Raises SettingError unless the package that something needs is installed."""
    missing = importlib.util.find_spec(package.replace("-", "_")) is None
    refuse(missing, f"{what} needs the package {package}. Install it with: pip install {package}")


def flag(name: str) -> str:
    """A setting as the command line has it; eval.py's models are given without a flag."""
    return "The model" if name == "models" else f"--{name.replace('_', '-')}"


def base_of(level: int, model: str) -> str:
    """The model that is meant: at level 3 'tiny' is 'tiny3'."""
    return "tiny3" if model == "tiny" and level == 3 else model


def at_least(low: int, default, because: str = ""):
    """A field for numbers of `low` or more; `because` says why to whoever chose less."""
    return field(default=default, metadata={"at_least": low, "because": because})


def positive(default: float):
    """A field for numbers above 0."""
    return field(default=default, metadata={"positive": True})


# ---------------------------------------------------------------------------------------------------------------------------------------
# Settings in groups; each group is a heading of `--help`, and some are shared by training and evaluation.


@dataclass
class RunSettings:
    """What to train"""

    preset: str = "tiny"
    """A named set of defaults, listed above; any other flag overrides it. Without one: tiny; tiny3 with --level 3; hf with another
    --model."""
    model: str = "tiny"
    """'tiny' (built in; at --level 3 that is tiny3), a model folder, a run folder, or a Hub id. A folder with a LoRA adapter is merged into
    its base first."""
    method: str = "pos"
    """grpo (baseline), ppl (perplexity shaping), pos (position shaping); forks, entropy-adv, clip-cov, psr-nsr, dr-grpo (other papers');
    ppl-sham, pos-sham (controls); or several joined by +, as in ppl+pos."""
    name: str = ""
    """Name of the run folder; empty: method and seed, and a number if that is taken."""
    out: str = "runs"
    """Folder that holds the run folders."""


@dataclass
class ProblemSettings:
    """Problems"""

    data: str = "tiny"
    """'tiny' (built in); a short name (gsm8k, math, dapo-math-17k, still-3-rl-90k, svamp); a .jsonl, .json, .csv, .tsv or .parquet file,
    or several by a pattern in quotes, 'x/*.parquet'; a Hub id; or a family of the package reasoning-gym, as in reasoning-gym:leg_counting
    (see tutorials/reasoning_gym.md)."""
    data_config: tuple[str, ...] = ()
    """Settings of a family of reasoning-gym, as in --data-config max_animals=3 size=2000."""
    problem_column: str = ""
    """Where --data has the problem: a column, prompt.0.content for what is nested, Body+Question for two; empty: the usual names."""
    answer_column: str = ""
    """Where --data has the answer: answer, or reward_model.ground_truth for what is nested; empty: the usual names."""
    strict: bool = False
    """A row of --data that cannot be used is an error; else such rows are left out and counted."""
    level: Literal[1, 2, 3] = 1
    """Of the built-in problems. 1: 2 to 5 steps. 2: 4 to 7, where the built-in model has seen 2 to 5, so that learning takes longer. 3: 3
    to 7, and the question decides which number is wanted; with a built-in model and a preset of its own, both tiny3."""


@dataclass
class OptimiserSettings:
    """Length and optimiser"""

    steps: int = at_least(1, 100)
    """Steps. A step samples one batch of completions and makes one or more updates with it."""
    lr: float = positive(1e-3)
    """Peak learning rate of AdamW."""
    lr_schedule: Literal["constant", "linear"] = "linear"
    """After the warm-up: constant (the paper), or linear decay to a tenth of --lr (the tiny model needs it at levels 1
    and 2)."""
    warmup_steps: int = at_least(0, 5)
    """Steps over which the learning rate rises from 0 (paper: 10)."""
    weight_decay: float = at_least(0, 0.0)
    """AdamW weight decay (paper: 0.1)."""
    optimizer: Literal["adamw", "adamw8bit"] = "adamw"
    """adamw8bit keeps AdamW's two moments in 8 bits: 2 bytes for each weight instead of 8 (needs bitsandbytes)."""
    lora_rank: int = at_least(0, 0)
    """Train low-rank adapters of this rank on all linear layers instead of the weights themselves (needs peft); 0: train the weights. An
    adapter wants a learning rate ten times as high or more."""
    lora_alpha: float = positive(32.0)
    """The adapter's output is scaled by --lora-alpha / --lora-rank."""
    lora_merge: bool = False
    """Merge the adapter into the weights when the run ends: the run's model is then a whole one, with the adapter beside it."""
    max_grad_norm: float = positive(1.0)
    """Gradients with a larger norm are scaled down to it."""


@dataclass
class BatchSettings:
    """Batch"""

    prompts_per_step: int = at_least(1, 32)
    """Prompts (groups) in the batch of one step (paper: 512)."""
    completions_per_prompt: int = at_least(2, 8, because="the advantage compares the completions of one prompt")
    """Completions sampled for each prompt: the group (paper: 8)."""
    mini_batch_prompts: int = at_least(1, 16)
    """Prompts per optimiser update; smaller than --prompts-per-step means several updates on one batch (paper: 32)."""
    micro_batch_tokens: int = at_least(1, 4096)
    """Tokens that go through the model at once in an update; with the fast engine a prompt counts once for all its completions. Changes
    memory and speed, not the result (but rounding). Halved when memory runs out."""
    workers: int = at_least(0, 0)
    """Processes that share the work of a step on a CPU; the run says the same but for rounding. 0: as many as help. On GPUs: torchrun
    (tutorials/speed.md)."""
    filter_groups: bool = True
    """Drop groups that are all right or all wrong, whose advantage is zero (dynamic sampling)."""
    sampling_rounds: int = at_least(1, 2)
    """At most this many rounds of sampling to refill the batch after filtering; then the step uses what it has (paper: 5 to 10, then it
    stops)."""
    gradient_checkpointing: bool = False
    """Recompute activations in the backward pass: less memory, a third more time."""


@dataclass
class SamplingSettings:
    """Sampling"""

    max_new_tokens: int = at_least(1, 120)
    """Longest completion, in tokens (paper: 8192)."""
    temperature: float = positive(1.0)
    """Sampling temperature; log-probs and entropies are taken at the same one."""
    seed: int = at_least(0, 0)
    """Seeds all that is drawn: the tokens, and in training the order of the problems."""
    sampling_rows: int = at_least(1, 512)
    """Completions sampled side by side. Changes memory and speed, not the result (but rounding). Halved when memory runs out."""
    engine: Literal["fast", "plain"] = "fast"
    """fast: the decoder and packed attention, two to four times faster. plain: the definitions of rollout.py and policy.py, to read along
    with a debugger, and for models whose attention the fast engine cannot follow (it says so)."""
    cuda_graphs: bool = False
    """On a GPU: record a sampling step once and play it back, so that starting its kernels takes no time. Not yet tried on a GPU."""


@dataclass
class RewardSettings:
    """Reward"""

    reward: str = ""
    """A reward function of yours, as in my_rewards:short or my_rewards.py:short; it is imported, so its code runs. Empty: is the answer
    right? See tutorials/rewards.md."""
    overlong_buffer: int = at_least(0, 15)
    """Completions lose reward over this many tokens before --max-new-tokens; 0: no penalty (paper: 1024 of 8192)."""
    overlong_factor: float = at_least(0, 1.0)
    """Reward lost at --max-new-tokens."""


@dataclass
class ObjectiveSettings:
    """Objective"""

    clip_low: float = 0.2
    """The probability ratio is clipped below at 1 - clip_low."""
    clip_high: float = 0.28
    """The probability ratio is clipped above at 1 + clip_high ("clip-higher")."""
    kl_coef: float = at_least(0, 0.0)
    """Weight of a KL penalty against the starting model (paper: 0). Above 0 a frozen copy of the model is kept."""
    entropy_coef: float = at_least(0, 0.0)
    """Weight of an entropy bonus (paper: 0)."""
    old_logp: Literal["auto", "sampler", "recompute"] = "auto"
    """Where the old log-probs come from: the sampler, or a pass of the training forward over all completions. auto: the sampler in
    float32; in bfloat16 the first update's own, and a pass for those that later updates compare with."""
    learn_from: Literal["all", "positive", "negative"] = "all"
    """Which advantages the loss keeps: all, or only the positive (those of right answers, overlong ones aside) or the negative ones."""


@dataclass
class ShapingSettings:
    """Shaping"""

    # Each strength that a method of advantage.py declares is a field too: train_config() adds it.
    shape_start: int | Literal["plateau"] = 1
    """First step that is shaped, or 'plateau': from the step at which the entropy stops falling (released code, position: step 201)."""
    shape_stop: int = at_least(0, 0)
    """Last step that is shaped; 0: to the end (released code, position: step 299)."""


@dataclass
class PromptSettings:
    """Prompt"""

    instruction: str = INSTRUCTION
    """Put on a new line after each problem. The built-in model has never seen one: its template leaves it out."""
    system: str = ""
    """System message before each problem; empty: none (a chat template may bring its own)."""
    template: str = "auto"
    """chat: the model's chat template. plain: the text alone. auto: chat if the model has a template. Or a text of yours with {problem} in
    it, and {system} and {instruction} where you want them: the whole prompt, as in 'Problem: {problem} Solution:'."""
    template_args: str = ""
    """Arguments of the model's chat template, as in enable_thinking=False; several in quotes, as in 'enable_thinking=True budget=512'."""
    max_prompt_tokens: int = at_least(1, 128)
    """Problems with a longer prompt are left out, and counted (paper: 1024)."""


@dataclass
class SavingSettings:
    """Saving and resuming"""

    resume: str = ""
    """Continue this run folder from its newest checkpoint, as in --resume runs/pos-seed0, with the settings it was started with. --steps
    may be raised to train longer (a linear --lr-schedule then follows the new length); else only flags that cannot change the result
    (machine, saving, logging) may be given, and --model, --data and --eval-data if the same is in another place now."""
    branch: str = ""
    """Begin where another run was after a step, as in --branch runs/grpo-seed0@80: with its weights, its optimiser, and its settings but
    for the flags given. Steps count on from there; what is drawn follows --seed."""
    save_every: int = at_least(0, 1)
    """Steps between two checkpoints; 0: only at the end, and when a signal ends the run. A run that is killed loses the steps after the
    last one, and --resume makes them again, exactly."""
    keep: int = at_least(1, 2)
    """Checkpoints to keep: the newest ones. Each holds the weights in float32 and the optimiser's two numbers for each."""
    keep_every: int = at_least(0, 20)
    """Also keep every checkpoint whose step is a multiple of this, for python -m rlvr.analysis.probe to go back to; 0: none."""


@dataclass
class WatchingSettings:
    """Evaluation and logging"""

    eval_data: str = ""
    """Held-out problems to measure progress on, like --data; empty: the test split of --data if it has one, else no evaluation."""
    eval_every: int = at_least(0, 10)
    """Steps between two evaluations; 0: only at the start and the end."""
    eval_problems: int = 128
    """Problems of an evaluation during the run."""
    final_eval_problems: int = at_least(0, 400)
    """Problems of the evaluations at the start and at the end; 0: none at all."""
    eval_completions: int = at_least(1, 8)
    """Completions for each problem of an evaluation."""
    show_every: int = at_least(0, 20)
    """Steps between two printed samples; 0: none."""
    log_completions: int = at_least(0, 16)
    """Completions written to rollouts.jsonl in each step."""
    report_to: Literal["none", "tensorboard", "wandb", "trackio"] = "none"
    """Send every number of metrics.csv to a tracker too (needs its package). TensorBoard's files go into the run folder."""
    push_to_hub: str = ""
    """Upload the finished model with its card to this Hub id, as in your-name/my-model (a private one if it is new)."""


@dataclass
class MachineSettings:
    """Machine"""

    device: Literal["auto", "cpu", "cuda", "mps"] = "cpu"
    """auto: cuda if there is one, else mps, else cpu; the default for any model but the built-in one, which trains fastest on the cpu."""
    dtype: Literal["auto", "float32", "bfloat16"] = "auto"
    """Precision of the forward and backward pass; bfloat16 keeps float32 master weights. auto: bfloat16 on cuda, else float32; but on a CPU
    train.py measures which is faster for a model of 50 M parameters or more, says so, and keeps to it in this run."""
    threads: int = at_least(0, 0)
    """CPU threads, of all workers together; 0: torch's own choice."""


# ---------------------------------------------------------------------------------------------------------------------------------------
# The settings of the two programs. The last base class comes first among the fields and in `--help`.


@dataclass
class TrainConfig(
    MachineSettings, WatchingSettings, SavingSettings, PromptSettings, ShapingSettings, ObjectiveSettings, RewardSettings, SamplingSettings,
    BatchSettings, OptimiserSettings, ProblemSettings, RunSettings,
):  # fmt: skip
    """GRPO on one device. Without --model it trains the built-in model on the built-in stories: minutes on a laptop CPU, no download.

    python train.py --method pos  -- a first run

    python train.py --method grpo  -- the baseline

    python train.py --method grpo --level 3  -- problems that leave something to learn on the plateau

    python train.py --preset qwen2.5-0.5b-gsm8k  -- a real model on one GPU

    python train.py --model path/to/model --data my_problems.jsonl  -- your own model and problems
    """

    def __post_init__(self):
        self.model = base_of(self.level, self.model)

    def method_at(self, step: int, plateau: int | None) -> str:
        """The method of a step: grpo outside the window from shape_start to shape_stop. plateau: the step at which it began, if it has."""
        start = (plateau or float("inf")) if self.shape_start == "plateau" else self.shape_start
        return self.method if start <= step <= (self.shape_stop or float("inf")) else "grpo"


def train_config() -> type[TrainConfig]:
    """TrainConfig with a field for every strength declared so far. After a declaration in a notebook: TrainConfig = train_config()

    The class stays the same while nothing new is declared. Raises ValueError for a strength with the name of another setting.
    """
    global TrainConfig
    known = {f.name: f.metadata.get("strength") for f in fields(TrainConfig)}
    new = [(name, strength) for name, strength in STRENGTHS.items() if known.get(name) != strength]
    if taken := [name for name, _ in new if name in known and not known[name]]:
        raise ValueError(f"{taken[0]} is the name of another setting. Give the strength another name, such as mine_{taken[0]}.")
    if new:
        namespace = {"__doc__": TrainConfig.__doc__, "__module__": __name__}
        members = [_strength_field(name, strength) for name, strength in new]
        TrainConfig = make_dataclass("TrainConfig", members, bases=(TrainConfig,), namespace=namespace)
    return TrainConfig


def _strength_field(name: str, strength: Strength):
    """What make_dataclass wants to know of a strength. A number is 0 or more."""
    kind = Literal[strength.choices] if strength.choices else type(strength.default)
    limits = at_least(0, strength.default).metadata if kind in (int, float) else {}
    return name, kind, field(default=strength.default, metadata={"strength": strength, **limits})


train_config()


@dataclass
class EvalConfig(MachineSettings, PromptSettings, SamplingSettings, ProblemSettings):
    """Acc@N, Maj@N and Pass@k of one or more models on one set of problems, side by side.

    python eval.py tiny runs/pos-seed0  -- the built-in model and a run

    python eval.py Qwen/Qwen2.5-Math-1.5B --data aime24,aime25,amc,math500,minerva --max-new-tokens 2048  -- the paper's table
    """

    models: list[str] = field(kw_only=True)
    """Run folders, model folders, Hub ids, or 'tiny' (the built-in model; at --level 3 that is tiny3)."""
    data: str = "tiny"
    """'tiny' (built-in test problems), a short name (gsm8k, math, math500, aime24, aime25, amc, amc23, minerva, olympiadbench, svamp), a
    file, a Hub id or a family, as in reasoning-gym:leg_counting; or several of them joined by commas."""
    problems: int = at_least(0, 0)
    """At most this many problems, the first ones; 0: 400 of the built-in ones, all of any other set."""
    completions: int = at_least(1, 8)
    """N, completions for each problem (paper: 8)."""
    max_new_tokens: int = at_least(0, 0)
    """Longest completion, in tokens; 0: 120 for the built-in problems, 1024 for others."""
    temperature: float = at_least(0, 0.6)
    """Sampling temperature (paper: 0.6; 0: greedy)."""
    top_p: float = 0.95
    """Nucleus sampling (paper: 0.95; 1: off)."""
    max_prompt_tokens: int = at_least(1, 1024)
    out: str = ""
    """The JSON file to write; empty: runs/eval-<data>.json."""
    device: Literal["auto", "cpu", "cuda", "mps"] = "auto"

    def __post_init__(self):
        self.models = [base_of(self.level, model) for model in self.models]


# ---------------------------------------------------------------------------------------------------------------------------------------
# Presets

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
    "tiny3": dict(model="tiny3", level=3, lr=3e-4, lr_schedule="constant", sampling_rounds=1, steps=200),
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
PRESET_HELP = {  # the GiB are those of rlvr.engine.estimate (a test compares), which needs torch
    "tiny": "the built-in model on its stories; any CPU",
    "tiny3": "the same at --level 3, with a base model of its own; any CPU",
    "hf": "any other model, on GSM8K; memory as printed before it loads",
    "smollm2-135m": "135 M parameters on word problems of one or two steps; a CPU with 8 GiB free",
    "qwen2.5-0.5b-gsm8k": "0.5 B parameters on GSM8K; 12 GiB at most: one GPU of 16 to 24 GB",
    "qwen2.5-math-1.5b": "1.5 B parameters on MATH, all weights; 55 GiB at most: one GPU of 80 GB",
    "qwen2.5-math-1.5b-lora": "the same, with a LoRA adapter of rank 32; 17 GiB at most: one GPU of 24 GB",
    "paper-7b": "the settings of Deng et al. 2025, for the record: 218 GiB, more than one GPU has",
}
