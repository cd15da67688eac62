"""From a file to a `Configuration` with a version, or to every problem with its line."""

from __future__ import annotations

from hashlib import blake2b
from pathlib import Path

import msgspec

from headrace.config.capabilities import capable
from headrace.config.check import SourceFault, reference_problems, type_problems
from headrace.config.document import MAX_BYTES, DocumentError, Problem, parse
from headrace.config.prices import priced
from headrace.config.schema import Configuration

__all__ = ["ConfigurationError", "Loaded", "Problem", "load", "version_of"]

MAX_LISTED = 100  # problems that the error's text lists


class Loaded(msgspec.Struct, frozen=True):
    """A configuration that is in order. `path` and `text` are None where there was no file."""

    configuration: Configuration
    version: str
    path: Path | None = None
    text: bytes | None = None


class ConfigurationError(Exception):
    """The file cannot be used. `str` gives one line per problem, with file, line and field."""

    def __init__(self, path: Path, problems: tuple[Problem, ...]) -> None:
        self.path = path
        self.problems = problems
        lines = [self._text(problem) for problem in problems[:MAX_LISTED]]
        if len(problems) > MAX_LISTED:
            lines.append(f"{path}: and {len(problems) - MAX_LISTED} more problems")
        super().__init__("\n".join(lines))

    def _text(self, problem: Problem) -> str:
        field = f"{problem.field}: " if problem.field else ""
        return f"{self.path}:{problem.line}: {field}{problem.message}"


def _any_source(source: str) -> str | None:
    return None


def load(path: Path | None, source_fault: SourceFault = _any_source) -> Loaded:
    """Read the configuration at `path`; without a path, the default one.

    `source_fault` says what is wrong with a local model's reference, or None; what a reference
    is, the registry knows.

    Raises ConfigurationError with every problem found.
    """
    if path is None:
        configuration = Configuration()
        return Loaded(configuration, version_of(configuration))
    try:
        with path.open("rb") as file:
            content = file.read(MAX_BYTES + 1)
    except OSError as error:
        reason = error.strerror or type(error).__name__
        raise ConfigurationError(path, (Problem(1, "", f"cannot be read: {reason}"),)) from None
    configuration = _configuration(path, content, source_fault)
    return Loaded(configuration, version_of(configuration), path, content)


def version_of(configuration: Configuration) -> str:
    """12 hex digits of the content's BLAKE2b digest.

    Comments, layout, the order of keys and defaults written out do not change it. It is taken
    over references to secrets, never over secrets.
    """
    content = msgspec.json.encode(configuration, order="deterministic")
    return blake2b(content, digest_size=6).hexdigest()


def _configuration(path: Path, content: bytes, source_fault: SourceFault) -> Configuration:
    try:
        document = parse(content)
    except DocumentError as error:
        raise ConfigurationError(path, error.problems) from None
    if document.value is None:  # an empty file: every field has a default
        return Configuration()
    problems = type_problems(document)
    if problems:
        raise ConfigurationError(path, _in_order(problems))
    configuration = msgspec.convert(document.value, Configuration)
    problems = reference_problems(configuration, document, source_fault)
    if problems:
        raise ConfigurationError(path, _in_order(problems))
    return capable(priced(configuration))


def _in_order(problems: list[Problem]) -> tuple[Problem, ...]:
    return tuple(sorted(problems, key=lambda problem: problem.line))
