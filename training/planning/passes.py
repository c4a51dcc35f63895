"""What happens to arrays between the products, by name."""

FUSED = {  # the same in compiled layers, as inductor's schedule of them has it (benchmarks/traced.py)
    "norm": 5,
    "residual": 6,
    "heads": 7,
    "mask": 0,  # attention goes by sequences
    "swiglu": 4,
    "loss": 3,  # of logits as the product makes them: read for the sum, read again, gradient written
    "decaying keys": 17,
    "queries": 7,
    "gates": 28,
    "gates twice": 35,
}
PASSES = {  # reads and writes of the array, forward and backward together
    "norm": 5,  # x and y; x, dy and dx: one kernel each way
    "residual": 6,  # a sum, and the sum of its gradients
    "heads": 20,  # queries, keys and values: split, rotated, concatenated, transposed
    "mask": 5,  # of bytes: documents compared, causal, copied
    "swiglu": 9,  # gate and up: silu, product, their gradients, joined again
    "loss": 7,  # logits in fp32: log-softmax and its gradient
    "decaying keys": 45,  # normalised, masked, squared, summed up, faded
    "queries": 18,  # normalised and transposed
    "gates": 72,  # two gates, content, the norm of what is read, output gate
    "gates twice": 90,  # as gates, and products' operands brought into another order
    "slot gates": 70,  # a norm, three gates, tanh, slots
}
