"""What the store holds of a sweep's runs: the table that `plan` prints."""

from __future__ import annotations

from harness.plan import PlannedRun, Sweep
from harness.provenance import changes
from harness.store import Store


def state_of(run: PlannedRun, store: Store) -> tuple[str, str]:
    """(state, what a sweep would do with the run and why)."""
    folder = store.run(run.run_id)
    state = folder.state()
    if state == "done":
        changed = changes(store, run.run_id)
        if changed:
            return f"done (code differs: {', '.join(changed)})", "skip; --stale rerun makes it anew"
        return "done", "skip: it has a result"
    if state == "failed":
        return "failed", f"skip; --retry runs it again: {folder.failure_line()}"
    if state == "interrupted":
        epochs = len(folder.metrics())
        return "interrupted", f"resume after epoch {epochs}/{run.spec.train.epochs}"
    if state == "pruned":
        return "pruned", f"run on: {folder.pruned().get('why', 'a search ended it')}"
    if state == "running":
        return "running", "wait for the process that runs it"
    return "new", "run"


def stale_runs(sweep: Sweep, store: Store) -> list[str]:
    """Finished runs made with something that has changed since."""
    return [run_id for run_id in sweep.run_ids if changes(store, run_id)]


def plan_table(sweep: Sweep, store: Store) -> str:
    """One line per run."""
    lines = []
    counts: dict[str, int] = {}
    for run in sweep.runs:
        state, action = state_of(run, store)
        counts[state.split(" ")[0]] = counts.get(state.split(" ")[0], 0) + 1
        lines.append(f"{run.run_id}  {run.row:<28} seed {run.spec.seed:<3} {state:<12} {action}")
    total = ", ".join(f"{number} {state}" for state, number in counts.items())
    title = f"{sweep.file}, preset {sweep.preset or 'none'}: {len(sweep.runs)} runs ({total})"
    return "\n".join([title, *lines])
