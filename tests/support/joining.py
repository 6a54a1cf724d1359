"""The settings of platforms that join each other."""

from __future__ import annotations

import dynamic_workflows as dw

CONFIG = dw.PlatformConfig(isolation="unsafe-none", pool_size=1)
