"""Text in and text out: tokenizer, chat template, incremental detokenisation, stop strings."""
