import re
import string
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from gradio.i18n import I18nData

import app
import mae_core
from app.i18n import (
    LABELS,
    LANGUAGES,
    LOCALES,
    error_sentence,
    line_sentence,
    preferred_language,
    text,
)
from app.line import BusyError, TookTooLongError
from app.models.served import NoMemoryError, ServedModel
from app.models.shelf import ModelShelf, NotReadyError, Offer
from app.page.build import I18N
from app.request import parse
from app.service import ReconstructionService
from mae_core import MAEError
from mae_core.errors import CheckpointError, ConfigError, DownloadError, ImageError, MaskError
from tests.app.serving import built, small_reconstructor

CHINESE = re.compile("[\u4e00-\u9fff]")


def fields(message: str) -> set[str]:
    return {name for _, name, _, _ in string.Formatter().parse(message) if name}


def leaves(section: dict[str, Any] | list[Any], path: str = "") -> Iterator[tuple[str, str]]:
    """Texts of a section and of those in it, by their paths."""
    items = section.items() if isinstance(section, dict) else enumerate(section)
    for key, value in items:
        if isinstance(value, str):
            yield f"{path}{key}", value
        else:
            yield from leaves(value, f"{path}{key}.")


def texts(language: str) -> dict[str, str]:
    return LOCALES[language]["labels"] | LOCALES[language]["sentences"]


def test_both_languages_say_the_same_things() -> None:
    assert set(LOCALES) == set(LANGUAGES) == {"en", "zh"}
    for section in ("labels", "sentences"):
        assert [*LOCALES["en"][section]] == [*LOCALES["zh"][section]]
    for key, message in texts("en").items():
        assert fields(message) == fields(texts("zh")[key]), key


def test_the_stage_says_the_same_things_in_both_languages() -> None:
    english, chinese = (dict(leaves(LOCALES[each]["stage"])) for each in ("en", "zh"))
    assert [*english] == [*chinese]
    for key, message in english.items():
        assert fields(message) == fields(chinese[key]), key


@pytest.mark.parametrize("key", texts("en"))
def test_each_text_is_in_its_language(key: str) -> None:
    assert not CHINESE.search(texts("en")[key])
    assert CHINESE.search(texts("zh")[key])


def test_every_sentence_and_code_is_of_use() -> None:
    sources = [
        path.read_text(encoding="utf-8")
        for package in (app, mae_core)
        for path in Path(package.__path__[0]).rglob("*.py")
    ]
    code = "\n".join(sources)
    for name in [*LOCALES["en"]["sentences"], *LOCALES["zh"]["errors"]]:
        # Some are put together: f"busy_{reason}".
        stem = name.partition("_")[0]
        assert f'"{name}"' in code or f'f"{stem}_{{' in code, name


@pytest.mark.parametrize(
    ("values", "english", "chinese"),
    [
        ({"mask_ratio": 2}, "mask_ratio is 2; it must be a number", "mask_ratio 为 2；必须是"),
        ({"seed": -1}, "Seed is -1; it must be", "seed 为 -1；必须是 0 到"),
        ({"strategy": "spiral"}, "Strategy is 'spiral'; choose random, block, grid.",
         "strategy 为 'spiral'；请从以下选项中选择：random, block, grid。"),
        ({"fit": 3}, "Fit is 3; choose", "fit 为 3；请从以下选项中选择：crop, squash, whole。"),
        ({"image_size": 5000}, "image_size is 5000; it must be", "image_size 为 5000；必须是"),
        ({"image": None}, "There is no picture", "没有图片，请先选择一张。"),
        ({"mask": "{seed}"}, "Mask is '{seed}'; give rows", "掩码与图片不符"),
        ({"strategy": "{given}"}, "Strategy is '{given}'; choose", "strategy 为 '{given}'；"),
    ],
    ids=str,
)  # fmt: skip
def test_what_was_given_and_what_is_allowed_is_said_in_both_languages(
    values: dict[str, Any], english: str, chinese: str
) -> None:
    with pytest.raises(MAEError) as caught:
        parse({"image": b"", "mask_ratio": 0.5, "seed": 2, **values}, "m", 1024, lambda _: "digest")
    assert error_sentence(caught.value, "en").startswith(english)
    assert error_sentence(caught.value, "zh").startswith(chinese)


def error_classes() -> list[type[MAEError]]:
    every = (getattr(mae_core, name) for name in mae_core.__all__)
    return [kind for kind in every if isinstance(kind, type) and issubclass(kind, MAEError)]


@pytest.mark.parametrize("kind", error_classes())
def test_every_error_has_a_sentence_in_both_languages(kind: type[MAEError]) -> None:
    error = kind("the thing is red; it must be blue")
    assert error_sentence(error, "en") == "The thing is red; it must be blue."
    chinese = error_sentence(error, "zh")
    assert CHINESE.search(chinese)
    assert chinese.endswith("。")


def test_a_parameters_name_keeps_its_case() -> None:
    assert error_sentence(MaskError("mask_ratio is 2"), "en") == "mask_ratio is 2."


def test_kinds_of_errors_are_told_apart_in_chinese() -> None:
    kinds = (ImageError, MaskError, CheckpointError, DownloadError, NoMemoryError, MAEError)
    errors = [kind("x") for kind in kinds]
    errors += [ImageError("x", code="image_limit"), ConfigError("x", code="device")]
    assert len({error_sentence(error, "zh") for error in errors}) == len(errors)


@pytest.mark.parametrize(
    ("offer", "english", "chinese"),
    [
        (
            Offer("large", "fetching", 1_318_315_181, 492_000_000, exact=True),
            "Fetching large: 492 MB of 1.3 GB. Please ask again in a few seconds.",
            "正在下载 large：492 MB / 1.3 GB。请几秒后再试。",
        ),
        (
            Offer("me/mine", "waiting"),
            "me/mine is waiting to be fetched (unknown size). Please ask again in a few seconds.",
            "me/mine 正在等待下载（大小未知）。请几秒后再试。",
        ),
        (
            Offer("base", "waiting", 447_631_360),
            "base is waiting to be fetched (≈ 448 MB). Please ask again in a few seconds.",
            "base 正在等待下载（≈ 448 MB）。请几秒后再试。",
        ),
        (
            Offer("large", "reading"),
            "Reading large into memory. Please ask again in a few seconds.",
            "正在将 large 读入内存。请几秒后再试。",
        ),
    ],
    ids=str,
)
def test_a_model_on_its_way_is_told_in_both_languages(
    offer: Offer, english: str, chinese: str
) -> None:
    assert error_sentence(NotReadyError(offer), "en") == english
    assert error_sentence(NotReadyError(offer), "zh") == chinese


@pytest.mark.parametrize(
    ("header", "language"),
    [
        (None, "en"),
        ("", "en"),
        ("*", "en"),
        ("fr-FR,fr;q=0.9", "en"),
        ("zh-CN,zh;q=0.9,en;q=0.8", "zh"),
        ("zh-Hant-TW", "zh"),
        ("ZH", "zh"),
        ("en-US,en;q=0.9,zh;q=0.8", "en"),
        ("fr,zh;q=0.5,en;q=0.1", "zh"),
        ("zh;q=0.2,en;q=0.7", "en"),
        ("en,zh", "en"),
        ("zh;q=high,en;q=0.1", "en"),
    ],
)
def test_the_language_a_browser_prefers(header: str | None, language: str) -> None:
    assert preferred_language(header) == language


def test_placeholders_are_filled() -> None:
    assert text("error_unknown", "en", id="ab12") == (
        "Something went wrong (id ab12). Please try again."
    )


MARKER = re.compile(r'__i18n__\{"__type__": "translation_metadata", "key": "(\w+)"\}')
# What a visitor reads of a component.
SHOWN = ("label", "info", "placeholder", "value", "choices", "title", "description")
# Their values are pictures, numbers, names of models or plain facts.
VALUES_ARE_DATA = {"image", "slider", "radio", "dropdown", "html", "number"}


def shown_texts(props: dict[str, Any]) -> Iterator[str]:
    for name in SHOWN:
        value = props.get(name)
        if name == "value" and props["name"] in VALUES_ARE_DATA:
            continue
        if name == "choices":
            if props["name"] != "dropdown":
                # A number is one in every language.
                labels = (str(label) for label, _ in value or [])
                yield from (label for label in labels if not label.isdigit())
        elif isinstance(value, str | I18nData) and str(value):
            yield str(value)


def visible_components(config: dict[str, Any]) -> list[dict[str, Any]]:
    """Properties of the components that are not inside an invisible one."""
    components = {component["id"]: component["props"] for component in config["components"]}
    found = []

    def walk(node: dict[str, Any]) -> None:
        props = components.get(node["id"], {})
        if props.get("visible") is False or props.get("name") == "api":
            return
        if props:
            found.append(props)
        for child in node.get("children") or []:
            walk(child)

    walk(config["layout"])
    return found


def test_nothing_on_the_page_is_left_in_one_language() -> None:
    # With all that a page can show.
    shelf = ModelShelf({}, ServedModel.open)
    norm_pix = small_reconstructor("norm", norm_pix=True)
    service = ReconstructionService({"norm": norm_pix}, shelf)
    config: dict[str, Any] = built(service).get_config_file()  # type: ignore[assignment]
    texts = [text for props in visible_components(config) for text in shown_texts(props)]
    assert len(texts) > 20
    keys = []
    for shown in texts:
        found = MARKER.fullmatch(shown)
        assert found, f"{shown!r} is not translated"
        keys.append(found[1])
    assert set(keys) == LABELS["en"].keys(), "texts that the page never shows"


def test_browsers_of_either_china_get_chinese() -> None:
    translations = I18N.translations_dict
    for locale in ("zh-CN", "zh-TW"):
        assert translations[locale] == LABELS["zh"]
    assert translations["en"] == LABELS["en"]


@pytest.mark.parametrize(
    ("error", "english", "chinese"),
    [
        (
            BusyError(41, "full", 20.4),
            "Too many requests are waiting (41). Please try again in about 21 s.",
            "排队的请求太多（41 个），请约 21 秒后再试。",
        ),
        (
            BusyError(41, "full"),
            "Too many requests are waiting (41). Please try again in a minute.",
            "排队的请求太多（41 个），请一分钟后再试。",
        ),
        (
            BusyError(8, "visitor", 3),
            "You have several requests waiting. Please try again in about 3 s.",
            "您已有多个请求在排队，请约 3 秒后再试。",
        ),
        (
            BusyError(0, "rate", 0.1),
            "Too many requests come from your address. Please try again in about 1 s.",
            "您的请求太频繁，请约 1 秒后再试。",
        ),
        (
            BusyError(0, "stopping"),
            "This page is about to be restarted. Please try again in a minute.",
            "本页面即将重启，请一分钟后再试。",
        ),
        (
            TookTooLongError(60),
            "This took longer than 60 s and was stopped. Please choose a smaller size, or try "
            "again later.",
            "计算超过 60 秒，已被放弃。请选择较小的尺寸，或稍后再试。",
        ),
    ],
    ids=str,
)
def test_a_busy_server_says_so_in_both_languages(
    error: MAEError, english: str, chinese: str
) -> None:
    assert error_sentence(error, "en") == english
    assert error_sentence(error, "zh") == chinese


@pytest.mark.parametrize(
    ("place", "seconds", "english", "chinese"),
    [
        (0, None, "Your picture is being computed", "正在计算您的图片"),
        (0, 0.2, "Your picture is being computed · about 1 s", "正在计算您的图片 · 约 1 秒"),
        (1, None, "You are next", "下一个就是您"),
        (2, None, "1 request is ahead of yours", "您前面还有 1 个请求"),
        (4, 7.1, "3 requests are ahead of yours · about 8 s", "您前面还有 3 个请求 · 约 8 秒"),
    ],
)
def test_the_place_in_the_line_is_told_in_both_languages(
    place: int, seconds: float | None, english: str, chinese: str
) -> None:
    assert line_sentence(place, seconds, "en") == english
    assert line_sentence(place, seconds, "zh") == chinese
