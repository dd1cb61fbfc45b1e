"""Search: a budget in, the fastest network within it out."""

from penjing.search.budget import Budget as Budget
from penjing.search.budget import Limit as Limit
from penjing.search.ladder import Candidate as Candidate
from penjing.search.ladder import Cost as Cost
from penjing.search.ladder import climb as climb
from penjing.search.ladder import within_limits as within_limits
from penjing.search.mix import Mix as Mix
from penjing.search.mix import MixSettings as MixSettings
from penjing.search.mix import Tried as Tried
from penjing.search.mix import fastest_mix as fastest_mix
