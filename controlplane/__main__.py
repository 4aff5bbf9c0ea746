# SPDX-License-Identifier: Apache-2.0
"""``python -m controlplane --mesh M --config DIR``. Exit codes: 0 stopped as asked, 1 could not start."""

from __future__ import annotations

import asyncio
import logging
import os
import sys

from controlplane import app, config
from controlplane.ca.x509 import BadAuthority
from mesh import privileges
from mesh.lifecycle import Shutdown, expect_many_values, set_up_logging
from mesh.privileges import Capability

log = logging.getLogger("controlplane")


async def _run(settings: config.Config) -> None:
    shutdown = Shutdown()
    shutdown.install()
    await app.run(settings, shutdown)


def main() -> int:
    settings = config.parse(sys.argv[1:])
    expect_many_values()
    set_up_logging(settings.log_level, settings.log_format)
    os.umask(0o077)
    try:
        # Keys in memory: no core dumps. All we need beyond our own files is to read the user's.
        privileges.hide_memory()
        privileges.keep_only({Capability.DAC_READ_SEARCH})
        privileges.no_new_privileges()
        asyncio.run(_run(settings))
    except (BadAuthority, OSError) as error:
        log.error("cannot run", extra={"cause": error})
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
