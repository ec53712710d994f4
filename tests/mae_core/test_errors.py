"""Errors carry a code and parameters, so that a page can say them in its visitor's language."""

import copy
import pickle

import pytest

from mae_core import errors
from mae_core.errors import ImageError, MAEError

CLASSES = [
    value for value in vars(errors).values()
    if isinstance(value, type) and issubclass(value, MAEError)
]  # fmt: skip


def test_each_class_has_a_code_of_its_own() -> None:
    codes = [kind("message").code for kind in CLASSES]
    assert len(set(codes)) == len(CLASSES) == 8
    assert all(code.replace("_", "").isalpha() and code.islower() for code in codes)


@pytest.mark.parametrize("kind", CLASSES)
def test_the_message_alone_is_enough(kind: type[MAEError]) -> None:
    error = kind("too dark")
    assert (str(error), error.args, error.parameters) == ("too dark", ("too dark",), {})


def test_a_finer_code_and_parameters_may_be_given() -> None:
    error = ImageError("9 pixels", code="image_too_small", side=9, least=16)
    assert error.code == "image_too_small"
    assert error.parameters == {"side": 9, "least": 16}
    assert (str(error), ImageError("other").code) == ("9 pixels", "image")


@pytest.mark.parametrize("copied", [copy.copy, lambda e: pickle.loads(pickle.dumps(e))])  # noqa: S301
def test_code_and_parameters_reach_another_process(copied: object) -> None:
    assert callable(copied)
    error = copied(ImageError("9 pixels", code="image_too_small", side=9))
    assert type(error) is ImageError
    assert (str(error), error.code, error.parameters) == (
        "9 pixels",
        "image_too_small",
        {"side": 9},
    )
