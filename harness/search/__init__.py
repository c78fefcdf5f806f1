"""Searches: each row of a sweep at its own best settings, found under an equal budget.

`planning` reads the file, `desk` keeps the Optuna studies (who tries what, what came out), `worker`
is the process that tries it, `control` starts workers. A trial is an ordinary run of the store.
"""
