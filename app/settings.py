"""What the page is served with: host, port, device, weights, and what visitors may ask for."""

import os
import reprlib
from collections.abc import Sequence
from typing import Annotated, Any, Literal

from pydantic import BeforeValidator, Field, ValidationError
from pydantic_settings import (
    BaseSettings,
    CliApp,
    InitSettingsSource,
    NoDecode,
    PydanticBaseSettingsSource,
    SettingsConfigDict,
)

from mae_core.errors import ConfigError
from mae_core.reconstruct import MAX_IMAGE_SIZE


def _split(value: Any) -> Any:
    if isinstance(value, str):
        value = value.split(",")
    return [stripped for part in value if (stripped := part.strip())]


class AppSettings(BaseSettings):
    """Serve the demo's page. Every flag is a variable too: --max-batch is MAE_MAX_BATCH."""

    model_config = SettingsConfigDict(
        env_prefix="MAE_",
        # An empty variable counts as not set.
        env_ignore_empty=True,
        cli_kebab_case=True,
        cli_prog_name="python -m app",
        # By default the text null is no value; no argument holds a null character.
        cli_parse_none_str="\0",
        allow_inf_nan=False,
        frozen=True,
    )

    host: str = Field(default="127.0.0.1", description="address to listen on; 0.0.0.0 is every one")
    port: int = Field(default=7860, ge=1, le=65535, description="port to listen on")
    device: str = Field(default="auto", description="auto, cpu, cuda, cuda:N or mps")
    weights: Annotated[tuple[str, ...], NoDecode, BeforeValidator(_split)] = Field(
        default=(),
        description="names, files, folders of training runs or USER/NAME on the hub, by commas, "
        "the first one chosen at the start; all bundled ones if not given",
    )
    fetch: Literal["none", "published"] = Field(
        default="published",
        description="what visitors may have fetched: weights that have a name, or none",
    )
    memory_gb: float = Field(
        default=4,
        ge=0,
        description="memory for models that visitors choose beside --weights, 10^9 bytes",
    )
    max_image_size: int = Field(
        default=MAX_IMAGE_SIZE,
        ge=1,
        le=MAX_IMAGE_SIZE,
        description="largest size of pictures in pixels",
    )
    workers: int = Field(
        default=0,
        ge=0,
        le=64,
        description="batches that run at the same time; 0 is one for each core if the models are "
        "small and on a CPU, otherwise one",
    )
    max_batch: int = Field(
        default=0, ge=0, le=256, description="requests in a batch; 0 is by device"
    )
    queue: int = Field(default=100, ge=1, le=10_000, description="requests that may wait")
    # Who may be a class behind one address.
    per_visitor: int = Field(
        default=32, ge=1, le=10_000, description="requests of one visitor that may wait"
    )
    # A sixth of them may come at once.
    rate: float = Field(
        default=600,
        ge=0,
        description="requests computed for one visitor in a minute; 0 is no bound",
    )
    request_seconds: float = Field(
        default=60, ge=0.1, le=3600, description="how long a request may wait, and then run"
    )
    proxies: int = Field(
        default=0, ge=0, le=10, description="trusted proxies in front, which write X-Forwarded-For"
    )
    disk_gb: float = Field(default=2, ge=0.1, description="disk for uploads and panels, 10^9 bytes")
    drain_seconds: float = Field(
        default=20, ge=0, le=3600, description="how long requests may go on after SIGTERM"
    )

    @classmethod
    def settings_customise_sources(
        cls,
        settings_cls: type[BaseSettings],
        init_settings: PydanticBaseSettingsSource,
        env_settings: PydanticBaseSettingsSource,
        dotenv_settings: PydanticBaseSettingsSource,
        file_secret_settings: PydanticBaseSettingsSource,
    ) -> tuple[PydanticBaseSettingsSource, ...]:
        """After flags and MAE_ variables: Gradio's, and that a Space has one proxy in front.

        An alias would be a flag as well, so these are no aliases.
        """
        others = {
            "host": os.environ.get("GRADIO_SERVER_NAME"),
            "port": os.environ.get("GRADIO_SERVER_PORT"),
            "proxies": os.environ.get("SPACE_ID") and 1,
        }
        given = {name: value for name, value in others.items() if value}
        return init_settings, env_settings, InitSettingsSource(settings_cls, given)


def read_settings(argv: Sequence[str] = ()) -> AppSettings:
    """Settings from flags, then from the environment, then the defaults.

    Raises:
        ConfigError: If one of them is not what it should be.
    """
    try:
        return CliApp.run(AppSettings, cli_args=[*argv])
    except ValidationError as error:
        wrong = error.errors(include_url=False)[0]
    name, given = str(wrong["loc"][0]), wrong["input"]
    schema = AppSettings.model_json_schema()["properties"][name]
    if "enum" in schema:
        allowed = f"choose {' or '.join(schema['enum'])}"
    else:
        kind = {"integer": "a whole number", "number": "a number"}.get(schema["type"], "text")
        least = f" from {schema['minimum']}" if "minimum" in schema else ""
        most = f" to {schema['maximum']}" if "maximum" in schema else ""
        allowed = f"it must be {kind}{least}{most}, such as {schema['default']}"
    if (name, given) == ("fetch", "any"):
        allowed += "; serve a repository of the hub by --weights USER/NAME (MAE_WEIGHTS)"
    raise ConfigError(f"{name} is {reprlib.repr(given)}; {allowed}")
