"""Small experts of different kinds: each learns another labelling of the same images, then serves as a teacher."""

import math
import time
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import nn
from tqdm.auto import tqdm
from transformers import AutoConfig, AutoModel, PreTrainedModel

from ..files.atomic import atomic_folder, write_json
from ..files.digest import digest
from ..files.user_error import UserError
from .reports import read_report


@dataclass(frozen=True)
class Expert:
    """One expert: an architecture of transformers, what it learns to tell, and for how long."""

    name: str
    labelling: str
    config: dict
    num_steps: int
    learning_rate: float = 2e-3
    batch_size: int = 64


EXPERTS = (
    Expert(
        name="resnet",
        labelling="shape",
        config={
            "model_type": "resnet",
            "embedding_size": 24,
            "hidden_sizes": [48, 96],
            "depths": [1, 2],
            "layer_type": "basic",
        },
        num_steps=210,
    ),
    Expert(
        name="vit",
        labelling="color",
        config={
            "model_type": "vit",
            "image_size": 64,
            "patch_size": 8,
            "hidden_size": 96,
            "num_hidden_layers": 3,
            "num_attention_heads": 4,
            "intermediate_size": 192,
            "hidden_dropout_prob": 0.0,
            "attention_probs_dropout_prob": 0.0,
        },
        num_steps=240,
    ),
    Expert(
        name="poolformer",
        labelling="color and shape",
        config={
            "model_type": "poolformer",
            "num_encoder_blocks": 2,
            "hidden_sizes": [32, 96],
            "depths": [1, 2],
            "patch_sizes": [7, 3],
            "strides": [4, 2],
            "padding": [3, 1],
            "mlp_ratio": 3.0,
            "drop_path_rate": 0.0,
            "layer_scale_init_value": 1.0,
        },
        num_steps=420,
    ),
)

REPORT_FILE = "expert.json"
SEED = 0
HELD_OUT_SHARE = 0.1
WARMUP_SHARE = 0.08
WEIGHT_DECAY = 0.02
MAX_GRADIENT_NORM = 1.0
MAX_SHIFT = 8  # pixels
MEAN, STANDARD_DEVIATION = 0.5, 0.5
NUM_STEPS_BETWEEN_REPORTS = 10


class ExpertClassifier(nn.Module):
    """
    An expert with the head that it learns through: a linear layer on the mean of its feature map.

    Args:
        expert (`PreTrainedModel`):
            Its `last_hidden_state` is a map, or a class token and the patches.
        num_labels (`int`):
            Classes to tell apart.
    """

    def __init__(self, expert: PreTrainedModel, num_labels: int):
        super().__init__()
        self.expert = expert
        self.head = nn.LazyLinear(num_labels)

    def forward(self, pixel_values):
        """Takes `(batch_size, 3, height, width)`, returns logits of shape `(batch_size, num_labels)`."""
        features = self.expert(pixel_values).last_hidden_state
        if features.ndim == 4:
            return self.head(features.flatten(2).mean(dim=2))
        # Patches, not the class token: what teaches the student later is the patches.
        return self.head(features[:, 1:].mean(dim=1))


class PatchClassifier(ExpertClassifier):
    """An expert with a head on each of its patches: what it learns to tell of a patch is then at that patch."""

    def forward(self, pixel_values):
        """Takes `(batch_size, 3, height, width)`, returns logits of shape `(batch_size, num_labels, num_patches)`."""
        features = self.expert(pixel_values).last_hidden_state
        patches = features.flatten(2).transpose(1, 2) if features.ndim == 4 else features[:, 1:]  # (B, P, C)
        return self.head(patches).transpose(1, 2)


def patch_weights(labels) -> torch.Tensor:
    """How much a patch of each label counts: the less, by the root of their number, the more there are."""
    return labels[labels >= 0].bincount().clamp(min=1).rsqrt()


def held_out(num_images: int) -> torch.Tensor:
    """True for the images, the last ones, that no expert learns from: a tensor of shape `(num_images,)`."""
    num_held_out = max(1, round(HELD_OUT_SHARE * num_images))
    return torch.arange(num_images) >= num_images - num_held_out


def batches(indices, batch_size: int, num_steps: int) -> Iterator[torch.Tensor]:
    """Draws `num_steps` batches of indices; every index comes once before any comes again."""
    num_epochs = math.ceil(num_steps * batch_size / len(indices))
    order = torch.cat([indices[torch.randperm(len(indices))] for _ in range(num_epochs)])
    return iter(order[: num_steps * batch_size].view(num_steps, batch_size))


def augment(images, chosen):
    """
    Picks images, half of them mirrored, and shifts each by up to `MAX_SHIFT` pixels; the border repeats where nothing
    is left to show.

    Args:
        images (`torch.ByteTensor` of shape `(num_images, height, width, 3)`):
            All images.
        chosen (`torch.LongTensor` of shape `(batch_size,)`):
            Which to pick.

    Returns:
        `torch.ByteTensor` of shape `(batch_size, height, width, 3)`
    """
    height, width = images.shape[1:3]
    shifts = torch.randint(-MAX_SHIFT, MAX_SHIFT + 1, (2, len(chosen), 1))
    is_mirrored = torch.rand(len(chosen), 1) < 0.5
    rows = (torch.arange(height) + shifts[0]).clamp(0, height - 1)  # (B, H)
    columns = (torch.arange(width) + shifts[1]).clamp(0, width - 1)  # (B, W)
    columns = torch.where(is_mirrored, width - 1 - columns, columns)
    chosen, rows, columns = (index.to(images.device) for index in (chosen, rows, columns))
    return images[chosen[:, None, None], rows[:, :, None], columns[:, None, :]]  # (B, H, W, 3)


def normalize(images):
    """Bytes of shape `(batch_size, height, width, 3)` to what the experts take: `(batch_size, 3, height, width)`."""
    pixel_values = images.permute(0, 3, 1, 2).float().div(255)
    return pixel_values.sub(MEAN).div(STANDARD_DEVIATION)


def learning_rate_factor(step: int, num_steps: int) -> float:
    """A linear warm-up, then a cosine to zero."""
    warmup = min(1.0, (step + 1) / max(1.0, WARMUP_SHARE * num_steps))
    return warmup * 0.5 * (1 + math.cos(math.pi * step / num_steps))


@torch.no_grad()
def measure_accuracy(model: nn.Module, images, labels, batch_size: int) -> float:
    """The share of the known `labels`, of `images` or of their patches, that `model` tells; 0 where there are none."""
    num_right = 0
    for start in range(0, len(images), batch_size):
        part = slice(start, start + batch_size)
        num_right += int((model(normalize(images[part])).argmax(dim=1) == labels[part]).sum())
    return num_right / max(1, int((labels >= 0).sum()))


def train_expert(expert: Expert, images, labels, num_steps: int) -> tuple[PreTrainedModel, float]:
    """
    Trains one expert, on a GPU if there is one. On one machine's CPU the same call gives the same weights.

    Args:
        expert (`Expert`):
            What to train.
        images (`torch.ByteTensor` of shape `(num_images, height, width, 3)`):
            The images.
        labels (`torch.LongTensor` of shape `(num_images,)` or `(num_images, num_patches)`):
            Of each image, or of each patch of its map, row by row; -1 where not known.
        num_steps (`int`):
            Number of steps.

    Returns:
        The base model without its head, in eval mode on the CPU, and the accuracy of both on the held-out images.
    """
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    is_known, is_held_out = (labels >= 0).view(len(labels), -1).any(dim=1), held_out(len(images))
    learned, checked = (is_known & ~is_held_out).nonzero().flatten(), (is_known & is_held_out).nonzero().flatten()
    num_labels = int(labels.max()) + 1
    images, labels = images.to(device), labels.to(device)

    with torch.random.fork_rng(devices=[]):  # Every random number is drawn on the CPU.
        torch.manual_seed(SEED)
        config = dict(expert.config)
        base = AutoModel.from_config(AutoConfig.for_model(config.pop("model_type"), **config))
        # The labels of patches would no longer fit a shifted image.
        kind, view = (ExpertClassifier, augment) if labels.ndim == 1 else (PatchClassifier, torch.Tensor.__getitem__)
        weights = None if labels.ndim == 1 else patch_weights(labels)
        model = kind(base, num_labels).to(device)
        model.eval()(normalize(images[:1]))  # The lazy head takes its width from the first features that it sees.
        model.train()
        optimizer = torch.optim.AdamW(model.parameters(), lr=expert.learning_rate, weight_decay=WEIGHT_DECAY)
        schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: learning_rate_factor(step, num_steps))
        progress = tqdm(total=num_steps, desc=f"Expert {expert.name} learns {expert.labelling}", unit="step")
        for step, chosen in enumerate(batches(learned, expert.batch_size, num_steps), start=1):
            logits, target = model(normalize(view(images, chosen))), labels[chosen]
            loss = F.cross_entropy(logits, target, weight=weights, ignore_index=-1)
            optimizer.zero_grad()
            loss.backward()
            nn.utils.clip_grad_norm_(model.parameters(), MAX_GRADIENT_NORM)
            optimizer.step()
            schedule.step()
            if step % NUM_STEPS_BETWEEN_REPORTS == 0 or step == num_steps:
                accuracy = (logits.argmax(dim=1) == target)[target >= 0].float().mean()
                progress.set_postfix(loss=f"{loss.item():.3f}", accuracy=f"{accuracy.item():.3f}", refresh=False)
            progress.update()
        progress.close()
    model.eval()
    accuracy = measure_accuracy(model, images[checked], labels[checked], expert.batch_size)
    return model.expert.cpu(), accuracy


def save_expert(model: PreTrainedModel, image_size, report: dict, folder: Path) -> None:
    """Saves the model, the image processor that makes its pixels, and the report."""
    height, width = image_size
    model.save_pretrained(folder)
    # As ViTImageProcessor saves itself; making one warns where torchvision, which it would not use, is missing.
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


def _sentence(report: dict, labels) -> str:
    return (
        f"{report['architecture']} tells the {report['labelling']} in {report['validation_accuracy']:.1%} "
        f"of {'held-out images' if labels.ndim == 1 else 'the patches of held-out images'} "
        f"after {report['num_steps']} steps"
    )


def check_steps(num_steps: int | None) -> None:
    """Refuses a number of steps in which nothing would be learned, before hours go into what comes first."""
    if num_steps is not None and num_steps < 1:
        raise UserError(f"--expert_steps is {num_steps}, but one step is the least.")


def prepare_experts(images, labels, output_dir, num_steps=None, experts=EXPERTS) -> None:
    """
    Trains the experts that are not in `output_dir` yet and saves each there, in a folder of its name.

    Args:
        images (`torch.ByteTensor` of shape `(num_images, height, width, 3)`):
            The images to learn from; the last tenth is held out for the accuracy that is printed.
        labels (`dict[str, torch.LongTensor]` of shape `(num_images,)` or `(num_images, num_patches)` each):
            The labellings by name, of images or of the patches of an expert's map; -1 where a label is not known.
        output_dir (`str` or `Path`):
            Folder of the experts.
        num_steps (`int`, *optional*):
            Steps of each expert instead of its own number.
        experts (`Sequence[Expert]`, *optional*, defaults to `EXPERTS`):
            What to train.
    """
    seen = digest(images.contiguous().numpy())
    for expert in experts:
        steps = expert.num_steps if num_steps is None else num_steps
        learned = {"images": seen, "labels": digest(labels[expert.labelling].contiguous().numpy())}
        wanted = {**asdict(expert), "num_steps": steps, **learned}
        folder = Path(output_dir) / expert.name
        report = read_report(folder / REPORT_FILE, wanted)
        if report is not None:
            print(f"Expert {expert.name} is already there: {_sentence(report, labels[expert.labelling])}.")
            continue
        with atomic_folder(folder) as temporary:
            start = time.monotonic()
            model, accuracy = train_expert(expert, images, labels[expert.labelling], steps)
            seconds = time.monotonic() - start
            report = {
                **wanted,
                "architecture": type(model).__name__,
                "validation_accuracy": round(accuracy, 4),
            }
            save_expert(model, images.shape[1:3], report, temporary)
        print(f"Expert {expert.name}: {_sentence(report, labels[expert.labelling])} in {seconds:.0f} s.")
