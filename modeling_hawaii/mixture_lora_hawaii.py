"""MoLA, the mixture of LoRA adapters next to a feed-forward layer (section 2.2, eq. 2)."""

import math

import torch
import torch.nn.functional as F
from torch import nn

from ..configuration.configuration_hawaii import HawaiiVisionConfig


# Shapes: B batch, P tokens (class token and patches), D width, N adapters (teacher-specific, then general), R rank.


class StackedLora(nn.Module):
    """
    All low-rank adapters next to one layer, as two stacked parameters: `down` (A in eq. 2) and `up` (B).

    The ranks of all adapters together are few columns, so one product computes every adapter and the gate is applied
    between the two products. Raw parameters, because serving engines, quantizers and PEFT replace every `nn.Linear`;
    PEFT also treats every parameter with `lora_` in its name as one of its own.
    """

    def __init__(self, config: HawaiiVisionConfig, in_features: int, out_features: int):
        super().__init__()
        num_adapters = config.num_teacher_adapters + config.num_general_adapters
        self.rank = config.lora_rank
        self.scaling = config.lora_alpha / config.lora_rank
        self.down = nn.Parameter(torch.empty(num_adapters, config.lora_rank, in_features))
        self.up = nn.Parameter(torch.empty(num_adapters, config.lora_rank, out_features))
        self.down_bias = self.up_bias = None
        if config.lora_bias:
            self.down_bias = nn.Parameter(torch.empty(num_adapters, config.lora_rank))
            self.up_bias = nn.Parameter(torch.empty(num_adapters, out_features))

    def reset_parameters(self):
        """
        Initialises `down` as in `nn.Linear` (Kaiming-uniform), `up` and the biases with zeros: a new adapter adds
        nothing.
        """
        bound = 1 / math.sqrt(self.down.shape[-1])
        nn.init.uniform_(self.down, -bound, bound)
        nn.init.zeros_(self.up)
        for bias in (self.down_bias, self.up_bias):
            if bias is not None:
                nn.init.zeros_(bias)

    def forward(self, hidden_states: torch.Tensor, gate: torch.Tensor) -> torch.Tensor:
        """
        Args:
            hidden_states (`torch.FloatTensor` of shape `(batch_size, num_tokens, in_features)`):
                Input of the layer next to the adapters.
            gate (`torch.FloatTensor` of shape `(batch_size, num_tokens, num_adapters)`):
                Weight of each adapter at each token; zero if it is not chosen.

        Returns:
            `torch.FloatTensor` of shape `(batch_size, num_tokens, out_features)`.
        """
        bias = None if self.down_bias is None else self.down_bias.flatten()
        ranks = F.linear(hidden_states, self.down.flatten(0, 1), bias)  # (B, P, N * R)
        gate = gate * self.scaling
        output = (ranks * gate.repeat_interleave(self.rank, dim=-1)) @ self.up.flatten(0, 1)
        return output if self.up_bias is None else output + gate @ self.up_bias


class RouterLinear(nn.Module):
    """
    A linear layer that is not an `nn.Linear`: quantizers, PEFT's `all-linear` and serving engines leave it as it is.
    (The 4-bit kernels of bitsandbytes reject its few outputs.)
    """

    def __init__(self, in_features: int, out_features: int):
        super().__init__()
        self.weight = nn.Parameter(torch.empty(out_features, in_features))
        self.bias = nn.Parameter(torch.empty(out_features))

    def forward(self, hidden_states: torch.Tensor) -> torch.Tensor:
        return F.linear(hidden_states, self.weight, self.bias)


class AdapterRouter(nn.Module):
    """Scores one bank of adapters at each token: two linear layers, or one if `router_hidden_size` is `None`."""

    def __init__(self, config: HawaiiVisionConfig, num_adapters: int):
        super().__init__()
        if config.router_hidden_size is None:
            self.hidden = None
            self.score = RouterLinear(config.hidden_size, num_adapters)
        else:
            self.hidden = RouterLinear(config.hidden_size, config.router_hidden_size)
            self.score = RouterLinear(config.router_hidden_size, num_adapters)

    def forward(self, hidden_states: torch.Tensor) -> torch.Tensor:
        """Returns the probabilities of the bank's adapters, `(batch_size, num_tokens, num_adapters)`, in float32."""
        if self.hidden is not None:
            hidden_states = F.gelu(self.hidden(hidden_states))
        return self.score(hidden_states).softmax(dim=-1, dtype=torch.float32)


class MixtureOfLoraRouting(nn.Module):
    """Chooses one teacher-specific and one general adapter per token, except in samples with a forced adapter."""

    def __init__(self, config: HawaiiVisionConfig):
        super().__init__()
        self.router_gradient = config.router_gradient
        num_teachers, num_generals = config.num_teacher_adapters, config.num_general_adapters
        self.teacher_router = AdapterRouter(config, num_teachers) if num_teachers else None
        self.general_router = AdapterRouter(config, num_generals) if num_generals else None

    def forward(
        self, hidden_states: torch.Tensor, forced_gate: torch.Tensor | None, is_routed: torch.Tensor | None
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """
        Args:
            hidden_states (`torch.FloatTensor` of shape `(batch_size, num_tokens, hidden_size)`):
                Input of the feed-forward layer.
            forced_gate (`torch.FloatTensor` of shape `(batch_size, 1, num_adapters)`, *optional*):
                Gate of the samples that are not routed.
            is_routed (`torch.BoolTensor` of shape `(batch_size, 1, 1)`, *optional*):
                Whether the routers choose the adapters of a sample; required with `forced_gate`, without which all
                samples are routed.

        Returns:
            The gate, `(batch_size, num_tokens, num_adapters)`, and the routers' probabilities in float32, of the same
            shape; the two banks are concatenated.
        """
        routers = [router for router in (self.teacher_router, self.general_router) if router is not None]
        probabilities = [router(hidden_states) for router in routers]
        gate = torch.cat([self._top_1(bank) for bank in probabilities], dim=-1).to(hidden_states.dtype)
        if forced_gate is not None:
            assert is_routed is not None
            gate = torch.where(is_routed, gate, forced_gate)
        return gate, torch.cat(probabilities, dim=-1)

    def _top_1(self, probabilities: torch.Tensor) -> torch.Tensor:
        """Gate of one bank: only the most likely adapter, weighted so that the router learns as configured."""
        chosen = F.one_hot(probabilities.argmax(dim=-1), probabilities.shape[-1])
        if self.router_gradient == "straight_through":
            # The difference is computed first, so that the value is exactly one.
            return chosen * (1 + (probabilities - probabilities.detach()))
        if self.router_gradient == "switch":
            return chosen * probabilities
        return chosen


def forced_adapter_gate(adapters: torch.Tensor, config: HawaiiVisionConfig, dtype: torch.dtype) -> torch.Tensor:
    """
    Gate with which only teacher-specific adapter `adapters[b]` acts on sample b: `(batch_size, 1, num_adapters)`.

    The comparison with a range does not read the values on the host, so it does not wait for the device. An index
    beyond the teacher-specific adapters therefore raises no error; no adapter acts.

    Args:
        adapters (`torch.LongTensor` of shape `(batch_size,)`):
            Index of the adapter, from 0; no adapter acts if it is negative.
        config (`HawaiiVisionConfig`):
            Configuration with the number of adapters.
        dtype (`torch.dtype`):
            Type of the gate.
    """
    indices = torch.arange(config.num_teacher_adapters + config.num_general_adapters, device=adapters.device)
    is_forced = (adapters.unsqueeze(-1) == indices) & (indices < config.num_teacher_adapters)
    return is_forced.unsqueeze(1).to(dtype)
