"""Checks that a language model keeps rows separate that are packed into one sequence."""

import torch

from ...files.user_error import UserError
from ...modeling_hawaii.modeling_hawaii import HawaiiForConditionalGeneration


# Largest relative distance from the output for a single row that rounding explains; wrong positions give more.
TOLERANCES = {torch.float32: 1e-3, torch.bfloat16: 5e-2, torch.float16: 5e-2}


@torch.no_grad()
def check_packing(student: HawaiiForConditionalGeneration) -> None:
    """
    Checks that the language model treats two rows in one sequence, whose positions start over, as two sequences.
    transformers' attention does this by the positions; a recurrent state or a custom attention bias does not.

    Raises:
        UserError: the output for one row depends on the other, or differs from that of the row alone.
    """
    language_model = student.model.language_model
    is_training = language_model.training
    language_model.eval()
    words = torch.arange(1, 8, device=student.device)[None]
    first, other, second = words[:, :3], words[:, 4:7], words[:, 1:6]
    positions = torch.cat([torch.arange(each.shape[1], device=student.device) for each in (first, second)])[None]
    embed = language_model.get_input_embeddings()
    try:
        (alone,) = language_model(inputs_embeds=embed(second), use_cache=False, return_dict=False)[:1]
        packed, changed = (
            language_model(
                inputs_embeds=embed(torch.cat([row, second], dim=1)),
                position_ids=positions,
                use_cache=False,
                return_dict=False,
            )[0][:, 3:]
            for row in (first, other)
        )
    finally:
        language_model.train(is_training)
    distance = (packed - alone).float().norm() / alone.float().norm()
    if not torch.equal(packed, changed) or distance > TOLERANCES[alone.dtype]:
        raise UserError(
            f"packing is true, but the language model, a {type(language_model).__name__}, mixes the rows that are "
            "packed into one sequence: leave packing out, and group rows by length instead "
            "(train_sampling_strategy: group_by_length)."
        )
