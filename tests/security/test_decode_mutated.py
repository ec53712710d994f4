"""Encoded pictures with bytes changed, cut and moved: a picture, or an `MAEError`, nothing else.

The longer hunt, guided by coverage, is `fuzz_decode.py`.
"""

from contextlib import suppress

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from app.decoding import decode_upload
from mae_core import MAEError
from mae_core.photographs import decode_image
from tests.security.encoded_pictures import encoded_pictures
from tests.security.hostile_pictures import hostile_pictures

PICTURES = encoded_pictures()
HOSTILE = list(hostile_pictures())

# Where, as a fraction of the file, and what is written there.
changes = st.lists(st.tuples(st.floats(0, 1), st.binary(min_size=1, max_size=8)), max_size=6)


@settings(max_examples=600)
@given(st.sampled_from(sorted(PICTURES)), changes, st.floats(0, 1), st.booleans())
def test_a_changed_file_is_a_picture_or_an_error_in_words(
    name: str, changes: list[tuple[float, bytes]], end: float, whole: bool
) -> None:
    data = bytearray(PICTURES[name])
    for where, bits in changes:
        at = int(where * len(data))
        data[at : at + len(bits)] = bits
    is_a_picture_or_an_error(bytes(data if whole else data[: int(end * len(data))]))


@settings(max_examples=200)
@given(st.sampled_from(sorted(PICTURES)), st.sampled_from(sorted(PICTURES)), st.floats(0, 1))
def test_halves_of_two_files_are_a_picture_or_an_error(first: str, last: str, cut: float) -> None:
    head, tail = PICTURES[first], PICTURES[last]
    is_a_picture_or_an_error(head[: int(cut * len(head))] + tail[int(cut * len(tail)) :])


@pytest.mark.parametrize("name", sorted(PICTURES))
def test_what_fuzzing_starts_from_are_pictures(name: str) -> None:
    assert decode_upload(PICTURES[name]).mode == "RGB"


def test_hostile_pictures_are_told_apart_by_name() -> None:
    names = [picture.name for picture in HOSTILE]
    assert len(set(names)) == len(names)


def is_a_picture_or_an_error(data: bytes) -> None:
    """By the page's door and by the library's."""
    for decode in (decode_upload, decode_image):
        picture = None
        with suppress(MAEError):
            picture = decode(data)
        if picture is not None:
            assert (picture.mode, picture.info) == ("RGB", {})
