"""Models to and from Hugging Face folders: names, weights, config, tokenizer, model card."""
