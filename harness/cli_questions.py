"""The commands about questions: build them, mask them anew, and see what they give away."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Annotated

import typer

questions = typer.Typer(
    name="questions", help="Questions to segments: build, mask, audit.", no_args_is_help=True
)
Annotations = Annotated[
    Path | None, typer.Option(help="Folder of the EK100 annotations; the site file's by default.")
]
Policy = Annotated[str, typer.Option(help="strict | paper: what is masked in which question.")]
Overwrite = Annotated[bool, typer.Option("--overwrite", help="Replace a file made otherwise.")]


@questions.callback()
def group() -> None:
    """Questions to the segments of EPIC-Kitchens-100: build, mask, audit."""


@questions.command()
def build(
    rows: Annotated[
        list[Path] | None,
        typer.Argument(help="CSV or JSON lines of segments; all of the annotations by default."),
    ] = None,
    out: Annotated[Path, typer.Option("--out", "-o", help="The file of questions.")] = Path(
        "questions.jsonl"
    ),
    backend: Annotated[str, typer.Option(help="template | openai | hf | replay")] = "template",
    level: Annotated[
        int | None,
        typer.Option(help="Of templates: 0 constant, 1 categories, 2 masked narration, the usual."),
    ] = None,
    policy: Policy = "strict",
    model: Annotated[str, typer.Option(help="Name at the server; for hf a folder or name.")] = "",
    base_url: Annotated[
        str | None,
        typer.Option(help="Of a server with OpenAI's protocol, e.g. http://localhost:8000/v1"),
    ] = None,
    key_env: Annotated[
        str, typer.Option(help="Environment variable that holds the key.")
    ] = "OPENAI_API_KEY",
    replay: Annotated[
        list[Path] | None, typer.Option(help="Files of earlier questions, for --backend replay.")
    ] = None,
    prompts: Annotated[
        Path | None, typer.Option(help="Folder with a describe.yaml and an ask.yaml of your own.")
    ] = None,
    temperature: Annotated[float, typer.Option(min=0, max=2)] = 0.0,
    top_p: Annotated[float, typer.Option(min=0, max=1)] = 1.0,
    seed: Annotated[int, typer.Option(help="Sent with each request.", min=0)] = 0,
    max_tokens: Annotated[int, typer.Option(help="Of one answer.", min=1)] = 300,
    jobs: Annotated[int, typer.Option(help="Requests at once.", min=1)] = 8,
    rate: Annotated[float | None, typer.Option(help="Requests a minute, at most.", min=0.1)] = None,
    timeout: Annotated[float, typer.Option(help="Seconds for one request.", min=1)] = 60.0,
    retries: Annotated[int, typer.Option(help="Of a request without answer.", min=0)] = 6,
    price_in: Annotated[
        float | None, typer.Option(help="Dollars per million tokens sent.", min=0)
    ] = None,
    price_out: Annotated[
        float | None, typer.Option(help="Dollars per million tokens answered.", min=0)
    ] = None,
    max_cost: Annotated[
        float | None, typer.Option(help="Stop before more dollars are spent than that.", min=0)
    ] = None,
    limit: Annotated[
        int | None, typer.Option(help="Only so many different rows, for a try.", min=1)
    ] = None,
    shard: Annotated[str, typer.Option(help="i/n: only this process's share, no file yet.")] = "",
    retry: Annotated[bool, typer.Option("--retry", help="Ask again what failed before.")] = False,
    task: Annotated[str, typer.Option(help="recognition | anticipation")] = "recognition",
    ahead: Annotated[
        float, typer.Option(help="Seconds before the action, in anticipation.", min=0)
    ] = 1.0,
    predictions: Annotated[
        list[str] | None,
        typer.Option(
            help="Sweeps or runs (name, id, folder, file) whose predictions are asked about."
        ),
    ] = None,
    describe: Annotated[
        str, typer.Option(help="target | observed: whose prediction, in anticipation.")
    ] = "target",
    allow_leak: Annotated[
        bool, typer.Option("--allow-leak", help="True labels in anticipation; results will say so.")
    ] = False,
    annotations: Annotations = None,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Say what it takes and stop.")] = False,
    overwrite: Overwrite = False,
) -> None:
    """Write a question for the verb and one for the noun of every segment, masked and checked.

    Example: harness questions build --backend openai --model MODEL --policy paper --max-cost 60
    """
    from harness.questions.session import Session, Wanted

    given = {name: value for name, value in locals().items() if name not in ("Session", "Wanted")}
    raise typer.Exit(Session(Wanted.checked(given)).run())


@questions.command()
def mask(
    file: Annotated[Path, typer.Argument(help="Questions with their texts before masking.")],
    out: Annotated[Path, typer.Option("--out", "-o", help="The file to write.")],
    policy: Policy = "strict",
    annotations: Annotations = None,
    overwrite: Overwrite = False,
) -> None:
    """Mask the questions of FILE anew, under another policy or other classes. Asks no model.

    Example: harness questions mask questions.jsonl --policy paper --out paper.jsonl
    """
    from harness.questions.session import mask_file

    print(mask_file(file, out, policy, annotations, overwrite))


@questions.command()
def audit(
    name: Annotated[str, typer.Argument(help="Dataset with a stream of text.")] = "ek100",
    set_: Annotated[
        list[str] | None,
        typer.Option("--set", help="KEY=VALUE, an option of the dataset. Repeatable."),
    ] = None,
    sources: Annotated[
        str, typer.Option(help="Comma-separated values of `questions`; all that can be had.")
    ] = "",
    out: Annotated[Path | None, typer.Option(help="Write the numbers here, as CSV.")] = None,
) -> None:
    """Measure what the text alone tells of verb and noun, per source of questions.

    Example: harness questions audit ek100 --sources constant,category,ground_truth
    """
    from harness.cli_data import dataset_named
    from harness.config import ConfigError
    from harness.questions.audit import audited, table, write_csv

    if out is not None and out.exists():  # before minutes of work
        raise ConfigError(f"--out: {out} is there already; take another name")
    wanted = [source for source in sources.split(",") if source]
    found = list(audited(lambda more: dataset_named(name, [*(set_ or []), *more]), wanted, _say))
    print(table(found, name))
    if out is not None:
        write_csv(found, out)


def _say(text: str) -> None:
    print(text, file=sys.stderr, flush=True)
