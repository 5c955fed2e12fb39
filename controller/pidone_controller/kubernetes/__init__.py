"""The only part that talks to the API server, on httpx and Trio. It knows nothing of the rest of the controller."""
