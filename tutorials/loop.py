"""Draw the loop of training, once for each notebook, with the place where the notebook is: python -m tutorials.loop.

The pictures are at the heads of the notebooks, as `tutorials/loop/NN.svg`. They have a ground of their own, light or dark as the reader's
system is, so that they can be read on any page.
"""

from html import escape
from pathlib import Path

FOLDER = Path(__file__).parent / "loop"

BOXES = {  # what it is: its shape, the file of rlvr/ that makes it, and where it is: left, top
    "prompts": ("[P]", "data.py", 16, 84),
    "completions": ("[N, T]", "rollout.py", 174, 84),
    "rewards": ("[N]", "reward.py", 332, 84),
    "advantages": ("[N, T]", "advantage.py", 490, 84),
    "loss": ("one number", "loss.py", 648, 84),
    "weights": ("one update", "train.py", 806, 84),
    "entropy": ("[N, T]", "entropy.py", 174, 204),
}
WIDTH, HEIGHT = 138, 84
HERE = {  # notebook -> the places that it is about ("again": the arrow back), and what it does there
    1: ("prompts completions rewards", "eight completions of each prompt, and which are right"),
    2: ("rewards", "is this answer right, and can the reward be fooled?"),
    3: ("advantages loss weights", "from rewards to an update of the weights"),
    4: ("entropy", "how undecided the policy is at each token"),
    5: ("again entropy", "what many steps do to accuracy and to entropy"),
    6: ("advantages", "one factor for a whole completion, from its perplexity"),
    7: ("advantages", "a bonus for each token, from its position"),
    8: ("completions loss weights", "the same numbers in less time"),
    9: ("prompts completions weights", "the same loop with a real language model"),
    10: ("advantages again", "a method of your own, compared over whole runs"),
}
STYLE = """
  .ground { fill: #ffffff; stroke: #d9dde2; }
  text { fill: #1c2024; font-family: system-ui, "Segoe UI", Helvetica, Arial, sans-serif; }
  .box { fill: #f5f6f8; stroke: #5d6670; stroke-width: 1.5; }
  .arrow { fill: none; stroke: #5d6670; stroke-width: 2; } .head { fill: #5d6670; }
  .name { font-size: 18px; font-weight: 600; } .shape { font: 16px ui-monospace, Menlo, Consolas, monospace; } .file { font-size: 14px; }
  .note { font-size: 15px; } .caption { font-size: 18px; font-weight: 600; }
  .here .box { fill: #0072b2; stroke: #0072b2; stroke-width: 4; } .here text { fill: #ffffff; }
  .here .arrow { stroke: #0072b2; stroke-width: 4; } .here .head, text.caption { fill: #0072b2; }
  .back.here text { fill: #0072b2; font-weight: 600; }
  @media (prefers-color-scheme: dark) {
    .ground { fill: #14171a; stroke: #343a41; } text { fill: #e6e8eb; } .box { fill: #1d2125; stroke: #9aa4af; }
    .arrow { stroke: #9aa4af; } .head { fill: #9aa4af; }
    .here .box { fill: #56b4e9; stroke: #56b4e9; } .here text { fill: #14171a; }
    .here .arrow { stroke: #56b4e9; } .here .head, text.caption { fill: #56b4e9; } .back.here text { fill: #56b4e9; } }
"""


def text(kind: str, x: float, y: float, words: str, anchor: str = "start") -> str:
    return f'<text class="{kind}" x="{x:g}" y="{y:g}" text-anchor="{anchor}">{escape(words)}</text>'


def box(name: str, here: bool) -> str:
    shape, file, x, y = BOXES[name]
    lines = [("name", name, 28), ("shape", shape, 51), ("file", file, 72)]
    inside = "".join(text(kind, x + WIDTH / 2, y + down, words, "middle") for kind, words, down in lines)
    frame = f'<rect class="box" x="{x}" y="{y}" width="{WIDTH}" height="{HEIGHT}" rx="9"/>'
    return f'<g class="{"here" if here else "there"}">{frame}{inside}</g>'


def arrow(*points: tuple[float, float]) -> str:
    """A line through the points, with a head at the last one, which it comes to from the left or from above."""
    (x, y), from_above = points[-1], points[-1][0] == points[-2][0]
    head = f"{x - 8:g},{y - 12:g} {x + 8:g},{y - 12:g}" if from_above else f"{x - 12:g},{y - 7:g} {x - 12:g},{y + 7:g}"
    line = " ".join(f"{a:g},{b:g}" for a, b in points)
    return f'<polyline class="arrow" points="{line}"/><polygon class="head" points="{x:g},{y:g} {head}"/>'


def drawing(notebook: int) -> str:
    """The picture at the head of a notebook, as SVG."""
    names, says = HERE[notebook]
    places, top, middle = names.split(), 84, 84 + HEIGHT / 2
    row = list(BOXES)[:6]
    parts = [arrow((BOXES[a][2] + WIDTH, middle), (BOXES[b][2], middle)) for a, b in zip(row, row[1:])]
    parts.append(arrow((243, top + HEIGHT), (243, 204)))
    back = arrow((875, top), (875, 46), (243, 46), (243, top)) + text("note", 559, 36, "again: the new weights sample", "middle")
    parts.append(f'<g class="back{" here" if "again" in places else ""}">{back}</g>')
    parts += [box(name, name in places) for name in BOXES]
    parts += [text("caption", 332, 222, "You are here:"), text("caption", 332, 247, says)]
    parts.append(text("note", 332, 278, "P prompts, G completions of each, N = P · G completions, T tokens of the longest"))
    frame = 'xmlns="http://www.w3.org/2000/svg" viewBox="0 0 960 304" width="960" height="304" role="img"'
    ground = '<rect class="ground" x="0.5" y="0.5" width="959" height="303" rx="12"/>'
    label = f'aria-label="The loop of training; you are here: {escape(says)}"'
    return "\n".join([f"<svg {frame} {label}>", f"<style>{STYLE}</style>", ground, *parts, "</svg>\n"])


if __name__ == "__main__":
    FOLDER.mkdir(exist_ok=True)
    for notebook in HERE:
        (FOLDER / f"{notebook:02d}.svg").write_text(drawing(notebook), encoding="utf-8")
    print(f"written: {len(HERE)} pictures in {FOLDER}")
