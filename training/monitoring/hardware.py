"""The devices and the software that a stage is trained with, for the model card."""

import platform
from collections import Counter
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

import torch
from accelerate.utils import gather_object
from transformers import TrainerCallback
from transformers.trainer_callback import ExportableState


LIBRARIES = ("hawaii-vlm", "torch", "transformers", "accelerate", "peft", "deepspeed", "timm")
CPU_INFO = Path("/proc/cpuinfo")


def processor_name() -> str:
    """The name of the CPU, or that of its architecture where the system names only that."""
    lines = CPU_INFO.read_text(encoding="utf-8", errors="replace").splitlines() if CPU_INFO.is_file() else []
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return next(filter(None, [*names, platform.processor(), platform.machine()]), "CPU")


def device_name(device: torch.device) -> str:
    """The name of a device, as its maker calls it; a CPU with the number of threads that torch uses."""
    if device.type == "cpu":
        return f"{processor_name()}, {torch.get_num_threads()} threads"
    module = torch.get_device_module(device)
    return str(module.get_device_name(device)) if hasattr(module, "get_device_name") else device.type


def describe_software() -> dict[str, str]:
    """Versions of Python and of the installed libraries that have an effect on training; CUDA's if torch uses it."""
    versions = {"python": platform.python_version()}
    for library in LIBRARIES:
        try:
            versions[library] = version(library)
        except PackageNotFoundError:
            continue
    if torch.cuda.is_available() and torch.version.cuda is not None:
        versions["cuda"] = torch.version.cuda
    return versions


class HardwareCallback(TrainerCallback, ExportableState):
    """
    Records where each part of a training ran.

    Args:
        sessions (`list[dict]`, *optional*):
            Those of the run that is resumed: `first_step`, `devices` (number of processes by name) and `software`
            (version by name).
    """

    def __init__(self, sessions: list[dict] | None = None):
        self.sessions = list(sessions or [])

    def state(self) -> dict:
        return {"args": {"sessions": self.sessions}, "attributes": {}}

    def on_train_begin(self, args, state, control, **kwargs):
        devices = dict(Counter(gather_object([device_name(args.device)])))
        session = {"devices": devices, "software": describe_software()}
        last = self.sessions[-1] if self.sessions else None
        if state.global_step >= state.max_steps:
            return  # resumed from its last checkpoint, so nothing runs here
        if last is None or {**session, "first_step": last["first_step"]} != last:
            self.sessions.append({"first_step": state.global_step + 1, **session})
