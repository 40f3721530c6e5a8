"""Small vision models with different architectures, each trained on its own labels, that serve as teachers."""

import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import nn
from transformers import AutoConfig, AutoModel, PreTrainedModel, set_seed

from ..files.atomic import atomic_folder, write_json
from ..files.digest import digest
from ..files.user_error import UserError
from .reports import read_report
from .training import train


@dataclass(frozen=True)
class Expert:
    """An expert, with the `model_type` and options of its configuration of transformers and the labels it learns."""

    name: str
    labelling: str
    config: dict
    num_steps: int
    learning_rate: float = 2e-3
    batch_size: int = 64


REPORT_FILE = "expert.json"
SETTINGS = {"lr_scheduler_type": "cosine", "warmup_steps": 0.08, "weight_decay": 0.02, "seed": 0}
HELD_OUT_SHARE = 0.1
MAX_SHIFT = 8  # pixels
MEAN, STANDARD_DEVIATION = 0.5, 0.5


def augment(images):
    """
    Shifts each image of shape `(height, width, 3)` in a batch by up to `MAX_SHIFT` pixels, repeating its border, and
    mirrors it with a probability of one half.
    """
    height, width = images.shape[1:3]
    down, across = torch.randint(-MAX_SHIFT, MAX_SHIFT + 1, (2, len(images), 1), device=images.device)
    is_mirrored = torch.rand(len(images), 1, device=images.device) < 0.5
    rows = (torch.arange(height, device=images.device) + down).clamp(0, height - 1)  # (B, H)
    columns = (torch.arange(width, device=images.device) + across).clamp(0, width - 1)  # (B, W)
    columns = torch.where(is_mirrored, columns.flip(1), columns)
    batch = torch.arange(len(images), device=images.device)
    return images[batch[:, None, None], rows[:, :, None], columns[:, None, :]]  # (B, H, W, 3)


def normalize(images):
    """Converts bytes of shape `(batch_size, height, width, 3)` to the experts' input in `(-1, 1)`, channels first."""
    return images.permute(0, 3, 1, 2).float().div(255).sub(MEAN).div(STANDARD_DEVIATION)


class ExpertClassifier(nn.Module):
    """
    An expert with the linear layer that it is trained through. The layer reads patches and never the class token,
    because students learn from the patches.

    Args:
        expert (`PreTrainedModel`):
            Its `last_hidden_state` is a feature map, or a class token and the patches.
        num_labels (`int`):
            Number of classes.
        label_weights (`torch.FloatTensor` of shape `(num_labels,)`, *optional*):
            Weight of each class in the loss.
    """

    def __init__(self, expert: PreTrainedModel, num_labels: int, label_weights: torch.Tensor | None = None):
        super().__init__()
        self.expert = expert
        self.head = nn.LazyLinear(num_labels)
        self.register_buffer("label_weights", label_weights)

    def forward(self, images, labels):
        """
        Args:
            images (`torch.ByteTensor` of shape `(batch_size, height, width, 3)`):
                Images. They are augmented in training, unless their patches are labelled and would no longer match.
            labels (`torch.LongTensor` of shape `(batch_size,)` or `(batch_size, num_patches)`):
                Class of each image or of each patch, -1 if unknown.

        Returns:
            `dict`: the `loss`, and `logits` in the shape of `labels` with a last dimension of size `num_labels`.
        """
        if self.training and labels.ndim == 1:
            images = augment(images)
        features = self.expert(normalize(images)).last_hidden_state
        patches = features.flatten(2).transpose(1, 2) if features.ndim == 4 else features[:, 1:]  # (B, P, C)
        logits = self.head(patches.mean(dim=1) if labels.ndim == 1 else patches)
        loss = F.cross_entropy(logits.flatten(0, -2), labels.flatten(), self.label_weights, ignore_index=-1)
        return {"loss": loss, "logits": logits}


def patch_weights(labels) -> torch.Tensor:
    """Returns the weight of each label in the loss: the inverse square root of its number of patches."""
    return labels[labels >= 0].bincount().clamp(min=1).rsqrt()


def held_out(num_images: int) -> torch.Tensor:
    """Returns a mask of shape `(num_images,)` that is true for the last images, which no expert is trained on."""
    num_held_out = max(1, round(HELD_OUT_SHARE * num_images))
    return torch.arange(num_images) >= num_images - num_held_out


def train_expert(expert: Expert, images, labels, num_steps: int) -> tuple[PreTrainedModel, float]:
    """
    Trains one expert.

    Args:
        expert (`Expert`):
            The expert.
        images (`torch.ByteTensor` of shape `(num_images, height, width, 3)`):
            All images.
        labels (`torch.LongTensor` of shape `(num_images,)` or `(num_images, num_patches)`):
            Label of each image, or of each patch of its feature map, row by row; -1 if unknown.
        num_steps (`int`):
            Number of steps.

    Returns:
        The base model without its head, in eval mode on the CPU, and its accuracy on the held-out images.
    """
    is_known, is_held_out = (labels >= 0).view(len(labels), -1).any(dim=1), held_out(len(images))
    learned, checked = (
        [{"images": images[index], "labels": labels[index]} for index in mask.nonzero().flatten()]
        for mask in (is_known & ~is_held_out, is_known & is_held_out)
    )
    with torch.random.fork_rng(devices=[]):
        set_seed(SETTINGS["seed"])
        config = dict(expert.config)
        base = AutoModel.from_config(AutoConfig.for_model(config.pop("model_type"), **config))
        weights = patch_weights(labels) if labels.ndim == 2 else None
        model = ExpertClassifier(base, int(labels.max()) + 1, weights)
        model.eval()(images[:1], labels[:1])  # The lazy head takes its width from the first features.
        print(f"Training expert {expert.name} on {expert.labelling}", flush=True)
        settings = {
            "per_device_train_batch_size": expert.batch_size,
            "learning_rate": expert.learning_rate,
            **SETTINGS,
        }
        accuracy = train(
            model, learned, checked, num_steps, settings, predict=lambda logits, labels: logits.argmax(dim=-1)
        )
    return base, accuracy


def save_expert(model: PreTrainedModel, image_size, report: dict, folder: Path) -> None:
    """Saves the model, an image processor that resizes and normalizes for it, and the report."""
    height, width = image_size
    model.save_pretrained(folder)
    # The file that ViTImageProcessor saves; creating one warns if torchvision, which is not needed, is missing.
    image_processor = {
        "image_processor_type": "ViTImageProcessor",
        "do_resize": True,
        "size": {"height": height, "width": width},
        "resample": 2,
        "do_rescale": True,
        "rescale_factor": 1 / 255,
        "do_normalize": True,
        "image_mean": [MEAN] * 3,
        "image_std": [STANDARD_DEVIATION] * 3,
    }
    write_json(folder / "preprocessor_config.json", image_processor)
    write_json(folder / REPORT_FILE, report)


def _summary(report: dict, labels) -> str:
    return (
        f"{report['architecture']} predicts the {report['labelling']} of {report['validation_accuracy']:.1%} "
        f"of {'the held-out images' if labels.ndim == 1 else 'the patches of held-out images'} "
        f"after {report['num_steps']} steps"
    )


def check_steps(num_steps: int | None) -> None:
    """Refuses fewer than one step before the data set is made, which can take hours."""
    if num_steps is not None and num_steps < 1:
        raise UserError(f"--expert_steps is {num_steps}, but must be at least 1.")


def prepare_experts(
    experts: Sequence[Expert],
    images: torch.Tensor,
    labels: dict[str, torch.Tensor],
    output_dir: str | Path,
    num_steps: int | None = None,
) -> None:
    """
    Trains the experts that `output_dir` does not contain yet and saves each in a folder of its name.

    Args:
        experts (`Sequence[Expert]`):
            The experts.
        images (`torch.ByteTensor` of shape `(num_images, height, width, 3)`):
            Images. The last tenth is held out for the accuracy that is printed.
        labels (`dict[str, torch.LongTensor]` of shape `(num_images,)` or `(num_images, num_patches)` each):
            Labels of images, or of the patches of an expert's feature map, by labelling; -1 if unknown.
        output_dir (`str` or `Path`):
            Folder of the experts.
        num_steps (`int`, *optional*):
            Number of steps of every expert. Each has its own by default.
    """
    images_digest = digest(images.contiguous().numpy())
    for expert in experts:
        expert_labels = labels[expert.labelling]
        steps = expert.num_steps if num_steps is None else num_steps
        wanted = {
            **asdict(expert),
            "num_steps": steps,
            "images": images_digest,
            "labels": digest(expert_labels.contiguous().numpy()),
        }
        folder = Path(output_dir) / expert.name
        report = read_report(folder / REPORT_FILE, wanted)
        if report is not None:
            print(f"Expert {expert.name} already exists: {_summary(report, expert_labels)}.")
            continue
        start = time.monotonic()
        with atomic_folder(folder) as temporary:
            model, accuracy = train_expert(expert, images, expert_labels, steps)
            report = {**wanted, "architecture": type(model).__name__, "validation_accuracy": round(accuracy, 4)}
            save_expert(model, images.shape[1:3], report, temporary)
        print(f"Expert {expert.name}: {_summary(report, expert_labels)} in {time.monotonic() - start:.0f} s.")
