"""The linear layers of a student's language model with weights of 4 or 8 bits, which are frozen."""

import torch
from transformers import BitsAndBytesConfig

from ...modeling_hawaii.modeling_hawaii import HawaiiForConditionalGeneration


def quantize_language_model(
    student: HawaiiForConditionalGeneration, quantization: str, device: torch.device, dtype: torch.dtype
) -> HawaiiForConditionalGeneration:
    """
    Quantizes the linear layers of a student's language model in place, one after another, and moves them to the
    device. Embeddings, norms, the head, the encoder and the projector remain as they are.

    Args:
        student (`HawaiiForConditionalGeneration`):
            In full precision, on the CPU.
        quantization (`str`):
            `4bit` (NF4, with quantized scales) or `8bit` (LLM.int8).
        device (`torch.device`):
            Device that the student is trained on; its kernels quantize.
        dtype (`torch.dtype`):
            Precision of computations with 4 bits.
    """
    from transformers.integrations.bitsandbytes import replace_with_bnb_linear

    config = BitsAndBytesConfig(
        **{f"load_in_{quantization}": True},
        bnb_4bit_quant_type="nf4",
        bnb_4bit_use_double_quant=True,
        bnb_4bit_compute_dtype=dtype,
    )
    language_model = student.model.language_model
    originals = {name: module for name, module in language_model.named_modules() if list(module.children()) == []}
    replace_with_bnb_linear(language_model, [], config)  # the new layers have no values
    for name in list(originals):
        original, module = originals.pop(name), language_model.get_submodule(name)
        if module is original:
            continue
        weight = original.weight.detach()
        if not isinstance(original, torch.nn.Linear):  # GPT-2's Conv1D, which is transposed
            weight = weight.T.contiguous()
        options = {key: value for key, value in vars(module.weight).items() if key != "SCB"}
        module.weight = type(module.weight)(weight, requires_grad=False, **options)
        module.bias = original.bias
        module.to(device)
    # The name under which PEFT and transformers look for it.
    setattr(language_model, f"is_loaded_in_{quantization}", True)
    return student
