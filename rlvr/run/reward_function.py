"""The user's own reward function, which --reward names. To load it runs its code."""

import importlib
import importlib.util
import os
import sys

from rlvr.config import SettingError
from rlvr.reward import rewards_from

# What a reward function is tried on before a run: a right completion, and one without an answer.
EXAMPLE = [r"2 + 2 = 4. The answer is \boxed{4}.", "I do not know."], ["4", "4"]


def load_reward(name: str):
    """The reward function that `module:function` or `file.py:function` names, after a try on an example. Its code is run.

    Raises SettingError: no such module or function, or no reward for the example.
    """
    where, _, function_name = name.rpartition(":")
    if not where or not function_name.isidentifier():
        raise SettingError(f"--reward {name!r} names no function. Write module:function or file.py:function.")
    try:
        if where.endswith(".py"):
            spec = importlib.util.spec_from_file_location("reward_of_" + os.path.basename(where).removesuffix(".py"), where)
            module = importlib.util.module_from_spec(spec)
            sys.modules[spec.name] = module  # dataclasses and pickle look there
            spec.loader.exec_module(module)
        else:
            if os.getcwd() not in sys.path:  # as python -m has it
                sys.path.insert(0, os.getcwd())
            module = importlib.import_module(where)
    except (Exception, SystemExit) as error:  # whatever the code of the module does
        raise SettingError(f"--reward: {where} cannot be imported ({type(error).__name__}: {error}). Check the name, and its code.") from None
    function = getattr(module, function_name, None)
    if not callable(function):
        raise SettingError(f"--reward: {where} has no function {function_name}. Check the name.")
    try:
        rewards_from(function, *EXAMPLE)
    except ValueError as error:
        raise SettingError(f"--reward {name} fails on an example. {error}") from None
    return function
