"""Sizes of models that several benchmarks use."""

# CLIP ViT-B/16 and CLIP ViT-L/14-336.
CLIP_BASE = {"hidden_size": 768, "intermediate_size": 3072, "num_attention_heads": 12, "num_hidden_layers": 12}
CLIP_BASE |= {"image_size": 224, "patch_size": 16}
CLIP_LARGE = {"hidden_size": 1024, "intermediate_size": 4096, "num_attention_heads": 16, "num_hidden_layers": 24}
CLIP_LARGE |= {"image_size": 336, "patch_size": 14}
# A Llama with a billion parameters, half of Vicuna 7B's layers and half as wide: any GPU can train it.
LLAMA_1B = {"hidden_size": 2048, "intermediate_size": 5504, "num_attention_heads": 16, "num_key_value_heads": 16}
LLAMA_1B |= {"num_hidden_layers": 16, "vocab_size": 32064, "max_position_embeddings": 4096}
# The paper's three teachers and three general adapters, of rank 16.
ADAPTERS = {"num_teacher_adapters": 3, "num_general_adapters": 3}
