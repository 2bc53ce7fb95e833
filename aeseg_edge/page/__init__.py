"""The live page: a sink that a browser looks at, ``-o http://127.0.0.1:8080``.

``sink.py`` owns the server's thread, ``hub.py`` the newest result and what is encoded of it,
``app.py`` the addresses, ``guard.py`` who may ask, ``classes.py`` the edits, ``metrics.py``
the text for Prometheus, ``page.*`` what the browser runs. Starlette and uvicorn are the
extra ``web``.
"""
