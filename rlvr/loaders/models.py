"""Model folders, run folders and Hub ids: which model a name means, whether it can be trusted, and loading it. Nothing that comes with a
model is run: none of its code (trust_remote_code), and no pickle (weights are read from safetensors alone)."""

import os
from contextlib import suppress
from pathlib import Path

import torch

from rlvr.common.text import one_line, quoted, say
from rlvr.config import BUILT_IN, SettingError, TrainConfig, as_sentence, need, refuse
from rlvr.engine.precision import MARGIN, times_as_long
from rlvr.loaders.adapters import CONFIG_FILE, check_adapter, is_adapter, json_object, merged

MOST_ADAPTERS = 8  # in a chain, each trained on the one before


def resolve_model(name: str) -> str:
    """The name of a built-in model -> its folder; a run folder -> the model in it; anything else stays as it is."""
    if name in BUILT_IN:
        return str(BUILT_IN[name])
    inside = os.path.join(name, "model")
    return inside if os.path.isfile(os.path.join(inside, "config.json")) or is_adapter(inside) else name


def check_model_name(name: str) -> str:
    """The path or Hub id behind a name, checked as far as that goes without loading. Raises SettingError."""
    path = resolve_model(name)
    folder = Path(path)
    if not os.path.isdir(path):
        is_path = path.count("/") > 1 or path.startswith((".", "/", "~")) or ("/" in path and os.path.isdir(folder.parent))
        refuse(os.path.exists(path), f"The model {path} is a file. Name the folder that holds it, with its config.json and its tokenizer.")
        refuse(is_path, f"There is no model folder {path}. Name a Hugging Face model folder, a run folder or a Hub id.")
        return path
    if is_adapter(folder):
        need("peft", "LoRA")
        check_adapter(folder)
        return path
    config = json_object(folder / "config.json")
    refuse(config is None, f"The folder {path} holds no model (no config.json). Name a model folder, a run folder or a Hub id.")
    of_a_run = "preset" in config
    refuse(of_a_run, f"The run folder {path} has no model yet. Continue the run first: python train.py --resume {quoted(path)}")
    for file in ("generation_config.json", "tokenizer.json", "tokenizer_config.json", "model.safetensors.index.json"):
        json_object(folder / file)
    how = f"tokenizer.save_pretrained({path!r})"
    refuse(not has_tokenizer(folder), f"The model folder {path} has no tokenizer. Save the tokenizer there too: {how}.")
    if not any(folder.glob("*.safetensors")):
        pickles = [f.name for pattern in ("*.bin", "*.pt", "*.pth", "*.ckpt") for f in sorted(folder.glob(pattern))]
        weights = f"only a pickle of weights ({pickles[0]}), which could run any code when opened" if pickles else "no weights"
        raise SettingError(f"The model folder {path} has {weights}. Save them as safetensors: model.save_pretrained({path!r}).")
    return path


def has_tokenizer(folder: Path) -> bool:
    return any((folder / f).is_file() for f in ("tokenizer.json", "tokenizer_config.json", "tokenizer.model", "vocab.json"))


def chain(path: str) -> list[str]:
    """The path of a whole model: [path]. Of an adapter: its folder, then the adapter it was trained on, and so on, down to a whole model.

    Raises SettingError if an adapter does not say which model it belongs to, or if that model cannot be found.
    """
    folders = [path]
    while is_adapter(folders[-1]):
        file = Path(folders[-1], CONFIG_FILE)
        base = check_adapter(file.parent).get("base_model_name_or_path")
        if not isinstance(base, str) or not base:
            raise SettingError(f"{file} does not say which model the adapter belongs to. Put its base_model_name_or_path there.")
        try:
            folders.append(check_model_name(base))
        except SettingError as error:
            cause = str(error).split(". ")[0]
            raise SettingError(f"The base model of {file} is not usable: {cause}. Correct its base_model_name_or_path.") from None
        if len(folders) > MOST_ADAPTERS:
            raise SettingError(f"{path} has more than {MOST_ADAPTERS} adapters one on another, or they name each other. Merge them first.")
    return folders


def choose_device(device: str, cuda_graphs: bool = False) -> str:
    """What --device comes to on this machine. Raises SettingError if it has no such device."""
    present = {"cuda": torch.cuda.is_available(), "mps": torch.backends.mps.is_available(), "cpu": True}
    device = next(name for name, is_there in present.items() if is_there) if device == "auto" else device
    refuse(not present[device], f"There is no {device} device here. Choose --device cpu, or auto.")
    refuse(cuda_graphs and device != "cuda", f"--cuda-graphs needs a CUDA GPU, but the device is {device}. Leave it out.")
    return device


def choose_dtype(dtype: str, device: str) -> str:
    """What --dtype comes to on a device where nothing was measured."""
    return dtype if dtype != "auto" else "bfloat16" if device == "cuda" else "float32"


def settle_dtype(c: TrainConfig) -> str:
    """--dtype for a run and all that follows from it. auto on a CPU: the faster one for its model, which is measured and said. A small
    model, a GPU, and a run that goes on from another leave it at auto."""
    with suppress(Exception):  # a damaged folder, a model that is no language model: loading it says what is wrong
        asked = c.dtype == "auto" and not (c.resume or c.branch or c.model in BUILT_IN) and choose_device(c.device) == "cpu"
        if asked and (ratio := times_as_long(load_config(chain(resolve_model(c.model))[-1]))):
            dtype = "bfloat16" if ratio * MARGIN <= 1 else "float32"
            say(f"{dtype}: products of this model's shapes take {ratio:.1f} times as long in bfloat16 as in float32 here")
            return dtype
    return c.dtype


def load_model(name: str, device: str, dtype: str):
    """The model on its device, its tokenizer, and the tokens that end a text: a model folder, a run folder or a Hub id.

    Raises SettingError when the folder, the model or its tokenizer is missing or damaged.
    """
    _silence()
    path = check_model_name(name)
    with _loading(name):
        *adapters, base = chain(path)
        with_tokenizer = next((folder for folder in adapters if has_tokenizer(Path(folder))), base)
        tokenizer = _load_tokenizer(with_tokenizer)
        model = _load_weights(base, dtype)
        for folder in reversed(adapters):
            model = merged(model, folder)
        if damaged := [weight for weight, p in model.named_parameters() if not p.isfinite().all()]:
            raise ValueError(f"its weights hold NaN or infinity in {damaged[0]}")
        model.to(device)
        for p in model.parameters():
            p.requires_grad_(p.is_floating_point())  # a merged adapter has left the weights below it frozen
    eos = model.generation_config.eos_token_id
    ends = [tokenizer.eos_token_id, *(eos if isinstance(eos, list) else [eos])]
    stop_ids = {i for i in ends if isinstance(i, int) and 0 <= i < model.get_input_embeddings().weight.shape[0]}
    refuse(not stop_ids, f"The model {name!r} names no token that ends a text. Set eos_token in its tokenizer or generation_config.json.")
    return model, tokenizer, stop_ids


def load_config(base: str):
    """The configuration of a whole model, a folder or a Hub id. It may name an attention or experts from the Hub, which are code: it gets
    transformers' own. Raises SettingError for an adapter on the Hub, else what transformers raises."""
    from transformers import AutoConfig
    from transformers.utils import find_adapter_config_file

    try:
        config = AutoConfig.from_pretrained(base, trust_remote_code=False)
    except OSError as error:
        if "does not appear to have a file" in str(error) and find_adapter_config_file(base):
            raise _is_an_adapter(base) from None
        raise
    config._attn_implementation = config._experts_implementation = None
    return config


def check_reachable(name: str) -> None:
    """Fetch the configuration of a Hub id, so that a wrong name or a missing network is said before problems are loaded. Raises
    SettingError."""
    *_, base = chain(resolve_model(name))
    if not os.path.isdir(base):
        _silence()
        with _loading(name):
            load_config(base)


def _load_tokenizer(folder: str):
    from transformers import AutoTokenizer

    alone = os.path.isfile(os.path.join(folder, "tokenizer.model")) and not os.path.isfile(os.path.join(folder, "tokenizer.json"))
    remedy = "Put the model's tokenizer.json beside it, or: pip install sentencepiece tiktoken protobuf"
    with as_sentence(f"The tokenizer of {folder} is there as tokenizer.model alone", remedy, unless=lambda error: not alone):
        tokenizer = AutoTokenizer.from_pretrained(folder, trust_remote_code=False)
    if not tokenizer("1 + 1", add_special_tokens=False).input_ids:
        raise ValueError("its tokenizer has no vocabulary")
    return tokenizer


def _load_weights(base: str, dtype: str):
    from transformers import AutoModelForCausalLM

    settings = dict(config=load_config(base), dtype=getattr(torch, dtype), output_loading_info=True)
    model, loading = AutoModelForCausalLM.from_pretrained(base, use_safetensors=True, trust_remote_code=False, **settings)
    if missing := sorted(loading["missing_keys"]):  # transformers has filled them with random numbers
        raise ValueError(f"its weights lack {missing[0]}")
    if getattr(model, "_hf_peft_config_loaded", False):  # transformers has put an adapter of the Hub into its base on its own
        raise _is_an_adapter(base)
    return model


def _silence() -> None:
    """No page of warnings or retries before our one sentence."""
    from huggingface_hub.utils import logging as hub_logging
    from transformers.utils import logging

    logging.disable_progress_bar()
    logging.set_verbosity_error()
    hub_logging.set_verbosity_error()


def _is_an_adapter(hub_id: str) -> SettingError:
    return SettingError(f"The model {hub_id!r} is an adapter on the Hub. Fetch it first: hf download {hub_id} --local-dir my_adapter")


def _loading(name: str):
    """Inside, whatever goes wrong becomes a SettingError: a damaged folder makes transformers raise nearly every kind of error."""
    remedy = "Check its name and its files." if os.path.isdir(resolve_model(name)) else "Check its name and the network, or name a folder."
    return as_sentence(f"The model {name!r} cannot be loaded", remedy, reason=_reason)


def _reason(error: Exception) -> str:
    if "trust_remote_code" in str(error):
        return "it needs Python code that comes with it, and such code is not run here"
    if "ignore_mismatched_sizes" in str(error):
        return "its weights have other shapes than its config.json says"
    return one_line(error if isinstance(error, (ValueError, OSError)) else f"{type(error).__name__}: {error}")


def most_positions(config) -> float:
    """How many tokens, prompt and completion together, a model with this configuration was made for.

    With rope of type longrope or dynamic a longer text turns all its positions another way: what was sampled from keys that the shorter
    text left in the cache has other log-probs than the whole text has. So such a model may be used up to its original length.
    """
    config = config.get_text_config()
    rope = getattr(config, "rope_parameters", None) or {}
    kinds = [rope, *(kind for kind in rope.values() if isinstance(kind, dict))]  # for all layers, or for each kind of layer
    changing = [kind for kind in kinds if kind.get("rope_type") in ("longrope", "dynamic")]
    limits = [getattr(config, "max_position_embeddings", None), *(kind.get("original_max_position_embeddings") for kind in changing)]
    return min(filter(None, limits), default=float("inf"))


def check_length(model, prompts: list[list[int]], max_new_tokens: int) -> None:
    """Refuse prompts and completions that do not fit the model: its vocabulary, or the positions it was made for. Raises SettingError."""
    highest, vocabulary = max(map(max, prompts)), model.get_input_embeddings().weight.shape[0]
    cause = f"The tokenizer makes token {highest} of a prompt, but the model knows only {vocabulary} tokens"
    refuse(highest >= vocabulary, f"{cause}. Save the tokenizer that belongs to the model beside it.")
    longest, most = max(map(len, prompts)) + max_new_tokens, most_positions(model.config)
    cause = f"The longest prompt and --max-new-tokens make {longest} tokens, but the model has positions for {most}"
    refuse(longest > most, f"{cause}. Lower --max-new-tokens or --max-prompt-tokens.")
