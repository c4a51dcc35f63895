"""A short hash of a model's weights, so that memories written by one model are never read by another."""

import hashlib

import torch

from model.network import LanguageModel


def weights_fingerprint(net: LanguageModel) -> str:
    """32 hex digits of all weights, as fp32, by their canonical names; the same on every device.

    For a whole model: on a tensor-parallel rank it is that of the rank's share.
    """
    digest = hashlib.blake2b(digest_size=16)
    for name, parameter in sorted(net.named_parameters()):
        digest.update(f"{name} {tuple(parameter.shape)}".encode())
        digest.update(parameter.detach().to("cpu", torch.float32).contiguous().numpy().data)
    return digest.hexdigest()
