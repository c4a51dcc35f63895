"""Convert text to token ids and back, with SentencePiece or Hugging Face's tokenizer.json."""
