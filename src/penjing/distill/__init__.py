"""Knowledge distillation: losses that know a teacher."""

from penjing.distill.combine import CosineRamp as CosineRamp
from penjing.distill.combine import Ramp as Ramp
from penjing.distill.combine import weighted as weighted
from penjing.distill.features import attention as attention
from penjing.distill.features import contrastive as contrastive
from penjing.distill.features import hint as hint
from penjing.distill.features import mimic as mimic
from penjing.distill.features import relations as relations
from penjing.distill.features import similarity as similarity
from penjing.distill.lesson import Lesson as Lesson
from penjing.distill.lesson import Tap as Tap
from penjing.distill.lesson import TeacherLoss as TeacherLoss
from penjing.distill.lesson import as_teacher_loss as as_teacher_loss
from penjing.distill.logits import dist as dist
from penjing.distill.logits import dkd as dkd
from penjing.distill.logits import imitate as imitate
from penjing.distill.logits import kl as kl
from penjing.distill.logits import logit_mse as logit_mse
from penjing.distill.logits import standardized_kl as standardized_kl
from penjing.distill.logits import with_labels as with_labels
from penjing.distill.student import plan_student as plan_student
from penjing.distill.student import student_of as student_of
from penjing.distill.table import LOSSES as LOSSES
from penjing.distill.table import loss_named as loss_named
