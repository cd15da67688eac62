"""Every problem of a configuration at once: types first, then what spans several fields.

The types come from the schema itself (`msgspec.inspect`), so a field is declared once. msgspec
stops at its first problem; this walk goes on, and names line, field and what was expected.
Text from the file is not repeated in a message where it might be a secret.
"""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Iterator
from typing import Any
from urllib.parse import urlsplit

from msgspec import inspect

from headrace.config.document import MAX_SHOWN, Document, Path, Problem, field_name
from headrace.config.rules import route_problems
from headrace.config.schema import LOCAL, Configuration, UpstreamProvider
from headrace.config.secrets import FORM, is_reference
from headrace.config.suggestion import suggestion

# Says what is wrong with a local model's reference, None if nothing is.
SourceFault = Callable[[str], str | None]

SIZE_EXPECTED = "expected a size such as 512MiB or 8GiB"
_NAME = re.compile(r"[\x20-\x7e]{1,128}")


def type_problems(document: Document) -> list[Problem]:
    """What in `document` does not fit the schema."""
    return [
        Problem(document.line(path), field_name(path), message)
        for path, message in _mismatches(inspect.type_info(Configuration), document.value, ())
    ]


def _mismatches(kind: inspect.Type, value: Any, path: Path) -> Iterator[tuple[Path, str]]:
    if isinstance(kind, inspect.StructType):
        yield from _struct(kind, value, path)
    elif isinstance(kind, inspect.DictType) and isinstance(value, dict):
        for name, item in value.items():
            yield from _mismatches(kind.value_type, item, (*path, name))
    elif isinstance(kind, inspect.VarTupleType) and isinstance(value, list):
        for place, item in enumerate(value):
            yield from _mismatches(kind.item_type, item, (*path, place))
    elif not _fits(kind, value):
        yield path, f"expected {wanted(kind)}, got {_given(kind, value)}"


def _struct(kind: inspect.StructType, value: Any, path: Path) -> Iterator[tuple[Path, str]]:
    if not isinstance(value, dict):
        yield path, f"expected {wanted(kind)}, got {_given(kind, value)}"
        return
    fields = {field.encode_name: field for field in kind.fields}
    for name, item in value.items():
        if name in fields:
            yield from _mismatches(fields[name].type, item, (*path, name))
        else:
            yield (*path, name), f"unknown field{suggestion(name, fields)}"
    for name, field in fields.items():
        if field.required and name not in value:
            yield (*path, name), f"missing; expected {wanted(field.type)}"


def _fits(kind: inspect.Type, value: Any) -> bool:
    match kind:
        case inspect.UnionType(types=types):
            return any(_fits(each, value) for each in types)
        case inspect.LiteralType(values=values):
            return isinstance(value, str) and value in values
        case inspect.StrType():
            return isinstance(value, str)
        case inspect.BoolType():
            return isinstance(value, bool)
        case inspect.NoneType():
            return value is None
        case inspect.IntType():
            return isinstance(value, int) and not isinstance(value, bool) and _within(kind, value)
        case inspect.FloatType():
            return (
                isinstance(value, int | float)
                and not isinstance(value, bool)
                and math.isfinite(value)
                and _within(kind, value)
            )
    return False


def _within(kind: inspect.IntType | inspect.FloatType, value: float) -> bool:
    return (
        (kind.gt is None or value > kind.gt)
        and (kind.ge is None or value >= kind.ge)
        and (kind.lt is None or value < kind.lt)
        and (kind.le is None or value <= kind.le)
    )


def wanted(kind: inspect.Type) -> str:
    """What a field of this type takes, in words."""
    match kind:
        case inspect.UnionType(types=types):
            return " or ".join(wanted(each) for each in types)
        case inspect.LiteralType(values=values):
            return f"one of {', '.join(str(each) for each in values)}"
        case inspect.IntType():
            return "an integer" + _bounds(kind)
        case inspect.FloatType():
            return "a number" + _bounds(kind)
        case inspect.StructType() | inspect.DictType():
            return "a block of fields"
    plain = {
        inspect.StrType: "a string",
        inspect.BoolType: "true or false",
        inspect.NoneType: "null",
        inspect.VarTupleType: "a list",
    }
    return plain.get(type(kind), "something else")


def _bounds(kind: inspect.IntType | inspect.FloatType) -> str:
    signs = ((">", kind.gt), (">=", kind.ge), ("<", kind.lt), ("<=", kind.le))
    said = " and ".join(f"{sign} {bound:g}" for sign, bound in signs if bound is not None)
    return f" {said}" if said else ""


def _given(kind: inspect.Type, value: Any) -> str:
    """What stands there. A string is shown only where a list of words was expected."""
    match value:
        case None:
            return "nothing"
        case bool():
            return "true" if value else "false"
        case int() | float():
            return "a number" if isinstance(kind, inspect.StrType) else f"{value:.12g}"
        case str() if isinstance(kind, inspect.LiteralType):
            return f"'{value[:40]}'"
        case str():
            return "a string"
        case list():
            return "a list"
    return "a block of fields"


def reference_problems(
    configuration: Configuration, document: Document, source_fault: SourceFault
) -> list[Problem]:
    """What does not fit together in a configuration whose types are right."""
    return [
        Problem(document.line(path), field_name(path), message)
        for path, message in (
            *_names(configuration),
            *_server(configuration),
            *_providers(configuration),
            *_models(configuration, source_fault),
            *_memory(configuration),
            *route_problems(configuration),
        )
    ]


def _names(configuration: Configuration) -> Iterator[tuple[Path, str]]:
    paths: list[tuple[Path, str]] = [
        *((("providers", name), name) for name in configuration.providers),
        *((("models", name), name) for name in configuration.models),
        *((("routes", i, "name"), route.name) for i, route in enumerate(configuration.routes)),
    ]
    for path, name in paths:
        if _NAME.fullmatch(name) is None or name != name.strip():
            yield path, "expected a name of 1 to 128 printable ASCII characters"


def _server(configuration: Configuration) -> Iterator[tuple[Path, str]]:
    key = configuration.server.admin_key
    if key is not None and not is_reference(key):
        yield ("server", "admin_key"), f"expected {FORM}"


def _providers(configuration: Configuration) -> Iterator[tuple[Path, str]]:
    for name, provider in configuration.providers.items():
        path: Path = ("providers", name)
        if name == LOCAL:
            yield path, f"'{LOCAL}' is the built-in engine; expected another name"
        if provider.base_url is not None and (fault := _address_fault(provider.base_url)):
            yield (*path, "base_url"), fault
        for secret in ("key", "access_key", "session_token"):
            value = getattr(provider, secret)
            if value is not None and not is_reference(value):
                yield (*path, secret), f"expected {FORM}"
        yield from _dialect(path, provider)


def _dialect(path: Path, provider: UpstreamProvider) -> Iterator[tuple[Path, str]]:
    """What a dialect needs, and what it has no use for."""
    dialect = provider.dialect
    if dialect == "bedrock":
        if provider.region is None or re.fullmatch(r"[a-z0-9-]{1,40}", provider.region) is None:
            yield (*path, "region"), "expected a region such as us-east-1"
        if provider.access_key is not None and provider.key is None:
            yield (*path, "key"), "missing; expected the secret key that goes with 'access_key'"
    elif provider.address is None:
        yield (*path, "base_url"), "missing; expected https://NAME.openai.azure.com/openai/v1"
    for field in ("access_key", "session_token"):
        if dialect != "bedrock" and getattr(provider, field) is not None:
            yield (*path, field), f"goes with dialect bedrock, not with {dialect}"
    if dialect != "azure" and provider.api_version is not None:
        yield (*path, "api_version"), f"goes with dialect azure, not with {dialect}"
    if dialect in ("bedrock", "cohere") and provider.probe.every is not None:
        yield (*path, "probe"), f"{dialect} lists no models; expected a probe of a model instead"


def _address_fault(address: str) -> str | None:
    """What is wrong with an upstream's address; never repeats it, as it may hold a password."""
    wanted = "expected an address such as https://api.example.com/v1"
    try:
        parts = urlsplit(address)
        sound = parts.scheme in ("http", "https") and bool(parts.hostname) and parts.port != 0
    except ValueError:
        return wanted
    if not sound or re.search(r"[^\x21-\x7e]", address):
        return wanted
    if parts.username is not None or parts.password is not None:
        return f"{wanted}, without a user or password; put the key in 'key'"
    if parts.query or parts.fragment:
        return f"{wanted}, without '?' or '#'"
    return None


def _memory(configuration: Configuration) -> Iterator[tuple[Path, str]]:
    for field in ("memory", "kv_offload"):
        try:
            getattr(configuration.engine, f"{field}_bytes")
        except ValueError:
            yield ("engine", field), SIZE_EXPECTED


def _models(configuration: Configuration, source_fault: SourceFault) -> Iterator[tuple[Path, str]]:
    known = (LOCAL, *configuration.providers)
    for name, model in configuration.models.items():
        if model.provider not in known:
            yield (
                ("models", name, "provider"),
                f"no provider '{model.provider[:MAX_SHOWN]}'{suggestion(model.provider, known)}",
            )
        if not model.source.strip():
            yield ("models", name, "source"), "expected the name of a model, got an empty string"
        elif model.provider == LOCAL and (fault := source_fault(model.source)) is not None:
            yield ("models", name, "source"), fault
        if model.provider == LOCAL and model.probe.every is not None:
            yield ("models", name, "probe"), "our own engine is known to be well without one"
        if model.adapter is not None and model.provider != LOCAL:
            yield ("models", name, "adapter"), f"only a model of provider '{LOCAL}' takes one"
        elif model.adapter is not None and (fault := source_fault(model.adapter)) is not None:
            yield ("models", name, "adapter"), fault
