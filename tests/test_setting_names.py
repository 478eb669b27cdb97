"""Messages of the library name settings as Python has them, and those of the commands name flags."""

import ast
import re
from pathlib import Path

import pytest

import hf_xlt
from hf_xlt.averaging.average import average_checkpoints
from hf_xlt.cli.main import main
from hf_xlt.errors import ConfigError, as_flags, setting

ROOT = Path(hf_xlt.__file__).parent
# What a command alone calls, so that its messages are read by people who typed flags.
OF_COMMANDS = {
    "arguments.py": "the flags of `run`",
    "averaging/arguments.py": "the flags of `run --average`",
    "data/settings.py": "the flags of `run` and `evaluate` that would be ignored",
    "sweep": "several runs of one `run` command",
    "peft_arguments.py": "the flags of `run --peft`",
    "parsing.py": "reads the command line",
    "flags.py": "makes the help",
    "run.py": "the command `run`",
    "output.py": "the folder of `run`",
    "bookkeeping.py": "the record and the resumption of `run`",
    "preparation.py": "what `run` checks before it starts",
    "planning.py": "`run --dry-run`",
    "launch.py": "launchers start commands",
    "scoring.py": "the command `evaluate`",
    "make_pairs.py": "the command `make-pairs`",
    "pretrain.py": "the command `pretrain`",
    "pretraining/recording.py": "the command line in the record of `pretrain`",
    "doctor.py": "the command `doctor`",
    "hub": "the command `push`",
    "embedded": "commands of this repository, which make what it ships",
    "environment.py": "the command line in the record of `run`",
    "errors.py": "prints what ends a command",
}
# A whole command in backticks is one that the reader may type, wherever it is read.
COMMAND = re.compile(r"(?:hf-xlt|accelerate|python|torchrun) [^`]*")
FLAG = re.compile(r"(?<![\w}-])--[a-z{]")


def of_commands(path):
    relative = path.relative_to(ROOT)
    return str(relative) in OF_COMMANDS or relative.parts[0] in OF_COMMANDS


def prose(tree):
    """Nodes of docstrings and of help, which are no messages."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant):
            yield node.value
        if isinstance(node, ast.keyword) and node.arg == "metadata":
            yield from ast.walk(node.value)


def texts(tree):
    """Every string of a module in one piece, `{}` standing for what is filled in."""
    skipped = {id(node) for node in prose(tree)}
    for node in ast.walk(tree):
        if isinstance(node, ast.JoinedStr):
            parts = node.values
            skipped |= {id(part) for part in parts}
            yield node.lineno, "".join(part.value if isinstance(part, ast.Constant) else "{}" for part in parts)
        elif isinstance(node, ast.Constant) and isinstance(node.value, str) and id(node) not in skipped:
            yield node.lineno, node.value


def flags_in(source):
    return [line for line, text in texts(ast.parse(source)) if FLAG.search(COMMAND.sub("", text))]


def test_no_message_of_the_library_names_a_flag():
    found = [
        f"{path.relative_to(ROOT)}:{line}"
        for path in sorted(ROOT.rglob("*.py"))
        if not of_commands(path)
        for line in flags_in(path.read_text(encoding="utf-8"))
    ]
    assert found == []


def test_rooms_of_commands_exist():
    assert [name for name in OF_COMMANDS if not (ROOT / name).exists()] == []


@pytest.mark.parametrize(
    ("source", "found"),
    [
        ('raise ConfigError("give `--head`.")', True),
        ('raise ConfigError(f"give `--{name}`.")', True),
        ('notes.append("first " f"{x} (--per-run)")', True),
        ('raise ConfigError("call `hf-xlt run --strategy robust`.")', False),
        ('field(metadata={"help": "see --head"})', False),
        ("raise ConfigError(f\"give {setting('head')}.\")", False),
    ],
)
def test_the_search_finds_flags(source, found):
    assert bool(flags_in(source)) is found


def test_a_setting_is_written_for_its_reader():
    said = [setting("per_run"), setting("last_k", 3, flag="last"), setting("overwrite", True)]
    assert said == ["`per_run`", "`last_k=3`", "`overwrite=True`"]
    with as_flags():
        said = [setting("per_run"), setting("last_k", 3, flag="last"), setting("overwrite", True)]
    assert said == ["`--per-run`", "`--last 3`", "`--overwrite`"]
    assert setting("per_run") == "`per_run`"


def test_values_are_written_as_python_has_them():
    assert setting("divide_split", "train=0.8,test=0.2") == '`divide_split="train=0.8,test=0.2"`'
    assert setting("average_start", "0.2") == setting("average_start", 0.2) == "`average_start=0.2`"


def test_the_same_fault_is_told_to_both(tmp_path, capsys):
    place = tmp_path / "nothing"
    with pytest.raises(ConfigError, match='^`runs=".*nothing"` is no folder'):
        average_checkpoints([], tmp_path / "out", runs=[place])
    assert main(["average", "--run", str(place), "-o", str(tmp_path / "out")]) == 2
    assert f"error: `--run {place}` is no folder" in capsys.readouterr().err


def test_what_is_called_like_a_setting_stays_as_it_is(tmp_path, capsys):
    (tmp_path / "train.en.csv").write_text("text,label\na,x\nb,y\n")
    code = main(
        ["run", "--dataset", f"{tmp_path}/{{split}}.{{lang}}.csv", "--source-languages", "en", "--model", "embedded"]
        + ["--dry-run", "--text-column", "labels", "--output-dir", str(tmp_path / "out")]
    )
    assert code == 2
    assert "`labels`" in (said := capsys.readouterr().err) and "`--labels`" not in said
