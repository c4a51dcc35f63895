"""Make batches from prepared folders; a sample is a pure function of its number."""
