"""Chat templates: programs that come with a model, in Jinja. They run in the sandbox of transformers, and with limits."""

import inspect
import re
import shlex
from datetime import datetime

from rlvr.common.limits import limited
from rlvr.config import SettingError, as_sentence

SECONDS, SECONDS_EACH, ROOM = 10.0, 0.002, 2**30  # for all prompts, for each, and bytes of memory
LONGEST = 2**20  # characters that a template may add to a problem
# A chat template that writes today's date would give a run that is resumed, or repeated, on another day other prompts. It gets one day.
DAY = {f"%{letter}": datetime(2025, 8, 4).strftime(f"%{letter}") for letter in "aAbBdfHIjmMpSUwWyYcxX"}
ON_DAY = "".join(f".replace({a!r}, {b!r})" for a, b in DAY.items())
ON_ONE_DAY = "{% macro strftime_now(form) %}{{ form" + ON_DAY + " }}{% endmacro %}{{ '' }}"  # the last, so that a first line end is kept


def template_arguments(text: str) -> dict:
    """The arguments of --template-args: 'enable_thinking=False day="1 May"' -> {"enable_thinking": False, "day": "1 May"}.

    Raises SettingError if it is anything but name=value.
    """
    words = {"true": True, "false": False, "none": None, "null": None}
    try:
        pairs = [pair.partition("=") for pair in shlex.split(text)]
    except ValueError:  # a quote that is not closed
        pairs = [("", "", "")]
    if not all(name.isidentifier() and equals for name, equals, _ in pairs):
        raise SettingError(f"--template-args {text!r} is not name=value. Write it as in --template-args enable_thinking=False")
    return {name: words.get(value.lower(), int(value) if value.isdecimal() else value) for name, _, value in pairs}


def chat_texts(tokenizer, problems: list[str], contents: list[str], system: str, template_args: str) -> list[str]:
    """Each message (the problem, with the instruction) in the model's chat template, ready for an answer.

    Raises SettingError if the template fails, takes too long or too much memory, or does not know an argument.
    """
    arguments, source = template_arguments(template_args), str(tokenizer.chat_template)
    dated = {"chat_template": ON_ONE_DAY + tokenizer.get_chat_template()} if "strftime_now" in source else {}
    taken = {"messages", *inspect.signature(tokenizer.apply_chat_template).parameters} if arguments else set()
    for name in arguments:
        if name in taken or not re.search(rf"\b{name}\b", source):
            raise SettingError(f"The model's chat template has no argument {name!r}. Correct --template-args, or leave it out.")

    def fill(problem: str, content: str) -> str:
        messages = ([{"role": "system", "content": system}] if system else []) + [{"role": "user", "content": content}]
        # A template may ask for the problem alone, as that of the built-in model does, which has never seen an instruction.
        given = dict(tokenize=False, add_generation_prompt=True, problem=problem) | dated | arguments
        if len(text := tokenizer.apply_chat_template(messages, **given)) > len(content) + len(system) + LONGEST:
            raise ValueError(f"it makes {len(text)} characters of {len(content)}")
        return text

    remedy = "Leave out --system, or choose --template plain." if system else "Choose --template plain, or repair chat_template."
    with as_sentence("The model's chat template fails", remedy):
        # What a template may do in Python is limited, but not for how long.
        return limited(lambda: [*map(fill, problems, contents)], SECONDS + SECONDS_EACH * len(problems), ROOM)
