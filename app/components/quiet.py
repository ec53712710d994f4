"""Component classes without stub files."""

from abc import ABCMeta
from typing import Any

from gradio.component_meta import ComponentMeta


class QuietMeta(ComponentMeta):
    """Makes a component class without writing a `.pyi` file beside its module.

    Gradio writes one for every component class it meets. An import that writes files is not
    inert, and type checkers would read the stub instead of the module.
    """

    def __new__(
        mcs: "type[QuietMeta]", name: str, bases: tuple[type, ...], namespace: dict[str, Any]
    ) -> "QuietMeta":
        """Make the class as Python does, its events being those of its base."""
        return ABCMeta.__new__(mcs, name, bases, namespace)
