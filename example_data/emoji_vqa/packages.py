"""The npm packages that EmojiVQA is made of. Versions and hashes are fixed, and so is every byte."""

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
    """One package of the npm registry with the SHA-512 that the registry publishes."""

    name: str
    version: str
    sha512: str

    @property
    def file_name(self) -> str:
        """Name of the archive: `name-version.tgz` for `@scope/name`."""
        return f"{self.name.rpartition('/')[2]}-{self.version}.tgz"


# Vendors of the drawings for training, and the vendor whose drawings are used for the test alone.
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


def _has_hash(content: bytes, package: Package) -> bool:
    return base64.b64encode(hashlib.sha512(content).digest()).decode() == package.sha512


def fetch(package: Package, folder: Path) -> Path:
    """
    Downloads the archive of a package from the npm registry, unless `folder` contains it, and returns its path. Only
    complete archives get their final name.

    Raises:
        UserError: the download failed, or the hash of the archive is wrong.
    """
    path = Path(folder) / package.file_name
    if path.is_file() and _has_hash(path.read_bytes(), package):
        return path
    registry = (os.environ.get("NPM_CONFIG_REGISTRY") or REGISTRY).rstrip("/")
    address = f"{registry}/{package.name}/-/{package.file_name}"
    print(f"Downloading {address}", flush=True)
    try:
        with urllib.request.urlopen(address, timeout=TIMEOUT) as response:
            content = response.read()
    except (OSError, http.client.HTTPException, ValueError) as error:  # ValueError: not a URL.
        reason = " ".join(str(getattr(error, "reason", None) or error or type(error).__name__).split())
        raise UserError(
            f"{address} could not be downloaded: {reason}. Set the environment variable NPM_CONFIG_REGISTRY to use "
            "another npm registry, or HTTPS_PROXY to use a proxy."
        ) from None
    if not _has_hash(content, package):
        raise UserError(
            f"{address} has {len(content):,} bytes, and their SHA-512 is not the one published for version "
            f"{package.version} of {package.name}. Try again, or set the environment variable NPM_CONFIG_REGISTRY to "
            "use another npm registry."
        )
    with atomic_file(path) as temporary:
        temporary.write_bytes(content)
    return path


def read_members(path: Path, *names: str) -> list:
    """Reads JSON files from a package's archive without extracting them to disk."""
    with tarfile.open(path, "r:gz") as archive:
        return [json.load(archive.extractfile(f"package/{name}")) for name in names]
