"""The command gan-mask-app."""

from __future__ import annotations

import argparse
import io
import os
import signal
import socket
import tempfile
import threading
import zipfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from PIL import Image

from gan_mask import app, cli, templates, values
from gan_mask.app.options import AppConfig
from gan_mask.app.studio import Studio
from gan_mask.errors import GanMaskError
from gan_mask.faces import forget_old_shapes

EXAMPLES = ("id_0004", "id_0017", "id_0032", "id_0051")  # of the embedded synthetic people
EXAMPLE_SIDE = 512  # pixels; they are embedded at 128
POLICY = (  # the browser itself then refuses to load or send anything elsewhere
    "default-src 'self' data: blob:; script-src 'self' 'unsafe-inline' 'unsafe-eval' blob:; "
    "style-src 'self' 'unsafe-inline'; object-src 'none'; base-uri 'self'; form-action 'self'"
)


def main(argv: Sequence[str] | None = None) -> None:
    parser = cli.Parser(
        prog="gan-mask-app", description=app.__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    cli.add_options(parser, AppConfig, separator="-")
    cli.add_message_options(parser)
    given = vars(parser.parse_args(argv))
    signal.signal(signal.SIGTERM, signal.default_int_handler)  # the folder with the photos goes then, too
    forget_old_shapes()
    with cli.ending("the same command starts it again"), suppress(KeyboardInterrupt):
        with served(values.from_values(AppConfig, given, values.dashed)) as address:
            print(f"gan_mask is at {address} (Ctrl-C ends it)", flush=True)
            threading.Event().wait()


def check_address(c: AppConfig) -> None:
    """GanMaskError where nobody can listen there; said before networks are loaded."""
    with socket.socket(socket.AF_INET6 if ":" in c.host else socket.AF_INET) as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)  # as servers do: one that just ended is no obstacle
        try:
            probe.bind((c.host, c.port))
        except OSError as error:
            raise GanMaskError(
                f"--host {c.host} --port {c.port}: cannot listen there ({error.strerror}); choose another"
            ) from error


@contextmanager
def served(c: AppConfig) -> Iterator[str]:
    """The page, at the address that this yields, as long as the `with` block runs.

    GanMaskError for wrong options, a port in use, and where Gradio is not installed.
    """
    values.check(c)
    check_address(c)
    with tempfile.TemporaryDirectory(prefix="gan_mask-app-") as name:
        folder = Path(name)
        page = _page(folder)
        (folder / "results").mkdir()
        blocks = page.build(Studio(c, folder / "results"), examples(folder / "examples"))
        blocks.queue(max_size=c.waiting)
        _, address, _ = blocks.launch(
            server_name=c.host, server_port=c.port, max_file_size=f"{c.megabytes}mb", share=False, quiet=True,
            prevent_thread_lock=True, show_error=True, footer_links=[], run_history=False, ssr_mode=False,
            pwa=False, enable_monitoring=False, mcp_server=False, app_kwargs={"middleware": [_policy()]},
            allowed_paths=[str(folder / "examples")], **page.look(),
        )  # fmt: skip
        try:
            yield address
        finally:
            blocks.close()


def _page(folder: Path) -> Any:
    """The module of the page, imported so that Gradio keeps quiet, and its files below `folder`."""
    os.environ |= {
        "GRADIO_ANALYTICS_ENABLED": "False", "HF_HUB_DISABLE_TELEMETRY": "1", "GRADIO_TEMP_DIR": str(folder / "gradio"),
    }  # fmt: skip
    try:
        from gan_mask.app import page
    except ImportError as error:
        raise GanMaskError(f"{error}: the page needs Gradio; pip install 'gan_mask[app]'") from error
    return page


def examples(folder: Path) -> list[Path]:
    """Photos of the embedded people, written to `folder`."""
    folder.mkdir()
    paths = []
    with zipfile.ZipFile(templates.ASSETS / "synthfaces.zip") as archive:
        for number, person in enumerate(EXAMPLES, 1):
            with Image.open(io.BytesIO(archive.read(f"synthfaces/{person}/view_1.webp"))) as photo:
                large = photo.convert("RGB").resize((EXAMPLE_SIDE, EXAMPLE_SIDE), Image.Resampling.LANCZOS)
            paths.append(folder / f"synthetic-person-{number}.png")
            large.save(paths[-1])
    return paths


def _policy() -> Any:
    """Middleware that sends POLICY along with every answer."""
    from starlette.datastructures import MutableHeaders
    from starlette.middleware import Middleware

    class Policy:
        def __init__(self, app: Any) -> None:
            self.app = app

        async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
            async def sent(told: Any) -> None:
                if told["type"] == "http.response.start":
                    headers = MutableHeaders(scope=told)
                    headers["Content-Security-Policy"] = POLICY
                    headers["Referrer-Policy"] = "no-referrer"
                await send(told)

            await self.app(scope, receive, sent)

    return Middleware(Policy)
