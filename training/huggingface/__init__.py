"""Models to and from folders for Hugging Face Transformers."""
