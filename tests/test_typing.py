"""What a type checker knows of the public names."""

import ast
import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path

import pytest

import hf_xlt
from hf_xlt.registry import STRATEGIES

ROOT = Path(hf_xlt.__file__).parent
PACKAGES = {"hf_xlt": ROOT / "__init__.py"}
PACKAGES |= {
    module: ROOT.parent / module.replace(".", "/") / "__init__.py"
    for module in STRATEGIES.values()
    if (ROOT.parent / module.replace(".", "/")).is_dir()
}
SCRIPT = """
import hf_xlt
from hf_xlt import RobustConfig, RobustTrainer, XMAMLConfig, get_strategy
from hf_xlt.strategies.metaxl import MetaXLConfig

config = RobustConfig(output_dir="out", epsilon=0.1)
trainer = RobustTrainer(args=config, source_languages=["en"])
trainer.train()
steps: int = XMAMLConfig(output_dir="out").meta_steps
name: str = get_strategy("robust").name
MetaXLConfig(output_dir="out").rtn_layers.append(1)
hf_xlt.no_such_name
"""


@pytest.mark.parametrize("package", PACKAGES)
def test_names_on_first_use_and_names_for_checkers_are_the_same(package):
    tree = ast.parse(PACKAGES[package].read_text(encoding="utf-8"))
    checked = {
        alias.asname: (node.module, alias.name)
        for block in tree.body
        if isinstance(block, ast.If) and getattr(block.test, "id", "") == "TYPE_CHECKING"
        for node in block.body
        for alias in node.names
    }
    module = __import__(package, fromlist=["_PUBLIC"])
    assert set(checked) == set(module._PUBLIC)
    for name, (where, defined) in checked.items():
        assert getattr(__import__(where, fromlist=[defined]), defined) is getattr(module, name)


@pytest.mark.skipif(find_spec("mypy") is None, reason="mypy is not installed")
def test_mypy_takes_trainers_for_classes(tmp_path):
    (tmp_path / "user.py").write_text(SCRIPT, encoding="utf-8")
    # What others wrote is not looked into, which would take half a minute.
    others = "\n".join(
        f"[mypy-{name}.*]\nfollow_imports = skip\nignore_missing_imports = True"
        for name in ("torch", "transformers", "datasets", "accelerate", "numpy", "peft", "babel", "huggingface_hub")
    )
    (tmp_path / "mypy.ini").write_text(f"[mypy]\nfollow_imports = silent\n{others}\n", encoding="utf-8")
    done = subprocess.run(
        [sys.executable, "-m", "mypy", "--cache-dir", str(tmp_path / "cache"), "user.py"],
        cwd=tmp_path,
        env={"MYPYPATH": str(ROOT.parent), "PATH": ""},
        capture_output=True,
        text=True,
        check=False,
    )
    # A name that is none shows that the checker does look.
    lines = [line for line in done.stdout.splitlines() if "error" in line and line.startswith("user.py")]
    assert len(lines) == 1 and "no_such_name" in lines[0], done.stdout + done.stderr
