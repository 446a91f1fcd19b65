"""What to install where something is missing: commands that work anywhere, as they are written.

A test holds them against the extras of pyproject.toml.
"""

CUPY = {  # by the major version of CUDA that the driver runs
    12: 'pip install "cupy-cuda12x>=14" "nvidia-cuda-nvrtc-cu12>=12.8"',
    13: 'pip install "cupy-cuda13x>=14" "nvidia-cuda-nvrtc==13.*"',
}
EITHER_CUPY = f"{CUPY[12]} (with CUDA 13: {CUPY[13]})"
PLOT = 'pip install "matplotlib>=3.8"'
