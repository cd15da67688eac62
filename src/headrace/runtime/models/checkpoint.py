"""A model as it was found on disk: description, weights, tokenizer and chat template together."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from jinja2 import TemplateError

from ..options import Quantization
from ..text.template import CHATML, ChatTemplate
from ..text.tokenizer import (
    Vocabulary,
    read_json,
    token_text,
    vocabulary_from_directory,
    vocabulary_from_gguf,
)
from ..weights.gguf import GGUF, WeightsError, read_gguf
from ..weights.safetensors import read_directory
from ..weights.tensor import Tensor
from .architecture import Architecture
from .description import family_from_gguf, from_gguf, kind_of
from .families import family_of, from_config, weights_of
from .quantization import KEY, decode, read_scheme
from .rounding import kinds, quantize


@dataclass(frozen=True, slots=True)
class Description:
    """What a model computes: its architecture, and its weights in canonical names."""

    model_type: str  # its family, as in config.json
    architecture: Architecture
    weights: Mapping[str, Tensor]


@dataclass(frozen=True, slots=True)
class Checkpoint:
    """Everything a model file says, in canonical names."""

    model_type: str
    architecture: Architecture
    weights: Mapping[str, Tensor]
    vocabulary: Vocabulary
    template: ChatTemplate
    chats: bool  # whether the template is the model's own: a base model has none

    @property
    def formats(self) -> dict[str, int]:
        """How many weights there are of each format."""
        counts: dict[str, int] = {}
        for tensor in self.weights.values():
            counts[tensor.format] = counts.get(tensor.format, 0) + 1
        return counts

    @property
    def kinds(self) -> dict[str, str]:
        """The format of each kind of weight, and why (`rounding.kinds`)."""
        return kinds(self.weights)


def load_checkpoint(
    path: Path, served: int = 0, quantization: Quantization | None = None, threads: int = 0
) -> Checkpoint:
    """Read a GGUF file or a Hugging Face directory.

    `served` is the longest sequence that will be asked for; 0: as long as the model was trained
    for. Only longrope's choice between two sets of frequencies depends on it. `quantization` rounds
    float weights (`rounding.quantize`), with `threads`.

    Raises WeightsError (UnsupportedModel where only the architecture is unknown), or OSError.
    """
    with blaming(path):
        found = from_directory(path, served) if path.is_dir() else from_file(path, served)
        if quantization is None:
            return found
        return replace(found, weights=quantize(found.weights, quantization, threads))


def load_description(
    path: Path, served: int = 0, quantization: Quantization | None = None, threads: int = 0
) -> Description:
    """As `load_checkpoint`, without what has to do with text."""
    with blaming(path):
        if path.is_dir():
            found = describe_directory(path, served)
        else:
            found = describe_file(read_gguf(path), served)
        if quantization is None:
            return found
        return replace(found, weights=quantize(found.weights, quantization, threads))


@contextmanager
def blaming(path: Path) -> Iterator[None]:
    """A value of a wrong type or range somewhere in a description: the file is at fault."""
    try:
        yield
    except WeightsError:
        raise
    except (LookupError, TypeError, ValueError, ArithmeticError, AttributeError) as error:
        raise WeightsError(f"{path} does not describe a model: {error!r}") from error


def describe_file(file: GGUF, served: int = 0) -> Description:
    """Architecture and weights of a GGUF file. Raises as `describe_directory`."""
    model = from_gguf(file, served)
    weights = weights_of(family_from_gguf(file), model, file.tensors)
    return Description(kind_of(file).model_type, model, weights)


def from_file(path: Path, served: int) -> Checkpoint:
    """Read a GGUF file."""
    file = read_gguf(path)
    described = describe_file(file, served)
    about = file.metadata
    tokens = about.get("tokenizer.ggml.tokens") or []

    def token(name: str) -> str:
        index = about.get(f"tokenizer.ggml.{name}_token_id")
        return tokens[index] if index is not None and index < len(tokens) else ""

    return Checkpoint(
        model_type=described.model_type,
        architecture=described.architecture,
        weights=described.weights,
        vocabulary=vocabulary_from_gguf(about),
        template=compile_template(about.get("tokenizer.chat_template"), token("bos"), token("eos")),
        chats=bool(about.get("tokenizer.chat_template")),
    )


def describe_directory(path: Path, served: int = 0, *, embeds: bool = False) -> Description:
    """Architecture and weights of a Hugging Face directory: config.json, *.safetensors.

    Where it `embeds`, nothing reads an output matrix: a decoder need not have one.
    Raises WeightsError (UnsupportedModel where only the architecture is unknown), or OSError.
    """
    config = read_json(path / "config.json")
    scheme = read_scheme(config)
    model = from_config({name: config[name] for name in config if name != KEY}, served)
    if embeds:
        model = replace(model, tied_embeddings=True)
    tensors = read_directory(path)
    if scheme is not None:
        tensors = decode(scheme, tensors)
    weights = weights_of(family_of(config), model, tensors)
    return Description(str(config["model_type"]), model, weights)


def from_directory(path: Path, served: int) -> Checkpoint:
    """Read a Hugging Face directory: the model, tokenizer.json and companions."""
    about = read_json(path / "tokenizer_config.json")
    beside = path / "chat_template.jinja"
    source = beside.read_text() if beside.exists() else about.get("chat_template")
    described = describe_directory(path, served)
    bos, eos = (token_text(about.get(f"{name}_token")) or "" for name in ("bos", "eos"))
    return Checkpoint(
        model_type=described.model_type,
        architecture=described.architecture,
        weights=described.weights,
        vocabulary=vocabulary_from_directory(path),
        template=compile_template(source, bos, eos),
        chats=bool(source),
    )


def compile_template(source: Any, bos: str, eos: str) -> ChatTemplate:
    """Compile a chat template; several come as a list of {name, template}, "default" counts.

    A model without one is a base model: it gets ChatML, the plainest of the common forms.
    """
    if isinstance(source, list):
        named = {entry["name"]: entry["template"] for entry in source}
        source = named.get("default")
    try:
        return ChatTemplate(source or CHATML, bos_token=bos, eos_token=eos)
    except TemplateError as error:
        raise WeightsError(f"the chat template is not sound: {error}") from error
