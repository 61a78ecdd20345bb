"""The two sides of a comparison: our step and that of TRL's GRPOTrainer, on the same model, problems and settings, each in a process of
its own that waits between steps. Used by side_by_side.py and time_to_accuracy.py."""

import dataclasses
import multiprocessing
import sys
import tempfile
import time
from collections import defaultdict
from collections.abc import Callable
from contextlib import contextmanager
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[2]))


@dataclasses.dataclass
class Work:
    """What both sides do. One step: `prompts` x `completions`, sampled once, then prompts / mini_batch updates."""

    model: str = "tiny"
    data: str = "tiny"
    prompts: int = 64
    completions: int = 8
    mini_batch: int = 64
    max_new_tokens: int = 120
    max_prompt_tokens: int = 512
    dtype: str = "float32"
    threads: int = 1
    seed: int = 0
    reward: str = "answer"  # is it right? or turns: every other completion is, so that no group is all right or all wrong
    lr: float = 1e-5
    linear_lr: bool = False  # as in the quick start: warm-up over 5 steps, then linear to a tenth over `steps`
    steps: int = 1000
    filter_groups: bool = False
    overlong_buffer: int = 0
    micro_batch_tokens: int = 4096
    trl_rows: int = 64  # micro-batch of TRL, in rows
    trl_continuous: bool = False  # TRL samples with transformers' continuous batching instead of generate
    device: str = "cpu"
    checkpointing: bool = False  # gradient checkpointing, both sides
    cuda_graphs: bool = False  # ours
    attention: str = "blocks"  # ours, in the update: see on_gpu/attention.py

    @property
    def updates(self) -> int:
        return self.prompts // self.mini_batch


class Meter:
    """Wall and CPU seconds by part, and the highest memory, since the last reset."""

    def __init__(self):
        self.reset()

    def reset(self) -> None:
        self.seconds, self.cpu = defaultdict(float), defaultdict(float)
        try:
            Path("/proc/self/clear_refs").write_text("5")  # the kernel's high-water mark starts anew
        except OSError:
            pass
        self.started = time.perf_counter(), time.process_time()

    @contextmanager
    def part(self, name: str):
        _wait()
        wall, cpu = time.perf_counter(), time.process_time()
        yield
        _wait()
        self.seconds[name] += time.perf_counter() - wall
        self.cpu[name] += time.process_time() - cpu

    def read(self, tokens: int) -> dict[str, float]:
        _wait()
        wall, cpu = time.perf_counter() - self.started[0], time.process_time() - self.started[1]
        row = {"seconds": wall, "cpu": cpu, "tokens": tokens, "tokens_per_second": tokens / wall}
        for name in ("sampling", "scoring", "update"):
            row[f"{name}_seconds"], row[f"{name}_cpu"] = self.seconds[name], self.cpu[name]
        status = Path("/proc/self/status")
        peak = next((line for line in status.read_text().splitlines() if line.startswith("VmHWM")), "") if status.exists() else ""
        return row | {"peak_mib": _gpu_peak() or (int(peak.split()[1]) / 1024 if peak else float("nan"))}


def _wait() -> None:
    """For the GPU, whose work goes on after Python has asked for it."""
    import torch

    if torch.cuda.is_initialized():
        torch.cuda.synchronize()


def _gpu_peak() -> float:
    """MiB since the last call; 0 without a GPU."""
    import torch

    if not torch.cuda.is_initialized():
        return 0.0
    peak = torch.cuda.max_memory_allocated() / 2**20
    torch.cuda.reset_peak_memory_stats()
    return peak


def prepare(work: Work):
    """Problems, their prompts, and a reward function, the same for both sides."""
    import torch

    from rlvr.data import encode_prompts, load_problems
    from rlvr.policy import load_policy
    from rlvr.reward import verify_all

    torch.set_num_threads(work.threads)
    policy = load_policy(work.model, work.device, work.dtype, cuda_graphs=work.cuda_graphs)
    problems = load_problems(work.data, "train", seed=work.seed)
    problems, prompts, _ = encode_prompts(policy.tokenizer, problems, "", work.max_prompt_tokens)

    def reward(completions, answers):
        if work.reward == "turns":
            return [1.0 if i % 2 else -1.0 for i in range(len(completions))]
        return [1.0 if right else -1.0 for right in verify_all(completions, answers)]

    return policy, problems, prompts, reward


def ours(pipe, work: Work, after_step: Callable | None = None) -> None:
    from rlvr.config import TrainConfig
    from rlvr.train import Trainer

    policy, problems, prompts, reward = prepare(work)
    config = TrainConfig(
        model=work.model, data=work.data, method="grpo", seed=work.seed, steps=work.steps, lr=work.lr, warmup_steps=5 if work.linear_lr else 0,
        lr_schedule="linear" if work.linear_lr else "constant", prompts_per_step=work.prompts, completions_per_prompt=work.completions,
        mini_batch_prompts=work.mini_batch, micro_batch_tokens=work.micro_batch_tokens, filter_groups=work.filter_groups,
        sampling_rounds=2 if work.filter_groups else 1, max_new_tokens=work.max_new_tokens, overlong_buffer=work.overlong_buffer,
        dtype=work.dtype, threads=work.threads, device=work.device, gradient_checkpointing=work.checkpointing,
        cuda_graphs=work.cuda_graphs, sampling_rows=work.prompts * work.completions,
    )  # fmt: skip
    if work.attention != "blocks":
        from on_gpu.attention import WAYS

        from rlvr.engine import scorer

        scorer.Packed = WAYS[work.attention]
    meter = Meter()

    trainer = Trainer(config, policy, problems, prompts, reward)

    def measured(part: str, work: Callable) -> Callable:
        def run(*args):
            with meter.part(part):
                return work(*args)

        return run

    policy.sample, policy.score = measured("sampling", policy.sample), measured("scoring", policy.score)
    trainer.update = measured("update", trainer.update)

    def step() -> dict:
        meter.reset()
        return meter.read(int(trainer.step().rollouts.lengths.sum()))

    serve(pipe, step, lambda: after_step(policy))


def serve(pipe, step: Callable[[], dict], measure: Callable) -> None:
    pipe.send("ready")
    while True:  # until the process is killed
        pipe.send(step() if pipe.recv() == "step" else measure())


def trl(pipe, work: Work, after_step: Callable | None = None) -> None:
    import torch
    from datasets import Dataset
    from transformers import AutoModelForCausalLM, TrainerCallback
    from transformers.utils import logging
    from trl import GRPOConfig, GRPOTrainer

    from rlvr.loaders.models import resolve_model
    from rlvr.policy import load_policy
    from rlvr.reward import overlong_penalty

    logging.set_verbosity_error()
    policy, problems, prompts, reward = prepare(work)
    tokenizer = policy.tokenizer
    del policy  # TRL gets a model of its own below
    texts = [tokenizer.decode(ids) for ids in prompts]
    for text, ids in zip(texts[:100], prompts):
        assert tokenizer(text).input_ids == ids, "TRL would see another prompt"
    tokenizer.padding_side = "left"
    if tokenizer.pad_token_id is None:
        tokenizer.pad_token = tokenizer.eos_token
    # Continuous batching fails under autocast, whose wrapper does not know what its forward returns. So there the weights are bfloat16.
    autocast = work.dtype == "bfloat16" and not work.trl_continuous
    dtype = torch.bfloat16 if work.dtype == "bfloat16" and work.trl_continuous else torch.float32
    model = AutoModelForCausalLM.from_pretrained(resolve_model(work.model), dtype=dtype)
    optimizer = torch.optim.AdamW(model.parameters(), lr=work.lr, weight_decay=0.0)

    def rate(update: int) -> float:
        step = update // work.updates + 1
        if not work.linear_lr:
            return 1.0
        return step / 6 if step <= 5 else 1 - 0.9 * (step - 5) / (work.steps - 5)

    rows = work.prompts * work.completions
    accumulate = max(1, rows // work.updates // work.trl_rows)
    meter, tokens = Meter(), 0

    def reward_of_trl(completions, completion_ids, answer, **_):
        lengths = torch.tensor([len(ids) for ids in completion_ids])
        rewards = torch.tensor(reward(completions, answer))
        return (rewards + overlong_penalty(lengths, work.max_new_tokens, work.overlong_buffer, 1.0)).tolist()

    class Measured(GRPOTrainer):
        def _generate_single_turn(self, *args, **kwargs):
            with meter.part("sampling"):
                return super()._generate_single_turn(*args, **kwargs)

        def _calculate_rewards(self, *args, **kwargs):
            with meter.part("reward"):
                return super()._calculate_rewards(*args, **kwargs)

        def _generate_and_score_completions(self, *args, **kwargs):
            nonlocal tokens
            with meter.part("all but update"):
                out = super()._generate_and_score_completions(*args, **kwargs)
            tokens = int(out["completion_mask"].sum())
            return out

    class Pause(TrainerCallback):
        """Wait for the other side before every step."""

        def on_step_begin(self, args, state, control, **_):
            if state.global_step % work.updates:
                return
            while pipe.recv() != "step":
                twin = load_policy(work.model)  # a copy would still call TRL's model: accelerate has wrapped its forward
                twin.model.load_state_dict(model.state_dict())
                pipe.send(after_step(twin))
            meter.reset()

        def on_step_end(self, args, state, control, **_):
            if state.global_step % work.updates:
                return
            row = meter.read(tokens)
            for kind, parts in (("seconds", meter.seconds), ("cpu", meter.cpu)):
                row[f"update_{kind}"] = row[kind] - parts["all but update"]
                row[f"scoring_{kind}"] = parts["all but update"] - parts["sampling"] - parts["reward"]
            pipe.send(row)

    with tempfile.TemporaryDirectory() as folder:
        config = GRPOConfig(
            output_dir=folder, use_cpu=work.device == "cpu", bf16=autocast, fp16=False, report_to="none", logging_strategy="no", seed=work.seed,
            save_strategy="no", disable_tqdm=True, max_steps=work.steps * work.updates, max_grad_norm=1.0, learning_rate=work.lr,
            per_device_train_batch_size=rows // work.updates // accumulate, gradient_accumulation_steps=accumulate,
            steps_per_generation=accumulate * work.updates, num_generations=work.completions, max_completion_length=work.max_new_tokens,
            temperature=1.0, beta=0.0, epsilon=0.2, epsilon_high=0.28, gradient_checkpointing=work.checkpointing,
            use_transformers_continuous_batching=work.trl_continuous,
        )  # fmt: skip
        data = Dataset.from_dict({"prompt": texts, "answer": [p.answer for p in problems]})
        schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, rate)
        trainer = Measured(
            model=model, reward_funcs=reward_of_trl, args=config, train_dataset=data, processing_class=tokenizer, callbacks=[Pause()],
            optimizers=(optimizer, schedule),
        )  # fmt: skip
        pipe.send("ready")
        trainer.train()


class Side:
    """A side in a process of its own."""

    def __init__(self, run: Callable, work: Work, after_step: Callable | None = None):
        context = multiprocessing.get_context("spawn")
        self.pipe, theirs = context.Pipe()
        self.process = context.Process(target=run, args=(theirs, work, after_step), daemon=True)
        self.process.start()
        theirs.close()
        self.pipe.recv()

    def step(self) -> dict[str, float]:
        self.pipe.send("step")
        return self.pipe.recv()

    def measure(self):
        self.pipe.send("measure")
        return self.pipe.recv()

    def kill(self) -> None:
        self.process.terminate()
        self.process.join()
