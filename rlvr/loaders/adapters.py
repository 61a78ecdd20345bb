"""LoRA: train two thin matrices beside each linear layer instead of the layer itself, through peft (Hu et al. 2021).

The adapter goes into the model in place. For the sampler, the scorer and the optimiser it is still a transformers model; only some of its
weights are trained.
"""

import json
import os
import warnings
from contextlib import contextmanager, suppress
from pathlib import Path

import torch
from safetensors.torch import save_file

from rlvr.config import BUILT_IN, as_sentence, need, refuse

CONFIG_FILE = "adapter_config.json"


def is_adapter(folder: str | Path) -> bool:
    """Whether a folder holds an adapter in peft's format instead of a whole model."""
    return os.path.isfile(os.path.join(folder, CONFIG_FILE))


def add_lora(model, rank: int, alpha: float, seed: int, base: str) -> None:
    """Put an adapter on every linear layer but the output layer, and freeze all other weights: y = Wx + (alpha / rank) B A x.

    B begins at 0, so the model's log-probs do not change; A is drawn from `seed`. base: the model that the adapter's file will name as
    the one it belongs to. Raises SettingError without peft.
    """
    need("peft", "LoRA")
    from peft import LoraConfig, inject_adapter_in_model

    base = os.path.abspath(base) if os.path.isdir(base) and base not in BUILT_IN else base
    # "all-linear" leaves out the output layer, which is also the embedding in a model with tied weights.
    usual = dict(lora_dropout=0.0, bias="none", task_type="CAUSAL_LM")
    settings = LoraConfig(r=rank, lora_alpha=alpha, target_modules="all-linear", base_model_name_or_path=base, **usual)
    # peft has no layers for some architectures.
    said = as_sentence("No adapter can be put into this model", "Leave out --lora-rank, or choose another model.")
    with said, torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        inject_adapter_in_model(settings, model)  # it freezes the other weights
    model.rlvr_lora = settings
    for p in model.parameters():
        if p.requires_grad:
            p.data = p.data.to(model.device, model.dtype)  # MasterWeights keeps float32 copies of them, as of all trained weights


@contextmanager
def without_lora(model):
    """Inside `with`, the model computes as if it had no adapter."""
    from peft.tuners.tuners_utils import BaseTunerLayer

    layers = [module for module in model.modules() if isinstance(module, BaseTunerLayer)]
    for layer in layers:
        layer.enable_adapters(False)
    try:
        yield model
    finally:
        for layer in layers:
            layer.enable_adapters(True)


def save_lora(model, folder: Path) -> None:
    """Write a model's adapter in peft's format: adapter_config.json and adapter_model.safetensors."""
    from peft import get_peft_model_state_dict

    found = get_peft_model_state_dict(model, save_embedding_layers=False)  # True would ask the Hub whether the vocabulary has grown
    model.rlvr_lora.save_pretrained(str(folder))
    weights = {f"base_model.model.{name}": x.contiguous() for name, x in found.items()}
    save_file(weights, folder / "adapter_model.safetensors", metadata={"format": "pt"})


def json_object(file: Path, whole: str = "model folder") -> dict | None:
    """The JSON object in a file of a model or adapter; None if no such file exists. Raises SettingError if it is damaged."""
    if not file.is_file():
        return None
    content = None
    with suppress(OSError, ValueError, RecursionError):
        content = json.loads(file.read_text(encoding="utf-8"))
    refuse(not isinstance(content, dict), f"The file {file} cannot be read as a JSON object. Copy the {whole} again, or name another.")
    return content


def check_adapter(folder: Path) -> dict:
    """The settings in an adapter folder, which may come from somebody else. Raises SettingError for anything but plain LoRA."""
    settings = json_object(folder / CONFIG_FILE, "adapter") or {}
    other = settings.get("peft_type") != "LORA" or settings.get("megatron_config")  # peft may import the module it names
    refuse(other, f"The adapter {folder} is not plain LoRA. Merge it into its base where it was made, and name the whole model.")
    weights = "adapter_model.safetensors"  # without it peft would open a pickle
    refuse(not (folder / weights).is_file(), f"The adapter {folder} has no weights in {weights}. Save them so: model.save_pretrained(...).")
    return settings


def merged(model, folder: str | Path):
    """A base model with the adapter of `folder` added to its weights: a plain model again."""
    need("peft", "LoRA")
    from peft import PeftModel

    warnings.filterwarnings("ignore", ".is_gradient_checkpointing. is deprecated", FutureWarning)  # peft asks transformers for it
    return PeftModel.from_pretrained(model, str(folder), use_safetensors=True).merge_and_unload()
