"""The site file: what belongs to a machine or a lab and not to a result.

`harness.site.yaml` in the working directory, else in the user's config folder. Nothing in it enters
a run id.
"""

from __future__ import annotations

import os
from pathlib import Path

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
    slurm: SlurmSettings = SlurmSettings()
    """what runs ask a cluster for; a sweep's own section `slurm` lies over it"""


def site_file() -> Path | None:
    """The site file that counts here, if there is one."""
    config = Path(os.environ.get("XDG_CONFIG_HOME") or Path.home() / ".config")
    for file in (Path(NAME), config / "harness" / NAME):
        if file.is_file():
            return file
    return None


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
