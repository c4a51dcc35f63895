"""A hash of a model's weights, by which a bank refuses memories that another model wrote."""

import hashlib

import torch

from model.network import LanguageModel


def weights_fingerprint(net: LanguageModel) -> str:
    """Return 32 hex digits over the names, shapes and fp32 values of all weights; equal on every device.

    On a tensor-parallel rank they cover the rank's own shards only.
    """
    digest = hashlib.blake2b(digest_size=16)
    for name, parameter in sorted(net.named_parameters()):
        digest.update(f"{name} {tuple(parameter.shape)}".encode())
        digest.update(parameter.detach().to("cpu", torch.float32).contiguous().numpy().data)
    return digest.hexdigest()
