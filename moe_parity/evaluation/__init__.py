"""What a trained model is worth: bits per character and per byte on held-out text."""
