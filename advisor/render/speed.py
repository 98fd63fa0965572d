"""A speed estimate in one line."""

from estimators.answer import SpeedEstimate


def describe_speed(speed: SpeedEstimate | None) -> str:
    """Tokens a second and seconds a step, with their ranges."""
    if speed is None:
        return "not known for this card: name it with --gpu"
    rate, step = speed.tokens_per_second, speed.step_seconds
    return (
        f"{rate.expected:,.0f} tokens/s ({rate.low:,.0f} to {rate.high:,.0f}), "
        f"{step.expected:.2f} s a step, {speed.basis}, {speed.calibration}"
    )
