"""The repo: the HTTP server from which each pod gets its plan and to which it reports."""
