"""Our models as Hugging Face Transformers classes; `bundle.py` makes them run without this project."""
