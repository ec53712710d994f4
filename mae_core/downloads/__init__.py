"""Weights over the network, into the caches that other tools use too."""

from mae_core.downloads.hub import choose_files, fetch_repository, find_repository, is_repository
from mae_core.downloads.transfer import (
    Progress,
    RemoteFile,
    checkpoints_folder,
    fetch_file,
    is_offline,
    shown_bytes,
    terminal_bar,
)

__all__ = [
    "Progress",
    "RemoteFile",
    "checkpoints_folder",
    "choose_files",
    "fetch_file",
    "fetch_repository",
    "find_repository",
    "is_offline",
    "is_repository",
    "shown_bytes",
    "terminal_bar",
]
