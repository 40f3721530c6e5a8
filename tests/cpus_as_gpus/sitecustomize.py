"""
Lets accelerate shard on CPUs, as torch and DeepSpeed can: it joins processes by gloo and takes them for processes on
GPUs where ACCELERATE_TORCH_DEVICE is cpu. Python imports this module at its start if the folder is in PYTHONPATH.
"""

import os

from accelerate.state import PartialState
from accelerate.utils import DistributedType


prepare = PartialState._prepare_backend


def prepare_gloo(self, cpu=False, sagemaker_dp=False, backend=None):
    if cpu or "LOCAL_RANK" not in os.environ or os.environ.get("ACCELERATE_TORCH_DEVICE") != "cpu":
        return prepare(self, cpu, sagemaker_dp, backend)
    return "gloo", DistributedType.MULTI_GPU


PartialState._prepare_backend = prepare_gloo

if os.environ.get("DS_ACCELERATOR") == "cpu":
    import deepspeed

    # Otherwise it compiles kernels for shared memory, for a minute; gloo does the same.
    deepspeed.ops.__compatible_ops__["deepspeed_shm_comm"] = False
