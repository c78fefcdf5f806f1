"""What MLflow's own database holds, in a few queries.

MLflow's client makes an object of every value: of a thousand runs that takes many seconds. Here the
same tables are read as they are; where a server stands between, the client is asked instead.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from typing import Any

from mlflow.store.db.db_types import DATABASE_ENGINES
from mlflow.store.tracking.dbmodels.models import (
    SqlLatestMetric,
    SqlMetric,
    SqlParam,
    SqlRun,
    SqlTag,
)
from mlflow.tracking._tracking_service.utils import _get_store

BULK = 200
"""runs that one query asks for"""


def is_database(uri: str) -> bool:
    """Whether a tracking URI leads to a database, and not to a server."""
    return uri.partition(":")[0].partition("+")[0] in DATABASE_ENGINES


def runs(uri: str, experiment: str) -> dict[str, tuple[dict[str, Any], ...]]:
    """MLflow's run id -> (last metrics, params, tags) of each run that is not deleted."""
    tables: tuple[Any, ...] = (SqlLatestMetric, SqlParam, SqlTag)
    with _get_store(uri).ManagedSessionMaker() as session:
        active = session.query(SqlRun.run_uuid).filter(
            SqlRun.experiment_id == int(experiment), SqlRun.lifecycle_stage == "active"
        )
        found: dict[str, tuple[dict[str, Any], ...]] = {run: ({}, {}, {}) for (run,) in active}
        for place, table in enumerate(tables):
            columns = [table.run_uuid, table.key, table.value]
            if table is SqlLatestMetric:
                columns.append(table.is_nan)
            for run, key, value, *nan in session.query(*columns).filter(
                table.run_uuid.in_(active.scalar_subquery())
            ):
                if run in found:
                    found[run][place][key] = math.nan if nan and nan[0] else value
    return found


def points(uri: str, ids: Sequence[str], metric: str) -> Iterator[tuple[str, int, float]]:
    """(MLflow's run id, step, value) of a metric, in no order."""
    columns = (SqlMetric.run_uuid, SqlMetric.step, SqlMetric.value, SqlMetric.is_nan)
    with _get_store(uri).ManagedSessionMaker() as session:
        for place in range(0, len(ids), BULK):
            of_these = (SqlMetric.key == metric, SqlMetric.run_uuid.in_(ids[place : place + BULK]))
            for run, step, value, nan in session.query(*columns).filter(*of_these):
                yield run, step, math.nan if nan else value
