"""Install memtrain: the top-level folders are the packages."""

from setuptools import find_packages, setup

setup(
    name="memtrain",
    version="0.1.0",
    description="Distributed pretraining of language models that have a memory",
    python_requires=">=3.11",
    packages=find_packages(include=["data_prep*", "model*", "training*"]),
    install_requires=[
        "torch>=2.13",
        "deepspeed>=0.19.8",
        "megatron-core>=0.16.1",
        "mlflow>=3.17",
        "sentencepiece>=0.2.1",
        "tokenizers>=0.22",
        "pyarrow>=20",
        "zstandard>=0.23",
        "xxhash>=3.5",
        "fsspec>=2025.3",
        "pydantic>=2.11",
        "pyyaml>=6",
        "numpy>=2",
        "rich>=14",
        "matplotlib>=3.10",
        "safetensors>=0.5",
        "psutil>=6",
        "fsspec>=2024.6",
    ],
    extras_require={
        "remote": ["s3fs>=2025.3"],
        "dedup": ["datasketch>=2"],
        "hf": ["datasets>=4"],
        "dev": [
            "hypothesis>=6.130",
            "datasets>=4",
            "datasketch>=2",
            "moto[server]>=5",
            "mypy>=1.15",
            "pytest>=8.3",
            "pytest-timeout>=2.3",
            "ruff>=0.11",
            "s3fs>=2025.3",
            "scipy>=1.15",
            "transformers>=5",
            "types-PyYAML",
        ],
    },
    package_data={"training.cluster": ["*.sh"]},  # the fixed part of the job scripts
)
