# SPDX-License-Identifier: Apache-2.0
"""`qanat version`: what to put into a bug report."""

from __future__ import annotations

import platform
import ssl
from importlib.metadata import PackageNotFoundError, version

import click

from nodeagent.cli.render import Format, dump


def installed() -> str:
    try:
        return version("qanat")
    except PackageNotFoundError:
        return "not installed (run from source)"


@click.command(name="version", epilog="\b\nExamples:\n  qanat version\n  qanat version -o json")
@click.option("-o", "--output", "form", type=click.Choice(["table", "json", "yaml"]), default="table")
def show(form: str) -> None:
    """Versions of Qanat and of what it stands on."""
    found = {
        "qanat": installed(),
        "kernel": platform.release(),
        "machine": platform.machine(),
        "python": platform.python_version(),
        "openssl": ssl.OPENSSL_VERSION,
    }
    chosen = Format(form)
    if chosen.is_data:
        click.echo(dump(found, chosen))
    else:
        for name, text in found.items():
            click.echo(f"{name:8} {text}")
