from pathlib import Path

import pytest
import torch

from mae_core import load, train
from mae_core.errors import CheckpointError
from mae_core.inside.snapshots import find_snapshots, open_snapshot, rebuild_by_snapshots
from tests.mae_core.conftest import MakeRun
from tests.pictures import draw_picture


def test_a_run_keeps_weights_at_steps_that_double(run_config: MakeRun, tmp_path: Path) -> None:
    config = run_config(snapshots=3)
    run = train(config)
    found = find_snapshots(config.out)
    assert list(found) == [2, 4, 8]
    finished = load(config.out).state_dict()
    last = load(str(found[8])).state_dict()
    assert all(torch.equal(last[name], tensor.half().float()) for name, tensor in finished.items())
    first = load(str(found[2])).state_dict()
    assert any(not torch.equal(first[name], tensor) for name, tensor in last.items())
    picture = draw_picture(0)
    results = dict(rebuild_by_snapshots(config.out, picture, device="cpu", seed=2))
    direct = open_snapshot(found[4], device="cpu")(picture, seed=2)
    assert torch.equal(results[4].reconstruction, direct.reconstruction)
    assert run.config.snapshots == 3


def test_a_run_without_snapshots_says_so(run_config: MakeRun) -> None:
    config = run_config()
    train(config)
    assert not find_snapshots(config.out)
    with pytest.raises(CheckpointError, match="train with snapshots=8"):
        next(rebuild_by_snapshots(config.out, draw_picture(0)))
