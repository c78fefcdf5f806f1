"""`harness doctor`: what the machine that runs are to use really has.

`ask` is the command's side: it starts the processes, or submits the job, and prints what they find.
`visit` is the other: it makes the checks of `machine`, `files`, `meeting` and `trial`, and those
that plugins have registered in `harness.registry.CHECKS`.

    runs/doctor/<time>/   request.json    what is asked, and of what
                          found-<n>.json  what task n found, written again after every check
"""
