"""Counts the operations of torch."""

from torch.utils._python_dispatch import TorchDispatchMode


# They read values on the host, or make a tensor whose size depends on values.
WAITING = ("_local_scalar_dense", "nonzero", "masked_select", "equal", "unique", "repeat_interleave")


class CountOperations(TorchDispatchMode):
    """Counts operations, and those for which the host waits if the tensors are on an accelerator."""

    num_operations = num_waits = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        self.num_operations += 1
        self.num_waits += func.overloadpacket.__name__ in WAITING
        return func(*args, **(kwargs or {}))
