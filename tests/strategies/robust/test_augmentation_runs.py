"""Augmentation from the command line: what a run trains on, how long, and what its record says."""

import json
import re

import pytest
from tiny import WORDS, save_encoder, write_data

from hf_xlt.cli.main import main
from hf_xlt.errors import ConfigError
from hf_xlt.record import RunRecord
from hf_xlt.strategies.robust import STRATEGY, RobustConfig
from hf_xlt.training.trainer import XLTTrainer

SYNONYMS = "--augmenter synonyms --neighbours private/tables/neighbours.json"


@pytest.fixture(scope="module")
def world(tmp_path_factory):
    """An encoder, data, a table below two folders, and damaged ones."""
    root = tmp_path_factory.mktemp("augmentation")
    save_encoder(root / "encoder")
    write_data(root / "data", languages=("en", "de"), train=20)
    folder = root / "private" / "tables"
    folder.mkdir(parents=True)
    table = {word: [WORDS[(number + step) % 60] for step in (1, 2, 3)] for number, word in enumerate(WORDS)}
    (folder / "neighbours.json").write_text(json.dumps(table))
    (folder / "english.txt").write_text("\n".join(WORDS[:30]))
    (root / "list.json").write_text("[1]")
    return root


@pytest.fixture
def go(world, tmp_path, monkeypatch, capsys):
    """Run a command from the data's folder; return exit code, output directory, stdout, stderr."""
    monkeypatch.chdir(world)

    def run(line, out="out"):
        folder = tmp_path / out
        where = "run --strategy robust --method none --model encoder --dataset data/{split}.{lang}.jsonl"
        settings = (
            "--per-device-train-batch-size 4 --num-train-epochs 2 --disable-tqdm --threads 1 --learning-rate 1e-3"
        )
        code = main([*where.split(), *settings.split(), "--output-dir", str(folder), *line.split()])
        captured = capsys.readouterr()
        return code, folder, captured.out, captured.err

    return run


def planned(printed):
    return int(re.search(r"^Updates +([\d,]+)", printed, re.M)[1].replace(",", ""))


@pytest.mark.parametrize(
    ("line", "updates", "note"),
    [
        ("", 10, None),
        (
            f"{SYNONYMS} --copies 3",
            30,
            "3 copies of each example with words replaced by neighbours (60 words with 180",
        ),
        (f"{SYNONYMS} --augmentation online", 10, "drawn anew at every read"),
        (f"{SYNONYMS} --copies 3 --baseline copies", 30, "Baseline: source training data are 3 unchanged copies"),
        (
            f"{SYNONYMS} --copies 3 --baseline equal_updates",
            30,
            "Baseline: unchanged source training data, the updates",
        ),
        ("--augmenter characters --character-rate 0.25 --copies 2", 20, "one character changed in 25 % of the words"),
        (f"{SYNONYMS} --copies 3 --max-steps 7 --baseline equal_updates", 7, "Baseline"),
        # Shots are not copied: 20 x 3 + 6 examples in batches of 4.
        (f"{SYNONYMS} --copies 3 --shots 6 --few-shot-mode concat", 34, "3 copies"),
    ],
)
def test_a_dry_run_tells_updates_and_what_becomes_of_the_data(go, line, updates, note):
    code, folder, out, err = go(f"{line} --dry-run")
    assert code == 0, err
    assert planned(out) == updates and not folder.exists()
    assert note is None or note in out
    assert ("Source training" in out or "Baseline" in out) == (note is not None)


@pytest.mark.parametrize("baseline", ["", "--baseline copies", "--baseline equal_updates"])
def test_a_run_makes_the_updates_it_planned(go, baseline):
    _, _, out, _ = go(f"{SYNONYMS} --copies 3 {baseline} --dry-run")
    code, folder, _, err = go(f"{SYNONYMS} --copies 3 {baseline}")
    assert code == 0, err
    record = RunRecord.read(folder)
    assert record.phases[0]["updates"] == planned(out) == 30
    assert record.data["source"]["examples"] == {"en": 20}


@pytest.fixture
def trained_on(monkeypatch):
    """The training and evaluation data of every trainer."""
    seen, original = [], XLTTrainer.__init__

    def spy(self, *args, **kwargs):
        original(self, *args, **kwargs)
        seen.append(self)

    monkeypatch.setattr(XLTTrainer, "__init__", spy)
    return seen


def test_only_source_training_data_are_augmented(go, trained_on):
    shots = "--shots 6 --few-shot-mode joint --eval-strategy epoch --max-steps 1"
    assert go(shots, "plain")[0] == go(f"{shots} {SYNONYMS} --copies 2", "augmented")[0] == 0
    plain, augmented = trained_on

    def ids(data):
        return [row["input_ids"] for row in data]

    assert ids(plain.joint_datasets["de"]) == ids(augmented.joint_datasets["de"])
    assert ids(plain.eval_dataset["en"]) == ids(augmented.eval_dataset["en"])
    copies = ids(augmented.train_dataset)
    assert len(copies) == 40 and ids(plain.train_dataset) not in (copies[:20], copies[20:])
    assert augmented.train_dataset["labels"][:] == plain.train_dataset["labels"][:] * 2


def test_augmentation_goes_with_a_perturbation_of_embeddings(go):
    code, folder, _, err = go(f"{SYNONYMS} --augmentation online --method adv --max-steps 3")
    assert code == 0, err
    record = RunRecord.read(folder)
    assert (record.settings["method"], record.settings["augmenter"]) == ("adv", "synonyms")


@pytest.mark.parametrize("spelling", ["--neighbours {}", "--neighbours={}"])
def test_record_and_card_name_the_table_and_not_its_place(go, world, spelling):
    table = world / "private" / "tables" / "neighbours.json"
    line = f"--max-steps 1 --augmenter synonyms {spelling} --neighbour-filter private/tables/english.txt"
    code, folder, _, err = go(line.format(table))
    assert code == 0, err
    for name in ("xlt_run.json", "README.md", "config.json"):
        text = (folder / name).read_text()
        assert str(world) not in text and "private" not in text and "tables/" not in text
    record = RunRecord.read(folder)
    for settings in (record.settings, record.arguments):
        assert re.fullmatch(
            r"neighbours\.json \(sha256 [0-9a-f]{16}\), 32 words with 90 neighbours", settings["neighbours"]
        )
        assert re.fullmatch(r"english\.txt \(sha256 [0-9a-f]{16}\)", settings["neighbour_filter"])
    assert "neighbours.json" in record.command and "english.txt" in record.command
    assert "neighbours.json (sha256" in (folder / "README.md").read_text()


def test_a_relative_path_with_one_folder_is_cut_as_well(go, world):
    (world / "mine").mkdir(exist_ok=True)
    (world / "mine" / "t.json").write_bytes((world / "private" / "tables" / "neighbours.json").read_bytes())
    code, folder, _, err = go("--max-steps 1 --augmenter synonyms --neighbours mine/t.json")
    assert code == 0, err
    assert "mine" not in (folder / "xlt_run.json").read_text()


def test_a_run_with_another_table_is_not_resumed(go, world):
    table = world / "changing.json"
    table.write_text('{"w1": ["w2"]}')
    line = "--max-steps 2 --save-steps 1 --augmenter synonyms --neighbours changing.json"
    assert go(line)[0] == 0
    _, folder, _, _ = go(f"{line} --resume")
    record = json.loads((folder / "xlt_run.json").read_text()) | {"status": "interrupted"}
    (folder / "xlt_run.json").write_text(json.dumps(record))
    table.write_text('{"w1": ["w3"]}')
    code, _, _, err = go(f"{line} --resume")
    assert code == 2 and "started with `neighbours` 'changing.json (sha256" in err


BAD = {
    "no table": ("--augmenter synonyms", "name one by `neighbours`"),
    "missing table": ("--augmenter synonyms --neighbours no.json", "neighbour table `no.json` is missing"),
    "wrong table": ("--augmenter synonyms --neighbours list.json", "is a list. It must be of the form"),
    "table unused": ("--neighbours list.json", "set `augmenter` to synonyms"),
    "filter unused": ("--augmenter characters --neighbour-filter a.txt", "`neighbour_filter` is given, but"),
    "filter missing": (f"{SYNONYMS} --neighbour-filter a.txt", "neither a readable list of words"),
    "no copies": ("--augmenter characters --copies 0", "`copies` is 0; it must be a whole number of 1 or more"),
    "rate": ("--augmenter characters --character-rate 0", "`character_rate` is 0.0; it must be above 0"),
    "baseline of nothing": ("--baseline copies", "`baseline` is that of an augmentation"),
    "baseline online": ("--augmenter characters --augmentation online --baseline copies", "its baseline is the same"),
    "unknown augmenter": ("--augmenter synonym", "invalid choice: 'synonym'"),
}


@pytest.mark.parametrize("dry", ["", "--dry-run"])
@pytest.mark.parametrize(("line", "message"), BAD.values(), ids=BAD)
def test_bad_settings_end_in_one_line(go, line, message, dry):
    code, folder, _, err = go(f"{line} {dry}")
    assert code == 2 and message in err and len(err.strip().splitlines()) == 1
    assert not folder.exists()


def test_settings_are_refused_all_at_once_and_survive_json(tmp_path):
    wrong = {"augmenter": "words", "augmentation": "later", "copies": 2.5, "lookup": "fuzzy", "character_rate": 2}
    with pytest.raises(ConfigError) as error:
        RobustConfig(output_dir=str(tmp_path), use_cpu=True, baseline="on", **wrong)
    assert all(f"`{name}` is {value!r}" in str(error.value) for name, value in {**wrong, "baseline": "on"}.items())
    config = RobustConfig(output_dir=str(tmp_path), use_cpu=True, augmenter="characters", copies=5)
    again = json.loads(config.to_json_string())
    assert (again["augmenter"], again["copies"], again["augmentation"]) == ("characters", 5, "offline")
    assert STRATEGY.augmentation(config).copies == 5
    assert STRATEGY.augmentation(RobustConfig(output_dir=str(tmp_path), use_cpu=True)) is None
