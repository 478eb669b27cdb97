"""The recipe for a table of neighbours reads WordNet's files and writes what `SynonymAugmenter` takes."""

import importlib.util
import json
from pathlib import Path

import pytest

from hf_xlt.strategies.robust.augmentation_synonyms import SynonymAugmenter

SCRIPT = Path(__file__).resolve().parents[3] / "examples" / "wordnet_neighbours.py"
LICENCE = "  1 This software and database is being provided to you, the LICENSEE\n"
FILES = {
    # Offset, file number, kind, count of words (hexadecimal), then word and number by turns.
    "data.noun": "00000010 03 n 03 auto 0 car 0 motor_car 0 000 | a vehicle\n"
    "00000020 03 n 02 car 0 wagon 0 000 | on rails\n00000030 03 n 02 Paris 0 capital 0 000 | a city\n"
    "00000040 03 n 02 in 0 inch 0 000 | a length\n",
    # Word, kind, senses, kinds of pointers, the pointers, two counts, then offsets.
    "index.noun": "auto n 1 0 1 0 00000010\ncar n 2 2 @ ~ 2 1 00000010 00000020\nparis n 1 0 1 0 00000030\n"
    "capital n 1 0 1 0 00000030\nin n 1 0 1 0 00000040\ninch n 1 0 1 0 00000040\n",
    "data.verb": "00000050 30 v 02 car 0 drive 0 000 | to go\n",
    "index.verb": "car v 1 0 1 0 00000050\ndrive v 1 0 1 0 00000050\n",
    "data.adj": "00000060 00 s 02 galore(ip) 0 plenty 0 000 | much\n",
    "index.adj": "galore a 1 0 1 0 00000060\nplenty a 1 0 1 0 00000060\n",
    "data.adv": "",
    "index.adv": "",
}


@pytest.fixture
def recipe():
    spec = importlib.util.spec_from_file_location("wordnet_neighbours", SCRIPT)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.mark.parametrize(
    ("options", "car"),
    [([], ["auto", "wagon", "drive"]), (["--senses", "1"], ["auto", "drive"]), (["--most", "1"], ["auto"])],
)
def test_the_table_holds_the_other_words_of_frequent_senses(recipe, tmp_path, capsys, options, car):
    for name, content in FILES.items():
        (tmp_path / name).write_text(LICENCE + content)
    assert recipe.main([str(tmp_path), str(tmp_path / "out.json"), *options]) == 0
    table = json.loads((tmp_path / "out.json").read_text())
    # No names, phrases, markers or function words, on either side.
    rest = {"auto": ["car"], "capital": [], "drive": ["car"], "galore": ["plenty"], "inch": []}
    assert table == {"car": car, **rest, "plenty": ["galore"]}
    assert "7 words, 5 with neighbours" in capsys.readouterr().out
    assert SynonymAugmenter(tmp_path / "out.json").neighbours["car"] == tuple(car)


def test_another_folder_is_refused_in_one_line(recipe, tmp_path, capsys):
    assert recipe.main([str(tmp_path), str(tmp_path / "out.json")]) == 2
    assert "holds no `data.noun`; name WordNet's `dict` folder" in capsys.readouterr().err
