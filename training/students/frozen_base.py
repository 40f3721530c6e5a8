"""A student with a frozen language model, under a LoRA or quantized: checkpoints have only the trained weights."""

from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import load_file, save_file
from torch import nn

from ...files.atomic import atomic_folder
from ...files.digest import digest
from ...files.manifest import write_manifest
from ...files.model_folder import ADAPTER_WEIGHTS
from ...files.run_contents import BASE_FOLDER, TRAINED_FILE
from ...files.user_error import UserError, explain_errors
from ...modeling_hawaii.modeling_hawaii import HawaiiForConditionalGeneration
from ..recipes.arguments import HawaiiTrainingArguments, ModelArguments
from .quantization import quantize_language_model
from .trainable import set_trainable


LORA_PREFIX = "lora_"  # of PEFT's weights


def frozen_digest(student: nn.Module) -> str:
    """Returns the hash of the names and values of a module's frozen parameters, which are on the CPU."""

    def parts() -> Iterable:
        for name, parameter in student.named_parameters():
            if not parameter.requires_grad:
                yield f"{name} {parameter.dtype} {tuple(parameter.shape)}\n".encode()
                yield parameter.detach().contiguous().flatten().view(torch.uint8).numpy()

    return digest(*parts())


def freeze_base(student: nn.Module, trainable: list[str]) -> None:
    """Freezes the language model and the parts that are not in `trainable`."""
    set_trainable(student, [part for part in trainable if part != "language_model"])


def prepare_trained(student: HawaiiForConditionalGeneration, model_args: ModelArguments) -> None:
    """
    Adds a stage's LoRA, if it has one, to a student with a frozen base, and converts trained weights to float32.

    Raises:
        UserError: PEFT refuses the LoRA.
    """
    if model_args.lora is not None:
        from .lora import add_lora

        add_lora(student, model_args.lora)
    # Small updates are lost in half precision.
    for parameter in student.parameters():
        if parameter.requires_grad:
            parameter.data = parameter.data.float()


class FrozenBase:
    """
    The frozen weights of a stage with `lora` or `quantization`, and the names of the trained weights. It prepares a
    student for training in place, saves and loads the trained weights, and makes the finished model from the original
    frozen weights.

    Args:
        build (`Callable[[], HawaiiForConditionalGeneration]`):
            Builds the student with which the stage starts, in full precision, on the CPU; the same at each call.
        student (`HawaiiForConditionalGeneration`):
            The first result of `build`, which is prepared.
        model_args (`ModelArguments`):
            Options of the stage.
        args (`HawaiiTrainingArguments`):
            Options for the trained parts, the device and the precision of computations.
        source (`str`):
            The checkpoint that the student is built from, for errors.

    Attributes:
        names (`list[str]`):
            Names of the student's trained parameters.

    Raises:
        UserError: PEFT refuses the LoRA.
    """

    def __init__(
        self,
        build: Callable[[], HawaiiForConditionalGeneration],
        student: HawaiiForConditionalGeneration,
        model_args: ModelArguments,
        args: HawaiiTrainingArguments,
        source: str,
    ):
        self._build, self._model_args, self._source = build, model_args, source
        self._trainable: Any = args.trainable
        freeze_base(student, self._trainable)
        self._digest = frozen_digest(student)
        if model_args.quantization is not None:
            # On CPUs, bitsandbytes is tested only in float32.
            is_half = args.device.type != "cpu" and (args.bf16 or args.fp16)
            dtype = torch.float32 if not is_half else torch.bfloat16 if args.bf16 else torch.float16
            quantize_language_model(student, model_args.quantization, args.device, dtype)
        prepare_trained(student, model_args)
        self.names = [name for name, parameter in student.named_parameters() if parameter.requires_grad]

    @property
    def quantization(self) -> str | None:
        return self._model_args.quantization

    def _metadata(self) -> dict[str, str]:
        return {"frozen": self._digest, "quantization": str(self._model_args.quantization)}

    def save_trained(self, folder: Path, weights: dict[str, torch.Tensor]) -> None:
        """Saves the trained weights among `weights`, with the hash of the frozen ones."""
        trained = {name: weights[name].detach().cpu().contiguous() for name in self.names}
        save_file(trained, folder / TRAINED_FILE, metadata=self._metadata())

    def load_trained(self, folder: Path) -> dict[str, torch.Tensor]:
        """
        Loads the weights that [`save_trained`] saved.

        Raises:
            UserError: the file is missing or damaged, or was trained on other frozen weights.
        """
        path = folder / TRAINED_FILE
        if not path.is_file():
            raise UserError(
                f"{path} is missing, so training cannot continue from {folder}: it was saved by a stage without lora "
                "and quantization, or the file was removed. Remove the folder, or undo the change of the recipe."
            )
        with explain_errors(f"{path} cannot be read", SafetensorError):
            with safe_open(path, framework="pt") as file:
                saved = file.metadata() or {}
            weights = load_file(path)
        for name, value in self._metadata().items():
            if saved.get(name) != value:
                difference = (
                    f"quantization was {saved.get(name)} and is {value}"
                    if name == "quantization"
                    else f"the frozen weights of {self._source} have changed"
                )
                raise UserError(
                    f"{folder} cannot be resumed, because {difference}. Undo this change, or remove the checkpoints "
                    "to start over."
                )
        return weights

    def _restore(self, weights: dict[str, torch.Tensor]) -> HawaiiForConditionalGeneration:
        """Returns the student with its original frozen weights and the trained weights, without the LoRA."""
        student = self._build()
        freeze_base(student, self._trainable)
        if frozen_digest(student) != self._digest:
            raise UserError(
                f"The frozen weights of {self._source} changed while the stage was trained, so its model cannot be "
                "made. Restore them and run the same command again: it continues from the last checkpoint."
            )
        # A trained bias is inside the layer that PEFT wraps.
        whole = {name.replace(".base_layer.", "."): weights[name] for name in self.names if LORA_PREFIX not in name}
        student.load_state_dict(whole, strict=False)
        return student

    def save_finished(self, folder: Path, stage_folder: Path, weights: dict[str, torch.Tensor], processor) -> None:
        """
        Makes the finished model from the original full-precision weights and saves it.

        Args:
            folder (`Path`):
                Folder to write: the model with the LoRA merged or, with `merge: false`, a folder of PEFT.
            stage_folder (`Path`):
                Folder of the stage. With `merge: false`, the base of the PEFT folder is saved there.
            weights (`dict[str, torch.Tensor]`):
                Weights of the trained student; only the trained ones are required.
            processor:
                Processor of the student, for the base.

        Raises:
            UserError: the original weights have changed.
        """
        student = self._restore(weights)
        if self._model_args.lora is None:
            student.save_pretrained(folder)
            return
        from .lora import add_lora, outside_config, outside_weights

        base = stage_folder.resolve() / BASE_FOLDER
        if not self._model_args.merge:
            with atomic_folder(base) as incomplete:
                student.save_pretrained(incomplete)
                processor.save_pretrained(incomplete)
                write_manifest(incomplete, {})
        lora = add_lora(student, self._model_args.lora)
        adapters = {name: weights[name].detach().cpu() for name in self.names if LORA_PREFIX in name}
        student.load_state_dict(adapters, strict=False, assign=True)
        if self._model_args.merge:
            lora.merge_and_unload()
            student.save_pretrained(folder)
        else:
            outside_config(lora, str(base)).save_pretrained(str(folder))
            save_file(outside_weights(lora, adapters), folder / ADAPTER_WEIGHTS, metadata={"format": "pt"})
