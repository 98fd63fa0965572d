"""Hypothesis: random at a desk, the same examples every time in CI, no deadline on a busy machine. SIGINT as at a desk:
a shell without job control has it ignored for what it starts with `&`, and every child would inherit that."""

import os
import signal

from hypothesis import settings

if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
    signal.signal(signal.SIGINT, signal.default_int_handler)

settings.register_profile("desk", deadline=None)
settings.register_profile("ci", deadline=None, derandomize=True)
settings.load_profile("ci" if os.environ.get("CI") else "desk")
