"""Response headers of the static page, which its hosts and its service worker give every file."""

_POLICY = "; ".join((
    "default-src 'none'",
    # Compiles WebAssembly; runs no text as a script.
    "script-src 'self' 'wasm-unsafe-eval'",
    "worker-src 'self'",
    "style-src 'self'",
    "img-src 'self' data: blob:",
    "connect-src 'self' data: blob:",
    "manifest-src 'self'",
    "font-src 'self'",
    "media-src blob:",
    "base-uri 'none'",
    "form-action 'none'",
))  # fmt: skip

# Of the page's <meta> element, where `frame-ancestors` has no effect.
DOCUMENT_POLICY = _POLICY

HEADERS = {
    # Without these two a browser gives the page one thread.
    "Cross-Origin-Opener-Policy": "same-origin",
    "Cross-Origin-Embedder-Policy": "require-corp",
    "Cross-Origin-Resource-Policy": "same-origin",
    "X-Content-Type-Options": "nosniff",
    "Referrer-Policy": "no-referrer",
    # Any site may embed the page: the hub shows a Space in a frame.
    "Content-Security-Policy": f"{_POLICY}; frame-ancestors *",
}
