"""The drawing of the loop: the files are what the program draws, and each notebook has its own at its head."""

import json
import re
from xml.etree import ElementTree

import pytest

from tutorials.execute import notebooks
from tutorials.loop import BOXES, FOLDER, HERE, drawing

ROOT = FOLDER.parents[1]


@pytest.mark.parametrize("path", notebooks([]), ids=lambda p: p.stem)
def test_each_notebook_shows_where_it_is(path):
    number = int(path.name[:2])
    picture = (FOLDER / f"{number:02d}.svg").read_text(encoding="utf-8")
    assert picture == drawing(number), "python -m tutorials.loop"
    texts = [element.text for element in ElementTree.fromstring(picture).iter("{http://www.w3.org/2000/svg}text")]
    assert {*BOXES, "You are here:"} <= set(texts) and max(map(len, texts)) <= 85
    places, says = HERE[number]
    assert says in texts and len(says) <= 54, "longer ones do not fit"
    assert set(places.split()) <= {*BOXES, "again"} and picture.count('class="here"') + picture.count('"back here"') == len(places.split())
    head = "".join(json.loads(path.read_text(encoding="utf-8"))["cells"][0]["source"])
    assert re.match(rf"# {number}\. .*\n\n!\[The loop of training; you are here: {re.escape(says)}\]\(loop/{number:02d}\.svg\)\n", head)


def test_the_drawing_names_files_that_exist():
    assert all((ROOT / "rlvr" / file).exists() for _, file, _, _ in BOXES.values())
    assert len(list(FOLDER.iterdir())) == len(HERE) == 10
