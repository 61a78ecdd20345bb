"""LoRA: the base stands still, the adapter learns, and what is saved says what was trained. And AdamW with its moments in 8 bits."""

import json
import shutil
import sys

import pytest
import torch
from helpers import RUN, SMALL_MODEL, STORIES, check_equal, make_rollouts, new_model
from safetensors.torch import load_file

from rlvr.engine.optimizer import make_adamw
from rlvr.run import publish
from rlvr.config import TINY_MODEL, SettingError, TrainConfig
from rlvr.run.cli import parse_train
from rlvr.run.figures import read_metrics
from rlvr.loaders.adapters import add_lora, is_adapter, without_lora
from rlvr.loaders.models import chain, check_model_name
from rlvr.policy import load_policy, logp_and_entropy
from rlvr.rollout import sample
from rlvr.train import train

pytest.importorskip("peft", reason="pip install -r tests/requirements-extra.txt")
pytestmark = pytest.mark.slow  # the packages are not among those of a first day
LORA = RUN | dict(lora_rank=4, lora_alpha=8.0, lr=2e-2, method="grpo")


def scores(model):
    batch = make_rollouts([3, 5], [4, 6], groups=[0, 1])
    with torch.no_grad():
        return logp_and_entropy(model, batch.prompt_ids, batch.completion_ids, batch.mask)[0]


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    folder = tmp_path_factory.mktemp("lora") / "run"
    train(TrainConfig(**(LORA | dict(out=str(folder.parent), name="run"))))
    return folder


@pytest.mark.parametrize("name", ["qwen", "llama", "gpt2"])
def test_a_new_adapter_changes_nothing_and_is_all_that_is_trained(name):
    model, twin = new_model(name), new_model(name)
    add_lora(model, 4, 8.0, seed=0, base="somewhere")
    assert torch.equal(scores(model), scores(twin)) and hasattr(model, "rlvr_lora") and not hasattr(twin, "rlvr_lora")
    trained = [n for n, p in model.named_parameters() if p.requires_grad]
    assert trained and all("lora_" in n for n in trained)
    assert not any(
        "head" in n or "embed" in n or "wte" in n for n in trained
    )  # the output layer goes in chunks, the embedding is tied to it
    assert sum("lora_A" in n for n in trained) == 2 * (4 if name == "gpt2" else 7)  # every linear layer of both blocks


def test_the_adapter_is_drawn_from_the_seed_and_disturbs_no_other_draws():
    made = []
    for seed in (0, 0, 1):
        model = new_model("qwen")
        torch.manual_seed(99)
        add_lora(model, 4, 8.0, seed, "x")
        made.append((next(p for n, p in model.named_parameters() if "lora_A" in n).clone(), torch.rand(1)))
    assert torch.equal(made[0][0], made[1][0]) and not torch.equal(made[0][0], made[2][0])
    assert made[0][1] == made[1][1] == made[2][1]


def test_the_adapter_adds_alpha_over_rank_times_b_a():
    model = new_model("qwen")
    layer = model.model.layers[0].mlp.up_proj
    x, before = torch.randn(3, 32), layer(torch.ones(1, 32))
    add_lora(model, 4, 12.0, 0, "x")
    layer = model.model.layers[0].mlp.up_proj
    a, b = layer.lora_A["default"].weight, layer.lora_B["default"].weight
    with torch.no_grad():
        b.normal_()
        assert torch.allclose(layer(x), x @ layer.base_layer.weight.T + 12 / 4 * x @ a.T @ b.T, atol=1e-4)
        assert not torch.allclose(layer(torch.ones(1, 32)), before)
        with without_lora(model):
            assert torch.equal(layer(torch.ones(1, 32)), before)
        assert not torch.allclose(layer(torch.ones(1, 32)), before)


def test_the_sampler_sees_the_adapter(tokenizer):
    """Old log-probs come from the sampler: they must be those of the adapted model."""
    model = new_model("qwen")
    add_lora(model, 4, 8.0, 0, "x")
    with torch.no_grad():
        for n, p in model.named_parameters():
            if "lora_B" in n:
                p.normal_(std=0.5)
    settings = dict(completions_per_prompt=3, max_new_tokens=8, stop_ids={2}, generator=torch.Generator().manual_seed(0))
    batch = sample(model, tokenizer, [[3, 4, 5], [6, 7]], **settings)
    logp, _ = logp_and_entropy(model, batch.prompt_ids, batch.completion_ids, batch.mask)
    assert torch.allclose(batch.old_logp, logp, atol=1e-4)
    with torch.no_grad(), without_lora(model):
        base, _ = logp_and_entropy(model, batch.prompt_ids, batch.completion_ids, batch.mask)
    assert (base - logp).abs().max() > 0.1


def test_a_run_trains_the_adapter_and_saves_it_in_the_format_of_peft(run):
    from peft import PeftModel
    from transformers import AutoModelForCausalLM

    folder = run / "model"
    assert is_adapter(folder) and chain(str(folder)) == [str(folder), SMALL_MODEL] and not (folder / "model.safetensors").exists()
    assert json.loads((folder / "adapter_config.json").read_text())["r"] == 4
    weights = load_file(folder / "adapter_model.safetensors")
    assert max(w.abs().max() for n, w in weights.items() if "lora_B" in n) > 1e-3
    assert all(row["grad_norm"] > 0 and row["logp_drift"] < 1e-4 for row in read_metrics(run) if row["grad_norm"] is not None)
    # Anybody's peft reads it, and our loader gives the same model, merged.
    theirs = PeftModel.from_pretrained(AutoModelForCausalLM.from_pretrained(SMALL_MODEL), folder)
    ours, ids = load_policy(str(run)), torch.tensor([[5, 6, 7, 8]])
    base = load_policy(SMALL_MODEL).model(input_ids=ids).logits
    assert torch.allclose(theirs(input_ids=ids).logits, ours.model(input_ids=ids).logits, atol=1e-3)
    assert not torch.allclose(base, ours.model(input_ids=ids).logits, atol=1e-2) and not hasattr(ours.model, "rlvr_lora")


def test_a_checkpoint_holds_the_adapter_and_not_the_model(run):
    weights = load_file(run / "checkpoints" / "step-000004" / "weights.safetensors")
    assert weights and all("lora_" in name for name in weights)


def test_with_gradient_checkpointing_the_gradient_is_the_same(tmp_path, run):
    train(TrainConfig(**(LORA | dict(out=str(tmp_path), name="run", gradient_checkpointing=True))))
    a, b = (load_file(f / "model" / "adapter_model.safetensors") for f in (tmp_path / "run", run))
    assert all(torch.allclose(a[k], b[k], atol=1e-4) for k in b)


def test_resumed_it_is_bit_equal(tmp_path, run):
    folder = tmp_path / "run"
    train(TrainConfig(**(LORA | dict(out=str(tmp_path), name="run", keep_every=1, keep=9))))
    for name in ("step-000003", "step-000004"):
        shutil.rmtree(folder / "checkpoints" / name)
    train(parse_train(["--resume", str(folder)]))
    a, b = (load_file(f / "model" / "adapter_model.safetensors") for f in (folder, run))
    assert all(torch.equal(a[k], b[k]) for k in b)


def test_merged_on_request_the_model_is_whole(tmp_path, run):
    train(TrainConfig(**(LORA | dict(out=str(tmp_path), name="run", lora_merge=True))))
    folder = tmp_path / "run"
    assert is_adapter(folder / "adapter") and not is_adapter(folder / "model") and (folder / "model" / "model.safetensors").is_file()
    ids = torch.tensor([[5, 6, 7, 8]])
    one, two = (load_policy(str(path)).model(input_ids=ids).logits for path in (folder, run))
    assert torch.allclose(one, two, atol=1e-4)
    publish.publish(publish.PublishConfig(run=str(run), merge=str(tmp_path / "whole")))
    assert torch.allclose(load_policy(str(tmp_path / "whole")).model(input_ids=ids).logits, two, atol=1e-4)
    with pytest.raises(SettingError, match="whole model already"):
        publish.publish(publish.PublishConfig(run=str(folder), merge=str(tmp_path / "again")))


def test_the_kl_penalty_measures_against_the_model_without_the_adapter(tmp_path):
    train(TrainConfig(**(LORA | dict(out=str(tmp_path), name="run", kl_coef=0.1, steps=2, mini_batch_prompts=4))))
    kl = [row["kl"] for row in read_metrics(tmp_path / "run") if row["step"]]
    assert kl[0] == pytest.approx(0, abs=1e-6) and kl[1] > 1e-6


@pytest.mark.parametrize(
    "change, said",
    [
        (dict(base_model_name_or_path=""), "does not say which model"),
        (dict(base_model_name_or_path="/no/such/model"), "base model of .*adapter_config.json is not usable: There is no model folder"),
        (dict(base_model_name_or_path="SELF"), "or they name each other"),
        (dict(peft_type="PROMPT_TUNING"), "is not plain LoRA"),
        (dict(megatron_config={"x": 1}, megatron_core="evil"), "is not plain LoRA"),
    ],
)
def test_bad_adapters_are_refused_in_one_sentence(change, said, tmp_path, run):
    folder = tmp_path / "adapter"
    shutil.copytree(run / "model", folder)
    settings = json.loads((folder / "adapter_config.json").read_text())
    change = {k: str(folder) if v == "SELF" else v for k, v in change.items()}
    (folder / "adapter_config.json").write_text(json.dumps(settings | change))
    with pytest.raises(SettingError, match=said):
        load_policy(str(folder))


def test_a_pickle_beside_an_adapter_is_not_opened(tmp_path, run):
    folder = tmp_path / "adapter"
    shutil.copytree(run / "model", folder)
    (folder / "adapter_model.safetensors").rename(folder / "other.safetensors")
    (folder / "adapter_model.bin").write_bytes(b"pickle")
    with pytest.raises(SettingError, match="has no weights in adapter_model.safetensors"):
        check_model_name(str(folder))


def test_an_adapter_without_a_tokenizer_has_that_of_its_base(tmp_path, run):
    folder = tmp_path / "adapter"
    folder.mkdir()
    for name in ("adapter_config.json", "adapter_model.safetensors"):
        shutil.copy(run / "model" / name, folder / name)
    assert len(load_policy(str(folder)).tokenizer) == len(load_policy(SMALL_MODEL).tokenizer)


def test_an_adapter_on_an_adapter_keeps_both(tmp_path, run):
    """A run that starts from a run with an adapter: its adapter belongs to the merged model, not to the first base."""
    train(TrainConfig(**(LORA | dict(out=str(tmp_path), name="second", model=str(run), steps=2, lora_rank=2))))
    assert chain(str(tmp_path / "second" / "model"))[1:] == [str(run / "model"), SMALL_MODEL]
    ids = torch.tensor([[5, 6, 7, 8]])
    second, first, base = (load_policy(str(path)).model(input_ids=ids).logits for path in (tmp_path / "second", run, SMALL_MODEL))
    add = load_policy(str(run)).model
    for name, x in load_file(tmp_path / "second" / "model" / "adapter_model.safetensors").items():
        if "lora_B" in name:
            layer = add.get_submodule(name.removeprefix("base_model.model.").removesuffix(".lora_B.weight"))
            a = load_file(tmp_path / "second" / "model" / "adapter_model.safetensors")[name.replace("lora_B", "lora_A")]
            layer.weight.data += 8.0 / 2 * x @ a
    assert torch.allclose(add(input_ids=ids).logits, second, atol=1e-3)
    assert not torch.allclose(first, base, atol=1e-2) and not torch.allclose(second, first, atol=1e-4)


def test_a_run_with_an_adapter_can_be_trained_on_with_all_weights(tmp_path, run):
    """peft leaves the merged weights frozen."""
    train(TrainConfig(**(RUN | dict(out=str(tmp_path), name="all", model=str(run), steps=2, method="grpo"))))
    before, after = load_policy(str(run)).model.state_dict(), load_file(tmp_path / "all" / "model" / "model.safetensors")
    assert all(not torch.equal(before[name], x) for name, x in after.items() if x.dim() > 1)


def test_an_adapter_of_the_built_in_model_names_it_as_everybody_does(tmp_path):
    tiny = dict(model="tiny", data=STORIES, eval_data="", final_eval_problems=0, steps=1)
    train(TrainConfig(**(LORA | tiny | dict(out=str(tmp_path), name="run"))))
    assert json.loads((tmp_path / "run" / "model" / "adapter_config.json").read_text())["base_model_name_or_path"] == "tiny"
    assert chain(str(tmp_path / "run" / "model"))[1:] == [str(TINY_MODEL)]


def test_an_architecture_that_takes_no_adapter_is_named_in_one_sentence():
    from transformers import MambaConfig, MambaForCausalLM

    model = MambaForCausalLM(MambaConfig(vocab_size=29, hidden_size=32, state_size=8, num_hidden_layers=1))
    with pytest.raises(SettingError, match="No adapter can be put into this model .*Mamba.* Leave out --lora-rank"):
        add_lora(model, 4, 8.0, 0, "x")


def test_a_run_with_an_adapter_can_be_probed(tmp_path):
    from rlvr.analysis.probe import ProbeConfig, probe

    folder = tmp_path / "run"
    train(TrainConfig(**(LORA | dict(out=str(tmp_path), name="run", keep_every=1))))
    probe(folder, ProbeConfig(runs=[], steps=2, shown=1, fixed=2, completions=2, continuations=1, problems=2, samples=2))
    changes = load_file(folder / "probe" / "changes.safetensors")
    assert sorted(changes["row_step"].unique().tolist()) == [1, 4]
    assert (changes["logp_after"] - changes["logp"]).abs().max() > 1e-3


# ---------------------------------------------------------------------------------------------------------------------------------------
# Moments in 8 bits


class Holder:
    """As much of a trainer as an optimiser needs."""

    def __init__(self):
        g = torch.Generator().manual_seed(0)
        self.weights = [torch.nn.Parameter(torch.randn(80, 80, generator=g)), torch.nn.Parameter(torch.randn(7, generator=g))]
        self.optimizer = make_adamw(TrainConfig(optimizer="adamw8bit", lr=1e-2), self.weights)
        self.generator = g

    def update(self):
        for p in self.weights:
            p.grad = torch.randn(p.shape, generator=self.generator)
        self.optimizer.step()


def test_adamw_in_8_bits_moves_as_adamw_does_and_takes_a_quarter_of_its_memory():
    pytest.importorskip("bitsandbytes")
    eight, full = Holder(), Holder()
    full.optimizer = make_adamw(TrainConfig(lr=1e-2), full.weights)
    start = eight.weights[0].detach().clone()
    for _ in range(5):
        eight.update()
        full.update()
    moved = [(h.weights[0] - start).flatten() for h in (eight, full)]
    assert torch.cosine_similarity(*moved, dim=0) > 0.99
    state = eight.optimizer.state[eight.weights[0]]
    assert state["state1"].dtype == state["state2"].dtype == torch.uint8


def test_a_run_with_moments_in_8_bits_goes_on_exactly(tmp_path):
    pytest.importorskip("bitsandbytes")
    settings = RUN | dict(optimizer="adamw8bit", out=str(tmp_path), keep_every=1, keep=9)
    for name in ("whole", "parts"):
        train(TrainConfig(**(settings | dict(name=name))))
    for name in ("step-000002", "step-000003", "step-000004"):
        shutil.rmtree(tmp_path / "parts" / "checkpoints" / name)
    train(parse_train(["--resume", str(tmp_path / "parts")]))
    check_equal(tmp_path / "parts", tmp_path / "whole")


def test_without_the_packages_one_sentence_says_what_to_install(monkeypatch):
    monkeypatch.setitem(sys.modules, "bitsandbytes.optim", None)
    with pytest.raises(SettingError, match=r"needs the package bitsandbytes \(.*\). Install it: pip install bitsandbytes"):
        Holder()
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(SettingError, match="pip install peft"):
        add_lora(new_model("qwen"), 4, 8.0, 0, "x")
