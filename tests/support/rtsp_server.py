"""A camera: an RTSP server with a test picture in H.264, run with the distribution's Python (python3-gi).

``rtsp_server.py PORT USER PASSWORD``; without a user anybody may look. Says ``up`` when it listens.
"""

from __future__ import annotations

import importlib
import sys
from typing import Any

PICTURE = (
    "( videotestsrc is-live=true pattern=ball ! video/x-raw,format=I420,width=160,height=120,framerate=20/1"
    " ! openh264enc gop-size=10 ! h264parse ! rtph264pay name=pay0 config-interval=-1 )"
)
PATH = "/cam"


def serve(port: str, user: str, password: str) -> None:
    """Serve until killed."""
    gi: Any = importlib.import_module("gi")
    gi.require_version("Gst", "1.0")
    gi.require_version("GstRtspServer", "1.0")
    modules: list[Any] = [importlib.import_module(f"gi.repository.{name}") for name in ("Gst", "GstRtspServer", "GLib")]
    gst, rtsp, glib = modules
    gst.init(None)
    server, factory = rtsp.RTSPServer(), rtsp.RTSPMediaFactory()
    server.set_address("127.0.0.1")
    server.set_service(port)
    factory.set_launch(PICTURE)
    factory.set_shared(True)
    if user:
        _protect(rtsp, server, factory, user, password)
    server.get_mount_points().add_factory(PATH, factory)
    if not server.attach(None):
        sys.exit(f"port {port} is taken")
    print("up", flush=True)
    glib.MainLoop().run()


def _protect(rtsp: Any, server: Any, factory: Any, user: str, password: str) -> None:
    auth, token, permissions = rtsp.RTSPAuth(), rtsp.RTSPToken(), rtsp.RTSPPermissions()
    token.set_string("media.factory.role", "viewer")
    auth.add_basic(rtsp.RTSPAuth.make_basic(user, password), token)
    server.set_auth(auth)
    for permission in ("media.factory.access", "media.factory.construct"):
        permissions.add_permission_for_role("viewer", permission, True)
    factory.set_permissions(permissions)


if __name__ == "__main__":
    serve(*sys.argv[1:])
