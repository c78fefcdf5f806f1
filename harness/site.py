"""The site file: what belongs to a machine or a lab and not to a result.

`harness.site.yaml` in the working directory, else in the user's config folder. Nothing in it enters
a run id.
"""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

from pydantic import Field

from harness.config import Config, ConfigError, validate
from harness.slurm import SlurmSettings
from harness.yamlfile import read_yaml

NAME = "harness.site.yaml"


class Site(Config):
    runs: Path = Path("runs")
    """where run folders, the MLflow database and reports are written"""
    jobs: int | None = Field(default=None, gt=0)
    """runs at once with the local launcher; None: one per GPU, or without one, per core"""
    threads: int | None = Field(default=None, gt=0)
    """CPU threads of each run; None: the cores shared out over the jobs"""
    mlflow_uri: str | None = None
    """tracking URI; None: a SQLite file in `runs`"""
    search_storage: str | None = None
    """URL of a database for the studies of searches, e.g. `postgresql+psycopg://me@host/optuna`;
    None: a journal file beside the runs"""
    slurm: SlurmSettings = SlurmSettings()
    """what runs ask a cluster for; a sweep's own section `slurm` lies over it"""
    weights: Path | None = None
    """folder of published checkpoints: where `init: pretrained:NAME` and `finetuned:NAME` are
    looked for if no such file lies beside the sweep; relative to the site file"""
    data: dict[str, dict[str, Any]] = {}
    """dataset -> where its files lie, e.g. `ek100: {annotations: DIR, footage: DIR}`; paths are
    relative to the site file"""


def site_file() -> Path | None:
    """The site file that counts here, if there is one."""
    config = Path(os.environ.get("XDG_CONFIG_HOME") or Path.home() / ".config")
    for file in (Path(NAME), config / "harness" / NAME):
        if file.is_file():
            return file
    return None


def places(name: str, model: type[Config]) -> dict[str, str]:
    """What the site file says of the dataset `name`, as `model` has it; files and folders absolute.

    Raises ConfigError for an option that `model` lacks, or has otherwise.
    """
    file = site_file()
    written = read_yaml(file).get("data") if file else None
    own = written.get(name) if written else None
    if file is None or own is None:
        return {}
    found, messages = validate(model, own, f"data.{name}.")
    if messages or found is None:
        raise ConfigError(*messages)
    given = {key: value for key in model.model_fields if (value := getattr(found, key)) is not None}
    return {
        key: str((file.parent / value.expanduser()).resolve() if isinstance(value, Path) else value)
        for key, value in given.items()
    }


def weights_folder() -> Path | None:
    """`weights` of the site file, absolute. Raises ConfigError where it is no folder."""
    file = site_file()
    written = read_yaml(file).get("weights") if file else None
    if file is None or written is None or written.value is None:
        return None
    folder = (file.parent / Path(str(written.value)).expanduser()).resolve()
    if not folder.is_dir():
        raise ConfigError(f"{written.where}: weights: no such folder: {folder}")
    return folder


def read_site() -> Site:
    """The site's settings; defaults without a site file. Raises ConfigError."""
    file = site_file()
    if file is None:
        return Site()
    site, messages = validate(Site, read_yaml(file))
    if messages:
        raise ConfigError(*messages)
    assert isinstance(site, Site)
    return site
