import pytest
from pydantic import ValidationError

from app.settings import AppSettings, read_settings
from mae_core.errors import ConfigError
from tests.app.serving import settings_from


def test_defaults() -> None:
    assert settings_from({}) == AppSettings(
        host="127.0.0.1", port=7860, device="auto", weights=(), fetch="published", memory_gb=4,
        max_image_size=1024,
    )  # fmt: skip


def test_environment() -> None:
    settings = settings_from(
        {
            "MAE_HOST": "0.0.0.0",
            "MAE_PORT": "8000",
            "MAE_DEVICE": "cpu",
            "MAE_WEIGHTS": "mae-tiny, runs/mine ,",
            "MAE_FETCH": "none",
            "MAE_MEMORY_GB": "1.5",
            "MAE_MAX_IMAGE_SIZE": "448",
        }
    )
    assert settings == AppSettings(
        host="0.0.0.0", port=8000, device="cpu", weights=("mae-tiny", "runs/mine"), fetch="none",
        memory_gb=1.5, max_image_size=448,
    )  # fmt: skip


def test_empty_variables_count_as_not_set() -> None:
    names = [f"MAE_{name.upper()}" for name in AppSettings.model_fields]
    empty = dict.fromkeys([*names, "GRADIO_SERVER_NAME", "GRADIO_SERVER_PORT", "SPACE_ID"], "")
    assert settings_from(empty) == AppSettings()


def test_how_many_may_ask_comes_from_the_environment() -> None:
    given = {
        "MAE_WORKERS": "2", "MAE_MAX_BATCH": "4", "MAE_QUEUE": "50", "MAE_PER_VISITOR": "3",
        "MAE_RATE": "30", "MAE_REQUEST_SECONDS": "12.5", "MAE_PROXIES": "2", "MAE_DISK_GB": "0.5",
        "MAE_DRAIN_SECONDS": "5",
    }  # fmt: skip
    assert settings_from(given) == AppSettings(
        workers=2, max_batch=4, queue=50, per_visitor=3, rate=30, request_seconds=12.5, proxies=2,
        disk_gb=0.5, drain_seconds=5,
    )  # fmt: skip


def test_gradios_host_and_port_are_second_choice() -> None:
    gradios = {"GRADIO_SERVER_NAME": "0.0.0.0", "GRADIO_SERVER_PORT": "7861"}
    settings = settings_from(gradios)
    assert (settings.host, settings.port) == ("0.0.0.0", 7861)
    settings = settings_from({**gradios, "MAE_HOST": "127.0.0.2", "MAE_PORT": "8000"})
    assert (settings.host, settings.port) == ("127.0.0.2", 8000)


def test_a_space_has_a_proxy_in_front() -> None:
    assert settings_from({"SPACE_ID": "me/mae"}).proxies == 1
    assert settings_from({"SPACE_ID": "me/mae", "MAE_PROXIES": "0"}).proxies == 0


def test_every_setting_is_a_flag() -> None:
    flags = ["--queue", "7", "--per-visitor", "2", "--rate", "0", "--drain-seconds", "1.5"]
    assert read_settings(flags) == AppSettings(queue=7, per_visitor=2, rate=0, drain_seconds=1.5)


def test_help_names_every_setting(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        read_settings(["--help"])
    shown = " ".join(capsys.readouterr().out.split())
    for name, field in AppSettings.model_fields.items():
        flag = shown.partition("options:")[2].partition(f" --{name.replace('_', '-')} ")[2]
        assert f"{field.description} (default: {field.default})" in flag


@pytest.mark.parametrize("port", ["http", "80.5", "0", "-1", "65536"])
def test_a_bad_port_is_refused_with_what_is_allowed(port: str) -> None:
    with pytest.raises(ConfigError, match="from 1 to 65535"):
        settings_from({"MAE_PORT": port})


@pytest.mark.parametrize(
    ("name", "value", "allowed"),
    [
        ("FETCH", "all", "choose none or published"),
        ("FETCH", "any", "choose none or published; serve a repository of the hub by --weights"),
        ("MEMORY_GB", "much", "a number from 0"),
        ("MEMORY_GB", "-1", "a number from 0"),
        ("MEMORY_GB", "nan", "a number from 0"),
        ("MEMORY_GB", "inf", "a number from 0"),
        ("MAX_IMAGE_SIZE", "1e3", "a whole number from 1 to 1024"),
        ("MAX_IMAGE_SIZE", "0", "from 1 to 1024"),
        ("MAX_IMAGE_SIZE", "2048", "from 1 to 1024"),
        ("WORKERS", "65", "a whole number from 0 to 64"),
        ("MAX_BATCH", "-1", "a whole number from 0 to 256"),
        ("QUEUE", "0", "a whole number from 1 to 10000"),
        ("PER_VISITOR", "many", "a whole number from 1 to 10000"),
        ("RATE", "-1", "a number from 0, such as 600"),
        ("REQUEST_SECONDS", "0", "a number from 0.1 to 3600"),
        ("REQUEST_SECONDS", "inf", "a number from 0.1 to 3600"),
        ("PROXIES", "-1", "a whole number from 0 to 10"),
        ("DISK_GB", "0", "a number from 0.1"),
        ("DRAIN_SECONDS", "nan", "a number from 0 to 3600"),
    ],
)
def test_a_bad_limit_is_refused_with_what_is_allowed(name: str, value: str, allowed: str) -> None:
    with pytest.raises(ConfigError, match=allowed):
        settings_from({f"MAE_{name}": value})


def test_settings_are_frozen() -> None:
    with pytest.raises(ValidationError, match="frozen"):
        AppSettings().port = 1  # type: ignore[misc]


def test_flags_beat_the_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MAE_PORT", "8000")
    monkeypatch.setenv("MAE_DEVICE", "cpu")
    monkeypatch.setenv("MAE_FETCH", "published")
    flags = ["--port", "9000", "--weights", "a,b", "--fetch", "none", "--memory-gb", "2"]
    settings = read_settings([*flags, "--max-image-size", "448"])
    assert settings == AppSettings(
        host="127.0.0.1", port=9000, device="cpu", weights=("a", "b"), fetch="none", memory_gb=2,
        max_image_size=448,
    )  # fmt: skip


def test_a_bad_port_flag_is_refused() -> None:
    with pytest.raises(ConfigError, match="from 1 to 65535"):
        read_settings(["--port", "high"])


def test_text_is_taken_as_it_is() -> None:
    for text in ("null", "[::1]", '{"a": 1}', "none"):
        assert read_settings(["--host", text, "--weights", text]) == AppSettings(
            host=text, weights=(text,)
        )
        assert settings_from({"MAE_HOST": text, "MAE_WEIGHTS": text}) == AppSettings(
            host=text, weights=(text,)
        )
