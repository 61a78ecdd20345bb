"""Runs of TRL on completions that are fixed, so that two of them can be compared. test_trl.py uses it, and torchrun starts it:

    torchrun --nproc_per_node 2 tests/trl_run.py FOLDER ROWS METHOD ACCUMULATION
"""

import os
import sys
import zlib
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1]))
os.environ["TRL_EXPERIMENTAL_SILENCE"] = "1"

import torch
from datasets import Dataset
from transformers import AutoModelForCausalLM, AutoTokenizer
from trl import GRPOConfig, GRPOTrainer

from rlvr.adapters.trl import ShapedGRPOTrainer, right_or_wrong
from rlvr.config import TINY_MODEL
from rlvr.data import load_problems

G = 8
RANK, WORLD = int(os.environ.get("RANK", 0)), int(os.environ.get("WORLD_SIZE", 1))


def fixed_completions(prompts, trainer) -> dict:
    """Completions of 4 to 24 tokens, the same whatever process makes them."""
    tokenizer, out = trainer.processing_class, {"prompt_ids": [], "completion_ids": [], "logprobs": None}
    for i, text in enumerate(prompts):
        draw = torch.Generator().manual_seed(zlib.crc32(text.encode()) % 10**6 * 100 + (RANK * len(prompts) + i) % G)
        length = int(torch.randint(3, 24, (1,), generator=draw))
        out["prompt_ids"].append(tokenizer(text).input_ids)
        out["completion_ids"].append(torch.randint(2, 700, (length,), generator=draw).tolist() + [tokenizer.eos_token_id])
    return out


def even_or_odd(completion_ids, **_) -> list[float]:
    return [1.0 if sum(ids) % 2 else -1.0 for ids in completion_ids]


def make_trainer(folder, kind=ShapedGRPOTrainer, rows: int = 16, steps: int = 3, fixed: bool = True, settings: dict | None = None, **config):
    """kind: the trainer. settings: its own (method, strengths, ...). config: of GRPOConfig. rows: of all processes, per micro-batch."""
    tokenizer = AutoTokenizer.from_pretrained(TINY_MODEL, padding_side="left")
    problems = load_problems("tiny", "train", limit=400)
    data = Dataset.from_dict({"prompt": [p.problem + "\n" for p in problems], "answer": [p.answer for p in problems]})
    usual = dict(
        output_dir=str(folder), use_cpu=True, bf16=False, report_to="none", save_strategy="no", disable_tqdm=True, max_steps=steps,
        learning_rate=1e-4, lr_scheduler_type="constant", per_device_train_batch_size=rows // WORLD, gradient_accumulation_steps=2,
        num_generations=G, max_completion_length=64, gradient_checkpointing=False, dataloader_pin_memory=False, seed=0, logging_steps=1,
        loss_type="dapo",
    )  # fmt: skip
    return kind(
        AutoModelForCausalLM.from_pretrained(TINY_MODEL, dtype=torch.float32), even_or_odd if fixed else right_or_wrong,
        args=GRPOConfig(**usual | config), train_dataset=data, eval_dataset=data.select(range(4)), processing_class=tokenizer,
        **{"rollout_func": fixed_completions} if fixed else {}, **settings or {},
    )  # fmt: skip


def weights(trainer) -> dict[str, torch.Tensor]:
    return {name: value.detach().clone() for name, value in trainer.accelerator.unwrap_model(trainer.model).state_dict().items()}


def trained(*args, **kwargs) -> dict[str, torch.Tensor]:
    trainer = make_trainer(*args, **kwargs)
    trainer.train()
    return weights(trainer)


class Recorded(ShapedGRPOTrainer):
    """Keeps what goes into the loss."""

    def __init__(self, *args, **kwargs):
        self.batches, self.made, self.passes = [], [], 0
        super().__init__(*args, **kwargs)

    def _generate_and_score_completions(self, inputs):
        out = super()._generate_and_score_completions(inputs)
        self.made.append({name: value.clone() for name, value in out.items() if isinstance(value, torch.Tensor)})
        return out

    def _get_per_token_logps_and_entropies(self, *args, **kwargs):
        self.passes += 1
        return super()._get_per_token_logps_and_entropies(*args, **kwargs)

    def _compute_loss(self, model, inputs):
        self.batches.append(dict(inputs))
        return super()._compute_loss(model, inputs)


if __name__ == "__main__":
    torch.set_num_threads(1)
    out, rows, method, accumulation = Path(sys.argv[1]), int(sys.argv[2]), sys.argv[3], int(sys.argv[4])
    shaping = {"method": method, "strengths": {"ppl_alpha": 0.05, "forks_share": 0.5}}
    run = make_trainer(out, Recorded, rows // accumulation, gradient_accumulation_steps=accumulation, settings=shaping)
    run.train()
    logs = [row for row in run.state.log_history if "loss" in row]
    shaped = [batch["advantages"] for batch in run.made]
    torch.save({"weights": weights(run), "shaped": shaped, "logs": logs}, out / f"{WORLD}-{RANK}.pt")
