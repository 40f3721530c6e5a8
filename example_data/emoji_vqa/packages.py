"""The npm packages that EmojiVQA is made of: each version and its hash are fixed, so each byte is."""

import base64
import hashlib
import http.client
import json
import os
import tarfile
import urllib.request
from dataclasses import dataclass
from pathlib import Path

from ...files.atomic import atomic_file
from ...files.user_error import UserError


REGISTRY = "https://registry.npmjs.org"
TIMEOUT = 60  # seconds without a byte


@dataclass(frozen=True)
class Package:
    """One package of the npm registry; `sha512` is the hash that the registry states for it."""

    name: str
    version: str
    sha512: str

    @property
    def file_name(self) -> str:
        """Name of its archive: `@scope/name` is in `name-version.tgz`."""
        return f"{self.name.rpartition('/')[2]}-{self.version}.tgz"


# Drawings that are trained on, and drawings that are only ever asked about in the test.
TRAIN_VENDORS = {
    "noto": Package(
        "@iconify-json/noto",
        "1.2.9",
        "DQiuXENbun41ch+XPSV55H9FaWKpHTyz46YIKtSaKYD4fIDDzL1tR6H4np/T38jfrTAeI3rcKF0mqHYeZVAuaw==",
    ),
    "twemoji": Package(
        "@iconify-json/twemoji",
        "1.2.5",
        "uKpuIEV0v6K5BW3Mjdyl+XKFVAbbcPxAgifKvEMtZoUZB5+YiY5zaMm2uNNCxyXzAWU9yNLlj41WU6/mvgALsw==",
    ),
    "openmoji": Package(
        "@iconify-json/openmoji",
        "1.2.29",
        "vXdhkqcXVSO6suy+m9LbcUM3OdVyuNOtpV8/als/WqfkQIRxevL5Geb/g+6GH/Qwnq1OqksEmaDGTCmZ5nFKJQ==",
    ),
}
TEST_VENDOR = "fluent-emoji-flat"
VENDORS = {
    **TRAIN_VENDORS,
    TEST_VENDOR: Package(
        "@iconify-json/fluent-emoji-flat",
        "1.2.6",
        "RY47RgPb47fYUiyrA64sIOL0+UU02s29sXpNBbIQRBUlPlfNFTKUmZDERGuxDs/7yNGWqQYvuaSYM1M4fRXlUw==",
    ),
}
# English names, groups and subgroups.
NAMES = Package(
    "emojibase-data",
    "17.0.0",
    "Yvgb5AWoHViHV/gq1qr5ZAarcBip+B27/ZLRsUJkbgAEaLlZ/fof9g882LTpmEpyhBNEC0m2SEmItljHsTygjA==",
)


def _is_whole(content: bytes, package: Package) -> bool:
    return base64.b64encode(hashlib.sha512(content).digest()).decode() == package.sha512


def _download(address: str) -> bytes:
    try:
        with urllib.request.urlopen(address, timeout=TIMEOUT) as response:
            return response.read()
    # ValueError: an address that is none.
    except (OSError, http.client.HTTPException, ValueError) as error:
        reason = " ".join(str(getattr(error, "reason", None) or error or type(error).__name__).split())
        raise UserError(
            f"{address} could not be fetched: {reason}. Where another npm registry is reachable, name it in the "
            "environment variable NPM_CONFIG_REGISTRY; a proxy is taken from HTTPS_PROXY."
        ) from None


def fetch(package: Package, folder: Path) -> Path:
    """
    Gets the archive of a package from the npm registry, unless `folder` has it whole.

    Args:
        package (`Package`):
            What to get.
        folder (`Path`):
            Where archives are kept. One appears there only when it is whole.

    Returns:
        `Path`: the archive.

    Raises:
        ValueError: the registry cannot be reached or has no such file, or what it gives is not what was published.
    """
    path = Path(folder) / package.file_name
    if path.is_file() and _is_whole(path.read_bytes(), package):
        return path
    registry = (os.environ.get("NPM_CONFIG_REGISTRY") or REGISTRY).rstrip("/")
    address = f"{registry}/{package.name}/-/{package.file_name}"
    print(f"Fetching {address}", flush=True)
    content = _download(address)
    if not _is_whole(content, package):
        raise UserError(
            f"{address} is not what was published: its {len(content):,} bytes have another SHA-512 than version "
            f"{package.version} of {package.name} has. Try again, or name another npm registry in the environment "
            "variable NPM_CONFIG_REGISTRY."
        )
    with atomic_file(path) as temporary:
        temporary.write_bytes(content)
    return path


def read_members(path: Path, *names: str) -> list:
    """Reads JSON files out of a package's archive; nothing is extracted to the disk."""
    with tarfile.open(path, "r:gz") as archive:
        return [json.load(archive.extractfile(f"package/{name}")) for name in names]
