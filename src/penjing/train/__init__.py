"""Training: one loop on Lightning Fabric."""

from penjing.train.fit import Epoch as Epoch
from penjing.train.fit import fit as fit
from penjing.train.freeze import Freezing as Freezing
from penjing.train.portion import portioned as portioned
from penjing.train.portion import seconds_a_step as seconds_a_step
from penjing.train.settings import Training as Training
from penjing.train.sparse import ACDC as ACDC
from penjing.train.sparse import GradualMagnitude as GradualMagnitude
from penjing.train.sparse import GradualMovement as GradualMovement
from penjing.train.sparse import RigL as RigL
from penjing.train.sparse import Sparsity as Sparsity
from penjing.train.teach import Lessons as Lessons
from penjing.train.teach import Step as Step
from penjing.train.teach import Taught as Taught
from penjing.train.teach import teach as teach
