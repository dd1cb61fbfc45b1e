"""Training: one loop on Lightning Fabric."""

from penjing.train.fit import Epoch as Epoch
from penjing.train.fit import Training as Training
from penjing.train.fit import fit as fit
