"""Features in 8 bits differ from the computed ones by at most half a step of their channel's range."""

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from hawaii.training.teacher_cache.quantization import dequantize, images_per_block, quantize


def restore(features, dtype=torch.float32):
    values, scale, offset = quantize(features)
    block = torch.arange(len(values)) // images_per_block(features.shape[1])
    return dequantize(values, scale[block], offset[block], dtype)


def hard_features(num_images=5, side=24, channels=64):
    """Channels with different scales and means; one has rare large values, as in transformer features."""
    generator = torch.Generator().manual_seed(0)
    features = torch.randn(num_images, side * side, channels, generator=generator)
    features = features * torch.logspace(-3, 2, channels) + torch.linspace(-20, 20, channels)
    features[:, ::97, 3] += 50
    return features


def test_the_error_is_at_most_half_a_step_of_a_block_of_images():
    features = hard_features()
    size = images_per_block(576)
    assert size == 2
    restored = restore(features)
    for start in range(0, 5, size):
        block = features[start : start + size].numpy()
        # A naive reference: 254 steps over the range, and the rounding of the step to 8 bits.
        step = (block.max(axis=(0, 1)) - block.min(axis=(0, 1))) / 254
        spread = np.abs(block).max(axis=(0, 1)) * 2**-8 / 127  # of the rounded middle
        error = np.abs(restored[start : start + size].numpy() - block).max(axis=(0, 1))
        assert (error <= 0.505 * step + spread + 1e-6 * np.abs(block).max(axis=(0, 1))).all()


def test_features_point_in_the_same_direction():
    features = hard_features()
    assert F.cosine_similarity(restore(features), features, dim=-1).min() > 0.999
    # And after the normalisation over channels of the objectives.
    normed = [F.layer_norm(tensor / torch.logspace(-3, 2, 64), (64,)) for tensor in (restore(features), features)]
    assert F.cosine_similarity(*normed, dim=-1).min() > 0.999


def test_a_constant_channel_is_kept():
    features = torch.full((3, 16, 2), 0.75)
    features[..., 1] = 0
    assert torch.equal(restore(features), features)


@pytest.mark.parametrize(("num_images", "num_cells", "channels"), [(8, 576, 1024), (64, 16, 512), (8, 2304, 256)])
def test_8_bits_are_half_of_16(num_images, num_cells, channels):
    features = torch.randn(num_images, num_cells, channels)
    size = sum(tensor.numel() * tensor.element_size() for tensor in quantize(features))
    assert 0.5 <= size / (2 * features.numel()) < 0.503


def test_features_have_the_teachers_precision():
    features = torch.randn(2, 4, 3)
    assert restore(features.bfloat16(), torch.bfloat16).dtype == torch.bfloat16
    torch.testing.assert_close(restore(features, torch.bfloat16).float(), restore(features), rtol=2**-8, atol=0)
