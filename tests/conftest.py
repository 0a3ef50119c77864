"""What every test shares: Hypothesis profiles, and a summary that a failing property can be replayed from.

The default profile has no deadline, as tests run side by side on busy machines and no test may depend on how fast it
runs; HYPOTHESIS_PROFILE=thorough tries ten times as many examples.
"""

from __future__ import annotations

import os

from hypothesis import HealthCheck, settings

settings.register_profile("default", deadline=None, print_blob=True, suppress_health_check=[HealthCheck.too_slow])
settings.register_profile("thorough", settings.get_profile("default"), max_examples=1000)
settings.load_profile(os.environ.get("HYPOTHESIS_PROFILE", "default"))
