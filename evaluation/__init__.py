"""What a trained model is worth: benchmarks, what its memory holds, and the report."""
