"""Every text of the page, in English and in Chinese.

The browser shows labels in its own language; errors are made on the server, in the language
that the request asks for. Both come from `STRINGS`, whose languages have the same keys.
"""

from collections.abc import Mapping

from mae_core import (
    DeviceError,
    ImageFormatError,
    ImageLimitError,
    ImageLimits,
    MAEError,
    MaskError,
)

LANGUAGES = ("en", "zh")

STRINGS: dict[str, dict[str, str]] = {
    "en": {
        "title": "Masked Autoencoder",
        "tagline": "Hide most of a picture, and a model imagines the rest.",
        "picture": "Picture",
        "picture_hint": "Drop a picture here\n- or -\nClick to upload",
        "examples": "Examples",
        "mask_ratio": "Mask ratio",
        "mask_ratio_hint": "Fraction of the patches removed",
        "seed": "Seed",
        "seed_hint": "Which patches are removed",
        "dice": "Another seed",
        "strategy": "Masking",
        "strategy_random": "Random",
        "strategy_block": "Blocks",
        "strategy_grid": "Grid",
        "fit": "Fit",
        "fit_crop": "Crop",
        "fit_squash": "Squash",
        "fit_whole": "Whole",
        "model": "Model",
        "model_running": "{model} (step {step} of {steps})",
        "original": "Original",
        "masked": "Masked",
        "reconstruction": "Reconstruction",
        "pasted": "Pasted",
        "facts": (
            "{visible} of {patches} patches seen · PSNR {psnr} dB on removed patches · "
            "{milliseconds} ms · {device} · {model}"
        ),
        "trust": (
            "**How far to trust this:** these pictures are guesses. The model saw only the visible "
            "patches and fills in what is usual in the photographs it was trained on, with "
            "their biases. What was really hidden may look quite different."
        ),
        "legend": (
            "**Masked** is what the model sees. **Reconstruction** is its drawing of every patch, "
            "the visible ones too. **Pasted** puts the true pixels back where they were seen. "
            "[He et al., 2022](https://arxiv.org/abs/2111.06377)"
        ),
        "error": "That did not work",
        "error_expired": "The picture is no longer on the server. Please choose it again.",
        "error_unknown": "Something went wrong (id {id}). Please try again.",
    },
    "zh": {
        "title": "掩码自编码器",
        "tagline": "遮住图片的大部分，看模型如何想象其余的部分。",
        "picture": "图片",
        "picture_hint": "将图片拖到此处\n- 或 -\n点击上传",
        "examples": "示例",
        "mask_ratio": "掩码比例",
        "mask_ratio_hint": "被移除图块所占的比例",
        "seed": "随机种子",
        "seed_hint": "决定移除哪些图块",
        "dice": "换一个种子",
        "strategy": "掩码方式",
        "strategy_random": "随机",
        "strategy_block": "块状",
        "strategy_grid": "网格",
        "fit": "适配方式",
        "fit_crop": "裁剪",
        "fit_squash": "压缩",
        "fit_whole": "完整",
        "model": "模型",
        "model_running": "{model}（第 {step} 步，共 {steps} 步）",
        "original": "原图",
        "masked": "掩码后",
        "reconstruction": "重建",
        "pasted": "拼合",
        "facts": (
            "可见 {visible} / {patches} 个图块 · 被移除图块 PSNR {psnr} dB · "
            "{milliseconds} 毫秒 · {device} · {model}"
        ),
        "trust": (
            "**可信程度：** 这些图片只是猜测。模型只看到了可见的图块，并按照训练照片中常见的样子"
            "补全其余部分，也带有这些照片的偏差。真正被遮住的内容可能完全不同。"
        ),
        "legend": (
            "**掩码后**是模型看到的内容。**重建**是模型画出的全部图块，包括可见的图块。"
            "**拼合**在可见处放回真实像素。"
            "[He et al., 2022](https://arxiv.org/abs/2111.06377)"
        ),
        "error": "操作未成功",
        "error_expired": "服务器上已没有这张图片，请重新选择。",
        "error_unknown": "出错了（编号 {id}），请重试。",
    },
}

_LIMITS = ImageLimits()

# The messages of mae_core are English and exact; these say the same less exactly.
_CHINESE_ERRORS: tuple[tuple[type[MAEError], str], ...] = (
    (ImageFormatError, "没有可用的图片：请选择 JPEG、PNG、WebP、GIF、BMP 或 TIFF 格式的完整图片。"),
    (
        ImageLimitError,
        f"图片的尺寸不合适：文件不超过 {_LIMITS.max_bytes // 2**20} MiB，"
        f"不超过 {_LIMITS.max_pixels // 10_000} 万像素，每边至少 {_LIMITS.min_side} 像素，"
        f"长边不超过短边的 {_LIMITS.max_aspect:g} 倍。",
    ),
    (MaskError, "掩码比例、种子或掩码方式不在允许的范围内，请用页面上的控件选择。"),
    (DeviceError, "所选设备不可用，请联系本页面的提供者。"),
)
_CHINESE_OTHER = "所选的值不可用，请从页面提供的选项中选择。"


def preferred_language(accept_language: str | None) -> str:
    """The language of `LANGUAGES` that an Accept-Language header asks for first.

    Args:
        accept_language: Such as `zh-CN,zh;q=0.9,en;q=0.8`; English if there is none.
    """
    wanted = []
    for item in (accept_language or "").split(","):
        tag, _, weight = item.partition(";q=")
        language = tag.strip().partition("-")[0].lower()
        if language in LANGUAGES:
            wanted.append((_weight(weight), language))
    # max keeps the earlier of equals, and browsers list the preferred one first.
    return max(wanted, key=lambda pair: pair[0])[1] if wanted else "en"


def _weight(text: str) -> float:
    try:
        return float(text) if text else 1.0
    except ValueError:
        return 0.0


def error_sentence(error: MAEError, language: str) -> str:
    """What a visitor is told about an error, as a sentence in their language."""
    if language == "zh":
        for kind, sentence in _CHINESE_ERRORS:
            if isinstance(error, kind):
                return sentence
        return _CHINESE_OTHER
    message = str(error)
    # A parameter's name, such as mask_ratio, stays as it is.
    if message.partition(" ")[0].isalpha():
        message = message[0].upper() + message[1:]
    return f"{message}."


def text(key: str, language: str, values: Mapping[str, str] | None = None) -> str:
    """A text in a language, with its `{placeholders}` filled."""
    return STRINGS[language][key].format(**(values or {}))
