"""The command `sams`. Each command imports what it needs, so that others start fast."""

import os
import sys
import warnings
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import typer

if TYPE_CHECKING:
    from sams.study.study import Study

app = typer.Typer(
    add_completion=False,
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
    help="Adaptive sample scheduling for DPO: `sams init` writes a study for your data, `sams run` runs it.",
)

ConfigFiles = Annotated[
    list[Path] | None, typer.Option("--configfile", help="Overlays over config/config.yaml, in order.")
]
Rehearse = Annotated[bool, typer.Option("--rehearse", help="Rehearse the study.")]
Given = Annotated[
    list[str] | None,
    typer.Option(
        "--set", metavar="KEY=VALUE", help="Value of one key, over the overlays: preference.beta=0.3."
    ),
]
Named = Annotated[
    str | None,
    typer.Argument(
        metavar="STUDY", help="File of a study, or its name in config/studies.", show_default=False
    ),
]


@app.command()
def show(
    study: Named = None,
    configfile: ConfigFiles = None,
    results: Annotated[Path, typer.Option(help="Results folder.")] = Path("results"),
    rehearse: Rehearse = False,
    given: Given = None,
    notes: Annotated[bool, typer.Option("--notes", help="Print all notes on the scores.")] = False,
) -> None:
    """Print a study's main table and the methods' differences."""
    import shlex

    from sams.tables.show import show as show_table

    files = _files(study, configfile)
    words = ["sams", "run", *([] if study is None else [study])]
    words += [word for file in configfile or [] for word in ("--configfile", str(file))]
    words += [*(given or []), *["--rehearse"] * rehearse]
    show_table(results, _study(files, rehearse, given), notes=notes, run=shlex.join(words))


@app.command()
def check(
    study: Named = None, configfile: ConfigFiles = None, rehearse: Rehearse = False, given: Given = None
) -> None:
    """Check a study's settings and ask Snakemake whether it can be made; print them as JSON."""
    from sams.launch.run import check_workflow

    files = _files(study, configfile)
    settings = _study(files, rehearse, given)
    check_workflow([str(file) for file in files], [*(given or []), *["rehearse=true"] * rehearse])
    typer.echo(settings.model_dump_json(indent=2))


@app.command()
def run(
    study: Named = None,
    given: Annotated[
        list[str] | None,
        typer.Argument(metavar="KEY=VALUE", help="Values of keys: preference.beta=0.3.", show_default=False),
    ] = None,
    configfile: ConfigFiles = None,
    rehearse: Rehearse = False,
    cores: Annotated[str, typer.Option(help="Number of cores.")] = "all",
) -> None:
    """Run a study and show its progress; go on where it ended."""
    import shlex

    from rich.console import Console

    from sams.launch.run import run_study
    from sams.runtime.processes import EXIT_INTERRUPTED
    from sams.tables.show import show as show_table

    values = list(given or [])
    if study is not None and "=" in study:
        values.insert(0, study)
        study = None
    files = _files(study, configfile)
    settings = _study(files, rehearse, values)
    names = [str(file) for file in files]
    shown = [word for name in names for word in ("--configfile", name)]
    shown += [word for value in values for word in ("--set", value)] + ["--rehearse"] * rehearse
    values += ["rehearse=true"] * rehearse
    status = run_study(settings, names, values, cores=cores, console=Console())
    same = shlex.join(["sams", *sys.argv[1:]])
    if status == EXIT_INTERRUPTED:
        typer.echo(f"Stopped; all is saved. To go on: {same}")
    elif status:
        typer.echo(f"Failed; correct what is named above. To go on: {same}")
    else:
        show_table(Path("results"), settings)
        tables = f"results/{settings.study}/tables"
        typer.echo(f"\nopen     {tables}/main.html")
        if settings.samples:
            typer.echo(f"answers  {tables}/samples.html")
        typer.echo(f"again    {shlex.join(['sams', 'show', *shown])}")
        typer.echo("curves   sams mlflow")
    raise typer.Exit(status)


@app.command()
def data(
    study: Named = None,
    configfile: ConfigFiles = None,
    rows: Annotated[int, typer.Option(min=0, help="Rows of each training split to print.")] = 2,
    rehearse: Rehearse = False,
    given: Given = None,
) -> None:
    """Print a study's rows as they will be trained on.

    Prints lengths, and what is cut, repeated or contradictory, too.
    """
    from sams.data.show import show as show_data

    show_data(_study(_files(study, configfile), rehearse, given), rows)


@app.command()
def init(
    out: Annotated[Path, typer.Argument(help="File to write.")] = Path("study.yaml"),
    model: Annotated[
        str, typer.Option(prompt="Start model (hub id or folder)", help="Hub id or folder.")
    ] = "",
    pairs: Annotated[
        str,
        typer.Option("--data", prompt="Preference pairs (file or hub id)", help="Pairs: a file or a hub id."),
    ] = "",
    test: Annotated[
        str | None, typer.Option(help="Test pairs; default: a share of the prompts is held out.")
    ] = None,
    lora: Annotated[bool, typer.Option("--lora", help="Train adapters.")] = False,
    qlora: Annotated[bool, typer.Option("--qlora", help="Train adapters on weights in 4 bits.")] = False,
    full: Annotated[bool, typer.Option("--full", help="Train all weights.")] = False,
    gpus: Annotated[int | None, typer.Option(min=0, help="Number of GPUs; default: those here.")] = None,
    gpu: Annotated[
        str | None, typer.Option(help="GPU of another machine: H100, H200, B200, A100, L40S or L4.")
    ] = None,
) -> None:
    """Write a study for your model, pairs and GPUs.

    Its rates and lengths fit them.
    """
    from sams.runtime.errors import UserError

    if not out.parent.is_dir():
        raise UserError("no such folder", where=str(out.parent), remedy="create it, or give another name")
    if out.exists():
        raise UserError(
            "there is a file already", where=str(out), remedy="give another name, or move it away"
        )
    from sams.planning.new_study import Machine, Weights, new_study, next_commands

    flags: dict[Weights, bool] = {"full": full, "lora": lora, "qlora": qlora}
    asked = [name for name, given in flags.items() if given]
    if len(asked) > 1:
        raise UserError(f"--{asked[0]} and --{asked[1]} exclude each other", remedy="give one of them")
    weights = asked[0] if asked else None
    machine = Machine.described(gpus, gpu)
    typer.echo(f"Reading {model} and {pairs} ...", err=True)
    for sentence in new_study(out, model=model, data=pairs, test=test, weights=weights, machine=machine):
        typer.echo(f"- {sentence}")
    typer.echo(next_commands(out))


Run = Annotated[
    Path,
    typer.Argument(help="Folder of a run, results/<study>/<setting>/<method>/seed<k>, or an exported model."),
]
Temperature = Annotated[
    float | None,
    typer.Option(min=0, help="0 decodes greedily; default: as in the model's generation_config.json."),
]
Longest = Annotated[int, typer.Option(min=1, help="Maximum length of an answer in tokens.")]
Seed = Annotated[int, typer.Option(help="Seed of the sampling.")]


@app.command()
def sample(
    run: Run,
    prompts: Annotated[
        Path | None,
        typer.Option(
            help="File of prompts: one a line (.txt), or rows with a prompt; default: the test pairs'."
        ),
    ] = None,
    count: Annotated[int, typer.Option(min=1, help="Number of prompts.")] = 5,
    temperature: Temperature = None,
    max_new_tokens: Longest = 256,
    seed: Seed = 0,
    out: Annotated[Path | None, typer.Option(help="Write the answers to this file, as JSONL.")] = None,
) -> None:
    """Print answers of start and trained model side by side."""
    from rich.console import Console

    from sams.generation.talk import prompts_of, prompts_of_study
    from sams.generation.talk import sample as print_samples
    from sams.study.settings import ModelDecoding

    decoding = ModelDecoding(temperature=temperature, max_new_tokens=max_new_tokens, batch_size=8)
    wanted = prompts_of_study(run) if prompts is None else prompts_of(prompts)
    print_samples(run, wanted, count=count, decoding=decoding, seed=seed, console=Console(), out=out)


@app.command()
def chat(run: Run, temperature: Temperature = None, max_new_tokens: Longest = 512, seed: Seed = 0) -> None:
    """Chat with the trained model of a run."""
    from rich.console import Console

    from sams.generation.talk import chat as talk
    from sams.study.settings import ModelDecoding

    decoding = ModelDecoding(temperature=temperature, max_new_tokens=max_new_tokens, batch_size=1)
    talk(run, decoding=decoding, seed=seed, console=Console())


@app.command()
def pairs(
    run: Annotated[
        Path, typer.Argument(help="Folder of a preference run, results/<study>/<setting>/<method>/seed<k>.")
    ],
    count: Annotated[int, typer.Option(min=1, help="Number of pairs of each end.")] = 5,
    out: Annotated[
        Path | None, typer.Option(help="Write all pairs with their texts to this file: .csv or .parquet.")
    ] = None,
) -> None:
    """Print the pairs that a policy trusts least and most."""
    from rich.console import Console

    from sams.tables.pairs_page import show as show_pairs

    show_pairs(run, Console(), count=count, out=out)


@app.command()
def grid(
    method: Annotated[list[str] | None, typer.Option(help="Methods; default: all with a grid.")] = None,
    configfile: ConfigFiles = None,
) -> None:
    """Print an overlay with a method for each point of the grids."""
    import yaml

    from sams.study.grids import written_out

    typer.echo(
        yaml.safe_dump(written_out(_study(_files(None, configfile)), method), sort_keys=False, width=110)
    )


@app.command()
def plan(
    named: Named = None,
    configfile: ConfigFiles = None,
    study: Annotated[
        str | None, typer.Option(help="File of a study, or its name in config/studies; as the argument.")
    ] = None,
    gpu: Annotated[str | None, typer.Option(help="H100 (default), H200, B200, A100, L40S or L4.")] = None,
    gpus: Annotated[
        int | None, typer.Option(min=1, help="Number of GPUs; default: launch.nproc_per_node.")
    ] = None,
    mfu: Annotated[
        float | None,
        typer.Option(min=0.01, max=1.0, help="Share of the GPU's bfloat16 peak that training reaches."),
    ] = None,
    pairs: Annotated[
        int | None, typer.Option(min=1, help="Number of preference pairs, if it is not known.")
    ] = None,
    prompt_tokens: Annotated[
        float | None, typer.Option(min=1, help="Mean number of tokens of a prompt.")
    ] = None,
    response_tokens: Annotated[
        float | None, typer.Option(min=1, help="Mean number of tokens of a response.")
    ] = None,
    results: Annotated[Path, typer.Option(help="Results folder, for data already prepared.")] = Path(
        "results"
    ),
    given: Given = None,
) -> None:
    """Estimate hours, memory, disk and judge calls of a study.

    Needs no GPU and no hub.
    """
    from rich.console import Console

    settings = _study([*_files(named), *_files(study, configfile)], given=given)
    # On stderr, and on a terminal only.
    with Console(stderr=True).status("Simulating a step of each stage; large models take a minute or two"):
        from sams.planning.show import plan_study, print_plan

        planned = plan_study(
            settings,
            results,
            gpu=gpu,
            gpus=gpus,
            mfu=mfu,
            pairs=pairs,
            prompt_tokens=prompt_tokens,
            response_tokens=response_tokens,
        )
    print_plan(*planned)


@app.command()
def recipe(
    stage: Annotated[str, typer.Argument(help="Stage: train_sft, pretrain_scheduler, train_preference, ...")],
    method: Annotated[str, typer.Option(help="Method of the study.")] = "",
    seed: Annotated[int, typer.Option(help="Seed.")] = 0,
    benchmark: Annotated[str, typer.Option(help="Name of a benchmark, or samples.")] = "",
    configfile: ConfigFiles = None,
    given: Given = None,
) -> None:
    """Print the recipe of one job, for a run with torchrun alone."""
    from sams.study.recipes import recipe_of

    resolved = recipe_of(
        _study(_files(None, configfile), given=given), stage, method=method, seed=seed, benchmark=benchmark
    )
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
    results: Annotated[Path, typer.Option(help="Results folder with the MLflow runs.")] = Path("results"),
) -> None:
    """Compare runs: settings, figures, differences with intervals."""
    from sams.tables.compare import compare as compare_runs
    from sams.tables.compare import show, sides, write_curves

    compared = sides(runs, results)
    show(compare_runs(compared))
    if out is not None:
        write_curves(compared, out)


@app.command("judge-agreement")
def judge_agreement(
    annotations: Annotated[
        list[Path],
        typer.Argument(
            metavar="ANNOTATIONS...",
            help="Recorded judgments in AlpacaEval's form, JSON, gzip or not: "
            "results/<model>/weighted_alpaca_eval_gpt4_turbo/annotations.json of github.com/tatsu-lab/alpaca_eval, "
            "or alpaca_eval/annotations.json of a run.",
        ),
    ],
    base_url: Annotated[str | None, typer.Option(help="Address of an OpenAI-compatible judge.")] = None,
    model: Annotated[str | None, typer.Option(help="Model of the judge.")] = None,
    configfile: ConfigFiles = None,
    given: Given = None,
    limit: Annotated[
        int | None, typer.Option(min=1, help="Number of instructions; each model has a pair on each.")
    ] = None,
    one_order: Annotated[
        bool, typer.Option("--one-order", help="Judge only the order that a scoring uses: half the calls.")
    ] = False,
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Only print the number of calls and the cost.")
    ] = False,
    out: Annotated[
        Path | None,
        typer.Option(
            help="Folder for agreement.json, pairs.jsonl and the figure; default: by the judge's name."
        ),
    ] = None,
    store: Annotated[
        Path | None, typer.Option(help="File of the judge's answers; default: in the folder of the result.")
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print agreement.json instead of tables.")] = False,
) -> None:
    """Compare a judge with recorded judgments of GPT-4 Turbo."""
    import logging

    from sams.tables.judge_agreement import compare_judge

    logging.basicConfig(level=logging.INFO, format="%(message)s", stream=sys.stderr)
    settings = _study(_files(None, configfile), given=given)
    compare_judge(
        annotations,
        settings,
        base_url=base_url,
        model=model,
        limit=limit,
        both_orders=not one_order,
        dry_run=dry_run,
        out=out,
        store=store,
        as_json=as_json,
    )


@app.command()
def verify(
    results: Annotated[Path, typer.Argument(help="results/<study>, or a bundle of it.")],
    configfile: Annotated[
        list[Path] | None,
        typer.Option("--configfile", help="Overlays of the study that the results belong to."),
    ] = None,
    bundle: Annotated[
        Path | None,
        typer.Option(
            help="Archive to write, .zip or .tar.gz, with all but weights and data, if every check passes."
        ),
    ] = None,
) -> None:
    """Check results of a study.

    Checks hashes, recipes, environment, commit and figures. Exit status 1 if a check fails.
    """
    from sams.tables.bundle import check_kind, pack, unpacked
    from sams.tables.findings import print_findings
    from sams.tables.verify import verify as check_results

    if bundle is not None:
        check_kind(bundle)
    with unpacked(results) as folder:
        findings = check_results(folder, _study(_files(None, configfile)) if configfile else None)
        print_findings(findings)
        if not all(finding.holds for finding in findings):
            raise typer.Exit(1)
        if bundle is not None:
            typer.echo(f"{bundle}: {pack(folder, bundle)} files")


@app.command()
def schema(
    check_only: Annotated[
        bool, typer.Option("--check", help="Only check that the files are up to date.")
    ] = False,
) -> None:
    """Write config/schema.yaml and docs/settings.md.

    In a checkout they are its own; with an installed package they are written below the current folder.
    """
    from sams.runtime.errors import UserError
    from sams.runtime.source import IS_CHECKOUT, SOURCE
    from sams.study.reference import schema_text, settings_page

    folder = SOURCE if IS_CHECKOUT else Path()
    files = {
        folder / "config" / "schema.yaml": schema_text(),
        folder / "docs" / "settings.md": settings_page(),
    }
    for path, text in files.items():
        if not check_only:
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(text, encoding="utf-8")
        elif not path.is_file() or path.read_text(encoding="utf-8") != text:
            raise UserError("differs from sams/study/settings", where=str(path), remedy="run `sams schema`")


@app.command()
def snakefile() -> None:
    """Print the path of the Snakefile, for `snakemake` and `module`."""
    from sams.runtime.source import SNAKEFILE

    typer.echo(SNAKEFILE)


@app.command()
def mlflow(
    results: Annotated[Path, typer.Option(help="Results folder.")] = Path("results"),
    port: Annotated[int, typer.Option(help="Port on the loopback interface.")] = 5000,
) -> None:
    """Open the MLflow UI on the runs of a results folder."""
    from sams.tracking.pages import open_ui

    raise typer.Exit(open_ui(results, port=port))


@app.command()
def mirror(
    tracker: Annotated[Literal["wandb", "trackio"], typer.Argument(help="Package, which must be installed.")],
    results: Annotated[Path, typer.Option(help="Results folder.")] = Path("results"),
    follow: Annotated[
        float | None, typer.Option(min=1, help="Look again after so many seconds, until interrupted.")
    ] = None,
) -> None:
    """Copy training curves to Weights & Biases or trackio."""
    from sams.tracking.other import mirror as send

    typer.echo(f"{send(tracker, results, follow)} runs sent")


def _files(study: str | None, configfile: list[Path] | None = None) -> list[Path]:
    """Return the file of a study, given as a file or by its name in config/studies, and other overlays.

    Files are looked for in the current folder, then in the package.
    """
    from sams.runtime.source import SOURCE, here_or_packaged

    files = [here_or_packaged(str(file)) for file in configfile or []]
    if study is not None:
        here = here_or_packaged(study)
        is_name = "/" not in study and not here.is_file()
        files.insert(
            0, SOURCE / "config" / "studies" / f"{study.removesuffix('.yaml')}.yaml" if is_name else here
        )
    return files


def _study(configfiles: list[Path], rehearse: bool = False, given: list[str] | None = None) -> "Study":
    """Read a study: overlays over the default study, then the values of `--set`."""
    from sams.study.files import DEFAULT, from_options, load_study, read_settings

    files = [DEFAULT, *configfiles]
    more = from_options(given or []) | ({"rehearse": True} if rehearse else {})
    where = f"{files[-1]} with --set" if given else str(files[-1])
    return load_study(read_settings(files, more), where=where)


def main() -> None:
    """Run the command line. A `UserError` prints one line and exits with status 2."""
    from sams.runtime.errors import UserError
    from sams.runtime.extras import not_installed
    from sams.runtime.files import restrict_umask

    restrict_umask()
    os.environ.setdefault("HF_HUB_DISABLE_PROGRESS_BARS", "1")
    if not sys.warnoptions:
        warnings.simplefilter("ignore", FutureWarning)  # of libraries about each other
    try:
        app()
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
        sys.exit(2)
    except ModuleNotFoundError as error:
        if (fault := not_installed(error)) is None:
            raise
        print(f"error: {fault}", file=sys.stderr)
        sys.exit(2)
