"""The routes of the page, as a Flask application.

Whoever asks must name this server as the host, which a page under a name of its own that leads here
(DNS rebinding) cannot, and must know the token in the address.
"""

import hmac
from typing import Any

from flask import Flask, Response, abort, jsonify, request
from werkzeug.exceptions import HTTPException

from dggraph.errors import BusyError, DggraphError, InputError
from dggraph.viewing.confinement import MAX_BYTES
from dggraph.viewing.fragments import (
    PageContext,
    facts_of,
    write_card,
    write_difference,
    write_view,
)
from dggraph.viewing.gallery import Entry, Gallery
from dggraph.viewing.runs import STEPS
from dggraph.views.escaping import visible

HEADERS = {
    "Cache-Control": "no-store",
    "Cross-Origin-Opener-Policy": "same-origin",
    "Cross-Origin-Resource-Policy": "same-origin",
    "Permissions-Policy": "camera=(), geolocation=(), microphone=()",
    "Referrer-Policy": "no-referrer",
    "X-Content-Type-Options": "nosniff",
    "X-Frame-Options": "DENY",
}
POLICY = "default-src 'none'; frame-ancestors 'none'"
"""The policy of every answer but the page, which has one of its own."""


def make_app(context: PageContext, gallery: Gallery, *, token: str, hosts: frozenset[str]) -> Flask:
    """Return the application.

    Args:
        context: what the page shows, and runs.
        gallery: its images.
        token: the first part of every path.
        hosts: names and ports by which this server may be asked.
    """
    app, runs = Flask("dggraph.viewing", static_folder=None), context.runs
    app.config["MAX_CONTENT_LENGTH"] = MAX_BYTES

    @app.before_request
    def refuse_strangers() -> None:
        if request.headers.get("Host", "") not in hosts:
            abort(403, "this page answers for 127.0.0.1 and localhost only.")
        given = str((request.view_args or {}).pop("token", ""))
        if not hmac.compare_digest(given.encode(), token.encode()):
            abort(404)
        origin = request.headers.get("Origin")
        if request.method not in ("GET", "HEAD") and origin not in (
            None,
            *(f"http://{host}" for host in hosts),
        ):
            abort(403)

    @app.after_request
    def protect(response: Response) -> Response:
        response.headers.update(HEADERS)
        response.headers.setdefault("Content-Security-Policy", POLICY)
        return response

    @app.errorhandler(Exception)
    def tell(error: Exception) -> tuple[Response, int]:
        if isinstance(error, HTTPException):
            code, message = error.code or 500, error.description or error.name
        elif isinstance(error, BusyError):
            code, message = 503, str(error)
        elif isinstance(error, DggraphError):
            code, message = 400, str(error)
        else:
            app.logger.error("a request failed", exc_info=error)
            code, message = 500, f"{type(error).__name__}; the terminal says more."
        return jsonify(error=visible(message)), code

    @app.get("/<token>/")
    def page() -> Response:
        response = Response(write_view(context), mimetype="text/html")
        # the page's own policy, in its head, says what may run; one here would have to repeat it
        response.headers["Content-Security-Policy"] = "frame-ancestors 'none'"
        return response

    @app.get("/<token>/images")
    def images() -> Response:
        return jsonify([_describe(entry) for entry in gallery.entries()])

    @app.post("/<token>/images")
    def drop() -> tuple[Response, int]:
        entry, gone = gallery.add(request.get_data(cache=False), request.args.get("name", ""))
        return jsonify(image=_describe(entry), gone=list(gone)), 201

    @app.get("/<token>/images/<int:number>/thumbnail")
    def thumbnail(number: int) -> Response:
        content = gallery.thumbnail(_find(gallery, number))
        kind = "image/png" if content.startswith(b"\x89PNG") else "image/jpeg"
        return Response(content, mimetype=kind)

    @app.get("/<token>/images/<int:number>/path")
    def path(number: int) -> Response:
        found = runs.at(_find(gallery, number), _step())
        return jsonify(facts_of(context, found))

    @app.get("/<token>/images/<int:number>/card")
    def card(number: int) -> Response:
        entry = _find(gallery, number)
        return Response(write_card(context, entry, runs.at(entry, _step())), mimetype="text/html")

    @app.get("/<token>/difference/<int:first>/<int:second>")
    def difference(first: int, second: int) -> Response:
        entries, step = [_find(gallery, number) for number in (first, second)], _step()
        paths = [runs.at(entry, step).path for entry in entries]
        names = entries[0].name, entries[1].name
        return Response(
            write_difference(context, paths[0], paths[1], names=names), mimetype="text/html"
        )

    return app


def _find(gallery: Gallery, number: int) -> Entry:
    entry = gallery.entry(number)
    if entry is None:
        abort(404, "this image is no longer here.")
    return entry


def _describe(entry: Entry) -> dict[str, Any]:
    return {
        "number": entry.number,
        "name": visible(entry.name),
        "isDropped": entry.content is not None,
    }


def _step() -> int | None:
    """Return the threshold that is asked for, in hundredths; None for the network's own."""
    given = request.args.get("step")
    if given is None:
        return None
    if not (given.isascii() and given.isdecimal() and len(given) <= 2 and int(given) < STEPS):
        raise InputError(
            f"step={given[:20]!r} is not a threshold: give hundredths, 0 to {STEPS - 1}."
        )
    return int(given)
