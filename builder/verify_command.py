"""`builder verify`: verdicts by verifiers, then by a judge that was tried first."""

from typing import Annotated

import typer

from builder.options import Context


def verify(
    context: Context,
    calibrate: Annotated[
        bool, typer.Option("--calibrate", help="Only try the judge on answers known to be right or wrong.")
    ] = False,
) -> None:
    """responses → verdicts: correct, wrong, unscorable, timeout, error. What no verifier decides goes to the recipe's
    judge, if it has one: first it is tried on known answers, and one that errs too often decides nothing."""
    context.steps.verify(calibrate=calibrate)
