"""The methods inside engines that train on many GPUs: TRL and verl.

The engine samples, scores and updates; the advantage of each token comes from `rlvr.advantage`, unchanged. See tutorials/beyond_one_gpu.md.

Neither engine is a dependency: each file imports its own, and nothing in rlvr/ imports these files.
"""

import inspect
from importlib.metadata import PackageNotFoundError, version

from packaging.specifiers import SpecifierSet


def need(package: str, versions: str) -> None:
    """Ends the program with one sentence if the package is missing, or its version is not one that the adapter was made for."""
    try:
        found = version(package)
    except PackageNotFoundError:
        raise SystemExit(f"{package} is not installed. Install it: pip install '{package}{versions}'") from None
    if found not in SpecifierSet(versions):
        raise SystemExit(f"{package} {found} is not a version that this adapter knows. Install one: pip install '{package}{versions}'")


def need_method(owner: type, name: str, parameters: str, install: str) -> None:
    """Ends the program with one sentence unless a private method that an adapter overrides or calls takes these parameters."""
    if not set(parameters.split()) <= set(inspect.signature(getattr(owner, name, lambda: None)).parameters):
        what = f"{owner.__name__}.{name} is another here than the adapter knows"
        raise SystemExit(f"{what}, though the version is right. Install the one that was tested: pip install {install}")
