"""The page to play with: what it is made of, and in a real browser that each of its numbers is that of rlvr.advantage and rlvr.loss."""

import random
import re
from urllib.parse import parse_qs, urlencode

import pytest
import torch
from helpers import window_size

from rlvr.advantage import grpo_advantages, keep_sign, position_bonus, ppl_weights, shape
from rlvr.entropy import log_perplexity
from rlvr.loss import clipped_loss
from tutorials.playground import PAGE, page_with, read_batch, real_batch, write_between

TEXT = PAGE.read_text(encoding="utf-8")
BATCH = read_batch(TEXT)["completions"]
USUAL = {"moved": 1, "clip-low": 0.2, "clip-high": 0.28, "ppl-alpha": 0, "ppl-direction": "low",
         "pos-alpha": 0, "pos-direction": "late", "learn-from": "all"}  # fmt: skip
for _i, _c in enumerate(BATCH, 1):
    USUAL |= {f"reward.{_i}": _c["reward"], f"length.{_i}": len(_c["tokens"])}


def test_the_page_holds_what_the_program_writes():
    assert page_with(TEXT, read_batch(TEXT)) == TEXT, "the look of the report has changed: python -m tutorials.playground"
    with pytest.raises(ValueError, match="Put them back"):
        write_between("", "the batch", "")
    hostile = {"problem": "</script><script>", "completions": [{"tokens": ["é</script>"]}]}
    assert read_batch(page_with(TEXT, hostile)) == hostile and page_with(TEXT, hostile).count("</script>") == TEXT.count("</script>")


def test_the_page_needs_nothing_but_itself():
    assert "default-src 'none'" in TEXT and not re.search(r"https?:(?!//www\.w3\.org/2000/svg)|\bsrc=|@import|url\(|<iframe|fetch\(", TEXT)


@pytest.mark.slow
def test_the_batch_is_real():
    """The program makes it again: the same tokens and rewards. Log-probs differ by rounding, and by what an update makes of it."""
    made, stored = real_batch(), read_batch(TEXT)
    assert made["problem"] == stored["problem"] and made["answer"] == stored["answer"]
    for mine, other in zip(made["completions"], stored["completions"], strict=True):
        assert mine["tokens"] == other["tokens"] and mine["reward"] == other["reward"]
        assert mine["old_logp"] == pytest.approx(other["old_logp"], abs=2e-3) and mine["logp"] == pytest.approx(other["logp"], abs=2e-2)
        assert mine["logp"] != mine["old_logp"]


# ---------------------------------------------------------------------------------------------------------------------------------------
# In a browser


def f64(numbers) -> torch.Tensor:
    return torch.tensor(list(numbers), dtype=torch.float64)


def log_probs(v: dict, mask: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Old and new log-probs [8, T] of the eight completions, with what was changed by hand."""
    old, logp = (torch.zeros(mask.shape, dtype=torch.float64) for _ in range(2))
    for i, c in enumerate(BATCH, 1):
        n = v[f"length.{i}"]
        last = len(c["tokens"]) - 1
        places = [t % last if n > last + 1 else t for t in range(n)]  # a lengthened one begins again instead of ending
        sampled, later = (f64(c[name][t] for t in places) for name in ("old_logp", "logp"))
        row = sampled * (v[f"mean.{i}"] / sampled.mean() if f"mean.{i}" in v else 1)
        row = f64(v.get(f"old.{i}.{t + 1}", row[t].item()) for t in range(n))
        moved = (row + v["moved"] * (later - sampled)).clamp(max=0)
        old[i - 1, :n], logp[i - 1, :n] = row, f64(v.get(f"new.{i}.{t + 1}", moved[t].item()) for t in range(n))
    return old, logp


def reference(values: dict, shown: dict) -> dict[str, object]:
    """All numbers of the page for these values, from rlvr in float64. What a sham dealt out is taken from the page, after a check."""
    v = USUAL | values
    lengths = torch.tensor([v[f"length.{i}"] for i in range(1, 9)])
    mask = torch.arange(int(lengths.max()))[None] < lengths[:, None]
    old, logp = log_probs(v, mask)
    rewards, group = f64(v[f"reward.{i}"] for i in range(1, 9)), torch.zeros(8, dtype=torch.long)
    advantages = grpo_advantages(rewards, group)
    directions = {"ppl_direction": v["ppl-direction"], "pos_direction": v["pos-direction"]}
    factor = ppl_weights(old, mask, group, v["ppl-alpha"], "high" if directions["ppl_direction"] == "high" else "low")
    bonus = position_bonus(advantages, mask, v["pos-alpha"], "early" if directions["pos_direction"] == "early" else "late")
    if "sham" in directions.values():  # the same numbers in another order
        if directions["ppl_direction"] == "sham":
            dealt = f64(shown[i][f"factor.{i + 1}"] for i in range(8))
            assert torch.allclose(dealt.sort().values, factor.sort().values, rtol=0, atol=1e-9)
            factor = dealt
        if directions["pos_direction"] == "sham":
            for i, n in enumerate(lengths.tolist()):
                dealt = f64(shown[i][f"table.{t + 1}.bonus"] for t in range(n))
                assert torch.allclose(dealt.sort().values, bonus[i, :n].sort().values, rtol=0, atol=1e-9)
                bonus[i, :n] = dealt
        shaped = (advantages * factor)[:, None] * mask + bonus
    else:
        shaped = shape("ppl+pos", advantages, old, mask, group, ppl_alpha=v["ppl-alpha"], pos_alpha=v["pos-alpha"], **directions)
    shaped = keep_sign(shaped, v["learn-from"])
    logp.requires_grad_(True)
    clips = dict(clip_low=v["clip-low"], clip_high=v["clip-high"])
    loss, counts = clipped_loss(logp, old, shaped, mask, **clips)
    loss.backward()
    push, logp, denominator = -logp.grad, logp.detach(), int(mask.sum())
    each_token = torch.vmap(torch.vmap(lambda *one: clipped_loss(*one, denominator=denominator, **clips)[0]))
    terms, ratio = each_token(logp, old, shaped, mask), (logp - old).clamp(-20, 20).exp()
    log_ppl = log_perplexity(old, mask)
    q1, q3 = log_ppl.quantile(0.25), log_ppl.quantile(0.75)
    kept = log_ppl[(log_ppl >= q1 - 1.5 * (q3 - q1)) & (log_ppl <= q3 + 1.5 * (q3 - q1))]
    numbers = {"mean": rewards.mean(), "std": rewards.std(),
               "ppl-mean": kept.mean(), "ppl-std": kept.std(correction=0), "dropped": 8 - len(kept),
               "loss": loss.item(), "clipped-low": counts["clipped_low"], "clipped-high": counts["clipped_high"], "tokens": denominator,
               "size": push.abs().sum()}  # fmt: skip
    for i in range(8):
        numbers |= {f"advantage.{i + 1}": advantages[i], f"factor.{i + 1}": factor[i], f"push.{i + 1}": push[i].sum()}
    rows = []
    for i, n in enumerate(lengths.tolist()):
        mine = {"A": advantages[i], "A-factor": advantages[i] * factor[i], "first": shaped[i, 0], "last": shaped[i, n - 1],
                "share": push[i].abs().sum() / push.abs().sum().clamp(min=1e-300)}  # fmt: skip
        for t in range(n):
            of_token = {"old": old, "new": logp, "ratio": ratio, "bonus": bonus, "advantage": shaped, "loss": terms, "push": push}
            mine |= {f"table.{t + 1}.{name}": x[i, t] for name, x in of_token.items()}
        rows.append({name: float(x) for name, x in mine.items()})
    return {"numbers": {name: float(x) for name, x in numbers.items()}, "rows": rows}


COLLECT = """const numberOf = (e) => [e.dataset.name, Number(e.dataset.value), Number(e.dataset.digits), e.textContent];
const numbers = document.getElementById("numbers");
numbers.open = true;
const rows = Array.from({length: 8}, (_, i) => {
  document.getElementById(`choose-${i + 1}`).click();
  return [...document.querySelectorAll("[data-name]")].map(numberOf);
});
numbers.open = false;
return rows;"""


def compare(page, values: dict) -> float:
    """Every number that the page shows, for each of its completions, is that of rlvr -> the largest difference (of large numbers, in parts)."""
    rows = page.execute_script(COLLECT)
    shown = [{name: x for name, x, _, _ in row} for row in rows]
    expected, largest = reference(values, shown), 0.0
    for i, row in enumerate(rows):
        wanted = expected["numbers"] | expected["rows"][i]
        tables = {name for name in wanted if name.startswith("table.")}
        token = {name for name in shown[i] if name.startswith("token.")}
        assert shown[i].keys() == wanted.keys() | token and len(token) == 5
        assert all(any(shown[i][name] == shown[i][t] for t in tables if t.endswith(name[5:])) for name in token)
        for name, x, digits, text in row:
            assert abs(float(text.replace("−", "-")) - x) <= 0.5 * 10**-digits + 1e-12, (name, x, text)
            if name in wanted:
                difference = abs(x - wanted[name]) / max(1, abs(wanted[name]))  # a ratio may be e^20
                assert difference < 1e-6, (name, x, wanted[name], values)
                largest = max(largest, difference)
    return largest


def put(page, values: dict) -> None:
    """Change the fields, sliders and buttons that these values belong to, with the events of a hand."""
    page.execute_script("""for (const [name, value] of arguments[0]) {
      const [kind, row, token] = name.split(".");
      if (kind === "old" || kind === "new") {
        document.getElementById(`choose-${row}`).click();
        document.querySelector(`#text [data-t="${token - 1}"]`).click();
      }
      const group = document.querySelector(`.group#${kind} [data-v="${value}"]`);
      if (group) group.click();
      else {
        const field = document.querySelector(`[data-of="${name}"]`) ?? document.getElementById(kind);
        field.value = value;
        field.dispatchEvent(new Event("input", {bubbles: true}));
      }
    }""", list(values.items()))  # fmt: skip


def random_values(draw: random.Random) -> dict:
    """Some of everything that can be changed: ties, extremes, long and short completions, tokens changed by hand."""
    of = lambda *choices: draw.choice(choices)  # noqa: E731
    values = {"moved": of(0, 1, 8.5, 30), "clip-low": of(0, 0.2, 0.37, 1), "clip-high": of(0, 0.28, 0.61, 1),
              "ppl-alpha": of(0, 0.01, 0.2, 0.5), "ppl-direction": of("low", "high", "sham"),
              "pos-alpha": of(0, 0.1, 0.4, 1), "pos-direction": of("late", "early", "sham"),
              "learn-from": of("all", "positive", "negative")}  # fmt: skip
    for i in range(1, 9):
        values[f"reward.{i}"] = of(-1, 1, 0, round(draw.gauss(0, 3), 3), 0.1)
        values[f"length.{i}"] = of(1, 2, 7, draw.randint(1, 120), USUAL[f"length.{i}"])
        if draw.random() < 0.5:
            values[f"mean.{i}"] = round(-draw.random() * of(0.1, 1, 12) - 0.0001, 4)
        for name in draw.sample(("old", "new", "old", "new"), draw.randint(0, 3)):
            values[f"{name}.{i}.{draw.randint(1, values[f'length.{i}'])}"] = of(0, -50, round(-draw.random() * 5, 3))
    return values


@pytest.fixture
def page(browser):
    window_size(browser, 1280, 900)
    browser.get("about:blank")
    browser.get(PAGE.as_uri())
    yield browser
    assert browser.get_log("browser") == []


STARTS = {  # what each start changes
    "real": {},
    "right": {f"reward.{i}": 1 for i in range(1, 9)},
    "wrong": {f"reward.{i}": -1 for i in range(1, 9)},
    "one": {f"reward.{i}": 1 if i == 1 else -1 for i in range(1, 9)},
    "outlier": {"mean.4": -4, "ppl-alpha": 0.2},
    "long": {"length.2": 110},
    "far": {"moved": 20},
}


@pytest.mark.slow
def test_every_number_is_that_of_rlvr(page):
    assert page.execute_script("return Object.keys(STARTS)") == list(STARTS)
    largest = 0.0
    for start, values in STARTS.items():
        put(page, {"start": start})
        largest = max(largest, compare(page, values))
    nearly_equal = {f"length.{i}": 1 for i in range(1, 9)} | {f"old.{i}.1": (-0.5, -0.5000002)[i % 2] for i in range(1, 9)}
    draw = random.Random(0)
    for values in (nearly_equal, *(random_values(draw) for _ in range(6))):
        put(page, {"start": "real"} | values)
        largest = max(largest, compare(page, values))
    print(f"largest difference: {largest:.1e}")


@pytest.mark.slow
def test_by_keyboard_with_wrong_input_and_with_a_link(page):
    from selenium.webdriver.common.keys import Keys
    from selenium.webdriver.support.ui import WebDriverWait

    def field(name):
        return page.find_element("css selector", f'[data-of="{name}"]')

    def invalid(name):
        return field(name).get_attribute("aria-invalid")

    reward, values = field("reward.2"), {"reward.2": 0.5}
    reward.send_keys(Keys.CONTROL, "a")
    reward.send_keys("0,5")  # as half of the world writes it
    for wrong in ("abc", "NaN", "-", ""):
        reward.send_keys(Keys.CONTROL, "a")
        reward.send_keys(wrong or Keys.DELETE)
        note = page.find_element("id", "note").text
        assert invalid("reward.2") == "true" and "What was there before still counts" in note and (wrong or "empty") in note
    wrongs = {"length.3": "2.5", "length.4": "0", "mean.5": "1", "reward.6": "1e999", "reward.7": "0x10", "reward.8": "Infinity"}
    put(page, wrongs)
    assert all(invalid(name) == "true" for name in wrongs)
    compare(page, values)
    put(page, {name: USUAL.get(name) for name in wrongs} | {"length.3": "12", "mean.5": "-0.5"})
    reward.send_keys(Keys.CONTROL, "a")
    reward.send_keys("-1", Keys.ARROW_UP, Keys.ARROW_UP)
    values |= {"reward.2": 1, "length.3": 12, "mean.5": -0.5}
    assert reward.get_attribute("value") == "1" and invalid("reward.2") is None and page.find_element("id", "note").text == ""
    slider = page.find_element("id", "clip-low")
    slider.send_keys(Keys.ARROW_RIGHT, Keys.ARROW_RIGHT)
    text = page.find_element("id", "text")
    page.find_element("id", "choose-3").send_keys(Keys.ENTER)
    text.send_keys(Keys.HOME, Keys.ARROW_DOWN, Keys.ARROW_UP, *[Keys.ARROW_LEFT] * 20, Keys.ARROW_RIGHT)
    assert page.find_element("id", "which").text == "token 2 of completion 3"
    new = page.find_element("id", "new")
    new.send_keys(Keys.CONTROL, "a")
    new.send_keys("-1.25", Keys.TAB)
    values |= {"clip-low": 0.22, "new.3.2": -1.25}
    compare(page, values)
    # The address holds the state; another window that opens it shows the same.
    WebDriverWait(page, 5).until(lambda b: "new.3.2=-1.25" in b.current_url)
    link = page.current_url
    assert parse_qs(link.split("#")[1])["reward.2"] == ["1"] and "reward.1" not in link
    page.find_element("id", "reset").click()
    compare(page, {})
    page.get("about:blank")
    page.get(link)
    compare(page, values)
    hostile = {"start": "<b>", "reward.1": "x", "reward.9": 1, "moved": 99, "new.1": 0, "__proto__": 1, "clip-low": 0.5}
    page.get(PAGE.as_uri() + "#" + urlencode(hostile))  # the same page with another address
    assert page.find_element("id", "note").text.endswith("left out: start, reward.1, reward.9, moved, new.1, __proto__.")
    compare(page, {"clip-low": 0.5})
    assert page.find_element("id", "note").text == ""


@pytest.mark.slow
@pytest.mark.parametrize("width", [400, 1280])
@pytest.mark.parametrize("theme", ["light", "dark"])
def test_the_page_fits_and_tells_the_numbers_of_a_token(page, width, theme):
    from selenium.webdriver.common.action_chains import ActionChains

    window_size(page, width, 900)
    page.execute_cdp_cmd("Emulation.setEmulatedMedia", {"features": [{"name": "prefers-color-scheme", "value": theme}]})
    assert page.find_element("id", "problem").text == f"{read_batch(TEXT)['problem']} The answer is {read_batch(TEXT)['answer']}."
    for start in STARTS:
        put(page, {"start": start})
        assert "undefined" not in page.execute_script("return document.querySelector('main').textContent")
        assert page.execute_script("return document.documentElement.scrollWidth") <= width
    paper = page.execute_script("return getComputedStyle(document.body).backgroundColor")
    assert paper == ("rgb(255, 255, 255)" if theme == "light" else "rgb(20, 23, 26)")
    strip, tip = page.find_element("id", "strip-7"), page.find_element("id", "tip")
    page.execute_script("arguments[0].scrollIntoView({block: 'center'})", strip)  # before the pointer comes: scrolling hides the tip
    page.execute_async_script("requestAnimationFrame(() => requestAnimationFrame(arguments[0]))")
    ActionChains(page).move_to_element(strip).click().perform()
    assert tip.is_displayed() and "of completion 7" in tip.text and "ratio" in tip.text
    assert tip.rect["x"] >= 0 and tip.rect["x"] + tip.rect["width"] <= width
    assert page.find_element("id", "which").text == re.search(r"token \d+ of completion 7", tip.text)[0]
