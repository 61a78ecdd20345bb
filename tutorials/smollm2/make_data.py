"""Choose the problems of the SmolLM2 run: one-step word problems of MAWPS with whole numbers up to 100.

    python tutorials/smollm2/make_data.py mawps.jsonl --out data

mawps.jsonl: rows with input, target and type, as in the evaluation data of https://github.com/QwenLM/Qwen2.5-Math (evaluation/data/mawps).
Writes train.jsonl and test.jsonl, which share no problem.
"""

import argparse
import json
import random
import re
from pathlib import Path

TYPES = ("singleop", "singleeq", "addsub")  # multiarith takes two steps
TEST = 200


def chosen(row: dict) -> bool:
    numbers = [float(x) for x in re.findall(r"\d+(?:\.\d+)?", row["input"])] + [row["target"]]
    return row["type"] in TYPES and len(numbers) > 1 and all(x == int(x) and 0 <= x <= 100 for x in numbers)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("mawps", type=Path)
    parser.add_argument("--out", type=Path, default=Path("data"))
    args = parser.parse_args()
    with open(args.mawps, encoding="utf-8") as file:
        rows = [row for row in map(json.loads, file) if chosen(row)]
    problems = {" ".join(row["input"].split()): str(int(row["target"])) for row in rows}  # some are there twice
    pairs = sorted(problems.items())
    random.Random(0).shuffle(pairs)
    args.out.mkdir(parents=True, exist_ok=True)
    for name, part in (("test", pairs[:TEST]), ("train", pairs[TEST:])):
        lines = [json.dumps({"problem": problem, "answer": answer}) + "\n" for problem, answer in part]
        (args.out / f"{name}.jsonl").write_text("".join(lines), encoding="utf-8")
        print(f"{args.out / name}.jsonl: {len(part)} problems")


if __name__ == "__main__":
    main()
