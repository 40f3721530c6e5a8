"""GPUs by name, with their peak speed and memory."""

from dataclasses import dataclass


@dataclass(frozen=True)
class Gpu:
    """
    Args:
        peak (`float`):
            Floating-point operations per second in bfloat16, without sparsity, accumulated in float32.
        memory (`int`):
            Bytes that `nvidia-smi` shows.
        device_names (`tuple[str, ...]`):
            Parts of the device name that CUDA reports for the variant with this peak.
    """

    peak: float
    memory: int
    device_names: tuple[str, ...]


MIB = 2**20
# Peaks are from NVIDIA's data sheets (A100, H100 SXM, H200 SXM, L40S) and architecture white papers (Ada for the 4090,
# GA102 for the 3090). Data sheets that list sparse operations have twice the number.
GPUS = {
    "A100": Gpu(312e12, 81920 * MIB, ("A100-SXM", "A100 80GB", "A100-PCIE")),
    "H100": Gpu(989.4e12, 81559 * MIB, ("H100 80GB HBM3",)),
    "H200": Gpu(989.4e12, 143771 * MIB, ("NVIDIA H200",)),
    "L40S": Gpu(362.05e12, 46068 * MIB, ("L40S",)),
    "RTX4090": Gpu(165.2e12, 24564 * MIB, ("RTX 4090",)),
    "RTX3090": Gpu(71e12, 24576 * MIB, ("RTX 3090",)),
}


def find_peak(device_name: str) -> float | None:
    """Returns the peak of the GPU that CUDA reports under this name, or `None` if it is not listed."""
    found = [gpu for gpu in GPUS.values() if any(part in device_name for part in gpu.device_names)]
    # Laptop GPUs have similar names but other peaks; so does the "H200 NVL".
    is_other = any(word in device_name for word in ("Laptop", "Ti", "NVL", " D"))
    return found[0].peak if found and not is_other else None
