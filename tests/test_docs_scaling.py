"""The table of `docs/scaling.md`: what goes with which strategy is what the program accepts and refuses."""

import re
from pathlib import Path

import pytest

from hf_xlt.arguments import check_arguments
from hf_xlt.averaging.arguments import check_average
from hf_xlt.errors import ConfigError
from hf_xlt.parsing import parse_arguments
from hf_xlt.peft_arguments import check_peft
from hf_xlt.registry import ACCUMULATION, PROCESSES, RESUME, STRATEGIES, get_strategy

PAGE = (Path(__file__).resolve().parent.parent / "docs" / "scaling.md").read_text(encoding="utf-8")
YES, UNTRIED, NO = "yes", "untried", "no"
# What each column adds to a command line. DeepSpeed is set afterwards: its argument needs the package installed.
ADDED = {
    "several processes": [],
    "accumulation": ["--gradient-accumulation-steps", "2"],
    "bf16": ["--bf16"],
    "fp16": ["--fp16"],
    "activation checkpointing": ["--activation-checkpointing"],
    "`torch_compile`": ["--torch-compile"],
    "LoRA": ["--peft", "lora"],
    "FSDP": ["--fsdp", "full_shard"],
    "DeepSpeed": [],
    "resume": ["--resume", "--output-dir", "runs/before"],
}
# Columns that the contract test runs for an entry that claims the invariance (None: for every entry).
RUN_BY_TESTS = {
    "several processes": PROCESSES,
    "accumulation": ACCUMULATION,
    "resume": RESUME,
    "bf16": None,
    "activation checkpointing": None,
    "LoRA": None,
}
ROLES = {"target": ["--shots", "8"], "auxiliary": ["--auxiliary-dataset", "x"], "text": ["--text-dataset", "x"]}
ROWS = {
    **{f"`{name}`": ["--strategy", name] for name in STRATEGIES},
    "any, with `--average`": ["--average"],
    "any, with `--peft lora`": ["--peft", "lora"],
}


def written_table():
    """Return {row: {column: cell}} of the page."""
    lines = [line for line in PAGE.splitlines() if line.startswith("|")]
    start = next(number for number, line in enumerate(lines) if line.startswith("| strategy |"))
    head, *rows = [[cell.strip() for cell in line.strip("|").split("|")] for line in lines[start : start + 11]]
    return {row[0]: dict(zip(head[1:], row[1:], strict=True)) for row in rows[1:]}


def refusal(argv, deepspeed=False):
    """Return why a run is refused, or None."""
    strategy = get_strategy(argv[argv.index("--strategy") + 1] if "--strategy" in argv else "finetune")
    given = [word for role in strategy.roles[1:] for word in ROLES[role]]
    try:
        arguments = parse_arguments([*argv, *given])
        if deepspeed:
            arguments.config.deepspeed = "zero.json"
            for check in (check_arguments, check_peft, check_average):
                check(arguments)
    except ConfigError as error:
        return str(error)
    return None


def expected(row, column):
    argv = ROWS[row]
    if refusal([*argv, *ADDED[column]], deepspeed=column == "DeepSpeed"):
        return NO
    if column not in RUN_BY_TESTS:
        return UNTRIED
    strategy = get_strategy(argv[1] if argv[0] == "--strategy" else "finetune")
    claimed = RUN_BY_TESTS[column]
    return YES if claimed is None or claimed in strategy.invariances else UNTRIED


def test_the_table_has_a_row_for_every_strategy_and_a_column_for_every_setting():
    table = written_table()
    assert list(table) == list(ROWS)
    assert all(list(row) == list(ADDED) for row in table.values())


@pytest.mark.parametrize("row", ROWS)
def test_the_table_is_what_the_program_says(row):
    assert written_table()[row] == {column: expected(row, column) for column in ADDED}


@pytest.mark.parametrize("name", STRATEGIES)
def test_every_refusal_names_the_setting_or_a_way_out(name):
    for column in ("fp16", "`torch_compile`", "FSDP"):
        reason = refusal(["--strategy", name, *ADDED[column]])
        assert reason is None or re.search(r"Use |Leave it|Keep checkpoints|choose", reason), reason


@pytest.mark.parametrize(
    "argv",
    [
        "--strategy robust --method none --torch-compile",
        "--strategy robust --method none --fsdp full_shard",
        "--strategy soft-layers --gates runs/soft --torch-compile",
        "--strategy soft-layers --gates runs/soft --fp16",
        "--strategy metaxl --method joint --torch-compile",
        "--strategy metaxl --method target_only --fp16",
    ],
)
def test_exceptions_that_the_page_names_are_accepted(argv):
    argv = argv.split()
    strategy = get_strategy(argv[1])
    given = [] if "--gates" in argv else [word for role in strategy.roles[1:] for word in ROLES[role]]
    parse_arguments([*argv, *given])


@pytest.mark.parametrize("launcher", ["FSDP", "DEEPSPEED"])
@pytest.mark.parametrize("row", [row for row in ROWS if row not in ("`finetune`", "`meta-pretrain`")])
def test_weights_that_the_launcher_divides_are_refused_as_well(row, launcher, monkeypatch):
    roles = get_strategy(ROWS[row][1]).roles[1:] if ROWS[row][0] == "--strategy" else ()
    arguments = parse_arguments([*ROWS[row], *(word for role in roles for word in ROLES[role])])
    # After parsing, since a config asks for the package as soon as the launcher names DeepSpeed.
    monkeypatch.setenv(f"ACCELERATE_USE_{launcher}", "true")
    with pytest.raises(ConfigError, match="FSDP"):
        for check in (check_arguments, check_peft, check_average):
            check(arguments)
