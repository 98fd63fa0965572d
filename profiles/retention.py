"""Retention: what a model still knows after a training, besides its task."""

from typing import Literal

from profiles.record import Record

RetentionVerdict = Literal["kept", "slightly worse", "forgotten"]


class Retention(Record):
    """The loss on general text before and after, nats a token, each passage counting the same.

    `noise`: the standard error of the difference, from how it differs between the passages.
    """

    passages: int
    loss_before: float
    loss_after: float
    noise: float
    verdict: RetentionVerdict
