"""The user's own reward function: one that --reward names is loaded, which runs its code, and each is fenced in."""

import importlib
import importlib.util
import os
import sys
from collections.abc import Callable, Iterator, Mapping, Set
from contextlib import contextmanager, redirect_stderr, redirect_stdout
from functools import wraps

import torch

from rlvr.common.text import Patient, one_line
from rlvr.config import SettingError, refuse
from rlvr.data import Problem, columns_for
from rlvr.reward import rewards_from

EXAMPLE = Problem("What is 2 + 2?", "4", row={"problem": "What is 2 + 2?", "answer": "4"})


def load_reward(name: str, example: Problem = EXAMPLE):
    """The reward function that `module:function` or `file.py:function` names, after a try on two completions of a problem: a right one,
    and one without an answer. Its code is run.

    Raises SettingError: no such module or function, or no reward for the example.
    """
    where, _, function_name = name.rpartition(":")
    if not where or not function_name.isidentifier():
        raise SettingError(f"--reward {name!r} names no function. Write module:function or file.py:function.")
    try:
        with _put_back():
            if where.endswith(".py"):
                spec = importlib.util.spec_from_file_location("reward_of_" + os.path.basename(where).removesuffix(".py"), where)
                module = importlib.util.module_from_spec(spec)
                sys.modules[spec.name] = module  # dataclasses and pickle look there
                spec.loader.exec_module(module)
            else:
                if os.getcwd() not in sys.path:  # as python -m has it
                    sys.path.insert(0, os.getcwd())
                module = importlib.import_module(where)
    except KeyboardInterrupt:
        raise
    except BaseException as error:  # whatever the code of the module does
        raise SettingError(f"--reward: {where} cannot be imported ({type(error).__name__}: {one_line(error)}). Check the name, and its code.") from None
    function = getattr(module, function_name, None)
    refuse(not callable(function), f"--reward: {where} has no function {function_name}. Check the name.")
    try:
        completions = [rf"The answer is \boxed{{{example.answer}}}.", "I do not know."]
        rewards_from(fenced(function), completions, *columns_for(function, [example] * 2))
    except ValueError as error:
        raise SettingError(f"--reward {name} fails on an example. {error}") from None
    return function


def fenced(function: Callable) -> Callable:
    """The same reward function, of which nothing comes out but rewards that can be told apart. Raises, in one line, what it raises."""

    @wraps(function)
    def rewards(completions: list[str], answers: list[str], *more: list) -> list:
        before = list(completions)
        try:
            with _put_back():
                found = function(completions, answers, *more)
                if isinstance(found, (Mapping, Set, str, bytes)) or hasattr(found, "columns"):  # a table of pandas gives its columns
                    raise TypeError(f"it returned a {type(found).__name__}, not a list with a number for each completion")
                found = list(found)  # a generator runs here
        except KeyboardInterrupt:
            raise
        except BaseException as error:  # one of the same name that can be written in a sentence
            raise type(type(error).__name__, (Exception,), {})(one_line(error)) from None
        if completions != before and sorted(map(str, completions)) == sorted(before):
            raise TypeError("it put the completions into another order, so nobody can say whose its rewards are")
        return found

    rewards.__name__ = getattr(function, "__name__", type(function).__name__)  # an object has none
    rewards.__qualname__ = getattr(function, "__qualname__", type(function).__qualname__)
    return rewards


# What code of the user's may switch over: how to ask for it, and how to set it.
SWITCHES = [(os.getcwd, os.chdir), (sys.getrecursionlimit, sys.setrecursionlimit)]
SWITCHES += [(torch.get_default_dtype, torch.set_default_dtype), (torch.get_num_threads, torch.set_num_threads)]


@contextmanager
def _put_back() -> Iterator[None]:
    """What code of the user's switches over is put back: torch's gradients, precision and device, the working folder, the streams."""
    before, device = [ask() for ask, _ in SWITCHES], torch.get_default_device()
    try:
        # Leaving inference_mode restores whether gradients and autocast are on, too.
        with torch.inference_mode(False), redirect_stdout(Patient(sys.stdout)), redirect_stderr(Patient(sys.stderr)):
            yield
    finally:
        for (_, put), was in zip(SWITCHES, before):
            put(was)
        if torch.get_default_device() != device:
            torch.set_default_device(None if device.type == "cpu" else device)
