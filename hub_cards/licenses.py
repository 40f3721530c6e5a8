"""Licenses by the identifiers of the Hub, and those of models and data that recipes of this package name."""

import difflib
import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from ..files.user_error import UserError


# https://huggingface.co/docs/hub/repositories-licenses
IDENTIFIERS = tuple(
    "apache-2.0 mit openrail bigscience-openrail-m creativeml-openrail-m bigscience-bloom-rail-1.0 bigcode-openrail-m "
    "afl-3.0 artistic-2.0 bsl-1.0 bsd bsd-2-clause bsd-3-clause bsd-3-clause-clear c-uda cc cc0-1.0 cc-by-2.0 "
    "cc-by-2.5 cc-by-3.0 cc-by-4.0 cc-by-sa-3.0 cc-by-sa-4.0 cc-by-nc-2.0 cc-by-nc-3.0 cc-by-nc-4.0 cc-by-nd-4.0 "
    "cc-by-nc-nd-3.0 cc-by-nc-nd-4.0 cc-by-nc-sa-2.0 cc-by-nc-sa-3.0 cc-by-nc-sa-4.0 cdla-sharing-1.0 "
    "cdla-permissive-1.0 cdla-permissive-2.0 wtfpl ecl-2.0 epl-1.0 epl-2.0 etalab-2.0 eupl-1.1 eupl-1.2 agpl-3.0 "
    "gfdl gpl gpl-2.0 gpl-3.0 lgpl lgpl-2.1 lgpl-3.0 isc h-research intel-research lppl-1.3c ms-pl apple-ascl "
    "apple-amlr mpl-2.0 odc-by odbl openmdw-1.0 openmdw-1.1 openrail++ osl-3.0 postgresql ofl-1.1 ncsa unlicense zlib "
    "pddl lgpl-lr deepfloyd-if-license fair-noncommercial-research-license llama2 llama3 llama3.1 llama3.2 llama3.3 "
    "llama4 grok2-community gemma unknown other".split()
)


@dataclass(frozen=True)
class License:
    """
    Args:
        identifier (`str`):
            One of [`IDENTIFIERS`].
        name (`str`, *optional*), link (`str`, *optional*):
            Name and address of a license that the Hub does not know; its identifier is `other`.
    """

    identifier: str
    name: str | None = None
    link: str | None = None

    def __str__(self):
        return self.name or self.identifier

    @property
    def metadata(self) -> dict[str, str | None]:
        """The fields of a card."""
        return {"license": self.identifier, "license_name": self.name, "license_link": self.link}


APACHE, MIT = License("apache-2.0"), License("mit")

# What the pages of these repositories state. CLIP's page names none; its code and weights are under MIT
# (https://github.com/openai/CLIP).
KNOWN = {
    "lmsys/vicuna-7b-v1.5": License("llama2"),
    "lmsys/vicuna-13b-v1.5": License("llama2"),
    "Qwen/Qwen3-0.6B": APACHE,
    "openai/clip-vit-large-patch14-336": MIT,
    "google/siglip2-base-patch16-384": APACHE,
    "google/siglip2-large-patch16-384": APACHE,
    "google/siglip2-so400m-patch16-384": APACHE,
    "timm/convnext_xxlarge.clip_laion2b_soup": APACHE,
    "timm/eva02_large_patch14_448.mim_m38m_ft_in22k_in1k": MIT,
    "google/pix2struct-large": APACHE,
    "facebook/sam-vit-large": APACHE,
    "facebook/sam3": License("other", "sam-license", "https://huggingface.co/facebook/sam3/blob/main/LICENSE"),
    "facebook/dinov3-vitl16-pretrain-lvd1689m": License(
        "other", "dinov3-license", "https://ai.meta.com/resources/models-and-libraries/dinov3-license/"
    ),
    "nvidia/C-RADIOv4-H": License(
        "other",
        "nvidia-open-model-license",
        "https://www.nvidia.com/en-us/agreements/enterprise-software/nvidia-open-model-license/",
    ),
}


def check_link(option: str, link: str) -> None:
    """Raises a `UserError` if a link of a card is not the address of a web page, or has a login."""
    if not isinstance(link, str) or not re.fullmatch(r"https?://[^\s/\\?#@]+([/?#]\S*)?", link):
        raise UserError(
            f"{option} is {link!r}; it must be an address without a login, such as https://example.org/license."
        )


def check_license(metadata: Mapping[str, Any]) -> License:
    """
    Checks the license of a card.

    Args:
        metadata (`Mapping[str, Any]`):
            `license` and, for `other`, `license_name` and `license_link`.

    Raises:
        UserError: it is not one that the Hub accepts. The message names the closest one.
    """
    identifier, name, link = (metadata.get(field) for field in ("license", "license_name", "license_link"))
    if identifier not in IDENTIFIERS:
        folded = str(identifier).lower().replace(" ", "-")
        close = difflib.get_close_matches(folded, IDENTIFIERS, n=1)
        hint = f" Did you mean {close[0]}?" if close else ""
        raise UserError(
            f"license is {identifier!r}; it must be an identifier of the Hub, such as apache-2.0, llama2 or "
            f"cc-by-4.0, or `other` with a license_name and a license_link.{hint}"
        )
    if identifier != "other":
        if name is not None or link is not None:
            raise UserError(
                f"license is {identifier}, but license_name and license_link are for a license that the Hub does not "
                "know: leave them out, or set license to other."
            )
        return License(identifier)
    if not isinstance(name, str) or not isinstance(link, str):
        raise UserError("license is other, so a license_name, such as my-license-1.0, and a license_link are needed.")
    if not re.fullmatch(r"[a-z0-9.-]+", name):
        raise UserError(
            f"license_name is {name!r}; it may have lower-case letters, digits, - and . only, as in my-license-1.0."
        )
    check_link("license_link", link)
    return License(identifier, name, link)
