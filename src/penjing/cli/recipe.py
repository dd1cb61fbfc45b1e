"""Recipes: `penjing recipe`."""

import sys
from typing import Annotated

import typer

from penjing.cli.app import app, print_json
from penjing.recipe import recipe_schema, starting_recipe


@app.command("recipe")
def recipe_command(
    schema: Annotated[bool, typer.Option("--schema", help="Print the JSON schema instead, for editors.")] = False,
) -> None:
    """Print a recipe to begin with: every key of `penjing compress RECIPE`, its default and what it is.

    Example: `penjing recipe > recipe.yaml`, and for editors `penjing recipe --schema > recipe.schema.json`
    """
    print_json(recipe_schema()) if schema else sys.stdout.write(starting_recipe())
