"""YAML text to plain values that remember their lines.

A strict subset: one document; no anchors and aliases (an alias can blow a small file up), no
tags, no key twice; scalars as in YAML 1.2, so that `no` is a word and `1e3` a number. Size and
depth are bounded.
"""

from __future__ import annotations

import re
from typing import Any

import yaml
from msgspec import Struct

MAX_BYTES = 256 * 1024
MAX_DEPTH = 32
MAX_SHOWN = 80  # characters of a name in a message

Path = tuple[str | int, ...]


class Problem(Struct, frozen=True):
    """One thing wrong: at which line, in which field, and what was expected there."""

    line: int
    field: str
    message: str


class Document(Struct, frozen=True):
    """`value` is what the text says; `lines` gives the line of each field by its path."""

    value: Any
    lines: dict[Path, int]

    def line(self, path: Path) -> int:
        """The line of the field at `path`, or of the nearest one above it."""
        while path and path not in self.lines:
            path = path[:-1]
        return self.lines.get(path, 1)


class DocumentError(Exception):
    """The text cannot be read as a document at all."""

    def __init__(self, problems: tuple[Problem, ...]) -> None:
        super().__init__("; ".join(problem.message for problem in problems))
        self.problems = problems


def field_name(path: Path) -> str:
    """`providers.openai.timeouts`, `routes[0].try[1]`, `models["gpt-4.1"].price`."""
    text = ""
    for part in path:
        if isinstance(part, int):
            text += f"[{part}]"
        elif re.fullmatch(r"[\w-]+", part):
            text += f".{part[:MAX_SHOWN]}" if text else part[:MAX_SHOWN]
        else:
            text += f'["{part[:MAX_SHOWN]}"]'
    return text


class _Loader(yaml.SafeLoader):
    """SafeLoader with YAML 1.2's scalars, no aliases, and a bound on depth."""

    depth = 0

    def compose_node(self, parent: yaml.Node | None, index: Any) -> yaml.Node | None:
        event: yaml.Event = self.peek_event()  # type: ignore[no-untyped-call]
        mark: Any = event.start_mark
        if isinstance(event, yaml.AliasEvent) or getattr(event, "anchor", None) is not None:
            raise yaml.MarkedYAMLError(
                problem="anchors and aliases are not supported; write the value out",
                problem_mark=mark,
            )
        if getattr(event, "tag", None) is not None:
            raise yaml.MarkedYAMLError(problem="tags are not supported", problem_mark=mark)
        if self.depth >= MAX_DEPTH:
            raise yaml.MarkedYAMLError(
                problem=f"expected at most {MAX_DEPTH} levels of nesting",
                problem_mark=mark,
            )
        self.depth += 1
        node = super().compose_node(parent, index)
        self.depth -= 1
        return node


_Loader.yaml_implicit_resolvers = {}  # none of YAML 1.1's
for _tag, _pattern, _first in (
    ("null", r"(?:~|null|Null|NULL|)", [*"~nN", ""]),
    ("bool", r"(?:true|True|TRUE|false|False|FALSE)", [*"tTfF"]),
    ("int", r"[-+]?(?:0|[1-9][0-9]*)", [*"-+0123456789"]),
    (
        "float",
        r"[-+]?(?:\.[0-9]+|[0-9]+(?:\.[0-9]*)?)(?:[eE][-+]?[0-9]+)?"
        r"|[-+]?\.(?:inf|Inf|INF)|\.(?:nan|NaN|NAN)",
        [*"-+.0123456789"],
    ),
):
    _Loader.add_implicit_resolver(
        f"tag:yaml.org,2002:{_tag}", re.compile(rf"^(?:{_pattern})$"), _first
    )


def parse(content: bytes) -> Document:
    """Read a YAML file's bytes. Raises DocumentError with every problem it could find."""
    if len(content) > MAX_BYTES:
        raise DocumentError((Problem(1, "", f"expected a file of at most {MAX_BYTES} bytes"),))
    try:
        text = content.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        line = content.count(b"\n", 0, error.start) + 1
        raise DocumentError((Problem(line, "", "expected text in UTF-8"),)) from None
    loader = None
    try:
        loader = _Loader(text)
        root = loader.get_single_node()
        builder = _Builder(loader)
        value = None if root is None else builder.build(root, ())
    except yaml.MarkedYAMLError as error:
        mark = error.problem_mark or error.context_mark
        message = error.problem or error.context or "this is not YAML"
        raise DocumentError((Problem(1 if mark is None else mark.line + 1, "", message),)) from None
    except yaml.reader.ReaderError as error:
        line = text.count("\n", 0, error.position) + 1
        raise DocumentError((Problem(line, "", "this character cannot stand in YAML"),)) from None
    finally:
        if loader is not None:
            loader.dispose()
    if builder.problems:
        raise DocumentError(tuple(builder.problems))
    return Document(value, builder.lines)


class _Builder:
    """Walks the nodes of a document to values, noting lines and problems."""

    def __init__(self, loader: _Loader) -> None:
        self.lines: dict[Path, int] = {}
        self.problems: list[Problem] = []
        self._loader = loader

    def build(self, node: yaml.Node, path: Path) -> Any:
        self.lines.setdefault(path, node.start_mark.line + 1)
        if isinstance(node, yaml.MappingNode):
            return self._mapping(node, path)
        if isinstance(node, yaml.SequenceNode):
            return [self.build(child, (*path, place)) for place, child in enumerate(node.value)]
        try:
            return self._loader.construct_object(node)
        except (yaml.constructor.ConstructorError, ValueError, OverflowError):
            self._problem(node, path, "expected a plain value (text, number, true, false or null)")
            return None

    def _mapping(self, node: yaml.MappingNode, path: Path) -> dict[str, Any]:
        result: dict[str, Any] = {}
        for key_node, value_node in node.value:
            if not isinstance(key_node, yaml.ScalarNode):
                self._problem(key_node, path, "expected a field name")
                continue
            key = key_node.value  # as written: a model may be named 2024
            here = (*path, key)
            if key in result:
                first = self.lines[here]
                self._problem(key_node, here, f"this field is here twice; first in line {first}")
                continue
            self.lines[here] = key_node.start_mark.line + 1
            result[key] = self.build(value_node, here)
        return result

    def _problem(self, node: yaml.Node, path: Path, message: str) -> None:
        self.problems.append(Problem(node.start_mark.line + 1, field_name(path), message))
