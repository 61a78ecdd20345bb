"""A plugin of pytest that makes this machine behave like another one (`-p other_machine`); conditions.py switches its parts on.

RLVR_ROUNDING: every linear layer adds up its products in another order, as with another processor or another BLAS. The last digits differ.
RLVR_ORDER=n: the tests run in an order drawn from n, the same in every worker.
"""

import os
import random


def pytest_configure(config):
    if "RLVR_ROUNDING" in os.environ and (os.environ.get("PYTEST_XDIST_WORKER") or not config.getoption("numprocesses", None)):
        from torch.nn import functional

        stock = functional.linear

        def linear(x, weight, bias=None):
            half = weight.shape[1] // 2 + 1
            out = stock(x[..., half:], weight[:, half:]) + stock(x[..., :half], weight[:, :half])
            return out if bias is None else out + bias

        functional.linear = linear


def pytest_collection_modifyitems(items):
    if number := os.environ.get("RLVR_ORDER"):
        random.Random(int(number)).shuffle(items)
