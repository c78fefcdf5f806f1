"""Files that runs start from, and where they are looked for."""

from __future__ import annotations

from pathlib import Path

from harness.config import ConfigError, is_file, near_files
from harness.contracts import Encoder
from harness.site import NAME, weights_folder


def find_input(text: str, base_dir: Path, encoder: type[Encoder] = Encoder) -> Path:
    """The file that `text` means, relative to `base_dir`. What an `encoder` starts from may also
    lie in the site's folder of weights, and be a folder if the encoder reads it itself.

    Raises ConfigError that names every place.
    """
    more = weights_of(encoder)
    instead = "" if encoder is Encoder else _instead(text, more)
    try:
        beside = base_dir / Path(text).expanduser()
        if more is not None and not _exists(beside) and _exists(more / text):
            return encoder.locate(text, more)
        path = encoder.locate(text, base_dir)
    except (RuntimeError, ConfigError) as error:  # ~nobody; a name that no hub knows
        raise ConfigError(f"{text}: {error}{instead}") from None
    folders = encoder.load is not Encoder.load
    if is_file(path) or (folders and path.is_dir()):
        return path
    raise ConfigError(f"no such file: {path}{near_files(path)}{instead}")


def weights_of(encoder: type[Encoder]) -> Path | None:
    """The site's folder of weights, for an encoder."""
    return None if encoder is Encoder else weights_folder()


def _instead(text: str, more: Path | None) -> str:
    """Where else it was looked for, or could be."""
    if more is None:
        return f"; published files (docs/weights.md) may lie where `weights: DIR` of {NAME} says"
    return f", nor {more / text}{near_files(more / text)}; docs/weights.md says where to get it"


def _exists(path: Path) -> bool:
    try:
        return path.exists()
    except (OSError, ValueError):  # a name that cannot be one
        return False
