"""What the pages show of the program's output is what it prints: each `$ hf-xlt` in a console block is run."""

import json
import re
import shlex
from pathlib import Path

import pytest
from records import make_record

from hf_xlt.cli.main import main

DOCS = Path(__file__).resolve().parent.parent / "docs"
PAGES = ("data.md", "scaling.md", "troubleshooting.md")


def screens():
    """Return one case per command: page, command, what the page shows below it."""
    for page in PAGES:
        for block in re.findall(r"```console\n(.*?)```", (DOCS / page).read_text(encoding="utf-8"), re.S):
            for command, shown in re.findall(r"^\$ (.*)\n((?:(?!\$ ).*\n)*)", block, re.M):
                yield pytest.param(command, shown, id=f"{page}: {command[7:60]}")


def write(path, *lines):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(f"{line}\n" for line in lines), encoding="utf-8")


@pytest.fixture(scope="module")
def world(tmp_path_factory):
    """The files that the page on data writes, and those with the mistakes that the pages show."""
    root = tmp_path_factory.mktemp("docs")
    snippet = re.search(r"```python\n(.*?)```", (DOCS / "data.md").read_text(encoding="utf-8"), re.S)[1]
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(root)
        exec(compile(snippet, "docs/data.md", "exec"), {})
    for split, language in (("train", "en"), ("test", "de")):
        write(root / f"reviews/{split}.{language}.csv", "review,stars", "A good room,5", "A bad room,1")
    write(root / "all.csv", "text,label", "A good room,good", "A bad room,bad")
    write(root / "single.csv", "lang,text,label", "en,A good room,good", "en,A bad room,bad", "de,Ein Zimmer,good")
    words, tags = ["Anna", "sings"], ["B-PER", "O"]
    good = json.dumps({"tokens": words, "tags": tags})
    write(root / "names/train.en.jsonl", json.dumps({"tokens": words, "tags": tags[:1]}), good)
    write(root / "names/test.de.jsonl", good)
    for split, language in (("train", "en"), ("test", "de")):
        write(root / f"words/{split}.{language}.csv", "tokens,tags", f'"{words}","{tags}"')
        answers = {"text": ["Anna"], "answer_start": [3 if split == "train" else 0]}
        row = {"question": "Who sings?", "context": "Anna sings.", "answers": answers}
        write(root / f"quiz/{split}.{language}.jsonl", json.dumps(row))
    write(root / "runs/occupied/notes.txt", "mine")
    (root / "runs/finished").mkdir()
    make_record(strategy={"name": "finetune"}).write(root / "runs/finished")
    return root


@pytest.mark.parametrize(("command", "shown"), list(screens()))
def test_the_program_prints_what_the_page_shows(command, shown, world, monkeypatch, capsys):
    monkeypatch.chdir(world)
    name, *argv = shlex.split(command)
    code = main(argv)
    said = capsys.readouterr()
    assert name == "hf-xlt" and shown.strip()
    if shown.startswith("error:"):
        # Bars and warnings of the libraries may stand before it.
        assert said.err.strip().splitlines()[-1].split("\r")[-1] == " ".join(shown.split())
        assert code == 2
    else:
        assert code == 0 and [line.rstrip() for line in said.out.splitlines()] == shown.splitlines()


def test_there_are_screens_on_every_page():
    assert {case.id.split(":")[0] for case in screens()} == set(PAGES)
    assert len(list(screens())) >= 30
