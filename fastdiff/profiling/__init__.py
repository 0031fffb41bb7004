"""Speed against quality of the samplers of a model: `fastdiff.profile` and `fastdiff profile`.

A sweep (sweep.py) draws the same samples with every setting (settings.py) in rounds, keeps each as it is done
(store.py) and compares them with the converged trajectory (reference.py, measures.py) and with the data (features.py,
distances.py). front.py says which are worth taking, report.py shows it.
"""

from fastdiff.profiling.api import profile
from fastdiff.profiling.features import Extractor, get_extractor
from fastdiff.profiling.results import Profile
from fastdiff.profiling.settings import Setting
from fastdiff.profiling.subject import Subject
from fastdiff.profiling.subjects import get_subject

__all__ = ["Extractor", "Profile", "Setting", "Subject", "get_extractor", "get_subject", "profile"]
