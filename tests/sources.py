"""The project's own source files, parsed, for the tests that hold the rules of the house."""

import ast
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent


@dataclass(frozen=True)
class Source:
    """A module: its dotted name, its file and its syntax tree."""

    module: str
    path: Path
    tree: ast.Module

    @property
    def is_package(self) -> bool:
        return self.path.name == "__init__.py"


def sources_of(package: str) -> list[Source]:
    return [_parse(path) for path in sorted((ROOT / package).rglob("*.py"))]


def _parse(path: Path) -> Source:
    parts = path.relative_to(ROOT).with_suffix("").parts
    module = ".".join(parts[:-1] if parts[-1] == "__init__" else parts)
    return Source(module, path, ast.parse(path.read_text(encoding="utf-8")))


def imported_modules(source: Source, known: set[str]) -> set[str]:
    """Every module that a file imports, anywhere in it; `known` tells modules from names.

    `from package import module` counts as `package.module`, `from module import name` as
    `module`; relative imports are made absolute.
    """
    found = set()
    for node in ast.walk(source.tree):
        if isinstance(node, ast.Import):
            found.update(alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            base = _absolute(source, node)
            for alias in node.names:
                whole = f"{base}.{alias.name}"
                found.add(whole if whole in known else base)
    return found


def _absolute(source: Source, node: ast.ImportFrom) -> str:
    if not node.level:
        return node.module or ""
    package = source.module.split(".")
    drop = node.level - source.is_package
    package = package[: len(package) - drop]
    return ".".join([*package, node.module] if node.module else package)
