"""The command line: parse, call, print."""

import os
import sys

import torch

from penjing import ranks

# Each file adds its commands to the application when it is imported, in the order in which --help lists them.
from penjing.cli.app import app, errors
from penjing.cli.compress import demo_budget as demo_budget
from penjing.cli.compress import demo_settings as demo_settings
from penjing.cli.compress import demo_task as demo_task
from penjing.cli.distill import distill_command as distill_command
from penjing.cli.doctor import doctor_command as doctor_command
from penjing.cli.files import export_command as export_command
from penjing.cli.launch import MISTAKE, left_to_launcher
from penjing.cli.prune import inspect_command as inspect_command
from penjing.cli.quantize import quantize_command as quantize_command
from penjing.cli.recipe import recipe_command as recipe_command
from penjing.cli.report import report_command as report_command
from penjing.errors import PenjingError
from penjing.graph import reading_once
from penjing.measure import cores

INTERRUPTED = 130  # the exit code that typer makes of Ctrl-C
GOING_ON = (["compress"], ["demo"], ["distill"])  # commands that leave in a folder what they have made


def main() -> None:
    """Run the command line; a user's mistake is one clear line and exit code 2."""
    if ranks.launched() != (1, 1) or "OMP_NUM_THREADS" not in os.environ:  # which torchrun sets to 1, if nobody did
        torch.set_num_threads(max(1, cores() // ranks.launched()[0]))
    try:
        with reading_once():
            app()
    except PenjingError as e:
        if not left_to_launcher(str(e)):
            errors.print(f"penjing: {e}", style="red", markup=False, highlight=False, soft_wrap=True)
        sys.exit(MISTAKE)
    except SystemExit as e:
        if e.code == INTERRUPTED and not left_to_launcher("stopped"):
            goes_on = "; the same command goes on from here" if sys.argv[1:2] in GOING_ON else ""
            errors.print(f"penjing: stopped{goes_on}", markup=False)
        raise
