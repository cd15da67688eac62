"""Tool calls in a model's text, found while the text comes.

A call is given when it is whole: only then it is known to be one. Until then its text is held
back, and is given as text after all where it turns out not to be a call: not sound JSON, a name
that was not offered, arguments that are no object. What is found does not depend on how the text
was cut into pieces.
"""

from __future__ import annotations

import ast
import json
import re
import sys
import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, NoReturn, Protocol

from ..request import ToolCall
from .detokenizer import overlap

MAX_DEPTH = 64  # of JSON's brackets; also bounds the work on text that only looks like calls
MAX_NAME = 64  # characters
MAX_DIGITS = 4000
KEYS = {"name", "arguments", "parameters", "id", "type"}

OUTSIDE = re.compile(r'["{}\[\]]')
INSIDE = re.compile(r'["\\]')
NAMED = re.compile(r"\s*([\w.-]{1,64})\s*(?:\[ARGS\])?\s*(?=\{)")
LONE = re.compile(r"[\ud800-\udfff]")
SEPARATOR = re.compile(r"\s*;?\s*")


class NotACall(ValueError):
    """The text is something else."""


@dataclass(frozen=True, slots=True)
class Read:
    """What the beginning of a text was: these calls, written in its first `used` characters."""

    calls: tuple[ToolCall, ...]
    used: int


class Reader(Protocol):
    """Reads what follows an opening mark."""

    def read(self, text: str, *, final: bool) -> Read | None:
        """The calls at the start of `text`, or None where more text has to come.

        Asked again with a longer text each time; `final` says that it will not grow. Raises
        NotACall.
        """
        ...


class JSONSpan:
    """Finds where a JSON object or array ends, in a text that grows; each character once."""

    def __init__(self, start: int = 0) -> None:
        self.at = start
        self.begun = self.quoted = False
        self.depth = 0

    def end(self, text: str) -> int | None:
        """The index after it, None where it goes on. Raises NotACall."""
        if not self.begun:
            while self.at < len(text) and text[self.at].isspace():
                self.at += 1
            if self.at == len(text):
                return None
            if text[self.at] not in "{[":
                raise NotACall
            self.begun = True
        while found := (INSIDE if self.quoted else OUTSIDE).search(text, self.at):
            mark, self.at = found[0], found.end()
            if mark == "\\":
                if self.at == len(text):
                    self.at -= 1  # what it escapes has yet to come
                    return None
                self.at += 1
            elif mark == '"':
                self.quoted = not self.quoted
            elif mark in "{[":
                self.depth += 1
                if self.depth > MAX_DEPTH:
                    raise NotACall
            else:
                self.depth -= 1
                if self.depth == 0:
                    return self.at
        self.at = len(text)
        return None


class TaggedJSON:
    """One JSON object and a closing mark, which may be missing at the very end."""

    def __init__(self, close: str) -> None:
        self.close = close
        self.span = JSONSpan()
        self.ended: int | None = None

    def read(self, text: str, *, final: bool) -> Read | None:
        """As in `Reader`."""
        if self.ended is None:
            self.ended = self.span.end(text)
        if self.ended is None:
            return None
        rest = text[self.ended :].lstrip()
        if rest.startswith(self.close):
            used = len(text) - len(rest) + len(self.close)
        elif not self.close.startswith(rest):
            raise NotACall
        elif final:
            used = len(text)
        else:
            return None
        return Read(calls_of(text[: self.ended]), used)


class BareJSON:
    """Objects with semicolons between them, as Llama 3 writes calls."""

    def __init__(self) -> None:
        self.span = JSONSpan()
        self.calls: list[ToolCall] = []
        self.begun = self.used = 0  # where the object that is read begins; where the calls end

    def read(self, text: str, *, final: bool) -> Read | None:
        """As in `Reader`."""
        try:
            while (end := self.next_end(text)) is not None:
                self.calls += calls_of(text[self.begun : end])
                self.used = end
                self.span = JSONSpan(end)
        except NotACall:
            if not self.calls:
                raise
            return Read(tuple(self.calls), self.used)
        if final and self.calls:
            # what follows the last call is a separator, or a call that was cut
            rest = text[self.used :].strip(" \t\r\n;")
            return Read(tuple(self.calls), self.used if rest else len(text))
        return None

    def next_end(self, text: str) -> int | None:
        """The index after the object that is read. Raises NotACall."""
        if self.calls and not self.span.begun:
            separator = SEPARATOR.match(text, self.used)
            self.begun = separator.end() if separator else self.used
            self.span = JSONSpan(self.begun)
        return self.span.end(text)


class ListedJSON:
    """A JSON array of calls, or a name and its arguments, as Mistral's models write them."""

    def __init__(self) -> None:
        self.span = JSONSpan()
        self.name: str | None = None

    def read(self, text: str, *, final: bool) -> Read | None:
        """As in `Reader`."""
        first = text.lstrip()[:1]
        if first and first not in "[{" and self.name is None:
            found = NAMED.match(text)
            if found is None:
                if "{" in text or len(text) > 2 * MAX_NAME:
                    raise NotACall
                return None
            self.name, self.span = found[1], JSONSpan(found.end())
        end = self.span.end(text)
        if end is None:
            return None
        if self.name is None:
            return Read(calls_of(text[:end]), end)
        start = text.index("{")
        return Read((call_of({"name": self.name, "arguments": loads(text[start:end])}),), end)


class FencedPython:
    """Calls written as Python, up to the end of a fenced block, as Gemma's models write them."""

    def __init__(self) -> None:
        self.at = 0

    def read(self, text: str, *, final: bool) -> Read | None:
        """As in `Reader`."""
        found = text.find("```", self.at)
        if found < 0 and not final:
            self.at = max(len(text) - 2, 0)
            return None
        end = len(text) if found < 0 else found
        return Read(python_calls(text[:end]), end if found < 0 else end + 3)


def loads(text: str) -> Any:
    """A JSON value. Raises NotACall."""
    try:
        return json.loads(text, parse_float=finite, parse_int=whole, parse_constant=refuse)
    except (ValueError, RecursionError):
        raise NotACall from None


def finite(text: str) -> float:
    """A number of JSON; the largest there is for one beyond it, which JSON could not say again."""
    return max(-sys.float_info.max, min(float(text), sys.float_info.max))


def whole(text: str) -> float:
    """An integer of JSON, as one unless it has more digits than Python converts."""
    return int(text) if len(text) < MAX_DIGITS else finite(text)


def refuse(text: str) -> NoReturn:
    """NaN and the infinities are not JSON."""
    raise NotACall


def calls_of(text: str) -> tuple[ToolCall, ...]:
    """The calls that a JSON object or array of them says. Raises NotACall."""
    value = loads(text)
    found = value if isinstance(value, list) else [value]
    if not found:
        raise NotACall
    return tuple(map(call_of, found))


def call_of(value: Any) -> ToolCall:
    """The call that an object says. Raises NotACall."""
    if not isinstance(value, dict) or not value.keys() <= KEYS:
        raise NotACall
    name, arguments = value.get("name"), value.get("arguments", value.get("parameters", {}))
    if isinstance(arguments, str):  # an object's text where the object belongs
        arguments = loads(arguments)
    if not isinstance(name, str) or not isinstance(arguments, dict):
        raise NotACall
    return ToolCall(name, dumps(arguments))


def dumps(arguments: dict[str, Any]) -> str:
    """The text of an object. Raises ValueError, TypeError where it is none of JSON."""
    text = json.dumps(arguments, ensure_ascii=False, allow_nan=False)
    # half of a surrogate pair is a sound escape in JSON, and no character of a text
    return text if text.isascii() or not LONE.search(text) else json.dumps(arguments)


def python_calls(text: str) -> tuple[ToolCall, ...]:
    """The calls of a few lines of Python that are nothing but calls. Raises NotACall."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # about escapes in the model's strings
            lines = ast.parse(text.strip()).body
        calls = tuple(map(python_call, lines))
    except (SyntaxError, ValueError, TypeError, RecursionError, MemoryError):
        raise NotACall from None
    if not calls:
        raise NotACall
    return calls


def python_call(line: ast.stmt) -> ToolCall:
    """The call in one statement, `print` around it or not. Raises ValueError, TypeError."""
    call = line.value if isinstance(line, ast.Expr) else None
    if isinstance(call, ast.Call) and ast.unparse(call.func) == "print" and len(call.args) == 1:
        call = call.args[0]
    if not isinstance(call, ast.Call) or call.args:
        raise ValueError("not a call by keywords")
    arguments = {word.arg: python_value(word.value) for word in call.keywords if word.arg}
    if len(arguments) != len(call.keywords):
        raise ValueError("not a call by plain keywords")
    return ToolCall(ast.unparse(call.func), dumps(arguments))


def python_value(node: ast.expr) -> Any:
    """A literal, of Python or of JSON."""
    for name in (one for one in ast.walk(node) if isinstance(one, ast.Name)):
        if name.id not in ("true", "false", "null"):
            raise ValueError("a name is not a literal")
    source = ast.unparse(node)
    try:
        return json.loads(source)
    except ValueError:
        return ast.literal_eval(source)


class CallParser:
    """Separates text from calls. `readers` by the mark that opens them.

    With `bare` a call may also open the answer without any mark. White space beside a call is
    dropped.
    """

    def __init__(
        self,
        readers: dict[str, Callable[[], Reader]],
        names: frozenset[str],
        bare: Callable[[], Reader] | None = None,
    ) -> None:
        self.readers = readers
        self.names = names
        self.bare = bare
        self.pending = ""  # not decided yet
        self.space = ""  # white space at the end of the text so far
        self.opener = ""
        self.reader: Reader | None = None
        self.begun = False  # whether anything but white space has been seen
        self.after_call = False

    def feed(self, text: str) -> list[str | ToolCall]:
        """What `text` decides, in order."""
        self.pending += text
        return self.parse(final=False)

    def finish(self) -> list[str | ToolCall]:
        """What is left, once no more text will come."""
        pieces = self.parse(final=True)
        if self.space and not self.after_call:
            pieces.append(self.space)
        self.space = ""
        return pieces

    def parse(self, *, final: bool) -> list[str | ToolCall]:
        """Go as far as the text allows."""
        pieces: list[str | ToolCall] = []
        while self.reader is not None or self.open(pieces, final=final):
            read = self.read(final=final)
            if read is None:
                break
            self.reader = None
            if read.calls:
                pieces += read.calls
                self.pending = self.pending[read.used :]
                self.space, self.after_call = "", True
            else:
                self.say(self.opener, pieces)
                if final:  # nothing that follows is whole, or it would have been found before
                    self.say(self.pending, pieces)
                    self.pending = ""
        return pieces

    def open(self, pieces: list[str | ToolCall], *, final: bool) -> bool:
        """Say the text up to the next opening mark; whether there is one."""
        blank = len(self.pending) - len(self.pending.lstrip())
        if self.bare is not None and not self.begun and self.pending[blank:].startswith("{"):
            place, self.opener, self.reader = blank, "", self.bare()
        else:
            found = [(at, one) for one in self.readers if (at := self.pending.find(one)) >= 0]
            if not found:
                kept = 0 if final else max(overlap(self.pending, one) for one in self.readers)
                self.say(self.pending[: len(self.pending) - kept], pieces)
                self.pending = self.pending[len(self.pending) - kept :]
                return False
            place, self.opener = min(found)
            self.reader = self.readers[self.opener]()
        self.say(self.pending[:place], pieces)
        self.pending = self.pending[place + len(self.opener) :]
        self.begun = True
        return True

    def read(self, *, final: bool) -> Read | None:
        """What the reader says; no calls where the text is none, None where it is not decided."""
        if self.reader is None:
            return None
        try:
            read = self.reader.read(self.pending, final=final)
        except NotACall:
            return Read((), 0)
        if read is None:
            return Read((), 0) if final else None
        known = all(call.name in self.names for call in read.calls)
        return read if known else Read((), 0)

    def say(self, text: str, pieces: list[str | ToolCall]) -> None:
        """Give text, but the white space at its end, which a call may yet follow."""
        text = self.space + text
        said = text.rstrip()
        self.space = text[len(said) :]
        if said:
            pieces.append(said)
            self.begun, self.after_call = True, False


def joined(pieces: Sequence[str | ToolCall]) -> str:
    """The text of the pieces."""
    return "".join(piece for piece in pieces if isinstance(piece, str))
