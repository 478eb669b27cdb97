"""Where commands write: `-o`, `--output-dir` and `--overwrite` mean one thing, and what is not theirs is spared."""

import json
import shutil
from pathlib import Path

import pytest
from planted_runs import plant
from pretraining_setup import make_plan
from records import make_run
from tiny import make_rows, make_tokenizer, save_encoder, write_data, write_rows

from hf_xlt.cli.main import COMMANDS, build_app, main
from hf_xlt.files import has_keys
from hf_xlt.flags import flags_of
from hf_xlt.output import output_file
from hf_xlt.written import delete_written, sort_out

READERS = {"push", "strategies", "doctor"}
RUN = (
    "--model encoder --dataset data/{split}.{lang}.jsonl --target-languages de --max-steps 1 --save-strategy no "
    "--per-device-train-batch-size 8 --disable-tqdm --threads 1"
)
# A command line, what it writes by which its own is known, and whether other files are left in the folder.
WRITERS = {
    "run": (f"run {RUN}", "xlt_run.json"),
    "sweep": (f"run {RUN} --seeds 2", "sweep.json"),
    "strategies": (f"run {RUN} --strategies finetune,averaging --seeds 1", "sweep.json"),
    "evaluate": ("evaluate run --dataset data/{split}.{lang}.jsonl", "results.json"),
    "compare": ("compare planted", "comparison.json"),
    "average": ("average run run2 --head take-first", "averaging.json"),
    "card": ("card made", "README.md"),
    "pretrain": ("pretrain --config plan.yaml", "xlt_run.json"),
    "retrieve": ("retrieve encoder --dataset pairs/{lang}.jsonl --split train --languages de", "retrieval.json"),
    "train-tokenizer": ("train-tokenizer --text text/{lang}.jsonl --vocab-size 400", "tokenizer_training.json"),
    "swap-vocab": ("swap-vocab encoder --tokenizer other", "swapping.json"),
    "trim-vocab": ("trim-vocab run --text text/{lang}.jsonl", "trimming.json"),
    "lang-stats": ("lang-stats --text text/{lang}.jsonl --tokenizer encoder", "languages.json"),
    "make-pairs": ("make-pairs --dataset data/{split}.{lang}.jsonl --languages de", "pairs.json"),
}


@pytest.fixture(scope="module")
def world(tmp_path_factory):
    root = tmp_path_factory.mktemp("world")
    save_encoder(root / "encoder")
    write_data(root / "data", ("en", "de"))
    (root / "text").mkdir()
    (root / "pairs").mkdir()
    for seed, code in enumerate(("en", "de", "sw")):
        write_rows(root / "text" / f"{code}.jsonl", make_rows(code, 40, seed))
    rows = [{"text": row["text"], "text_en": row["text"]} for row in make_rows("de", 12, 3)]
    write_rows(root / "pairs" / "de.jsonl", rows)
    make_tokenizer().save_pretrained(root / "tokenizer")
    make_tokenizer().save_pretrained(root / "other")
    make_run(root / "made")
    for seed in (0, 1):
        plant(root / "planted" / f"a{seed}", "finetune", seed, 0.5)
        plant(root / "planted" / f"b{seed}", "robust", seed, 0.6)
    make_plan(root, root, phases=[{"name": "one", "steps": 1}])
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(root)
        for name, seed in (("run", 0), ("run2", 1)):
            assert main(f"run {RUN} --seed {seed} --output-dir {name}".split()) == 0
        (root / "run" / "LICENSE").write_text("Free.")
    return root


def contents(folder):
    return {path.relative_to(folder): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def refused(words, capsys):
    capsys.readouterr()
    assert main(words) == 2
    lines = capsys.readouterr().err.strip().splitlines()
    assert len(lines) == 1 and lines[0].startswith("error: "), lines
    return lines[0]


def test_every_command_that_writes_is_told_where_in_the_same_words():
    assert set(COMMANDS) - READERS == {line.split()[0] for line, _ in WRITERS.values()}
    for name in sorted(set(COMMANDS) - READERS - {"run"}):
        options = build_app(name)
        from typer.main import get_command

        params = {flag: param for param in get_command(options).params for flag in param.opts}
        assert params["-o"] is params["--output-dir"] and params["--overwrite"].is_flag, name
        assert not params["--overwrite"].secondary_opts and "Replace" in params["--overwrite"].help
        # Other names of it are those of one-file commands alone.
        assert set(params["-o"].opts) - {"-o", "--output-dir"} <= {"--output"}
    flags = {entry["flag"]: entry for entry in flags_of("finetune")}
    assert flags["--output-dir"]["short"] == "-o" and flags["--overwrite"]["switch"]


@pytest.mark.parametrize("name", WRITERS)
def test_nothing_is_replaced_without_overwrite_and_nothing_foreign_with_it(name, world, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(world)
    line, marker = WRITERS[name]
    words, out = line.split(), tmp_path / "out"
    before = contents(world)
    assert main([*words, "-o", str(out)]) == 0
    assert (out / marker).is_file()
    first = contents(out)
    for flag in (["-o", str(out)], ["--output-dir", str(out)], [f"--output-dir={out}"], [f"-o={out}"]):
        said = refused([*words, *flag], capsys)
        assert "--overwrite" in said and "out" in said
        assert contents(out) == first
    # All of it is known as written here, wherever a run's folder is cleared later.
    assert sort_out(out, tuple(path.name for path in out.iterdir() if "-" in path.name)).others == ()
    assert main([*words, "--output-dir", str(out), "--overwrite"]) == 0
    assert set(contents(out)) == set(first)
    # A file of the user's stays, or keeps the whole folder from being replaced.
    (out / "thesis.txt").write_text("mine")
    capsys.readouterr()
    code = main([*words, "-o", str(out), "--overwrite"])
    err = capsys.readouterr().err
    assert (out / "thesis.txt").read_text() == "mine"
    assert code == 0 or (code == 2 and "thesis.txt" in err)
    assert contents(world) == before


@pytest.mark.parametrize("name", WRITERS)
def test_what_others_wrote_is_never_replaced(name, world, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(world)
    line, marker = WRITERS[name]
    # A file of the user's has the name of one that the command writes: its mark is not there, or is a document of
    # another kind.
    mine = tmp_path / "mine"
    names = {
        "evaluate": "results.md",
        "compare": "comparison.csv",
        "retrieve": "retrieval.md",
        "card": "README.md",
        "lang-stats": "languages.json",
        "make-pairs": "README.md",
        "train-tokenizer": "tokenizer.json",
    }
    mine.mkdir()
    (mine / names.get(name, "model.safetensors")).write_text("mine")
    before = contents(mine)
    for more in ([], ["--overwrite"]):
        assert "left alone" in refused([*line.split(), "-o", str(mine), *more], capsys) or (not more)
        assert contents(mine) == before


def test_the_model_that_is_read_is_not_replaced(world, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    shutil.copytree(world / "encoder", tmp_path / "encoder")
    shutil.copytree(world / "other", tmp_path / "other")
    assert main(["swap-vocab", "encoder", "--tokenizer", "other", "-o", "swapped"]) == 0
    before = contents(tmp_path)
    words = ["swap-vocab", "swapped", "--tokenizer", "other", "-o", "swapped", "--overwrite"]
    assert "is the model that is read" in refused(words, capsys)
    write_rows(tmp_path / "en.jsonl", [{"text": "w1 w2"}])
    before = contents(tmp_path)
    words = ["trim-vocab", "swapped", "--text", "{lang}.jsonl", "-o", "swapped", "--overwrite"]
    assert "is the model that is read" in refused(words, capsys)
    assert contents(tmp_path) == before


@pytest.mark.parametrize("word", ["-overwrite", "-output-dir", "-output-dir=x"])
def test_a_long_flag_with_one_hyphen_is_no_place(word, world, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(world)
    before = contents(world)
    for line, _ in WRITERS.values():
        assert f"`-{word}`" in refused([*line.split(), word], capsys) or line.startswith("run")
    assert contents(world) == before


def test_one_file_is_written_into_a_folder_or_as_the_file_that_is_named(world, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(world)
    stats = WRITERS["lang-stats"][0].split()
    for flag in ("--output", "-o", "--output-dir"):
        place = tmp_path / flag.strip("-")
        assert main([*stats, flag, str(place / "mine.json")]) == 0
        assert main([*stats, flag, f"{place}/v1.0/"]) == 0
        assert main(["card", "made", flag, str(place / "card.md")]) == 0
        assert main(["card", "made", flag, str(place)]) == 0
        assert set(map(str, contents(place))) == {"mine.json", "v1.0/languages.json", "card.md", "README.md"}
    (tmp_path / "card.md").write_text("A thesis.")
    for more in ([], ["--overwrite"]):
        refused(["card", "made", "-o", str(tmp_path / "card.md"), *more], capsys)
    assert (tmp_path / "card.md").read_text() == "A thesis."
    assert output_file("a/b.json", "x") == Path("a/b.json") and output_file("a/v1.2", "x") == Path("a/v1.2/x")
    assert output_file(str(tmp_path), "x") == tmp_path / "x" and output_file("out/", "x") == Path("out/x")


def test_a_new_run_leaves_nothing_of_what_was_said_of_the_old_model(world, tmp_path, monkeypatch):
    monkeypatch.chdir(world)
    out = tmp_path / "small"
    assert main(["trim-vocab", "run", "--text", "text/{lang}.jsonl", "-o", str(out)]) == 0
    assert main([*WRITERS["retrieve"][0].split(), "-o", str(out)]) == 0
    assert main([*WRITERS["compare"][0].split(), "-o", str(out)]) == 0
    assert main([*WRITERS["lang-stats"][0].split(), "-o", str(out)]) == 0
    (out / "NOTICE").write_text("mine")
    assert (out / "LICENSE").read_text() == "Free."
    assert main(f"run {RUN} -o {out} --overwrite".split()) == 0
    left = {str(path) for path in contents(out)}
    assert not left & {"trimming.json", "LICENSE", "retrieval.json", "comparison.html", "languages.json"}
    assert (out / "NOTICE").read_text() == "mine" and not sort_out(out).others[1:]
    delete_written(out)
    assert list(out.iterdir()) == [out / "NOTICE"]


def test_counts_of_others_are_not_ours(tmp_path):
    (tmp_path / "languages.json").write_text(json.dumps({"en": "English"}))
    assert sort_out(tmp_path).others == (tmp_path / "languages.json",)
    assert not has_keys(tmp_path / "languages.json", ("languages",)) and not has_keys(tmp_path / "none", ())
