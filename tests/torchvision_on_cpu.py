"""
Makes torchvision importable beside a torch without CUDA.

PyPI's torchvision links CUDA; without it, importing torchvision fails because two operators were never defined. No
test uses them, so it is enough to define them empty, before the first import of torchvision in a process.
"""

import importlib.abc
import sys


class DefineOperators(importlib.abc.MetaPathFinder):
    """Finds nothing itself; when torchvision is looked for, it defines what torchvision takes for granted."""

    library = None  # as long as it lives, so do its operators

    def find_spec(self, fullname, path=None, target=None):
        if fullname == "torchvision" and self.library is None:
            import torch

            if torch.version.cuda is None:
                self.library = torch.library.Library("torchvision", "FRAGMENT")
                for name in ("nms", "qnms"):
                    self.library.define(f"{name}(Tensor dets, Tensor scores, float iou_threshold) -> Tensor")
        return None


sys.meta_path.insert(0, DefineOperators())
