from pathlib import Path

INSTALLATION = Path(__file__).parents[2] / "k3d"
