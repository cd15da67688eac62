"""The engine. Importable alone: numpy, ml_dtypes, tokenizers, safetensors, gguf, jinja2."""
