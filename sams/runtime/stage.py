"""Command line of a stage: typed options, log lines, errors of one line."""

import inspect
import logging
import os
import sys
import traceback
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Annotated, Any, NoReturn, TypeVar, get_origin, get_type_hints

from pydantic import BaseModel, ValidationError

from sams.runtime.errors import UserError, first_line
from sams.runtime.faults import explained
from sams.runtime.files import restrict_umask
from sams.runtime.processes import EXIT_USER_ERROR, WORKER, end_with_parent, stop_on_signals

R = TypeVar("R", bound=BaseModel)


def run(main: Callable[..., Any]) -> NoReturn:
    """Run `main` as a command line and exit.

    A `UserError`, a full disk and a lack of memory end the process with one line and status 2, a request to stop with
    status 75, any other error with a traceback and status 1. A worker of torchrun exits without tear-down.
    """
    import typer  # only the command line needs it: jobs can be started as functions without it

    end_with_parent()
    stop_on_signals()
    logging.basicConfig(
        level=logging.INFO if os.environ.get("RANK", "0") == "0" else logging.ERROR,
        format="%(asctime)s %(name)s: %(message)s",
        datefmt="%H:%M:%S",
        stream=sys.stderr,
    )
    if not sys.warnoptions:
        warnings.simplefilter("ignore", FutureWarning)  # of libraries about each other: the tests show ours
    restrict_umask()
    hints = get_type_hints(main, include_extras=True)
    for name, parameter in inspect.signature(main).parameters.items():
        # typer makes a positional argument of a parameter without default; a stage has options only.
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
    except BaseException as error:  # torch's CheckpointException is not an Exception
        if (fault := explained(error)) is not None:
            print(f"error: {fault}", file=sys.stderr)
            status = EXIT_USER_ERROR
        else:
            traceback.print_exc()
            status = 1
    if WORKER in os.environ:
        # torchrun ends the other workers when this one has ended; tearing down the process group could block on them.
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
    """Read the recipe of a stage from JSON text or from the path of a JSON file.

    Raises:
        UserError: an unreadable file or an invalid key.
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
        location = f"{where}: key '{key}'" if key else where
        raise UserError(problem, where=location, remedy="`sams recipe` prints complete recipes") from None
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(
            f"cannot be read ({first_line(error)})", where=where, remedy="give a JSON file or JSON text"
        ) from None
