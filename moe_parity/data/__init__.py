"""Text to tokens to batches: corpora, tokenizers, the token store, windows, the ledger."""
