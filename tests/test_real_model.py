"""The same two programs on other models: a real small one (slow), and the 1.5B preset's code path on random weights of its architecture."""

import json
import math
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from rlvr.config import SettingError

pytestmark = pytest.mark.usefixtures("forked")

ROOT = Path(__file__).parent.parent
GSM8K = ROOT / "tests" / "data" / "gsm8k.jsonl"


def run(*argv: str) -> str:
    done = subprocess.run([sys.executable, *map(str, argv)], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-3000:]
    return done.stdout


def read_csv(path: Path) -> list[dict]:
    from rlvr.run.figures import read_metrics

    return [row for row in read_metrics(path) if row["step"] > 0]


@pytest.mark.slow
def test_the_preset_for_1_5b_runs_on_random_weights_of_the_same_architecture(tmp_path, math_model):
    """bfloat16 with float32 masters, gradient checkpointing, token-budget micro-batches, old log-probs from the training forward."""
    out = run("train.py", "--preset", "qwen2.5-math-1.5b", "--model", math_model, "--data", GSM8K, "--device", "cpu", "--steps", "2",
              "--prompts-per-step", "2", "--mini-batch-prompts", "1", "--completions-per-prompt", "2", "--max-new-tokens", "12",
              "--no-filter-groups", "--overlong-buffer", "12", "--eval-data", GSM8K, "--final-eval-problems", "2",
              "--out", tmp_path, "--name", "r")  # fmt: skip
    assert "torch.bfloat16" in out
    rows = read_csv(tmp_path / "r")
    assert len(rows) == 2 and rows[0]["seconds_scoring"] > 0 and rows[0]["lr"] == pytest.approx(1e-6 / 11)
    assert all(math.isfinite(row["grad_norm"]) for row in rows[:2])
    config = json.loads((tmp_path / "r" / "config.json").read_text())
    assert config["gradient_checkpointing"] and config["dtype"] == "bfloat16" and config["lr"] == 1e-6


@pytest.fixture(scope="session")
def math_model(tmp_path_factory) -> str:
    """A Qwen2 of Qwen2.5-Math-1.5B's shape rules (grouped queries, biases on q, k, v, tied embeddings), but small and random."""
    from transformers import AutoTokenizer, Qwen2Config, Qwen2ForCausalLM

    from rlvr.config import TINY_MODEL

    tokenizer = AutoTokenizer.from_pretrained(TINY_MODEL)
    torch.manual_seed(0)
    config = Qwen2Config(
        vocab_size=len(tokenizer), hidden_size=48, intermediate_size=96, num_hidden_layers=2, num_attention_heads=6, num_key_value_heads=1,
        max_position_embeddings=1024, tie_word_embeddings=True, eos_token_id=tokenizer.eos_token_id, pad_token_id=tokenizer.pad_token_id,
    )  # fmt: skip
    folder = tmp_path_factory.mktemp("math_model")
    Qwen2ForCausalLM(config).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return str(folder)


@pytest.mark.slow
def test_smollm2_trains_on_word_problems(smollm2, tmp_path):
    """A real model, a real chat template, real problems: the steps complete, and the rewards vary.

    This model hardly ever boxes an answer; in this form, at this temperature, it is right about one time in fifty.
    """
    run("train.py", "--model", smollm2, "--data", ROOT / "tests" / "data" / "mawps.jsonl", "--steps", "2", "--prompts-per-step", "4",
        "--mini-batch-prompts", "2", "--completions-per-prompt", "4", "--max-new-tokens", "64", "--sampling-rounds", "1", "--lr", "1e-5",
        "--warmup-steps", "0", "--final-eval-problems", "0", "--no-filter-groups", "--temperature", "0.6", "--dtype", "float32",
        "--instruction", r"Answer in the form: The answer is \boxed{5}.", "--out", tmp_path, "--name", "r")  # fmt: skip
    rows = read_csv(tmp_path / "r")
    assert len(rows) == 2 and all(row["reward_std"] > 0 and row["updates"] == 2 and row["grad_norm"] > 0 for row in rows)
    assert all(row["logp_drift"] < 1e-4 for row in rows)
    line = json.loads((tmp_path / "r" / "rollouts.jsonl").read_text().splitlines()[0])
    assert "boxed" in line["prompt"] and line["prompt"].count("assistant") >= 1


@pytest.mark.slow
def test_smollm2_is_evaluated_on_gsm8k(smollm2, tmp_path):
    out = run("eval.py", smollm2, "--data", GSM8K, "--problems", "3", "--completions", "2", "--max-new-tokens", "48",
              "--out", tmp_path / "e.json")  # fmt: skip
    assert "acc@2" in out and "maj@2" in out and "pass@2" in out
    result = json.loads((tmp_path / "e.json").read_text())["results"][str(GSM8K)][str(smollm2)]
    assert len(result["problems"]) == 3 and 0 <= result["metrics"]["pass@2"]["mean"] <= 1


@pytest.mark.slow
def test_the_sampler_follows_a_real_model(smollm2):
    """Greedy completions of ours and of transformers' generate() agree token by token."""
    from rlvr.data import load_problems, prompt_ids
    from rlvr.policy import load_policy
    from rlvr.rollout import sample

    policy = load_policy(str(smollm2))
    prompts = [prompt_ids(policy.tokenizer, p.problem, "") for p in load_problems(str(GSM8K))[:3]]
    ours = sample(
        policy.model, policy.tokenizer, prompts, completions_per_prompt=1, max_new_tokens=24, stop_ids=policy.stop_ids, temperature=0
    )
    for i, prompt in enumerate(prompts):
        theirs = policy.model.generate(torch.tensor([prompt]), max_new_tokens=24, do_sample=False)[0, len(prompt) :]
        assert ours.completion_ids[i, : len(theirs)].tolist() == theirs.tolist()


@pytest.mark.parametrize(
    "source, folder, says",
    [("nothing.gguf", "new", "no GGUF file nothing.gguf"), ("torch", "new", "no GGUF file torch"), ("a.gguf", "there", "stays. Name a new folder"),
     ("a.gguf", "new", "needs the package (gguf|accelerate). Install it|a.gguf cannot be read")],
)  # fmt: skip
def test_what_is_no_gguf_file_is_refused_in_one_sentence(source, folder, says, tmp_path, monkeypatch):
    from rlvr.loaders.from_gguf import convert

    monkeypatch.chdir(tmp_path)
    (tmp_path / "a.gguf").write_bytes(b"GGUF, but no model")
    (tmp_path / "there").mkdir()
    with pytest.raises(SettingError, match=says):
        convert(source, Path(folder))
    assert sorted(path.name for path in tmp_path.iterdir()) == ["a.gguf", "there"]


def test_a_gguf_file_inside_a_package_is_found_and_the_package_is_not_run(tmp_path, monkeypatch):
    from rlvr.loaders.from_gguf import gguf_file

    monkeypatch.syspath_prepend(str(tmp_path))
    monkeypatch.chdir(tmp_path)
    package = tmp_path / "some_weights"
    package.mkdir()
    (package / "__init__.py").write_text("raise RuntimeError('it runs')")
    (package / "w.gguf").touch()
    assert gguf_file("some-weights") == package / "w.gguf"
    Path("some-weights").touch()  # a file comes before a package
    assert gguf_file("some-weights") == Path("some-weights")


@pytest.fixture
def transformers_reads(monkeypatch) -> list[dict]:
    """With a stand-in for transformers, which writes down how it is asked to read a file: the model, then the tokenizer."""
    import importlib.machinery
    from types import SimpleNamespace

    import transformers

    class Reader:
        asked: list[dict] = []

        @staticmethod
        def from_pretrained(folder, **settings):
            Reader.asked.append(settings)
            return SimpleNamespace(save_pretrained=lambda to: (to / "config.json").write_text("{}"), num_parameters=lambda: 0)

    for name in ("AutoModelForCausalLM", "AutoTokenizer", "GgufConfig"):
        monkeypatch.setattr(transformers, name, Reader if name != "GgufConfig" else dict)
    monkeypatch.setattr("rlvr.config.importlib.util.find_spec", lambda name: importlib.machinery.ModuleSpec(name, None))  # gguf is there
    return Reader.asked


def test_a_gguf_file_is_read_as_data(transformers_reads, tmp_path):
    """No code that comes with it is run, no pickle is opened, and the weights are float32 numbers."""
    from rlvr.loaders.from_gguf import convert

    (tmp_path / "a.gguf").touch()
    convert(str(tmp_path / "a.gguf"), tmp_path / "new")
    safe = {"gguf_file": "a.gguf", "trust_remote_code": False}
    assert transformers_reads == [safe | {"use_safetensors": True, "quantization_config": {"dequantize": True}, "dtype": "float32"}, safe]
    assert [path.name for path in (tmp_path / "new").iterdir()] == ["config.json"]


@pytest.mark.parametrize("package", ["gguf", "accelerate"])
def test_a_package_that_is_missing_is_named(package, transformers_reads, tmp_path, monkeypatch):
    from rlvr.loaders.from_gguf import convert

    (tmp_path / "a.gguf").touch()
    monkeypatch.setattr("rlvr.config.importlib.util.find_spec", lambda name: None if name == package else name)
    with pytest.raises(SettingError, match=f"^Reading a GGUF file needs the package {package}. Install it with: pip install {package}$"):
        convert(str(tmp_path / "a.gguf"), tmp_path / "new")


def test_the_command_says_in_one_sentence_what_is_wrong(monkeypatch):
    from rlvr.loaders import from_gguf

    monkeypatch.setattr(sys, "argv", ["from_gguf", "nothing.gguf", "new"])
    with pytest.raises(SystemExit, match="^error: There is no GGUF file nothing.gguf, nor one in an installed package of that name. Name a"):
        from_gguf.main()


def test_a_failure_while_writing_leaves_no_folder(transformers_reads, tmp_path, monkeypatch):
    """A full disk, as far as a test can: the model is written, the tokenizer is not."""
    from types import SimpleNamespace

    import transformers

    from rlvr.loaders import from_gguf

    def full(folder):
        raise OSError(28, "No space left on device")

    tokenizer = SimpleNamespace(from_pretrained=lambda *_, **__: SimpleNamespace(save_pretrained=full))
    monkeypatch.setattr(transformers, "AutoTokenizer", tokenizer)
    (tmp_path / "a.gguf").touch()
    with pytest.raises(SettingError, match=r"cannot be written to .*No space left on device.. Free some space"):
        from_gguf.convert(str(tmp_path / "a.gguf"), tmp_path / "new")
    assert [path.name for path in tmp_path.iterdir()] == ["a.gguf"]


def test_the_problems_of_the_smollm2_run_are_chosen_as_it_says(tmp_path, monkeypatch):
    import runpy

    things = ("pens", "cards", "books", "cups", "eggs", "keys")
    rows = [{"input": f"Ann has {i} {x} and finds {i}. How many?", "target": 2.0 * i, "type": "addsub"} for i in range(60) for x in things]
    fit = {row["input"] for row in rows if row["target"] <= 100}
    rows += [rows[1], rows[2] | {"type": "multiarith", "input": "2 steps with 3"}, rows[3] | {"input": "Half of 3.5 and 1"}]
    (tmp_path / "m.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    script = ROOT / "tutorials" / "smollm2" / "make_data.py"
    monkeypatch.setattr(sys, "argv", [str(script), str(tmp_path / "m.jsonl"), "--out", str(tmp_path / "data")])
    runpy.run_path(str(script), run_name="__main__")
    train, test = ([json.loads(line) for line in open(tmp_path / "data" / f"{name}.jsonl")] for name in ("train", "test"))
    assert len(test) == 200 and len(train) == len(fit) - 200 and {row["problem"] for row in train + test} == fit
    assert all(row["answer"] == str(2 * int(row["problem"].split()[2])) for row in train + test)
