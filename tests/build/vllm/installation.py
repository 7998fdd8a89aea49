"""Environments in which vLLM seems to be installed."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

# As in vllm/config/speculative.py of 0.24.0 and 0.32.0.
SPECULATION = """
from typing import Literal
MTPModelTypes = Literal["deepseek_mtp", "mtp"]
EagleModelTypes = Literal["eagle", "eagle3", MTPModelTypes]
SpeculativeMethod = Literal["ngram", "medusa", "mlp_speculator", "suffix", EagleModelTypes]
Other = Literal["custom_class"]
class SpeculativeConfig:
    method: SpeculativeMethod | None = None
    parallel_drafting: bool = False
"""


def install(site: Path, name: str = "vllm", version: str = "0.24.0") -> Path:
    about = site / f"{name.replace('-', '_')}-{version}.dist-info"
    about.mkdir(parents=True)
    (about / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {name}\nVersion: {version}\n")
    (site / "vllm" / "config").mkdir(parents=True)
    (site / "vllm" / "config" / "speculative.py").write_text(SPECULATION)
    return site


def interpreter(root: Path) -> Path:
    """Site-packages of a new environment."""
    subprocess.run([sys.executable, "-m", "venv", "--without-pip", str(root)], check=True)
    (site,) = root.glob("lib/python3*/site-packages")
    return site
