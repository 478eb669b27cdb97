"""What every test needs before the first heavy import: a Hub cache of its own, one thread, nothing that calls home."""

import os
import sys
import tempfile
from pathlib import Path

# With `--import-mode=importlib` tests cannot import their neighbours (`hub_server`, `records`) otherwise.
sys.path.insert(0, str(Path(__file__).parent))

# huggingface_hub reads these once, when it is imported.
_HOME = tempfile.TemporaryDirectory(prefix="hf_xlt-tests-")
os.environ["HF_HOME"] = _HOME.name
for _name in ("HF_HUB_OFFLINE", "HF_TOKEN", "HF_ENDPOINT", "HF_HUB_CACHE"):
    os.environ.pop(_name, None)
os.environ.setdefault("HF_HUB_DISABLE_XET", "1")
os.environ["HF_HUB_DISABLE_TELEMETRY"] = "1"
os.environ["HF_HUB_DISABLE_PROGRESS_BARS"] = "1"
os.environ["HF_HUB_DISABLE_UPDATE_CHECK"] = "1"
os.environ["OMP_NUM_THREADS"] = "1"
os.environ["TOKENIZERS_PARALLELISM"] = "false"

import pytest  # noqa: E402
from hub_fixtures import api, hub, hub_env  # noqa: E402, F401


@pytest.fixture(autouse=True)
def _one_thread():
    """Keep torch to one thread, also where a test or the code under test set another number."""
    yield
    if "torch" in sys.modules:
        sys.modules["torch"].set_num_threads(1)
