"""The command `sams`. Everything heavy is imported by the command that needs it."""

import sys
from pathlib import Path
from typing import Annotated

import typer

app = typer.Typer(
    add_completion=False,
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
    help=__doc__,
)

ConfigFiles = Annotated[
    list[Path] | None, typer.Option("--configfile", help="Overlays over config/config.yaml, in order.")
]
Rehearse = Annotated[bool, typer.Option("--rehearse", help="The study's rehearsal, not the study.")]
SOURCE = Path(__file__).resolve().parent.parent


@app.command()
def show(
    configfile: ConfigFiles = None,
    results: Annotated[Path, typer.Option(help="Results folder.")] = Path("results"),
    rehearse: Rehearse = False,
) -> None:
    """Print a study's main table and where its figures are."""
    from sams.tables.show import show as show_table

    show_table(results, _study(configfile, rehearse))


@app.command()
def check(configfile: ConfigFiles = None, rehearse: Rehearse = False) -> None:
    """Validate a study's settings and print them resolved, as JSON."""
    typer.echo(_study(configfile, rehearse).model_dump_json(indent=2))


@app.command()
def grid(
    method: Annotated[
        list[str] | None, typer.Option(help="Methods; by default, all that have a grid.")
    ] = None,
    configfile: ConfigFiles = None,
) -> None:
    """Print an overlay with a study's tuning grids written out, a method to each point."""
    import yaml

    from sams.study.grids import written_out

    typer.echo(yaml.safe_dump(written_out(_study(configfile), method), sort_keys=False, width=110))


@app.command()
def plan(
    configfile: ConfigFiles = None,
    study: Annotated[
        str | None, typer.Option(help="Name of a study in config/studies, in place of --configfile.")
    ] = None,
    gpu: Annotated[str | None, typer.Option(help="H100 (default), H200, B200, A100, L40S or L4.")] = None,
    gpus: Annotated[int | None, typer.Option(min=1, help="How many; default: launch.nproc_per_node.")] = None,
    mfu: Annotated[
        float | None,
        typer.Option(min=0.01, max=1.0, help="Share of the GPU's bfloat16 peak that is reached."),
    ] = None,
    pairs: Annotated[int | None, typer.Option(min=1, help="Preference pairs, where it is not known.")] = None,
    prompt_tokens: Annotated[float | None, typer.Option(min=1, help="Mean tokens of a prompt.")] = None,
    response_tokens: Annotated[float | None, typer.Option(min=1, help="Mean tokens of a response.")] = None,
    results: Annotated[Path, typer.Option(help="Results folder, for data that is there.")] = Path("results"),
) -> None:
    """Print what a study takes before it runs: jobs, hours, memory, disk, judge. Needs neither GPU nor hub."""
    from sams.planning.show import show as show_plan

    named = [] if study is None else [SOURCE / "config" / "studies" / f"{study}.yaml"]
    show_plan(
        _study([*named, *(configfile or [])]),
        results,
        gpu=gpu,
        gpus=gpus,
        mfu=mfu,
        pairs=pairs,
        prompt_tokens=prompt_tokens,
        response_tokens=response_tokens,
    )


@app.command()
def recipe(
    stage: Annotated[
        str, typer.Argument(help="A rule: train_sft, pretrain_scheduler, train_preference, ...")
    ],
    method: Annotated[str, typer.Option(help="Method of the study.")] = "",
    seed: Annotated[int, typer.Option(help="Seed.")] = 0,
    benchmark: Annotated[str, typer.Option(help="alpaca_eval or mt_bench.")] = "",
    configfile: ConfigFiles = None,
) -> None:
    """Print the recipe of one job, for a bare torchrun line."""
    from sams.study.recipes import recipe_of

    resolved = recipe_of(_study(configfile), stage, method=method, seed=seed, benchmark=benchmark)
    typer.echo(resolved.model_dump_json(indent=2))


@app.command()
def compare(
    runs: Annotated[
        list[str],
        typer.Argument(
            metavar="RUN...",
            help="Folders of runs (.../<method>/seed<k>), of methods with all their seeds, or MLflow run ids.",
        ),
    ],
    out: Annotated[
        Path | None, typer.Option(help="Write the curves to this file: .csv, .svg or .png.")
    ] = None,
    results: Annotated[
        Path, typer.Option(help="Results folder that MLflow run ids are looked up in.")
    ] = Path("results"),
) -> None:
    """Print what sets runs apart: settings, figures, differences with intervals."""
    from sams.tables.compare import compare as hold_beside
    from sams.tables.compare import show, sides, write_curves

    found = sides(runs, results)
    show(hold_beside(found))
    if out is not None:
        write_curves(found, out)


@app.command()
def verify(
    results: Annotated[Path, typer.Argument(help="results/<study>, or a bundle of it.")],
    configfile: Annotated[
        list[Path] | None, typer.Option("--configfile", help="The study that they should be results of.")
    ] = None,
    bundle: Annotated[
        Path | None,
        typer.Option(
            help="Pack all but weights and data as this file, .zip or .tar.gz, if everything holds."
        ),
    ] = None,
) -> None:
    """Check a study's results: hashes, recipes, environment, commit, figures. Exit status 1 if one does not hold."""
    from sams.tables.bundle import check_kind, pack, unpacked
    from sams.tables.findings import print_findings
    from sams.tables.verify import verify as check_results

    if bundle is not None:
        check_kind(bundle)
    with unpacked(results) as folder:
        findings = check_results(folder, _study(configfile) if configfile else None)
        print_findings(findings)
        if not all(finding.holds for finding in findings):
            raise typer.Exit(1)
        if bundle is not None:
            typer.echo(f"{bundle}: {pack(folder, bundle)} files")


@app.command()
def schema(
    check_only: Annotated[
        bool, typer.Option("--check", help="Only see whether the file is up to date.")
    ] = False,
) -> None:
    """Write config/schema.yaml from the typed settings."""
    import yaml

    from sams.runtime.errors import UserError
    from sams.study.config import Study

    text = "# Generated by `sams schema` from sams/study/config.py. Do not edit.\n"
    text += yaml.safe_dump(Study.model_json_schema(), sort_keys=False, allow_unicode=True, width=110)
    path = SOURCE / "config" / "schema.yaml"
    if not check_only:
        path.write_text(text, encoding="utf-8")
    elif not path.is_file() or path.read_text(encoding="utf-8") != text:
        raise UserError("differs from sams/study/config.py", where=str(path), remedy="run `sams schema`")


@app.command()
def mlflow(
    results: Annotated[Path, typer.Option(help="Results folder.")] = Path("results"),
    port: Annotated[int, typer.Option(help="Port on the loopback interface.")] = 5000,
) -> None:
    """Open MLflow's pages on the runs of a results folder."""
    from sams.tracking.pages import open_ui

    raise typer.Exit(open_ui(results, port=port))


def _study(configfiles: list[Path] | None, rehearse: bool = False):  # type: ignore[no-untyped-def]
    from sams.study.config import load_study, read_settings

    files = [SOURCE / "config" / "config.yaml", *(configfiles or [])]
    given = {"rehearse": True} if rehearse else {}
    return load_study(read_settings(files, given), where=str(files[-1]))


def main() -> None:
    """Run the command; a `UserError` ends it with one line and exit status 2."""
    from sams.runtime.errors import UserError
    from sams.runtime.files import write_for_no_others

    write_for_no_others()
    try:
        app()
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
        sys.exit(2)
