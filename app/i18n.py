"""Every text of the page, in English and in Chinese.

The browser shows labels in its own language; errors are made on the server, in the language
that the request asks for. Both come from `STRINGS`, whose languages have the same keys.
"""

import math
from collections.abc import Mapping

from app.line import BusyError, TookTooLongError
from app.models.shelf import NotReadyError, Offer
from mae_core import MAEError
from mae_core.photographs import ImageLimits

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
        "model_here": "{model} · on disk",
        "model_absent": "{model} · fetch {size}",
        "model_failed": "{model} · cannot be used now",
        "model_pending": "{model} · on its way",
        "model_waiting": "{model} is waiting to be fetched ({size})",
        "model_fetching": "Fetching {model}: {done} of {size}",
        "model_reading": "Reading {model} into memory",
        "stop_hint": (
            "To stop it, choose another model: a download that nobody has waited for in "
            "{minutes} minutes ends. What has come is kept."
        ),
        "ask_again": "Please ask again in a few seconds",
        "line_computing": "Your picture is being computed",
        "line_next": "You are next",
        "line_one": "1 request is ahead of yours",
        "line_many": "{count} requests are ahead of yours",
        "line_seconds": "{line} · about {seconds} s",
        "busy_full": "Too many are waiting ({waiting}). Please try again {when}.",
        "busy_visitor": "You have several requests waiting. Please try again {when}.",
        "busy_rate": "You ask faster than this page allows. Please try again {when}.",
        "busy_stopping": "This page is about to be restarted. Please try again in a minute.",
        "when_seconds": "in about {seconds} s",
        "when_later": "in a minute",
        "too_long": "This took longer than {seconds} s and was given up. Please choose a smaller "
        "size, or try again later.",
        "note_cpu": "computed on the CPU: the GPU was out of memory",
        "size_unknown": "unknown size",
        "size": "Size in pixels",
        "size_own": "Model's",
        "view": "View of normalised pixels",
        "view_estimated": "Estimated from visible patches",
        "view_answer": "With the hidden patches' own brightness and contrast (uses the answer)",
        "view_normalized": "As predicted (normalised)",
        "note_answer": "uses the answer: hidden patches' own brightness and contrast",
        "note_normalized": "as predicted: not comparable with the original",
        "panels": "Download · Enlarge · Original · Masked · Reconstruction · Pasted",
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
        "model_here": "{model} · 已在磁盘",
        "model_absent": "{model} · 需下载 {size}",
        "model_failed": "{model} · 暂时无法使用",
        "model_pending": "{model} · 正在准备",
        "model_waiting": "{model} 正在等待下载（{size}）",
        "model_fetching": "正在下载 {model}：{done} / {size}",
        "model_reading": "正在将 {model} 读入内存",
        "stop_hint": (
            "若要停止，请选择其他模型：{minutes} 分钟内无人等待，下载即结束；已下载的部分会保留。"
        ),
        "ask_again": "请几秒后再试",
        "line_computing": "正在计算您的图片",
        "line_next": "下一个就是您",
        "line_one": "您前面还有 1 个请求",
        "line_many": "您前面还有 {count} 个请求",
        "line_seconds": "{line} · 约 {seconds} 秒",
        "busy_full": "排队的请求太多（{waiting} 个），请{when}再试。",
        "busy_visitor": "您已有多个请求在排队，请{when}再试。",
        "busy_rate": "您的请求太频繁，请{when}再试。",
        "busy_stopping": "本页面即将重启，请一分钟后再试。",
        "when_seconds": "约 {seconds} 秒后",
        "when_later": "一分钟后",
        "too_long": "计算超过 {seconds} 秒，已被放弃。请选择较小的尺寸，或稍后再试。",
        "note_cpu": "在 CPU 上计算：GPU 内存不足",
        "size_unknown": "大小未知",
        "size": "尺寸（像素）",
        "size_own": "默认",
        "view": "归一化像素的显示方式",
        "view_estimated": "由可见图块估计",
        "view_answer": "用被遮图块自身的亮度和对比度（用到了答案）",
        "view_normalized": "原样输出（归一化）",
        "note_answer": "用到了答案：被遮图块自身的亮度和对比度",
        "note_normalized": "原样输出：不能与原图比较",
        "panels": "下载 · 放大 · 原图 · 掩码后 · 重建 · 拼合",
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

# By an error's code. The messages of mae_core are English and exact; these are less exact.
_CHINESE_ERRORS = {
    "image": (
        "没有可用的图片：请选择完整的 JPEG、PNG、WebP、GIF、BMP 或 HEIC 图片，"
        "或 RGB、灰度的 TIFF 图片。"
    ),
    "image_limit": (
        "图片过大、形状不合适，或无法在规定的时间和内存内解码："
        f"文件不超过 {_LIMITS.max_bytes // 2**20} MiB，"
        f"不超过 {_LIMITS.max_pixels // 10_000} 万像素，每边至少 {_LIMITS.min_side} 像素，"
        f"长边不超过短边的 {_LIMITS.max_aspect:g} 倍。若选择了较大的尺寸，请改小，或改用裁剪；"
        "也可另存为 PNG 或 JPEG。"
    ),
    "mask": "掩码比例、种子或掩码方式不在允许的范围内，请用页面上的控件选择。",
    "download": "模型下载失败：请检查网络或磁盘空间，或选择其他模型；再次选择该模型即可重试。",
    "checkpoint": "这个模型无法使用：它不在本机上、已损坏、过大或不含解码器。请选择其他模型。",
    "device": "所选设备不可用，请联系本页面的提供者。",
    "no_gpu": "暂时没有可用的 GPU，或您在本 Space 的 GPU 时间已用完；请稍后再试，或登录后再试。",
    "no_memory": "目前内存不足，无法处理这张图片。请选择较小的尺寸，或稍后再试。",
    "storage": "服务器的磁盘空间不足，暂时无法接收图片，请几分钟后再试。",
}
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
    if isinstance(error, NotReadyError):
        stop = "。" if language == "zh" else ". "
        words = (progress_sentence(error.offer, language), text("ask_again", language), "")
        return stop.join(words).strip()
    if isinstance(error, BusyError):
        return _busy_sentence(error, language)
    if isinstance(error, TookTooLongError):
        return text("too_long", language, {"seconds": f"{error.seconds:g}"})
    if language == "zh":
        return _CHINESE_ERRORS.get(error.code, _CHINESE_OTHER)
    message = str(error)
    # A parameter's name, such as mask_ratio, stays as it is.
    if message.partition(" ")[0].isalpha():
        message = message[0].upper() + message[1:]
    return f"{message}."


def _busy_sentence(error: BusyError, language: str) -> str:
    when = text("when_later", language)
    if error.retry_seconds is not None:
        when = text("when_seconds", language, {"seconds": _seconds(error.retry_seconds)})
    values = {"waiting": str(error.waiting), "when": when}
    return text(f"busy_{error.reason}", language, values)


def line_sentence(place: int, seconds: float | None, language: str) -> str:
    """Where in the line a request is; without a full stop.

    Args:
        place: 0 = being computed; n = its turn is the n-th from now.
        seconds: How long that takes, where it is known.
        language: One of `LANGUAGES`.
    """
    key = ("line_computing", "line_next", "line_one")[place] if place < 3 else "line_many"
    line = text(key, language, {"count": str(place - 1)})
    if seconds is None:
        return line
    return text("line_seconds", language, {"line": line, "seconds": _seconds(seconds)})


def _seconds(seconds: float) -> str:
    return str(max(1, math.ceil(seconds)))


def progress_sentence(offer: Offer, language: str) -> str:
    """How far a model is that is on its way; without a full stop."""
    values = {
        "model": offer.name, "done": _amount(offer.done), "size": size_of(offer, language),
    }  # fmt: skip
    return text(f"model_{offer.state}", language, values)


def size_of(offer: Offer, language: str) -> str:
    """The size of a model's files in 10^6 or 10^9 bytes, with a sign where it is a guess."""
    if offer.total is None:
        return text("size_unknown", language)
    return _amount(offer.total) if offer.exact else f"≈ {_amount(offer.total)}"


def _amount(size: int) -> str:
    return f"{size / 10**9:.1f} GB" if size >= 10**9 else f"{size / 10**6:.0f} MB"


def text(key: str, language: str, values: Mapping[str, str] | None = None) -> str:
    """A text in a language, with its `{placeholders}` filled."""
    return STRINGS[language][key].format(**(values or {}))
