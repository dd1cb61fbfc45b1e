"""Search: a budget in, the fastest network within it out."""

from penjing.search.allocate import Tables as Tables
from penjing.search.allocate import allocate as allocate
from penjing.search.allocate import extremes as extremes
from penjing.search.allocate import scaled as scaled
from penjing.search.allocate import uniform as uniform
from penjing.search.budget import Budget as Budget
from penjing.search.budget import Limit as Limit
from penjing.search.damage import Damage as Damage
from penjing.search.damage import in_power as in_power
from penjing.search.damage import narrowing as narrowing
from penjing.search.gallop import gallop as gallop
from penjing.search.knapsack import Allocation as Allocation
from penjing.search.ladder import Candidate as Candidate
from penjing.search.ladder import Cost as Cost
from penjing.search.ladder import best as best
from penjing.search.ladder import marked as marked
from penjing.search.ladder import shown as shown
from penjing.search.ledger import Ledger as Ledger
from penjing.search.mix import Mix as Mix
from penjing.search.mix import MixSettings as MixSettings
from penjing.search.mix import Tried as Tried
from penjing.search.mix import fastest_mix as fastest_mix
from penjing.search.prices import Prices as Prices
from penjing.search.prices import PriceSettings as PriceSettings
from penjing.search.prices import measure_prices as measure_prices
from penjing.search.timer import Timer as Timer
