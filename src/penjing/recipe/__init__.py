"""Recipes: what a run is asked for in words, and the objects that the words name."""

from penjing.recipe.names import found as found
from penjing.recipe.names import load_model as load_model
from penjing.recipe.names import load_task as load_task
from penjing.recipe.names import load_weights as load_weights
from penjing.recipe.names import look_in as look_in
from penjing.recipe.recipe import RECIPE as RECIPE
from penjing.recipe.recipe import Recipe as Recipe
from penjing.recipe.recipe import drop_in_words as drop_in_words
from penjing.recipe.recipe import dump_recipe as dump_recipe
from penjing.recipe.recipe import option as option
from penjing.recipe.recipe import read_recipe as read_recipe
from penjing.recipe.recipe import recipe_schema as recipe_schema
from penjing.recipe.recipe import starting_recipe as starting_recipe
