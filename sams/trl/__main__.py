"""TRL's script of DPO with a selector: `python -m sams.trl dpo --config settings.yaml`, or under `torchrun -m`.

Options and YAML keys are those of `trl dpo`, and those of `ScheduledDPOConfig`.
"""

import sys
from collections.abc import Sequence
from typing import Any
from unittest.mock import patch

from sams.runtime.errors import UserError, first_line
from sams.runtime.processes import EXIT_USER_ERROR


def parser() -> Any:
    """Return TRL's parser of the script, with our settings."""
    from trl import DatasetMixtureConfig, ModelConfig, ScriptArguments, TrlParser

    from sams.trl.config import ScheduledDPOConfig

    kinds: Any = (ScriptArguments, ScheduledDPOConfig, ModelConfig, DatasetMixtureConfig)
    return TrlParser(kinds, prog="python -m sams.trl dpo")


def read(arguments: Sequence[str]) -> Any:
    """Return the settings of the script, of training, of model and of data.

    Raises:
        UserError: a file cannot be read, or has an unknown key.
    """
    try:
        return parser().parse_args_and_config([*arguments])
    except (OSError, ValueError) as error:
        raise UserError(first_line(error), where="settings", remedy="`--help` lists the keys") from None


def main(arguments: Sequence[str]) -> int:
    """Run the script; return the exit status, 2 after an error of one line."""
    if not arguments or arguments[0] != "dpo":
        print("usage: python -m sams.trl dpo --config FILE [--KEY VALUE ...]", file=sys.stderr)
        return 0 if arguments and arguments[0] in ("-h", "--help") else EXIT_USER_ERROR
    try:
        import trl
        from trl.scripts import dpo

        from sams.trl.refusals import refuse
        from sams.trl.trainer import ScheduledDPOTrainer

        script, training, model, data = read(arguments[1:])
        refuse(training, None)  # before the script reads the data
        with patch.object(trl, "DPOTrainer", ScheduledDPOTrainer):  # the script imports it when it runs
            dpo.main(script, training, model, data)
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
        return EXIT_USER_ERROR
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
