"""The client of the API server, on httpx and Trio. It imports nothing of the rest of the controller."""
