"""ppl+pos inside TRL, on the built-in model and its stories: a minute on a CPU. beyond_one_gpu.md says what to change on many GPUs.

    pip install 'trl>=1.16,<2' && python tutorials/with_trl.py
"""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1]))  # the folder that holds rlvr

from rlvr.adapters.trl import ShapedGRPOTrainer, right_or_wrong  # first: it says so if TRL is missing
from rlvr.config import TINY_MODEL
from rlvr.data import load_problems

from datasets import Dataset
from transformers import AutoModelForCausalLM, AutoTokenizer
from trl import GRPOConfig


def main(out: str = "runs/trl", steps: int = 30):
    problems = load_problems("tiny", "train", limit=4000)
    config = GRPOConfig(
        output_dir=out, max_steps=steps, learning_rate=1e-3, warmup_steps=5, per_device_train_batch_size=64, num_generations=8,
        max_completion_length=120, epsilon=0.2, epsilon_high=0.28, beta=0.0, gradient_checkpointing=False, bf16=False, logging_steps=1,
        save_strategy="no", report_to="none",
    )  # fmt: skip
    trainer = ShapedGRPOTrainer(
        AutoModelForCausalLM.from_pretrained(TINY_MODEL, dtype="float32", trust_remote_code=False, use_safetensors=True),
        right_or_wrong, args=config,
        train_dataset=Dataset.from_list([{"prompt": [{"role": "user", "content": p.problem}], "answer": p.answer} for p in problems]),
        processing_class=AutoTokenizer.from_pretrained(TINY_MODEL, padding_side="left", trust_remote_code=False),
        method="ppl+pos", strengths={"ppl_alpha": 0.2, "pos_alpha": 0.1},
    )  # fmt: skip
    trainer.train()
    return trainer


if __name__ == "__main__":
    main()
