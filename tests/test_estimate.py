"""The memory estimate: parameters to the last one, bytes as counted by hand, and advice that makes it fit."""

import dataclasses
import re
import sys
from pathlib import Path

import pytest
from transformers import GPT2Config

sys.path.insert(0, str(Path(__file__).parent / "benchmarks"))

from presets import SHAPES, shape_of

from rlvr.config import PRESET_HELP, PRESETS, TrainConfig
from rlvr.engine import cluster
from rlvr.engine.estimate import GIB, advice, estimate, free_memory
from rlvr.run import set_up

PARAMETERS = {  # as the models' pages give them
    "smollm2-135m": 134_515_008,
    "qwen2.5-0.5b-gsm8k": 494_032_768,
    "qwen2.5-math-1.5b": 1_543_714_304,
    "qwen2.5-math-1.5b-lora": 1_543_714_304,
    "paper-7b": 7_615_616_512,
}


def preset(name: str, **settings) -> TrainConfig:
    return TrainConfig(**{"preset": name} | PRESETS[name] | settings)


def of_preset(name: str, **settings):
    c = preset(name, **settings)
    device = "cpu" if c.dtype == "float32" else "cuda"
    return estimate(c, shape_of(name), device, c.dtype)


@pytest.mark.parametrize("name", PARAMETERS)
def test_parameters_are_counted_exactly_and_the_help_gives_the_memory(name):
    e = of_preset(name)
    assert e.parameters == PARAMETERS[name]
    assert re.search(r"(\d+) GiB", PRESET_HELP[name])[1] == str(round(e.total / GIB))


def test_every_preset_of_a_real_model_has_an_estimate():
    assert {name for name, text in PRESET_HELP.items() if "GiB" in text} == set(SHAPES) == set(PARAMETERS) == set(PRESETS) - {"tiny", "tiny3", "hf"}


@pytest.mark.parametrize("name, most", [("qwen2.5-0.5b-gsm8k", 16), ("qwen2.5-math-1.5b", 80), ("qwen2.5-math-1.5b-lora", 24)])
def test_a_preset_fits_the_card_that_it_names(name, most):
    assert of_preset(name).total < 0.9 * most * 1e9


def test_bytes_that_are_always_there_counted_by_hand():
    p = 1_543_714_304
    e = of_preset("qwen2.5-math-1.5b")
    assert e.trained == p
    assert e.weights == 2 * p + 0.6 * GIB  # bfloat16
    assert e.optimizer == (4 + 8) * p  # float32 masters, two moments
    assert e.gradients == (4 + 2) * p  # collected in float32, while those of a micro-batch come in bfloat16
    eight = of_preset("qwen2.5-math-1.5b", optimizer="adamw8bit")
    assert eight.optimizer == pytest.approx((4 + 2.1) * p)
    kl = of_preset("qwen2.5-math-1.5b", kl_coef=0.1)
    assert kl.weights - e.weights == pytest.approx(2 * p)  # the reference


def test_lora_trains_rank_times_the_sides_of_each_linear_layer():
    e = of_preset("qwen2.5-math-1.5b-lora")
    h, i, kv = 1536, 8960, 256
    assert e.trained == 28 * 32 * (2 * (h + h) + 2 * (h + kv) + 3 * (h + i))  # q, o; k, v; gate, up, down
    assert e.total < of_preset("qwen2.5-math-1.5b").total / 2


@pytest.mark.slow
def test_it_is_what_a_model_with_an_adapter_has():
    from helpers import new_model

    from rlvr.loaders.adapters import add_lora

    pytest.importorskip("peft")
    for name in ("qwen", "gpt2"):
        model = new_model(name)
        e = estimate(TrainConfig(lora_rank=4), model.config, "cpu", "float32")
        assert e.parameters == sum(p.numel() for p in model.parameters())
        add_lora(model, 4, 8.0, 0, "x")
        assert e.trained == sum(p.numel() for p in model.parameters() if p.requires_grad)


@pytest.mark.parametrize(
    "more, less",
    [
        (dict(), dict(micro_batch_tokens=4096)),
        (dict(gradient_checkpointing=False), dict()),
        (dict(max_new_tokens=8192), dict()),
        (dict(), dict(lora_rank=16)),
    ],
)
def test_what_needs_more_is_said_to(more, less):
    one, two = (of_preset("qwen2.5-math-1.5b", **settings) for settings in (more, less))
    assert one.total >= two.total
    assert one.total + one.update > two.total + two.update  # where sampling needs most, an update that needs less does not show


def test_the_cache_of_sampling_by_hand():
    e, half = (of_preset("qwen2.5-math-1.5b", sampling_rows=rows) for rows in (512, 256))
    per_row = 2 * 256 * 28 * 2 * 2048  # keys and values, 2 heads of 128, layers, bytes, tokens
    prompt = 2 * 256 * 28 * 2 * 1024 / 8
    logits = 151936 * (2 + 12)
    prefill = 1024 / 8 * 2 * (3 * 8960 + 4 * 1536)
    assert e.sampling - half.sampling == pytest.approx(256 * (per_row + prompt + max(logits, prefill)))


@pytest.mark.parametrize("name", PARAMETERS)
def test_prompt_and_completion_of_a_preset_fit_its_model(name):
    c = preset(name)
    assert c.max_prompt_tokens + c.max_new_tokens <= shape_of(name).max_position_embeddings


@pytest.mark.parametrize("free", [3, 6, 8, 12, 15, 24, 80])
@pytest.mark.parametrize("name", PARAMETERS)
def test_the_advice_makes_it_fit_or_says_that_nothing_does(name, free):
    c, free = preset(name), free * 1e9

    def again(c):
        return estimate(c, shape_of(name), "cuda", "bfloat16")

    said = advice(c, free, again)
    if "smaller model" in said:
        assert again(dataclasses.replace(c, lora_rank=8, sampling_rows=1, micro_batch_tokens=1, gradient_checkpointing=True)).total > 0.5 * free
        return
    found = re.findall(r"--([a-z0-9-]+)(?: (\w+))?", said.split(" (an")[0])
    changed = {flag.replace("-", "_"): int(value) if value.isdigit() else value or True for flag, value in found}
    assert again(dataclasses.replace(c, **changed)).total <= free and bool(changed) == (again(c).total > free)
    for flag in changed:  # and none of them is there for nothing
        assert again(dataclasses.replace(c, **{k: v for k, v in changed.items() if k != flag})).total > free


def test_free_memory_of_this_machine_is_a_number():
    assert free_memory("cpu") is None or 2**27 < free_memory("cpu") < 2**44


def test_a_model_with_learned_positions_has_an_estimate_too():
    e = estimate(TrainConfig(), GPT2Config(), "cpu", "float32")
    assert e.parameters == 124_439_808 and e.total > 4 * 4 * e.parameters


@pytest.mark.parametrize("free, said", [(2**40, False), (2**29, True)])
def test_a_run_says_what_it_needs_before_it_loads_a_model(free, said, model_folder, monkeypatch, capsys):
    monkeypatch.setattr(set_up, "free_memory", lambda device: free)
    set_up.say_memory(TrainConfig(model=str(model_folder), device="cpu"))
    printed = capsys.readouterr().out
    assert printed.startswith("memory at most: ") and "GiB (weights 0.8, optimiser 0.0" in printed
    assert ("note: That does not fit into the 0.5 GiB that are free here. Choose a smaller model." in printed) == said
    set_up.say_memory(TrainConfig())  # the built-in model fits everywhere
    assert not capsys.readouterr().out


def test_a_folder_that_cannot_be_estimated_is_left_to_the_loader(tmp_path, capsys):
    (tmp_path / "config.json").write_text('{"model_type": "no such thing"}')
    for name in ("tokenizer.json", "model.safetensors"):
        (tmp_path / name).write_text("{}")
    set_up.say_memory(TrainConfig(model=str(tmp_path), device="cpu"))
    assert not capsys.readouterr().out


def test_the_plain_engine_holds_all_logits_of_a_micro_batch():
    fast, plain = (of_preset("qwen2.5-0.5b-gsm8k", engine=engine) for engine in ("fast", "plain"))
    assert plain.update > 2 * fast.update and plain.sampling > fast.sampling


# ---------------------------------------------------------------------------------------------------------------------------------------
# What a step costs on many GPUs


MEASURED = {  # name: what it was, on what, seconds. The share of the cpu's product speed is fitted to the two rows of ours; nothing else is
    "NeMo RL 0.4, Llama-3.1-8B, 16 H100": (
        cluster.StepConfig(prompts=64, completions=32, prompt_tokens=150, mean_tokens=910, max_tokens=3946),
        cluster.Shape(8.03e9, 32, 4096, 1024), cluster.CARDS["h100"], 16, 97.7),
    "NeMo RL 0.4, Qwen3-32B, 32 H100": (
        cluster.StepConfig(prompts=64, completions=32, prompt_tokens=150, mean_tokens=3056, max_tokens=3946),
        cluster.SHAPES["32b"], cluster.CARDS["h100"], 32, 393.0),
}  # fmt: skip
CPU, SMOLLM2 = cluster.Card(160e9, 20e9, 24e9, mfu=0.5), cluster.Shape(134.5e6, 30, 576, 192)


@pytest.mark.parametrize("name", MEASURED)
def test_the_formulas_tell_what_others_measured_to_a_quarter(name):
    c, shape, card, gpus, seconds = MEASURED[name]
    assert 0.75 < cluster.cost(c, shape, card, gpus).step / seconds < 1.25


@pytest.mark.parametrize("prompt, seconds", [(150 / 8, 149), (150, 310)], ids=["ours, a prompt once for its completions", "TRL"])
def test_and_what_was_measured_here(prompt, seconds):
    """SmolLM2-135M, 8 x 8 completions of at most 128 tokens, float32 on two cores: tutorials/speed.md. Neither scores old log-probs."""
    c = cluster.StepConfig(prompts=8, completions=8, prompt_tokens=prompt, mean_tokens=115, max_tokens=128, checkpointing=False)
    found = cluster.cost(c, SMOLLM2, CPU, 1, bytes_each=4)
    assert 0.75 < cluster.BETWEEN * (found.sampling + found.update) / seconds < 1.25


def test_a_step_by_hand():
    """One GPU of round numbers, rows that all fit at once."""
    shape, card = cluster.Shape(1e9, 10, 1000, 100), cluster.Card(1e14, 1e12, 80e9)
    c = cluster.StepConfig(prompts=4, completions=8, prompt_tokens=100, mean_tokens=200, max_tokens=300)
    found = cluster.cost(c, shape, card, 1)
    forward = 2e9 + 4 * 10 * 1000 * 200
    key_values = 2 * 100 * 10 * 2
    one, all_rows = (2e9 + 200 * key_values) / 0.5e12, (2e9 + 32 * 200 * key_values) / 0.5e12
    assert found.sampling == pytest.approx(200 * all_rows + 100 * one)
    assert found.scoring == pytest.approx(forward * 32 * 300 / 0.3e14) and found.update == pytest.approx(4 * found.scoring)
    assert found.step == pytest.approx(1.2 * (found.sampling + 5 * found.scoring))
    assert found.memory == pytest.approx(16e9 + 2e9 + 1000 * 2 * 10 * 400 + 2e9 + 32 * key_values * 300)


def test_more_gpus_are_faster_and_a_model_that_does_not_fit_says_so(capsys, monkeypatch):
    seconds = [cluster.cost(cluster.StepConfig(), cluster.SHAPES["7b"], cluster.CARDS["h100"], gpus).step for gpus in (4, 8, 16, 32, 64)]
    assert seconds == sorted(seconds, reverse=True)
    monkeypatch.setattr("sys.argv", ["estimate", "--gpus", "2", "--model-size", "32b"])
    cluster.main()
    shown = capsys.readouterr().out
    assert "| 32b | 2 | does not fit |" in shown and "30% of the peak of a H100" in shown and shown.count("\n") == 5
    for words in ("--max-tokens 10", "--gpus -1", "--prompts 0", "--prompt-tokens -2000", "--rounds nan", "--rounds inf", "--rounds 0.5"):
        monkeypatch.setattr("sys.argv", ["estimate", *words.split()])
        with pytest.raises(SystemExit, match="none is longer than the longest"):
            cluster.main()
