"""Knowledge distillation: losses that know a teacher."""

from penjing.distill.logits import TeacherLoss as TeacherLoss
from penjing.distill.logits import imitate as imitate
from penjing.distill.logits import kl as kl
from penjing.distill.logits import weighted as weighted
from penjing.distill.logits import with_labels as with_labels
