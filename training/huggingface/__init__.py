"""Export of models to folders for Hugging Face Transformers, and import from such folders."""
