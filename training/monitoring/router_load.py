"""How the routers distribute tokens over the adapters during training."""

import logging
import math
from collections.abc import Sequence

import torch
import torch.nn.functional as F

from ..objectives.encoder_passes import Student, encoder_of


logger = logging.getLogger(__name__)

COLLAPSE_SHARE = 0.95  # of a layer's tokens at one adapter, over a log interval
# Shapes: L layers, I images (of all passes), P tokens, N adapters of one bank, A of both banks.


class RouterLoad:
    """
    Counts the tokens that each adapter receives from the routers, on the device and without synchronisation.

    Passes with a forced adapter and images that only fill a batch do not count. Recomputation with gradient
    checkpointing does not repeat the encoder's own forward pass, so no token counts twice.

    Args:
        student (`HawaiiForConditionalGeneration` or `HawaiiVisionModel`):
            The model that is trained.
        teacher_names (`Sequence[str]`):
            Names of the teacher-specific adapters.
    """

    def __init__(self, student: Student, teacher_names: Sequence[str]):
        encoder = encoder_of(student)
        config = encoder.config
        numbers = {"teacher": config.num_teacher_adapters, "general": config.num_general_adapters}
        self.names: dict[str, list[str]] = {}
        for bank, number in numbers.items():
            has_names = bank == "teacher" and len(teacher_names) == number
            names = list(teacher_names) if has_names else [str(index) for index in range(number)]
            if number:
                self.names[bank] = names
        self._is_counted: torch.Tensor | None = None
        self._tokens: torch.Tensor | None = None  # (L, A)
        self._warned: set[tuple[str, int]] = set()
        if self.names:
            encoder.register_forward_hook(torch.compiler.disable(self._count), with_kwargs=True)

    def expect(self, is_counted: torch.Tensor) -> None:
        """Registers which squares of the next micro-batch count, `(num_squares,)`."""
        self._is_counted = is_counted

    @torch.no_grad()
    def _count(self, encoder, args: tuple, kwargs: dict, output) -> None:
        probabilities, is_counted = output.router_probabilities, self._is_counted
        if probabilities is None or is_counted is None or not encoder.training:
            return
        probabilities = probabilities.detach()  # (L, I, P, A)
        # The routed squares come first. With a forced adapter there may be fewer, those that teachers see.
        num_squares = probabilities.shape[1]
        weight = F.pad(is_counted, (0, max(0, num_squares - len(is_counted))))[:num_squares]
        if kwargs.get("adapters") is not None:
            weight = weight & (kwargs["adapters"] < 0)
        tokens = []
        for bank in probabilities.split([len(names) for names in self.names.values()], dim=-1):
            chosen = F.one_hot(bank.argmax(dim=-1), bank.shape[-1]).sum(dim=2)  # (L, I, N)
            tokens.append((chosen * weight[:, None]).sum(dim=1))
        tokens = torch.cat(tokens, dim=-1)
        self._tokens = tokens if self._tokens is None else self._tokens + tokens

    def summarize(self, accelerator) -> dict[str, float]:
        """
        Returns the load since the last call and warns of routers that have collapsed. Every process must call it.

        Returns:
            `dict[str, float]`: `load/BANK/ADAPTER`, the share of the bank's tokens, averaged over layers; and
            `load_entropy/BANK`, from 0 if each layer uses one adapter only to 1 if it uses all equally.
        """
        if self._tokens is None:
            return {}
        tokens, self._tokens = accelerator.reduce(self._tokens, "sum"), None
        entries = {}
        banks = tokens.cpu().double().split([len(names) for names in self.names.values()], dim=-1)
        for (bank, names), counts in zip(self.names.items(), banks):
            if not counts.sum():  # no image
                continue
            shares = counts / counts.sum(dim=-1, keepdim=True)  # (L, N)
            for name, share in zip(names, shares.mean(dim=0).tolist()):
                entries[f"load/{bank}/{name}"] = round(share, 4)
            if len(names) > 1:
                entropy = torch.special.entr(shares).sum(dim=-1).mean().item() / math.log(len(names))
                entries[f"load_entropy/{bank}"] = round(entropy, 4)
                self._warn_of_collapse(bank, names, shares, accelerator.is_main_process)
        return entries

    def _warn_of_collapse(self, bank: str, names: list[str], shares: torch.Tensor, is_main: bool) -> None:
        for layer, (share, index) in enumerate(zip(*(column.tolist() for column in shares.max(dim=-1)))):
            if share > COLLAPSE_SHARE and (bank, layer) not in self._warned:
                self._warned.add((bank, layer))
                if is_main:
                    logger.warning(
                        "The %s router of layer %d has collapsed: it sends %.1f %% of the tokens to adapter %s. A "
                        "larger lambda_2 balances it.",
                        bank,
                        layer,
                        100 * share,
                        names[index],
                    )
