"""Fixtures around the loopback Hub."""

import os

import pytest
from hub_server import LoopbackHub
from huggingface_hub import HfApi


@pytest.fixture
def hub():
    """A Hub on loopback with its store, request log and faults; unknown routes fail the test."""
    with LoopbackHub() as server:
        yield server
    assert not server.store.unknown, (
        f"the client asked for routes that the server does not know: {server.store.unknown}"
    )


@pytest.fixture
def api(hub):
    """A client of `hub` that may write."""
    return HfApi(endpoint=hub.url, token="hf_good")


@pytest.fixture
def hub_env(hub, tmp_path):
    """Environment of a fresh process whose Hub is `hub` and whose cache is empty."""
    return {
        **{name: value for name, value in os.environ.items() if not name.startswith("HF_")},
        "HF_ENDPOINT": hub.url,
        "HF_TOKEN": "hf_good",
        "HF_HOME": str(tmp_path / "empty-home"),
        "HF_HUB_DISABLE_XET": "1",
        "HF_HUB_DISABLE_TELEMETRY": "1",
        "HF_HUB_DISABLE_PROGRESS_BARS": "1",
        "HF_HUB_DISABLE_UPDATE_CHECK": "1",
    }
