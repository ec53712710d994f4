import dataclasses

import pytest

from app.__main__ import parse_settings
from app.settings import AppSettings
from mae_core import ConfigError


def test_defaults() -> None:
    assert AppSettings.from_env({}) == AppSettings("127.0.0.1", 7860, "auto", ())


def test_environment() -> None:
    settings = AppSettings.from_env(
        {
            "MAE_HOST": "0.0.0.0",
            "MAE_PORT": "8000",
            "MAE_DEVICE": "cpu",
            "MAE_WEIGHTS": "mae-tiny, runs/mine ,",
        }
    )
    assert settings == AppSettings("0.0.0.0", 8000, "cpu", ("mae-tiny", "runs/mine"))


def test_empty_variables_count_as_not_set() -> None:
    empty = {"MAE_HOST": "", "MAE_PORT": "", "MAE_DEVICE": "", "MAE_WEIGHTS": ""}
    assert AppSettings.from_env(empty) == AppSettings()


@pytest.mark.parametrize("port", ["http", "80.5", "0", "-1", "65536"])
def test_a_bad_port_is_refused_with_what_is_allowed(port: str) -> None:
    with pytest.raises(ConfigError, match="from 1 to 65535"):
        AppSettings.from_env({"MAE_PORT": port})


def test_settings_are_frozen() -> None:
    with pytest.raises(dataclasses.FrozenInstanceError):
        AppSettings().port = 1  # type: ignore[misc]


def test_flags_beat_the_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MAE_PORT", "8000")
    monkeypatch.setenv("MAE_DEVICE", "cpu")
    settings = parse_settings(["--port", "9000", "--weights", "a,b"])
    assert (settings.port, settings.device, settings.weights) == (9000, "cpu", ("a", "b"))


def test_a_bad_port_flag_is_refused() -> None:
    with pytest.raises(ConfigError, match="from 1 to 65535"):
        parse_settings(["--port", "high"])
