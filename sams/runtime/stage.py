"""What every stage's command line has in common: typed options, plain log lines, one-line errors."""

import inspect
import logging
import os
import sys
import traceback
from collections.abc import Callable
from pathlib import Path
from typing import Annotated, Any, NoReturn, TypeVar, get_origin, get_type_hints

import typer
from pydantic import BaseModel, ValidationError

from sams.runtime.errors import UserError, first_line
from sams.runtime.faults import explained
from sams.runtime.files import write_for_no_others
from sams.runtime.interrupt import end_with_workflow, stop_on_signals

R = TypeVar("R", bound=BaseModel)

EXIT_USER_ERROR = 2
WORKER = "TORCHELASTIC_RUN_ID"  # set by torchrun for its workers


def run(main: Callable[..., Any]) -> NoReturn:
    """Run `main` as a command line; a `UserError` ends it with one line and status 2, a request to stop with 75.

    A fault of the machine, a full disk or no memory, ends it as a `UserError` does.
    """
    # A worker is ended by torchrun, and must not end before it.
    if WORKER not in os.environ:
        end_with_workflow()
    stop_on_signals()
    logging.basicConfig(
        level=logging.INFO if os.environ.get("RANK", "0") == "0" else logging.ERROR,
        format="%(asctime)s %(name)s: %(message)s",
        datefmt="%H:%M:%S",
        stream=sys.stderr,
    )
    write_for_no_others()
    hints = get_type_hints(main, include_extras=True)
    for name, parameter in inspect.signature(main).parameters.items():
        # A stage has options only: typer would make a positional argument of what has no default.
        if parameter.default is parameter.empty and get_origin(hints[name]) is not Annotated:
            hints[name] = Annotated[hints[name], typer.Option()]
    main.__annotations__ = hints
    app = typer.Typer(add_completion=False, pretty_exceptions_enable=False)
    app.command()(main)
    status: Any = 0
    try:
        app()
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
        status = EXIT_USER_ERROR
    except SystemExit as leaving:
        status = leaving.code
    except BaseException as error:  # torch's error of a checkpoint that cannot be written is no Exception
        if (fault := explained(error)) is not None:
            print(f"error: {fault}", file=sys.stderr)
            status = EXIT_USER_ERROR
        else:
            traceback.print_exc()
            status = 1
    if WORKER in os.environ:
        # A failed worker must end at once, so that torchrun ends the others: tearing down a process group
        # whose peers still wait in it may take for ever.
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(status)
    sys.exit(status)


def script(main: Callable[[], None], log: str) -> NoReturn:
    """Run the `main` of a `script:` rule as `run` runs a command line, with its output in the rule's log."""
    descriptor = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o666)
    for output in (sys.stdout, sys.stderr):
        output.flush()
        os.dup2(descriptor, output.fileno())
    run(main)


def read_recipe(recipe: str, kind: type[R]) -> R:
    """Read a stage's recipe, given as a JSON file's path or as JSON itself.

    Raises:
        UserError: naming the key, what was found and what was expected.
    """
    where = "--recipe" if recipe.lstrip().startswith("{") else recipe
    try:
        text = recipe if where == "--recipe" else Path(recipe).read_text(encoding="utf-8")
        return kind.model_validate_json(text)
    except FileNotFoundError:
        raise UserError("no such file", where=where, remedy="give a JSON file or JSON text") from None
    except ValidationError as error:
        from sams.runtime.problems import first_problem

        key, problem = first_problem(error, kind)
        place = f"{where}: key '{key}'" if key else where
        raise UserError(problem, where=place, remedy="`sams recipe` prints whole recipes") from None
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(
            f"cannot be read ({first_line(error)})", where=where, remedy="give a JSON file or JSON text"
        ) from None
