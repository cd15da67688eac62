"""A GGUF file of a tiny random Llama over a byte alphabet."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from gguf import GGMLQuantizationType, GGUFWriter, TokenType
from gguf.quants import quantize

from headrace.runtime.text.tokenizer import BYTE_OF

WIDTH, LAYERS, HEADS, KV_HEADS, GATE, CONTEXT = 64, 2, 4, 2, 96, 512
SPECIALS = ("<|endoftext|>", "<|im_start|>", "<|im_end|>")
TEMPLATE = (
    "{% for message in messages %}<|im_start|>{{ message['role'] }}\n{{ message['content'] }}"
    "<|im_end|>\n{% endfor %}{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)


def write_tiny_gguf(
    path: Path,
    *,
    seed: int = 0,
    format: str = "F32",
    template: str = TEMPLATE,
    more: tuple[str, ...] = (),
    context: int = CONTEXT,
) -> Path:
    """Write the model; its matrices are in `format`, which must divide 32 columns.

    `more` are further special tokens.
    """
    bytes_by_id = sorted(BYTE_OF, key=lambda character: BYTE_OF[character])
    specials = (*SPECIALS, *more)
    tokens = [*bytes_by_id, *specials]
    random = np.random.default_rng(seed)
    writer = GGUFWriter(path, "llama")
    writer.add_name("tiny")
    writer.add_block_count(LAYERS)
    writer.add_context_length(context)
    writer.add_embedding_length(WIDTH)
    writer.add_feed_forward_length(GATE)
    writer.add_head_count(HEADS)
    writer.add_head_count_kv(KV_HEADS)
    writer.add_rope_dimension_count(WIDTH // HEADS)
    writer.add_layer_norm_rms_eps(1e-5)
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre("gpt-2")
    writer.add_token_list(tokens)
    writer.add_token_types([TokenType.NORMAL] * 256 + [TokenType.CONTROL] * len(specials))
    writer.add_token_merges([])
    writer.add_bos_token_id(256)
    writer.add_eos_token_id(258)
    writer.add_add_bos_token(False)
    writer.add_chat_template(template)

    def matrix(name: str, rows: int, columns: int) -> None:
        values = (random.standard_normal((rows, columns)) * columns**-0.5).astype(np.float32)
        kind = GGMLQuantizationType[format]
        writer.add_tensor(f"{name}.weight", quantize(values, kind), raw_dtype=kind)

    def vector(name: str) -> None:
        writer.add_tensor(f"{name}.weight", 1 + random.standard_normal(WIDTH, np.float32) / 10)

    key_width = WIDTH // HEADS * KV_HEADS
    matrix("token_embd", len(tokens), WIDTH)
    vector("output_norm")
    for layer in range(LAYERS):
        vector(f"blk.{layer}.attn_norm")
        vector(f"blk.{layer}.ffn_norm")
        matrix(f"blk.{layer}.attn_q", WIDTH, WIDTH)
        matrix(f"blk.{layer}.attn_k", key_width, WIDTH)
        matrix(f"blk.{layer}.attn_v", key_width, WIDTH)
        matrix(f"blk.{layer}.attn_output", WIDTH, WIDTH)
        matrix(f"blk.{layer}.ffn_gate", GATE, WIDTH)
        matrix(f"blk.{layer}.ffn_up", GATE, WIDTH)
        matrix(f"blk.{layer}.ffn_down", WIDTH, GATE)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path
