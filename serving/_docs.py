"""The API's documentation page, whole in one answer: Swagger UI from its package, so it works offline and no open route is needed."""

from __future__ import annotations

from functools import lru_cache

from swagger_ui_bundle import swagger_ui_path

__all__ = ["HEADERS", "page"]

HEADERS = {
    "content-security-policy": (
        "default-src 'none'; script-src 'unsafe-inline'; style-src 'unsafe-inline'; img-src data:; connect-src 'self';"
        " base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
    ),
}

_PAGE = """<!doctype html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<title>Caudal API</title>
<link rel="icon" href="data:,">
<style>{css}</style>
</head>
<body>
<div id="api"></div>
<script>{bundle}</script>
<script>
const token = new URLSearchParams(location.search).get("token");
if (token) history.replaceState(null, "", location.pathname);
const ui = SwaggerUIBundle({{
  url: "openapi.json", dom_id: "#api", deepLinking: false, validatorUrl: null,
  requestInterceptor: (request) => {{
    if (token && !request.headers.Authorization) request.headers.Authorization = "Bearer " + token;
    return request;
  }},
}});
</script>
</body>
</html>
"""


@lru_cache(maxsize=1)
def page() -> bytes:
    """The page. The token is taken from its address by the browser and taken out of it; it never stands in the page."""
    css = (swagger_ui_path / "swagger-ui.css").read_text("utf-8")
    bundle = (swagger_ui_path / "swagger-ui-bundle.js").read_text("utf-8")
    # neither text may end the element that it stands in
    return _PAGE.format(css=css.replace("</", "<\\/"), bundle=bundle.replace("</script", "<\\/script")).encode()
