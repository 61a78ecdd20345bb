"""Data sets of the Hugging Face Hub: the short names of --data, and how their rows are fetched."""

from dataclasses import dataclass

from rlvr.common.text import one_line
from rlvr.config import SettingError


@dataclass(frozen=True)
class HubSet:
    """A published set: its address, its splits to train and to evaluate on (None: it has none), and its columns (empty: the usual names).

    `around`: a pattern whose first group is the problem, for a column that holds more than the problem.
    """

    hub_id: str
    train: str | None = "train"
    test: str | None = "test"
    problem: str = ""
    answer: str = ""
    configuration: str | None = None
    around: str = ""


HUB = {
    "gsm8k": HubSet("openai/gsm8k", "train", "test", "question", "answer", "main"),
    "svamp": HubSet("ChilleD/SVAMP", "train", "test", "Body+Question", "Answer"),
    "math": HubSet("DigitalLearningGmbH/MATH-lighteval", "train", "test", "problem", "solution", "default"),
    "dapo-math-17k": HubSet("open-r1/DAPO-Math-17k-Processed", "train", None, "prompt", "solution", "en"),
    "still-3-rl-90k": HubSet(  # it puts the problem into a conversation with instructions of its own
        "RUC-AIBOX/STILL-3-RL-90K", "train", None, "prompt.0.content", "reward_model.ground_truth",
        around=r".*?\nUser:\s*(.*?)\s*\nAssistant:.*"),
    "math500": HubSet("HuggingFaceH4/MATH-500", None, "test", "problem", "answer"),
    "aime24": HubSet("HuggingFaceH4/aime_2024", None, "train", "problem", "answer"),
    "aime25": HubSet("math-ai/aime25", None, "test", "problem", "answer"),
    "amc": HubSet("AI-MO/aimo-validation-amc", None, "train", "problem", "answer"),
    "amc23": HubSet("math-ai/amc23", None, "test", "question", "answer"),
    "minerva": HubSet("math-ai/minervamath", None, "test", "question", "answer"),
    "olympiadbench": HubSet("math-ai/olympiadbench", None, "test", "question", "final_answer"),
}  # fmt: skip


def read_hub(known: HubSet, name: str, split: str) -> list[dict]:
    """Rows of a Hub data set, through `datasets`. split: "train" or "test". Raises SettingError."""
    import datasets
    from huggingface_hub.utils import logging

    logging.set_verbosity_error()  # without a network: our one sentence, not a page of retries before it
    chosen = known.train if split == "train" else known.test
    if chosen is None and split == "train":
        raise SettingError(f"{name} is an evaluation set and is not trained on. Choose other --data, and name this one with --eval-data.")
    if chosen is None:
        raise SettingError(f"{name} is a training set without held-out problems. Choose another set, such as math500 or gsm8k.")
    try:
        return datasets.load_dataset(known.hub_id, known.configuration, split=chosen).to_list()
    except Exception as error:  # the Hub client raises many kinds: no network, no such set, no such split, gated
        cause = f"The data set {known.hub_id!r} ({chosen} split) cannot be loaded ({one_line(error)})"
        raise SettingError(f"{cause}. Check the name and the network, or name a file.") from None
