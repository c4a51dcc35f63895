"""Patterns of elementwise work between the products, and how often each reads or writes its array."""

FUSED = {  # the same in compiled layers, counted in inductor's schedule (benchmarks/traced.py)
    "norm": 5,
    "residual": 6,
    "heads": 7,
    "mask": 0,  # attention takes sequence lengths instead of a mask
    "swiglu": 4,
    "loss": 3,  # of logits in the product's dtype: read for the sum, read again, gradient written
    "decaying keys": 17,
    "queries": 7,
    "gates": 28,
    "gates twice": 35,
}
PASSES = {  # reads and writes of the array, forward and backward together
    "norm": 5,  # forward x and y, backward x, dy and dx: one kernel each
    "residual": 6,  # a sum, and the sum of its gradients
    "heads": 20,  # queries, keys and values: split, rotated, concatenated, transposed
    "mask": 5,  # an array of bytes: documents compared, causal mask applied, copied
    "swiglu": 9,  # gate and up: silu, product, their gradients, joined again
    "loss": 7,  # logits in fp32: log-softmax and its gradient
    "decaying keys": 45,  # normalised, masked, squared, summed up, multiplied by their decay
    "queries": 18,  # normalised and transposed
    "gates": 72,  # two gates, content, the norm of what is read, output gate
    "gates twice": 90,  # as gates, with the operands of products transposed
    "slot gates": 70,  # a norm, three gates, tanh, slots
}
