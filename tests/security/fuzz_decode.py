"""Coverage-guided fuzzing of `decode_image`, by hand; docs/security.md says how.

    python -m tests.security.fuzz_decode CORPUS -max_total_time=600 -print_final_stats=1

It needs atheris, which no requirements file names. Anything but a picture or an `MAEError` is a
crash; so are more than 20 seconds or 2 GiB. New inputs are kept in the folder CORPUS, which is
seeded with small pictures of all formats; further arguments are libFuzzer's.
"""

import struct
import sys
import zlib
from pathlib import Path

import atheris

with atheris.instrument_imports(include=["PIL", "mae_core.photographs"]):
    from mae_core import MAEError
    from mae_core.photographs import decode_image

from tests.security.encoded_pictures import encoded_pictures

_PNG = b"\x89PNG\r\n\x1a\n"
_MAX_FILE_BYTES = 32 * 1024
_LIMITS = ["-timeout=20", "-rss_limit_mb=2048", f"-max_len={_MAX_FILE_BYTES}"]


def one_input(data: bytes) -> None:
    """Decode one file.

    Raises:
        Exception: Whatever is not an `MAEError`; the fuzzer keeps the file that brought it about.
    """
    try:
        picture = decode_image(data)
    except MAEError:
        return
    if picture.mode != "RGB" or picture.info:
        raise AssertionError(f"a picture of mode {picture.mode} with {len(picture.info)} notes")


def mutate(data: bytes, max_size: int, _seed: int) -> bytes:
    """libFuzzer's own changes; of a PNG the checksums are made right again, so as to get inside."""
    changed: bytes = atheris.Mutate(data, max_size)
    return _with_checksums(changed)[:max_size] if changed.startswith(_PNG) else changed


def _with_checksums(png: bytes) -> bytes:
    parts, at = [_PNG], len(_PNG)
    while at + 12 <= len(png):
        (length,) = struct.unpack_from(">I", png, at)
        chunk = png[at + 4 : at + 8 + length]
        parts += [png[at : at + 4], chunk, struct.pack(">I", zlib.crc32(chunk))]
        at += 12 + length
    return b"".join([*parts, png[at:]])


def main() -> None:
    """Seed the corpus, then fuzz until libFuzzer ends the process."""
    corpus = Path(sys.argv[1])
    corpus.mkdir(parents=True, exist_ok=True)
    for name, data in encoded_pictures().items():
        (corpus / name).write_bytes(data)
    dictionary = Path(__file__).with_name("pictures.dict")
    arguments = [sys.argv[0], *_LIMITS, f"-dict={dictionary}", *sys.argv[1:]]
    atheris.Setup(arguments, one_input, custom_mutator=mutate)
    atheris.Fuzz()


if __name__ == "__main__":
    main()
