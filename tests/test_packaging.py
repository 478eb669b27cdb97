"""The wheel and the sdist hold everything, and work from a foreign directory."""

import configparser
import os
import subprocess
import sys
import tarfile
import zipfile
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
pytest.importorskip("build", reason="the `dev` extra is not installed")


def packages() -> list[str]:
    settings = configparser.ConfigParser()
    settings.read(ROOT / "setup.cfg")
    return settings["options"]["packages"].split()


def test_every_package_on_disk_is_listed():
    found = {
        ".".join(path.parent.relative_to(ROOT).parts).replace("/", ".")
        for path in (ROOT / "hf_xlt").rglob("__init__.py")
    }
    assert set(packages()) == found | {"hf_xlt.cli", "hf_xlt.model_cards"}


@pytest.fixture(scope="module")
def built(tmp_path_factory):
    """A wheel built from an sdist of a copy of the tracked files."""
    folder = tmp_path_factory.mktemp("build")
    names = subprocess.run(
        ["git", "ls-files", "--cached", "--others", "--exclude-standard", "-z"], cwd=ROOT, capture_output=True
    )
    if names.returncode:
        pytest.skip("not a git checkout")
    source = folder / "source"
    for name in filter(None, names.stdout.decode().split("\0")):
        if (ROOT / name).is_file():
            (source / name).parent.mkdir(parents=True, exist_ok=True)
            (source / name).write_bytes((ROOT / name).read_bytes())
    subprocess.run(
        [sys.executable, "-m", "build", "--no-isolation", "--outdir", str(folder / "dist"), str(source)],
        check=True,
        capture_output=True,
    )
    target = folder / "installed"
    (wheel,) = (folder / "dist").glob("*.whl")
    subprocess.run(
        [sys.executable, "-m", "pip", "install", "--quiet", "--no-deps", "--target", str(target), str(wheel)],
        check=True,
    )
    return folder


def test_wheel_and_sdist_hold_every_module_template_and_weight(built):
    (wheel,) = (built / "dist").glob("*.whl")
    names = set(zipfile.ZipFile(wheel).namelist())
    for path in [*ROOT.glob("hf_xlt/**/*.py"), *ROOT.glob("hf_xlt/embedded/*encoder/*")]:
        assert path.relative_to(ROOT).as_posix() in names
    for folder in ("cli", "model_cards"):
        for path in [*ROOT.glob(f"{folder}/*.py"), *ROOT.glob(f"{folder}/templates/*")]:
            assert f"hf_xlt/{path.relative_to(ROOT).as_posix()}" in names
    assert "hf_xlt/py.typed" in names and any(name.endswith("licenses/NOTICE") for name in names)
    assert not any(name.startswith(("tests/", "cli/", "model_cards/", "benchmarks/")) for name in names)
    (sdist,) = (built / "dist").glob("*.tar.gz")
    inside = {name.split("/", 1)[-1] for name in tarfile.open(sdist).getnames()}
    assert {"LICENSE", "NOTICE", "setup.cfg", "model_cards/templates/model_card.md.jinja"} <= inside


def run_installed(built, tmp_path, *command, **more):
    environment = {**os.environ, "PYTHONPATH": str(built / "installed"), "OMP_NUM_THREADS": "1"}
    return subprocess.run(
        [sys.executable, *command], cwd=tmp_path, env=environment, capture_output=True, text=True, timeout=300, **more
    )


def test_the_wheel_runs_the_embedded_task_from_a_foreign_directory(built, tmp_path):
    done = run_installed(built, tmp_path, "-m", "hf_xlt.run", "--strategy", "robust", "--max-steps", "3", "--no-floor")
    assert done.returncode == 0, done.stderr[-3000:]
    assert "Target average" in done.stdout
    (run,) = (tmp_path / "runs").iterdir()
    assert (run / "model.safetensors").is_file() and (run / "README.md").is_file()
    where = run_installed(built, tmp_path, "-c", "import hf_xlt.cli.main, hf_xlt.model_cards as m; print(m.__file__)")
    assert where.stdout.startswith(str(built / "installed"))
