"""Bad input ends in one clear line and the right exit code; nothing is written, no traceback is shown."""

import json
import os
import shutil
from pathlib import Path

import pytest
from tiny import make_rows, save_encoder, write_data, write_rows

from hf_xlt.cli.main import main


@pytest.fixture(scope="module")
def world(tmp_path_factory):
    """An encoder, data, and damaged copies of both."""
    root = tmp_path_factory.mktemp("world")
    save_encoder(root / "encoder")
    write_data(root / "data", train=12)
    rows = make_rows("en", 9, 0)
    for name, changed in {
        "nolabel": [{k: v for k, v in row.items() if k not in ("label", "label_text")} for row in rows],
        "negative": [{"text": row["text"], "label": -1} for row in rows],
        "float": [{**row, "label": 0.5} for row in rows],
        "oneclass": [{**row, "label": 0, "label_text": "bad"} for row in rows],
        "notext": [{**row, "text": None} for row in rows],
        "missing_label": [{**row, "label": None} if row["id"] == "4" else row for row in rows],
    }.items():
        write_data(root / name, train=12)
        write_rows(root / name / "train.en.jsonl", changed)
    for name, changed in {
        "outside": [{**row, "label": 7, "label_text": None} for row in rows],
        "renamed": [{**row, "label_text": "other"} for row in rows],
        "pairs": [{**row, "text_pair": "w1"} for row in rows],
        "words": [{**row, "label": "great", "label_text": None} for row in rows],
    }.items():
        write_data(root / name, train=12)
        write_rows(root / name / "validation.en.jsonl", changed)
        write_rows(root / name / "test.de.jsonl", changed)
    write_data(root / "empty", train=12)
    (root / "empty" / "train.en.jsonl").write_text("")
    write_data(root / "broken", train=12)
    (root / "broken" / "train.en.jsonl").write_text('{"text": "w1", "label"')
    (root / "garbage.en.parquet").write_bytes(b"PAR1 not really")
    write_rows(root / "single.jsonl", make_rows("en", 9, 0) + make_rows("de", 9, 0))
    write_rows(root / "nolang.jsonl", [{"text": "w1", "label": 0}])
    encoder = root / "encoder"
    for name in ("truncated", "noconfig", "notokenizer", "garbled", "headless", "misfit"):
        shutil.copytree(encoder, root / name)
    weights = (root / "truncated" / "model.safetensors").read_bytes()
    (root / "truncated" / "model.safetensors").write_bytes(weights[: len(weights) // 2])
    (root / "noconfig" / "config.json").unlink()
    for name in ("tokenizer.json", "tokenizer_config.json"):
        (root / "notokenizer" / name).unlink()
    (root / "garbled" / "config.json").write_text("{")
    wider = json.loads((encoder / "config.json").read_text()) | {"intermediate_size": 128}
    (root / "misfit" / "config.json").write_text(json.dumps(wider))
    speech = json.loads((encoder / "config.json").read_text()) | {"model_type": "vits", "architectures": ["VitsModel"]}
    (root / "headless" / "config.json").write_text(json.dumps(speech))
    (root / "bad.yaml").write_text("learning_rte: 1\n")
    (root / "list.yaml").write_text("- a\n")
    (root / "broken.yaml").write_text("a: [1\n")
    (root / "occupied").mkdir()
    (root / "occupied" / "thesis.txt").write_text("mine")
    (root / "file").write_text("mine")
    (root / "run").mkdir()
    (root / "run" / "xlt_run.json").write_text(
        json.dumps({"strategy": {"name": "finetune"}, "task": {}, "status": "running", "format_version": 1})
    )
    (root / "newer").mkdir()
    (root / "newer" / "xlt_run.json").write_text(json.dumps({"format_version": 99}))
    return root


TARGET = "--target-dataset data/{split}.{lang}.jsonl"
GOOD = "--model encoder --dataset data/{split}.{lang}.jsonl"
VALIDATE = "--eval-strategy epoch --save-strategy epoch --load-best-model-at-end"
# Arguments after `run`, and a part of the line on stderr that tells this error from others.
USAGE = {
    "unknown strategy": (f"{GOOD} --strategy robst", "unknown strategy 'robst'. Did you mean `robust`? Known"),
    "unknown flag": (f"{GOOD} --learning-rte 1", "unknown argument `--learning-rte`. Did you mean `--learning-rate`?"),
    "abbreviated flag": (f"{GOOD} --targ de", "unknown argument `--targ`"),
    "wrong type": (f"{GOOD} --max-steps many", "argument --max_steps/--max-steps: invalid int value: 'many'"),
    "unknown task": (f"{GOOD} --task parsing", "unknown task 'parsing'"),
    "no data": ("--model encoder", "no data: give `--dataset`"),
    "no model": ("--dataset data/{split}.{lang}.jsonl", "no model: give `--model`"),
    "missing folder": ("--model encoder --dataset nowhere/{split}.{lang}.jsonl", "Check the pattern"),
    "missing file": ("--model encoder --dataset nowhere.jsonl", "`nowhere.jsonl` is missing"),
    "unknown part of the pattern": ("--model encoder --dataset data/{splt}.{lang}.jsonl", "unknown part {splt}"),
    "neither file nor id": ("--model encoder --dataset ./nothing", "is neither a file"),
    "unknown target language": (f"{GOOD} --target-languages de,sv", "target language `sv` has no `test` split"),
    "unknown source language": (f"{GOOD} --source-languages fr", "language `fr` has no `train` split"),
    "not a language code": (f"{GOOD} --target-languages german!", "'german!' is not a language code"),
    "source among targets": (f"{GOOD} --target-languages en,de", "`en` is both a source and a target language"),
    "missing split": (f"{GOOD} --source-split trian", "no file fits"),
    "missing column": (f"{GOOD} --text-column sentence", "must contain a `sentence` column"),
    "missing label column": (GOOD.replace("data/", "nolabel/"), "must contain a `label` column"),
    "empty split": (GOOD.replace("data/", "empty/"), "the file is empty"),
    "broken json": (GOOD.replace("data/", "broken/"), "cannot be read as jsonl"),
    "broken parquet": (
        f"--model encoder --dataset garbage.{{lang}}.parquet {TARGET}",
        "cannot be read as parquet",
    ),
    "negative label": (GOOD.replace("data/", "negative/"), "holds the label -1"),
    "fractional label": (GOOD.replace("data/", "float/"), "holds 0.5, a number with a fraction"),
    "one class": (GOOD.replace("data/", "oneclass/"), "classification needs two or more"),
    "no text": (GOOD.replace("data/", "notext/"), "row 0: column `text` holds None"),
    "no label": (GOOD.replace("data/", "missing_label/"), "row 4: label None is neither"),
    "label outside": (
        f"{GOOD.replace('data/', 'outside/')} {VALIDATE}",
        "label 7 is a bare number, and the classes have names",
    ),
    "label renamed": (f"{GOOD.replace('data/', 'renamed/')} {VALIDATE}", "label 'other' is not in the inventory"),
    "mixed label sets": (f"{GOOD.replace('data/', 'words/')} {VALIDATE}", "label 'great' is not in the inventory"),
    "pairs and singles": (f"{GOOD.replace('data/', 'pairs/')} {VALIDATE}", "single texts or all are pairs"),
    "too few names": (f"{GOOD} --labels a,b", "label 'bad' is not in the inventory a, b"),
    "name twice": (f"{GOOD} --labels a,a,b", "names a class twice"),
    "one file for two roles": ("--model encoder --dataset single.jsonl", "single set, used as `train`"),
    "no language column": (
        f"--model encoder --dataset nolang.jsonl {TARGET}",
        "a column that names the language",
    ),
    "negative shots": (f"{GOOD} --shots -1", "`--shots` is -1"),
    "length 0": (f"{GOOD} --max-length 0", "`--max-length` is 0"),
    "threads 0": (f"{GOOD} --threads 0", "`--threads` is 0"),
    "rank 0": (f"{GOOD} --peft lora --lora-rank 0", "`--lora-rank` is 0; give 1 or more"),
    "scale 0": (f"{GOOD} --peft lora --lora-alpha 0", "`--lora-alpha` is 0; give 1 or more"),
    "adapter dropout 1": (f"{GOOD} --peft lora --lora-dropout 1", "`--lora-dropout` is 1.0"),
    "unknown adapters": (f"{GOOD} --peft prefix", "invalid choice: 'prefix'"),
    "rank without adapters": (f"{GOOD} --lora-rank 4", "`--lora-rank` does nothing without `--peft lora`"),
    "nothing to adapt": (
        f"{GOOD} --peft lora --lora-target-modules query,vlaue",
        "`--lora-target-modules vlaue`: the model has no such module. Did you mean `value`? It has dense, key, query, "
        "value.",
    ),
    "nothing to adapt, dry": (f"{GOOD} --peft lora --lora-target-modules pooler --dry-run", "has no such module"),
    "nothing to train in full": (f"{GOOD} --peft lora --lora-modules-to-save heads", "`--lora-modules-to-save heads`"),
    "adapters where all is trained": (
        f"{GOOD} --strategy meta-pretrain --text-dataset data/{{split}}.{{lang}}.jsonl --peft lora",
        "strategy `meta-pretrain` needs all weights trained and does not take `--peft`. Leave it out, or choose one "
        "of `finetune`, `robust`",
    ),
    "no text for the first phase": (
        f"{GOOD} --strategy meta-pretrain --text-dataset data/{{split}}.{{lang}}.jsonl --text-languages de",
        "there is no text in `en` for the monolingual phase; the text has de.",
    ),
    "sharded adapters": (f"{GOOD} --peft lora --fsdp full_shard", "`--peft` does not go with FSDP or DeepSpeed"),
    "average settings without averaging": (
        f"{GOOD} --average-every 2",
        "`--average-every` does nothing without `--average`; add that",
    ),
    "average how often": (f"{GOOD} --average --average-every often", "`--average-every often` is neither `epoch` nor"),
    "average every 1.5": (f"{GOOD} --average --average-every 1.5", "`--average-every` is 1.5; give a share"),
    "average mode": (f"{GOOD} --average --average-mode median", "invalid choice: 'median'"),
    "average last without a number": (
        f"{GOOD} --average --average-mode last_k",
        "`--average-mode` last_k needs `--average-last-k`",
    ),
    "average last 0": (f"{GOOD} --average --average-mode last_k --average-last-k 0", "`--average-last-k` is 0"),
    "average decay 1": (f"{GOOD} --average --average-mode ema --average-ema-decay 1", "`--average-ema-decay` is 1.0"),
    "average decay for another mode": (
        f"{GOOD} --average --average-ema-decay 0.5",
        "`--average-ema-decay` is for `--average-mode` ema; it is uniform here",
    ),
    "average start": (f"{GOOD} --average --average-start -1", "`--average-start` is -1.0"),
    "average of saves without saves": (
        f"{GOOD} --average --average-every save --save-strategy no",
        "`--average-every save` needs regular saves, and `--save-strategy` is no",
    ),
    "average of the last and early stopping": (
        f"{GOOD} --average --average-mode last_k --average-last-k 2 {VALIDATE} --early-stopping-patience 2",
        "`--average-mode last_k` counts from the planned end",
    ),
    "average evaluated without evaluation": (f"{GOOD} --average --average-evaluate", "needs evaluations: add"),
    "average selects": (f"{GOOD} --average --average-evaluate {VALIDATE}", "weights that they do not hold"),
    "averaging that does not": (f"{GOOD} --strategy averaging --average false", "strategy `averaging` averages"),
    "average of sharded weights": (f"{GOOD} --average --fsdp full_shard", "`--average` does not go with FSDP"),
    "unmet role": (f"{GOOD} --auxiliary-dataset x", "takes no auxiliary data"),
    "select without choice": (f"{GOOD} --select-on-target-validation", "selects nothing without"),
    "unknown metric": (f"{GOOD} {VALIDATE} --metric-for-best-model f1", "is none of avg_accuracy"),
    "target metric": (f"{GOOD} {VALIDATE} --metric-for-best-model de_accuracy", "only with `--select-on-target"),
    "patience without evaluation": (f"{GOOD} --early-stopping-patience 2", "needs evaluations"),
    "stock resume flag": (f"{GOOD} --resume-from-checkpoint x", "`--resume` continues the run"),
    "jit checkpoint": (f"{GOOD} --enable-jit-checkpoint", "`enable_jit_checkpoint` is not supported"),
    "batch of 0": (f"{GOOD} --per-device-train-batch-size 0", "`per_device_train_batch_size` is 0"),
    "negative seed": (f"{GOOD} --seed -1", "`seed` is -1"),
    "no updates": (f"{GOOD} --max-steps 0", "`max_steps` is 0, which trains nothing"),
    "no epochs": (f"{GOOD} --num-train-epochs 0", "`num_train_epochs` is 0.0, which trains nothing"),
    "negative rate": (f"{GOOD} --learning-rate -1", "`learning_rate` is -1.0"),
    "batch metrics": (f"{GOOD} --batch-eval-metrics", "`batch_eval_metrics` is not supported"),
    "save and evaluation differ": (f"{GOOD} --load-best-model-at-end", "requires the save and eval strategy to match"),
    "missing model": ("--model ./none --dataset data/{split}.{lang}.jsonl", "model directory `./none` is missing"),
    "no config": (GOOD.replace("encoder", "noconfig"), "holds no `config.json`"),
    "garbled config": (GOOD.replace("encoder", "garbled"), "model `garbled` cannot be loaded"),
    "no tokenizer": (GOOD.replace("encoder", "notokenizer"), "model `notokenizer`"),
    "truncated weights": (GOOD.replace("encoder", "truncated"), "damaged or cut off"),
    "weights that do not fit": (GOOD.replace("encoder", "misfit"), "its weights do not fit its config"),
    "no head for the task": (GOOD.replace("encoder", "headless"), "model `headless`"),
    "unknown yaml key": (f"{GOOD} --config bad.yaml", "unknown key 'learning_rte'. Did you mean `learning_rate`?"),
    "yaml list": (f"{GOOD} --config list.yaml", "must be a mapping"),
    "broken yaml": (f"{GOOD} --config broken.yaml", "cannot be read as YAML"),
    "missing yaml": (f"{GOOD} --config none.yaml", "config file `none.yaml` is missing"),
    "foreign directory": (f"{GOOD} --output-dir occupied", "holds no run of hf-xlt, so it is left alone"),
    "foreign directory overwritten": (f"{GOOD} --output-dir occupied --overwrite", "left alone"),
    "another run": (f"{GOOD} --output-dir run", "holds a run already"),
    "newer record": (f"{GOOD} --output-dir newer --resume", "has format 99"),
    "output is a file": (f"{GOOD} --output-dir file", "is a file; give a directory"),
    "resume nothing named": (f"{GOOD} --resume", "`--resume` needs `--output-dir`"),
    "resume and overwrite": (f"{GOOD} --resume --overwrite", "give one of them"),
    "push without a name": (f"{GOOD} --push-to-hub", "needs `--hub-model-id USER/NAME`"),
}


def snapshot(root):
    return {str(path.relative_to(root)): path.stat().st_mtime_ns for path in sorted(root.rglob("*"))}


@pytest.mark.parametrize("name", USAGE)
def test_usage_error(name, world, capsys, monkeypatch):
    line, expected = USAGE[name]
    monkeypatch.chdir(world)
    before = snapshot(world)
    code = main(["run", *line.split()])
    captured = capsys.readouterr()
    last = captured.err.strip().splitlines()[-1]
    assert (code, expected in last) == (2, True), last
    assert last.startswith("error: ") and "Traceback" not in captured.err
    assert snapshot(world) == before


def test_there_are_at_least_thirty_cases():
    assert len(USAGE) >= 30


def test_traceback_is_shown_on_request(world, capsys, monkeypatch):
    monkeypatch.chdir(world)
    assert main(["run", *GOOD.split(), "--shots", "-1", "--traceback"]) == 2
    assert "Traceback (most recent call last)" in capsys.readouterr().err


def test_too_little_space_is_said_before_training(world, tmp_path, capsys, monkeypatch):
    monkeypatch.chdir(world)
    usage = shutil.disk_usage(tmp_path)
    monkeypatch.setattr(shutil, "disk_usage", lambda path: usage._replace(free=1000))
    shutil.copytree(world / "run", tmp_path / "out")
    assert main(["run", *GOOD.split(), "--output-dir", str(tmp_path / "out"), "--overwrite"]) == 1
    assert "MiB free, and the model with its checkpoints needs about" in capsys.readouterr().err
    assert (tmp_path / "out" / "xlt_run.json").is_file()


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="needs /dev/full")
def test_a_full_disk_is_one_clear_line():
    from hf_xlt.errors import describe

    try:
        with open("/dev/full", "w") as file:
            file.write("x")
            file.flush()
    except OSError as error:
        line = describe(error)
    assert line.startswith("error: no space is left on the disk") and "\n" not in line


def test_tokens_are_never_printed():
    from hf_xlt.errors import describe

    assert "hf_abcdefghijk" not in describe(ValueError("bad token hf_abcdefghijk given"))


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write everywhere")
def test_an_unwritable_place_is_one_clear_line(world, tmp_path, capsys, monkeypatch):
    monkeypatch.chdir(world)
    tmp_path.chmod(0o500)
    assert main(["run", *GOOD.split(), "--output-dir", str(tmp_path / "out")]) == 1
    assert "cannot be used" in capsys.readouterr().err
