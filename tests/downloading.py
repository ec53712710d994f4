"""What tests of downloads start from: empty caches, short pauses, servers of our own."""

import threading
from pathlib import Path
from types import SimpleNamespace

import pytest
from huggingface_hub import constants, file_download

# Nobody listens there.
CLOSED = "http://127.0.0.1:9"


def isolate(monkeypatch: pytest.MonkeyPatch, folder: Path) -> None:
    """Have caches in a folder and the hub nowhere; the tests' own offline mode is off."""
    monkeypatch.setenv("TORCH_HOME", str(folder / "torch"))
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(folder / "hub"))
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    use_hub(monkeypatch, CLOSED)
    monkeypatch.setenv("HF_TOKEN", "")
    # The client's own pauses between attempts.
    monkeypatch.setattr(file_download, "time", SimpleNamespace(sleep=lambda _: None))


def use_hub(monkeypatch: pytest.MonkeyPatch, endpoint: str) -> None:
    """What HF_ENDPOINT does when the client is imported."""
    template = endpoint + "/{repo_id}/resolve/{revision}/{filename}"
    monkeypatch.setattr(constants, "ENDPOINT", endpoint)
    monkeypatch.setattr(constants, "HUGGINGFACE_CO_URL_TEMPLATE", template)


class Seen:
    """A progress that remembers, and may end the download."""

    def __init__(self, stop_after: int | None = None) -> None:
        self.calls: list[tuple[int, int | None]] = []
        self.started = threading.Event()
        self._stop_after = stop_after

    def __call__(self, done: int, total: int | None) -> None:
        self.calls.append((done, total))
        self.started.set()
        if self._stop_after is not None and done >= self._stop_after:
            raise KeyboardInterrupt
