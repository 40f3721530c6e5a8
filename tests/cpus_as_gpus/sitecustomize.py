"""
Lets accelerate take CPUs for GPUs where ACCELERATE_TORCH_DEVICE is cpu: it joins the processes of a launcher by gloo,
and shards, as torch and DeepSpeed can on CPUs. Python imports this module at its start if the folder is in PYTHONPATH.
"""

import os

from accelerate.state import PartialState
from accelerate.utils import DistributedType


prepare = PartialState._prepare_backend


def prepare_gloo(self, cpu=False, sagemaker_dp=False, backend=None):
    if cpu or "LOCAL_RANK" not in os.environ or os.environ.get("ACCELERATE_TORCH_DEVICE") != "cpu":
        return prepare(self, cpu, sagemaker_dp, backend)
    is_sharded = "true" in (os.environ.get("ACCELERATE_USE_FSDP"), os.environ.get("ACCELERATE_USE_DEEPSPEED"))
    return "gloo", DistributedType.MULTI_GPU if is_sharded else DistributedType.MULTI_CPU


PartialState._prepare_backend = prepare_gloo

if os.environ.get("DS_ACCELERATOR") == "cpu":
    import deepspeed

    # Otherwise it compiles kernels for shared memory, for a minute; gloo does the same.
    deepspeed.ops.__compatible_ops__["deepspeed_shm_comm"] = False
