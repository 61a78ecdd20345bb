"""The model card, and the way to the Hub (a stand-in: nothing leaves this machine)."""

import json
from dataclasses import asdict
from pathlib import Path

import pytest
from helpers import RUN, SMALL_MODEL

from rlvr.run import publish
from rlvr.config import PRESETS, SettingError, TrainConfig
from rlvr.train import train

ROOT = Path(__file__).parents[1]
RESULT = {"problems": 7, "metrics": {"acc@2": (0.25, 0.1, 0.4), "pass@1": (0.25, 0.1, 0.4), "pass@2": (0.5, 0.3, 0.7)}}

pytestmark = pytest.mark.usefixtures("no_figure")


def test_the_card_says_what_was_trained_how_and_with_what_result():
    c = TrainConfig(model="Qwen/Qwen2.5-0.5B", data="gsm8k", method="ppl", lr=1e-6, lora_rank=8, system="a | b")
    card = publish.model_card(c, {"steps": 7}, {"start": RESULT, "end": None})
    head, body = card.removeprefix("---\n").split("---\n", 1)
    assert 'base_model: "Qwen/Qwen2.5-0.5B"' in head and "library_name: peft" in head
    assert "method `ppl`, 7 steps of 32 prompts x 8 completions, a LoRA adapter of rank 8" in body
    assert "| start | 7 | 0.250 [0.100, 0.400] | 0.500 [0.300, 0.700] |" in body and "| end |" not in body
    assert "| `--lr` | 1e-06 |" in body and r'| `--system` | "a \| b" |' in body and "--seed" not in body
    local = publish.model_card(TrainConfig(model="/opt/m", data="/opt/d.jsonl"), {"steps": 1}, {})
    assert "/opt" not in local and "on d.jsonl by" in local and "1 step of" in local and local.count("\n# m, pos\n") == 1
    preset = TrainConfig(**{"preset": "hf", "model": "a/b", "lr": 3e-6, "threads": 2} | {k: v for k, v in PRESETS["hf"].items() if k != "lr"})
    rows = [line for line in publish.model_card(preset, {"steps": 2}, {}).splitlines() if line.startswith("| `--")]
    assert rows == ['| `--model` | "a/b" |', "| `--lr` | 3e-06 |"]  # what differs from the preset; nothing about the machine
    assert "library_name: transformers" in publish.model_card(TrainConfig(), {"steps": 1}, {})


TEXTS = dict(instruction="/no_think Answer.", system="./run this/ and ~ that", template="/think {problem}/")


def test_a_card_keeps_texts_whole_and_tells_no_path_of_this_machine():
    """A text may begin with a slash or a dot; a path may be absolute or not, of a folder or a file, with either slash."""
    places = dict(model="/opt/mine/models/base", data=r"C:\Users\me\d.jsonl", eval_data="~/sets/held_out", reward="../secret/mine.py:short")
    card = publish.model_card(TrainConfig(**places, **TEXTS), {"steps": 1}, {"start": RESULT})
    for text in TEXTS.values():
        assert json.dumps(text) in card
    for name in ("opt", "Users", "sets", "secret", "~/", "C:"):
        assert name not in card
    assert "Trained from base on d.jsonl" in card and "(held_out)" in card and "Reward: `mine.py:short`" in card
    names = {"Qwen/Qwen2.5-0.5B": None, "gsm8k": None, "my_rewards:short": None, "a/b/c/d.json": "d.json", str(ROOT / "rlvr") + "/": "rlvr",
             "sub.dir/x.py:f": "x.py:f"}  # fmt: skip
    assert {name: publish.shared_name(name) for name in names} == {name: expected or name for name, expected in names.items()}


def test_what_is_given_away_holds_no_path_of_this_machine(tmp_path):
    train(TrainConfig(**(RUN | dict(out=str(tmp_path), name="run", steps=1, final_eval_problems=0, eval_data=""))))
    files = [path for path in (tmp_path / "run" / "model").iterdir() if path.suffix != ".safetensors"]
    assert len(files) >= 4
    for path in files:
        text = path.read_text(encoding="utf-8")
        assert str(tmp_path) not in text and str(Path(SMALL_MODEL).parent) not in text, path


def test_an_adapter_whose_base_nobody_else_has_is_not_uploaded(tmp_path, api, monkeypatch):
    """Said before the first step; and of a run that was made without an upload in mind."""
    monkeypatch.setattr("rlvr.run.set_up.need", lambda package, what: None)
    lora = RUN | dict(out=str(tmp_path), name="run", lora_rank=4, push_to_hub="me/model")
    for model in (SMALL_MODEL, "tiny"):
        with pytest.raises(SettingError, match="a folder that nobody else has. Upload a whole model: add --lora-merge"):
            train(TrainConfig(**(lora | dict(model=model))))
    folder = tmp_path / "adapter"
    (folder / "model").mkdir(parents=True)
    (folder / "config.json").write_text(json.dumps(asdict(TrainConfig(lora_rank=4))))
    (folder / "model" / "adapter_config.json").write_text(json.dumps({"peft_type": "LORA", "base_model_name_or_path": "tiny"}))
    (folder / "model" / "adapter_model.safetensors").touch()
    monkeypatch.setattr("rlvr.loaders.models.need", lambda package, what: None)
    with pytest.raises(SettingError, match="The adapter belongs to model, a folder that nobody else has. .* --merge my_model"):
        publish.publish(publish.PublishConfig(run=str(folder), push="me/model"))
    assert not api.calls


def test_a_model_that_cannot_be_saved_is_not_trained(tmp_path, monkeypatch):
    def fails(*args, **settings):
        raise ValueError("The model is quantized with gguf and is not serializable")

    monkeypatch.setattr("transformers.PreTrainedModel.save_pretrained", fails)
    monkeypatch.setattr("rlvr.policy.sample", lambda *args, **settings: pytest.fail("it is trained already"))
    with pytest.raises(SettingError, match="could not be saved after training .The model is quantized with gguf.* Choose another model"):
        train(TrainConfig(**(RUN | dict(out=str(tmp_path), name="run"))))
    assert [path.name for path in (tmp_path / "run").iterdir()] in ([".lock"], [])


class Api:
    """As much of huggingface_hub.HfApi as is called."""

    fails: str = ""
    calls: list = []

    def _call(self, name, *args, **settings):
        Api.calls.append((name, args, settings))
        if name == Api.fails:
            raise ConnectionError("no\nnetwork")
        return "https://hub/me/model"

    def __getattr__(self, name):
        return lambda *args, **settings: self._call(name, *args, **settings)


@pytest.fixture
def api(monkeypatch):
    import huggingface_hub

    Api.fails, Api.calls = "", []
    monkeypatch.setattr(huggingface_hub, "HfApi", Api)
    return Api


def test_a_run_uploads_its_model_with_the_card(tmp_path, api, capsys):
    train(TrainConfig(**(RUN | dict(out=str(tmp_path), name="run", steps=2, push_to_hub="me/model"))))
    assert [name for name, *_ in api.calls] == ["whoami", "create_repo", "upload_folder"]
    assert api.calls[1][1:] == (("me/model",), {"private": True, "exist_ok": True})
    assert api.calls[2][2]["folder_path"] == str(tmp_path / "run" / "model") and api.calls[2][2]["repo_id"] == "me/model"
    assert "uploaded to https://hub/me/model" in capsys.readouterr().out
    card = (tmp_path / "run" / "model" / "README.md").read_text(encoding="utf-8")
    assert card.startswith("---\nlibrary_name: transformers") and "method `pos`, 2 steps" in card
    summary = json.loads((tmp_path / "run" / "summary.json").read_text(encoding="utf-8"))
    assert f"{summary['pass_at_1_end']:.3f} [" in card


@pytest.mark.slow
def test_a_run_that_was_uploaded_is_probed_without_the_hub(tmp_path, api):
    from rlvr.analysis.probe import ProbeConfig, probe

    train(TrainConfig(**(RUN | dict(out=str(tmp_path), name="run", steps=2, push_to_hub="me/model"))))
    api.calls.clear()
    probe(tmp_path / "run", ProbeConfig(runs=[], steps=1, shown=1, fixed=1, exploration=False, replacements=False))
    assert api.calls == []


def test_who_is_not_logged_in_hears_of_it_before_the_first_step(tmp_path, api):
    api.fails = "whoami"
    with pytest.raises(SettingError, match=r"Nothing can be uploaded to me/model \(no network\). Log in with: hf auth login"):
        train(TrainConfig(**(RUN | dict(out=str(tmp_path), name="run", push_to_hub="me/model"))))
    assert not (tmp_path / "run").exists()


def test_an_upload_that_fails_loses_nothing(tmp_path, api):
    api.fails = "upload_folder"
    with pytest.raises(SettingError, match="could not be uploaded to me/model .* still there: upload it again"):
        train(TrainConfig(**(RUN | dict(out=str(tmp_path), name="run", steps=2, push_to_hub="me/model"))))
    assert (tmp_path / "run" / "model" / "model.safetensors").is_file() and (tmp_path / "run" / "summary.json").is_file()
    api.fails = ""
    publish.publish(publish.PublishConfig(run=str(tmp_path / "run"), push="me/model"))
    assert api.calls[-1][0] == "upload_folder"


@pytest.mark.parametrize("name", ["me", "me/my model", "a/b/c", "https://hub/me/model"])
def test_what_is_no_hub_id_is_refused(name):
    from rlvr.run.settings import check_train

    with pytest.raises(SettingError, match="is no Hub id"):
        check_train(TrainConfig(push_to_hub=name))


def test_a_command_without_work_is_refused(tmp_path):
    train(TrainConfig(**(RUN | dict(out=str(tmp_path), name="run", steps=1, final_eval_problems=0, eval_data=""))))
    with pytest.raises(SettingError, match="nothing to do"):
        publish.publish(publish.PublishConfig(run=str(tmp_path / "run")))
