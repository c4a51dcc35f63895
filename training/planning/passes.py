"""What happens to arrays between the products, by name."""

PASSES = {  # reads and writes of the array, forward and backward together
    "norm": 5,  # x and y; x, dy and dx: one kernel each way
    "residual": 6,  # a sum, and the sum of its gradients
    "heads": 20,  # queries, keys and values: split, rotated, concatenated, transposed
    "mask": 5,  # of bytes: documents compared, causal, copied
    "swiglu": 9,  # gate and up: silu, product, their gradients, joined again
    "loss": 7,  # logits in fp32: log-softmax and its gradient
    "keys": 45,  # lm2: normalised, masked, squared, summed up, faded
    "queries": 18,  # normalised and transposed
    "gates": 72,  # lm2: two gates, content, the norm of what is read, output gate
    "delta": 90,  # as gates, and the operands of the chunks
    "chunks": 30,  # delta: the triangular systems
    "depth": 70,  # lm2 depth: a norm, three gates, tanh, slots
    "banks": 12,  # scan and copies
}
