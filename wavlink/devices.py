"""Devices that torch computes on."""

import torch

from .backends.choice import UnavailableDevice


def check_device(device: str | torch.device) -> None:
    """Check that torch can compute on a device of this machine.

    Raises:
        UnavailableDevice: it cannot, or there is no such device.
    """
    try:
        if torch.device(device).type == "meta":
            raise RuntimeError("it holds no numbers")
        torch.zeros(1, device=device)
    except (RuntimeError, AssertionError, NotImplementedError, TypeError) as error:
        why = str(error).strip().splitlines()[0][:200]
        raise UnavailableDevice(
            f"device={str(device)!r} cannot be used here ({why}): give cpu, or leave it out"
        ) from error
