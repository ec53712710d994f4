import dataclasses

import pytest

from app.__main__ import parse_settings
from app.settings import AppSettings
from mae_core import ConfigError


def test_defaults() -> None:
    assert AppSettings.from_env({}) == AppSettings(
        "127.0.0.1", 7860, "auto", (), fetch="published", memory_gb=4, max_image_size=1024
    )


def test_environment() -> None:
    settings = AppSettings.from_env(
        {
            "MAE_HOST": "0.0.0.0",
            "MAE_PORT": "8000",
            "MAE_DEVICE": "cpu",
            "MAE_WEIGHTS": "mae-tiny, runs/mine ,",
            "MAE_FETCH": "any",
            "MAE_MEMORY_GB": "1.5",
            "MAE_MAX_IMAGE_SIZE": "448",
        }
    )
    assert settings == AppSettings(
        "0.0.0.0", 8000, "cpu", ("mae-tiny", "runs/mine"), "any", 1.5, 448
    )


def test_empty_variables_count_as_not_set() -> None:
    names = ("HOST", "PORT", "DEVICE", "WEIGHTS", "FETCH", "MEMORY_GB", "MAX_IMAGE_SIZE")
    empty = {f"MAE_{name}": "" for name in names}
    assert AppSettings.from_env(empty) == AppSettings()


@pytest.mark.parametrize("port", ["http", "80.5", "0", "-1", "65536"])
def test_a_bad_port_is_refused_with_what_is_allowed(port: str) -> None:
    with pytest.raises(ConfigError, match="from 1 to 65535"):
        AppSettings.from_env({"MAE_PORT": port})


@pytest.mark.parametrize(
    ("name", "value", "allowed"),
    [
        ("FETCH", "all", "none, published, any"),
        ("MEMORY_GB", "much", "a number from 0"),
        ("MEMORY_GB", "-1", "a number from 0"),
        ("MEMORY_GB", "nan", "a number from 0"),
        ("MEMORY_GB", "inf", "a number from 0"),
        ("MAX_IMAGE_SIZE", "1e3", "a whole number up to 1024"),
        ("MAX_IMAGE_SIZE", "0", "from 1 to 1024"),
        ("MAX_IMAGE_SIZE", "2048", "from 1 to 1024"),
    ],
)
def test_a_bad_limit_is_refused_with_what_is_allowed(name: str, value: str, allowed: str) -> None:
    with pytest.raises(ConfigError, match=allowed):
        AppSettings.from_env({f"MAE_{name}": value})


def test_settings_are_frozen() -> None:
    with pytest.raises(dataclasses.FrozenInstanceError):
        AppSettings().port = 1  # type: ignore[misc]


def test_flags_beat_the_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MAE_PORT", "8000")
    monkeypatch.setenv("MAE_DEVICE", "cpu")
    monkeypatch.setenv("MAE_FETCH", "any")
    flags = ["--port", "9000", "--weights", "a,b", "--fetch", "none", "--memory-gb", "2"]
    settings = parse_settings([*flags, "--max-image-size", "448"])
    assert settings == AppSettings("127.0.0.1", 9000, "cpu", ("a", "b"), "none", 2, 448)


def test_a_bad_port_flag_is_refused() -> None:
    with pytest.raises(ConfigError, match="from 1 to 65535"):
        parse_settings(["--port", "high"])
