"""What a device can do at best."""

import torch

# dense bf16 FLOP/s from the vendors' data sheets (no sparsity); the first name found in the device's name counts
PEAK_BF16 = {"H200": 989e12, "H100": 989e12, "A100": 312e12, "B200": 2250e12, "L40S": 362e12}


def peak_flops(device: torch.device, precision: str) -> float | None:
    """Peak FLOP/s of one device, or None where there is no agreed number (then no MFU is shown)."""
    if device.type != "cuda" or precision != "bf16":
        return None
    name = torch.cuda.get_device_name(device)
    return next((peak for key, peak in PEAK_BF16.items() if key in name), None)
