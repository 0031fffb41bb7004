"""What `fastdiff.sample` is told of Imagen's U-Nets."""

from __future__ import annotations

from dataclasses import replace
from functools import lru_cache

from fastdiff.process.prediction import Prediction, get_prediction


@lru_cache  # programs are kept by what they were traced with
def of_log_snr(prediction: str = "eps") -> Prediction:
    """A prediction of a network whose times are the logarithm of the signal-to-noise ratio, log(alpha^2 / sigma^2), as
    `ImagenUNet` takes them: `fastdiff.sample(model, shape, prediction=of_log_snr("v"), ...)`.

    prediction: a name in fastdiff.prediction.PREDICTIONS, what the network was trained to say: "eps", "x0" or "v".
    """
    known = get_prediction(prediction)
    return replace(known, name=f"{known.name} of the log-SNR", noise_time=lambda point: 2 * point.lam)
